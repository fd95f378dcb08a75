import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.stores import JOB, opened

from arcd.config import (
    DAEMON_KEYS,
    LORA_RANKS,
    Config,
    for_job,
    on_daemon,
    on_device,
    resolve,
    stored,
    tree,
)
from arcd.errors import BadConfig


def refusal(*settings: str, file: Path | None = None) -> str:
    """The one line with which a configuration is refused."""
    with pytest.raises(BadConfig) as caught:
        resolve(file, settings)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_without_anything_said_the_defaults_stand() -> None:
    assert resolve() == Config()


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "arcd.toml"
    file.write_text('seed = 3\n[train]\nsteps = 7\nschedule = "cosine"\n', encoding="utf-8")
    config = resolve(file)
    assert (config.seed, config.train.steps, config.train.schedule) == (3, 7, "cosine")
    assert config.sample == Config().sample
    assert config.train.lr == Config().train.lr


def test_a_setting_wins_over_the_file_and_an_override_over_both(tmp_path: Path) -> None:
    file = tmp_path / "arcd.toml"
    file.write_text("seed = 1\n[train]\nsteps = 7\nbatch_size = 4\n", encoding="utf-8")
    config = resolve(file, ["seed=2", "train.steps=8"], seed=3)
    assert (config.seed, config.train.steps, config.train.batch_size) == (3, 8, 4)


def test_an_override_that_is_not_given_changes_nothing() -> None:
    assert resolve(settings=["seed=2"], seed=None).seed == 2


def test_the_last_setting_of_a_key_wins() -> None:
    assert resolve(settings=["train.steps=8", "train.steps=9"]).train.steps == 9


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("train.lr=1e-4", "train", "lr", 1e-4),
        ("train.rslora=true", "train", "rslora", True),
        ("train.schedule=cosine", "train", "schedule", "cosine"),
        ('train.schedule="cosine"', "train", "schedule", "cosine"),
        ('train.target_modules=["q_proj"]', "train", "target_modules", ("q_proj",)),
        ("views.permute_colours=false", "views", "permute_colours", False),
        ("engine.max_loras=4", "engine", "max_loras", 4),
    ],
)
def test_a_setting_is_read_as_toml_or_as_a_bare_word(
    setting: str, section: str, key: str, value: object
) -> None:
    assert getattr(getattr(resolve(settings=[setting]), section), key) == value


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("nosuch=1", "nosuch: unknown key"),
        ("train.nosuch=1", "train.nosuch: unknown key"),
        ("trian.steps=1", "trian: unknown key"),
        ("train.steps", "--set train.steps: expected KEY=VALUE, e.g. train.steps=64"),
        ("=1", "--set =1: expected KEY=VALUE, e.g. train.steps=64"),
        ("train..steps=1", "--set train..steps=1: expected KEY=VALUE, e.g. train.steps=64"),
        ("seed.x=1", "seed: Input should be a valid integer"),
        ("train=3", "train: Input should be a valid dictionary or instance of TrainConfig"),
        ("train.steps=-1", "train.steps: Input should be greater than or equal to 0"),
        ("train.steps=many", "train.steps: Input should be a valid integer"),
        ("train.lr=0", "train.lr: Input should be greater than 0"),
        ("train.lr=nan", "train.lr: Input should be a finite number"),
        ("train.lr=inf", "train.lr: Input should be a finite number"),
        ("train.rank=7", "train: rank must be one of 1, 8, 16, 32, 64, 128, 256, 320, 512"),
        ("train.target_modules=[]", "train: target_modules must not be empty"),
        ("train.schedule=wild", "train.schedule: Input should be 'constant', 'linear' or "),
        ("sample.views=17", "sample: views cannot exceed samples"),
        ("sample.views=8", "sample: greedy samples of one view are all alike: "),
        ("views.keep_black=1.5", "views.keep_black: Input should be less than or equal to 1"),
        ("engine.gpu_memory=1.0", "engine.gpu_memory: Input should be less than 1"),
        ("train.steps=999999999999", "train.steps: Input should be less than or equal to 100000"),
        ("seed=9223372036854775808", "seed: Input should be less than or equal to "),
        ("sample.samples=1000000", "sample.samples: Input should be less than or equal to 4096"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_naming_the_key(
    setting: str, reason: str
) -> None:
    assert refusal(setting).startswith(reason)


def test_what_the_engine_cannot_judge_is_refused() -> None:
    settings = ['train.target_modules=["lm_head"]', "sample.judging_views=1"]
    assert refusal(*settings).startswith("config: vLLM does not judge with adapters of lm_head")
    assert resolve(settings=settings[:1]).sample.judging_views == 0


@pytest.mark.parametrize(
    ("settings", "on_cpu", "on_gpu"), [([], 64, 256), (["engine.max_num_seqs=7"], 7, 7)]
)
def test_the_device_decides_on_the_sequences_unless_the_user_does(
    settings: list[str], on_cpu: int, on_gpu: int
) -> None:
    config = resolve(settings=settings)
    found = {kind: on_device(config, kind) for kind in ("cpu", "cuda")}
    assert found["cpu"].engine.max_num_seqs == config.engine.sequences("cpu") == on_cpu
    assert found["cuda"].engine.max_num_seqs == config.engine.sequences("cuda") == on_gpu
    rest = config.engine.model_copy(update={"max_num_seqs": on_gpu})
    assert found["cuda"] == config.model_copy(update={"engine": rest})


def test_an_engine_stored_by_an_earlier_version_is_as_it_was() -> None:
    earlier = {"max_model_len": 4096, "max_loras": 2, "max_num_seqs": 64, "gpu_memory": 0.5}
    engine = stored(json.dumps({"engine": {**earlier, "cpu_cache_gib": None}})).engine
    assert engine.max_num_seqs == 64
    assert (engine.enforce_eager, engine.attention_backend, engine.kv_cache_memory_bytes) == (
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    "setting",
    [
        "engine.enforce_eager=1",
        "engine.attention_backend=FLASH ATTN",
        "engine.kv_cache_memory_bytes=0",
        "engine.kv_cache_memory_bytes=1.5",
        "engine.max_num_seqs=0",
    ],
)
def test_a_setting_of_the_engine_that_makes_no_sense_is_refused(setting: str) -> None:
    assert refusal(setting).startswith(setting.partition("=")[0])


def test_a_value_is_not_a_section() -> None:
    assert refusal("train.steps=1", "train.steps.x=1") == "train.steps.x: steps is not a section"


def test_views_may_be_fewer_than_samples_where_sampling_is_not_greedy() -> None:
    config = resolve(settings=["sample.views=8", "sample.temperature=0.5"])
    assert config.sample.views == 8


@pytest.mark.parametrize("rank", LORA_RANKS)
def test_every_rank_that_the_engine_serves_is_allowed(rank: int) -> None:
    assert resolve(settings=[f"train.rank={rank}"]).train.rank == rank


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"train = [", "not TOML: "),
        (b"seed = 1\nseed = 2", "not TOML: "),
        (b"seed = '\xff'", "not TOML: "),
    ],
)
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "arcd.toml"
    file.write_bytes(content)
    assert refusal(file=file).startswith(f"{file}: {reason}")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert (
        refusal(file=tmp_path / "none.toml") == f"{tmp_path}/none.toml: No such file or directory"
    )
    assert refusal(file=tmp_path) == f"{tmp_path}: Is a directory"


def test_a_configuration_survives_its_json_form() -> None:
    config = resolve(settings=["train.steps=8", "train.start=some/adapter", "sample.views=16"])
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        resolve().seed = 1


def test_a_job_has_the_daemons_settings_but_for_its_own() -> None:
    daemon = resolve(settings=["train.steps=8", "train.rank=8", "sample.samples=4"], seed=3)
    config = for_job(daemon, {"train": {"steps": 9}, "order": "file"})
    assert (config.seed, config.order) == (3, "file")
    assert (config.train.steps, config.train.rank) == (9, 8)
    assert config.sample == daemon.sample


def test_a_job_that_says_nothing_has_the_daemons_configuration() -> None:
    daemon = resolve(settings=["train.steps=8", "engine.max_loras=3"])
    assert for_job(daemon, {}) == daemon
    assert for_job(Config(), tree(settings=["train.steps=8"])) == resolve(
        settings=["train.steps=8"]
    )


@pytest.mark.parametrize("key", sorted(DAEMON_KEYS))
def test_what_only_a_daemon_can_settle_is_refused_in_a_job(key: str) -> None:
    value = {"max_loras": 4} if key == "engine" else getattr(Config(), key)
    with pytest.raises(BadConfig) as caught:
        for_job(Config(), {key: value})
    line = f"{key}: settled when the daemon starts; give it to arcd serve or run"
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"nosuch": 1}, "nosuch: unknown key"),
        ({"train": {"nosuch": 1}}, "train.nosuch: unknown key"),
        ({"train": 3}, "train: Input should be a valid dictionary"),
        ({"train": {"rank": 7}}, "train: rank must be one of 1, 8, 16"),
        ({"sample": {"views": 3}}, "sample: greedy samples of one view are all alike: "),
        ({"seed": {"x": 1}}, "seed: Input should be a valid integer"),
    ],
)
def test_settings_of_a_job_that_make_no_sense_are_refused_in_one_line(
    settings: dict[str, object], reason: str
) -> None:
    with pytest.raises(BadConfig) as caught:
        for_job(Config(), settings)
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


def test_settings_of_daemon_and_job_are_judged_together() -> None:
    daemon = resolve(settings=["sample.temperature=1"])
    assert for_job(daemon, {"sample": {"views": 3}}).sample.views == 3


def test_a_stored_job_is_done_with_what_its_present_daemon_was_started_with() -> None:
    job = resolve(settings=["train.steps=8", "engine.max_loras=3", "lookahead=5"], seed=4)
    daemon = resolve(settings=["train.steps=1", "engine.max_loras=1", "precision=fp32"])
    found = on_daemon(job, daemon)
    assert found == Config(
        seed=4,
        precision="fp32",
        train=job.train,
        engine=daemon.engine,
    )


def test_a_group_of_four_hundred_tasks_is_within_the_bounds() -> None:
    assert resolve(settings=["train.share=400", "train.steps=200"]).train.share == 400
    line = "train: steps x batch_size x share must be at most 400000 lessons"
    assert refusal("train.share=400", "train.steps=501") == line


def numbers(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All numbers of a section and of those it refers to."""
    for section in (schema, *schema.get("$defs", {}).values()):
        for name, field in section["properties"].items():
            for kind in (field, *field.get("anyOf", ())):
                if kind.get("type") in ("integer", "number"):
                    yield name, kind


@pytest.mark.parametrize(("name", "number"), list(numbers(Config.model_json_schema())))
def test_every_number_has_bounds(name: str, number: dict[str, Any]) -> None:
    assert {"maximum", "exclusiveMaximum"} & number.keys(), name
    assert {"minimum", "exclusiveMinimum"} & number.keys(), name


@given(st.data())
def test_a_job_that_was_stored_before_there_were_bounds_is_read(data: st.DataObject) -> None:
    # What 0.1.0 took on: numbers without an upper bound.
    whole, real = st.integers(1, 10**30), st.floats(1, 1e300)
    found = json.loads(Config().model_dump_json())
    for section, key, kind in (
        ("train", "steps", whole),
        ("train", "batch_size", whole),
        ("train", "share", whole),
        ("train", "lr", real),
        ("train", "clip", real),
        ("sample", "samples", whole),
        ("engine", "max_model_len", whole),
    ):
        found[section][key] = data.draw(kind)
    found["seed"] = data.draw(st.integers(-(10**30), 10**30))
    config = stored(json.dumps(found))
    assert stored(config.model_dump_json()) == config
    assert config.train.steps <= found["train"]["steps"]


def test_a_home_with_such_a_job_is_not_lost(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.journal.submit(JOB)
        text = JOB.config.model_dump_json().replace('"steps":3', '"steps":999999999999')
        store.database.connection.execute("UPDATE jobs SET config = ?", (text,))
        assert store.jobs.config(1).train.steps == 100_000


def test_what_is_within_the_bounds_is_read_as_it_was_stored() -> None:
    config = resolve(settings=["train.steps=8", "sample.samples=4", "train.share=2"], seed=3)
    assert stored(config.model_dump_json()) == config


def test_a_jobs_configuration_survives_the_store() -> None:
    config = for_job(resolve(settings=["lookahead=0"]), {"train": {"steps": 5}})
    assert Config.model_validate_json(config.model_dump_json()) == config

"""The configuration: frozen records read from TOML and `--set`; an unknown key is an error.

Knows what each setting means and which values make sense. Knows nothing of the code that a setting
steers. The names of sections and fields are stored with every job: they must not change.
"""

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    StrictBool,
    StrictInt,
    ValidationError,
    model_validator,
)

from arcd.errors import BadConfig

# Strict: `true` is no number and "yes" no truth value.
Count = Annotated[int, Strict(), Field(ge=0)]
Positive = Annotated[int, Strict(), Field(ge=1)]
Tokens = Annotated[int, Strict(), Field(ge=1, le=1 << 20)]
Fraction = Annotated[float, Field(ge=0, le=1)]

Precision = Literal["auto", "bf16", "fp16", "fp32"]

MOST_LESSONS = 400_000
"""Lessons of an adapter at most: what they show takes 200 MB, to find it out takes two minutes."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM serves (0.32, `LoRAConfig.max_lora_rank`)."""


class _Section(BaseModel):
    """What all sections have in common: they are frozen, and know no other keys than theirs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainConfig(_Section):
    """The LoRA adapter of a task and how it is trained."""

    steps: Annotated[Count, Field(le=100_000)] = 60
    """Optimizer steps for each task; 0 answers with the base alone."""
    batch_size: Annotated[Positive, Field(le=1000)] = 2
    """Lessons for each step."""
    lr: Annotated[float, Field(gt=0, le=100)] = 4e-3
    """Highest learning rate, that of the steps after the warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """What the learning rate does after the warm-up: it stays, or it falls to zero on a straight
    line or on half a cosine."""
    warmup: Fraction = 0.05
    """Share of the steps, at the beginning, in which the learning rate rises from zero."""
    rank: Annotated[Positive, Field(le=LORA_RANKS[-1])] = 16
    """Rank of the adapter's matrices, one of LORA_RANKS."""
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 16.0
    """The adapter's part of a layer's output is scaled by alpha / rank (arXiv 2106.09685)."""
    rslora: StrictBool = False
    """Scale by alpha / sqrt(rank) instead (arXiv 2312.03732)."""
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Names of the base model's linear layers that the adapter changes."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability with which an input of the adapter is set to zero in training."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """AdamW's (arXiv 1711.05101): each step shrinks the weights by this times the learning rate."""
    clip: Annotated[float, Field(gt=0, le=1e30)] = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    checkpointing: StrictBool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    max_seq_len: Tokens = 4096
    """Tokens of a lesson at most; pairs are dropped until it fits."""
    loss: Literal["target", "outputs"] = "outputs"
    """Which tokens of a lesson have a loss: those of its target, or those of all outputs but the
    first, which is shown before anything tells the rule."""
    share: Annotated[Positive, Field(le=1000)] = 1
    """Tasks in an adapter group: that many neighbours in the task file are trained together, one
    adapter for all of them, in `steps` steps for each. At most MOST_LESSONS lessons together."""
    start: Path | None = None
    """Folder of a PEFT adapter from which each training starts; by default a fresh one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rank not in LORA_RANKS:
            raise ValueError(f"rank must be one of {', '.join(map(str, LORA_RANKS))}")
        if not self.target_modules:
            raise ValueError("target_modules must not be empty")
        if self.steps * self.batch_size * self.share > MOST_LESSONS:
            raise ValueError(f"steps x batch_size x share must be at most {MOST_LESSONS} lessons")
        return self


class SampleConfig(_Section):
    """How answers are sampled and chosen."""

    samples: Annotated[Positive, Field(le=4096)] = 16
    """Samples for each test input."""
    views: Annotated[Positive, Field(le=4096)] | None = None
    """Different views over which the samples are spread; by default one for each sample."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Of the softmax that tokens are sampled from; 0 takes the likeliest token."""
    judging_views: Annotated[Count, Field(le=256)] = 0
    """Views in which the logprobs of the grids with the most votes are compared, at most as many as
    `samples`; 0: votes alone decide."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.views is not None and self.views > self.samples:
            raise ValueError("views cannot exceed samples")
        if self.temperature == 0 and self.views not in (None, self.samples):
            raise ValueError("greedy samples of one view are all alike: raise the temperature")
        return self


class ViewConfig(_Section):
    """Which views a task is shown in."""

    keep_black: Fraction = 0.9
    """Probability that a permutation of colours leaves colour 0, the usual background, as it is."""
    permute_colours: StrictBool = True
    """Whether views permute colours; all of them flip, turn and reorder the pairs."""


SEQUENCES: dict[Literal["cpu", "cuda"], int] = {"cpu": 64, "cuda": 256}
"""Sequences in one batch where nobody chooses, by kind of device. A decode step reads all weights
once for its whole batch. In the time that this takes a GPU computes 150 to 400 rows (its 16-bit
rate by its bandwidth: A100 156, T4 203, H100 295, L4 403), so 256 sequences cost little more than
one; it is also vLLM's own number on GPUs below 70 GiB. On a CPU each row takes its time."""


class EngineConfig(_Section):
    """How vLLM is started; fields without "gpu" or "cpu" in their names have vLLM's."""

    max_model_len: Tokens = 4096
    """Tokens of prompt and completion together at most."""
    max_loras: Annotated[Positive, Field(le=1000)] = 2
    """Adapters in one batch at most, so tasks that can be sampled at once."""
    max_num_seqs: Annotated[Positive, Field(le=65_536)] | None = None
    """Sequences in one batch at most; by default 64 on a CPU, 256 on a GPU."""
    gpu_memory: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the GPU's memory for the engine; the rest is for the trainer."""
    cpu_cache_gib: Annotated[Positive, Field(le=65_536)] | None = None
    """GiB of memory for keys and values where the engine runs on a CPU; by default 1, or what two
    of the longest prompts need. For arcd's own base 1 GiB holds 170 000 tokens."""
    enforce_eager: StrictBool | None = None
    """Whether vLLM leaves out compiling and CUDA graphs: it starts minutes earlier, and its steps
    are slower. By default only on a CPU."""
    attention_backend: Annotated[str, Field(pattern="^[A-Za-z0-9_]+$")] | None = None
    """vLLM's name for the attention kernels, such as `FLASH_ATTN`, `FLASHINFER` or `TRITON_ATTN`;
    by default what vLLM takes for the device."""
    kv_cache_memory_bytes: Annotated[Positive, Field(le=1 << 44)] | None = None
    """Bytes for keys and values, in place of what `gpu_memory` or `cpu_cache_gib` come to."""

    def sequences(self, kind: Literal["cpu", "cuda"]) -> int:
        """Sequences in one batch at most on a device of this kind."""
        return self.max_num_seqs or SEQUENCES[kind]


class BudgetConfig(_Section):
    """The time that a job may take."""

    seconds: Annotated[float, Field(gt=0, le=1e8)] | None = None
    """Seconds from the submission of the job to its end; then every task has the best answer found
    so far. None: no limit, each task is trained and sampled once."""
    reserve: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    """Seconds of these in which no task is worked on: for writing answers and stopping."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.seconds is not None and self.reserve >= self.seconds:
            raise ValueError("the reserve takes the whole budget")
        return self


class Config(_Section):
    """Everything that decides the answer to a task, beside the base model and the task itself."""

    seed: Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)] = 0
    """Decides all lessons, questions and samples; see `system.seeds`."""
    encoding: str = "auto"
    """How grids become tokens: `cells`, or layers of text such as `shape+rows+digits`; `auto` takes
    what the base model was made for."""
    precision: Precision = "auto"
    """Number format of weights and activations; `auto`: bf16 where the device has it, else fp16 on
    a GPU and fp32 on a CPU."""
    lookahead: Annotated[Count, Field(le=1000)] = 2
    """Tasks in flight beyond those in training: trained adapters that wait or are sampled."""
    trainings: Annotated[Positive, Field(le=256)] | None = None
    """Adapters that are trained at once. By default one on a GPU; on a CPU half as many as it has
    cores, but two on two cores: two trainings with a core each are faster than one with both."""
    order: Literal["johnson", "file", "cheapest"] = "johnson"
    """Which task comes next. `johnson`: a few short tasks, so that there is soon an answer; then
    short trainings first and short samplings last, so that trainer and engine are both busy until
    near the end (Johnson's rule, Naval Research Logistics Quarterly 1, 1954); `file`: as in the
    task file; `cheapest`: the shortest. A job with a budget always begins with the shortest, so
    that many tasks are done when its time is up."""
    train: TrainConfig = TrainConfig()
    """The adapter and its training."""
    sample: SampleConfig = SampleConfig()
    """Sampling and the choice of answers."""
    views: ViewConfig = ViewConfig()
    """The views that lessons and questions are shown in."""
    engine: EngineConfig = EngineConfig()
    """The inference engine."""
    budget: BudgetConfig = BudgetConfig()
    """The time limit of a job."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.budget.seconds is not None and self.train.share > 1:
            raise ValueError("a budget is kept task by task: train.share must be 1")
        if "lm_head" in self.train.target_modules and self.sample.judging_views:
            raise ValueError(
                "vLLM does not judge with adapters of lm_head: sample.judging_views must be 0"
            )
        return self


DAEMON_KEYS = frozenset({"encoding", "precision", "lookahead", "trainings", "engine"})
"""Keys of `Config` that are decided when the models are loaded, and hold for all of a daemon's
jobs."""


def resolve(file: Path | None = None, settings: Iterable[str] = (), **overrides: object) -> Config:
    """The configuration from a TOML file, `--set key.path=value` settings and keyword overrides.

    A setting wins over the file, an override over both; overrides that are None are ignored. What
    nothing names has its default. Raises BadConfig in one line that names the key.
    """
    return _validated(tree(file, settings, **overrides))


def for_job(daemon: Config, settings: Mapping[str, object]) -> Config:
    """The configuration of a job that is submitted with `settings`, nested as in a TOML file.

    What the settings do not name is as in the daemon's configuration. Raises BadConfig for keys in
    DAEMON_KEYS, and for a rank above the daemon's: its engine has room for no larger one.
    """
    for key in settings:
        if key in DAEMON_KEYS:
            raise BadConfig(f"{key}: settled when the daemon starts; give it to arcd serve or run")
    job = _validated(_merged(daemon.model_dump(exclude_unset=True), settings))
    largest = daemon.train.rank
    if job.train.rank > largest:
        raise BadConfig(
            f"train.rank: at most {largest} in this daemon; start it with --set train.rank="
            f"{job.train.rank}"
        )
    return job


def on_daemon(job: Config, daemon: Config) -> Config:
    """The configuration of a stored job that goes on in a daemon started with other settings.

    Keys in DAEMON_KEYS are the new daemon's, all others the job's.
    """
    return job.model_copy(update={key: getattr(daemon, key) for key in DAEMON_KEYS})


def on_device(config: Config, kind: Literal["cpu", "cuda"]) -> Config:
    """The configuration with the number of sequences that a device of this kind has."""
    engine = config.engine.model_copy(update={"max_num_seqs": config.engine.sequences(kind)})
    return config.model_copy(update={"engine": engine})


def stored(text: str) -> Config:
    """The configuration of a stored job, from its JSON text.

    A number beyond a bound that a later version has drawn is taken down, or up, to the bound: a job
    of yesterday must not keep a daemon from starting today.
    """
    found: dict[str, Any] = json.loads(text)
    try:
        return Config.model_validate(found)
    except ValidationError as error:
        for each in error.errors():
            bounds = each.get("ctx", {})
            if (bound := bounds.get("le", bounds.get("ge"))) is not None:
                _put(found, [str(part) for part in each["loc"]], bound)
        if "steps" in (train := found.get("train", {})):
            size = train.get("batch_size", 1) * train.get("share", 1)
            train["steps"] = min(train["steps"], MOST_LESSONS // size)
    return Config.model_validate(found)


def tree(
    file: Path | None = None, settings: Iterable[str] = (), **overrides: object
) -> dict[str, Any]:
    """Settings of a file, of `--set` and of keywords as one nested dict, not yet validated.

    E.g. {"seed": 3, "train": {"steps": 8}}; it holds only what was given, no defaults. Which one
    wins is as in `resolve`. Raises BadConfig where a file or setting cannot be read.
    """
    found = _read(file) if file else {}
    for setting in settings:
        _put(found, *_parse(setting))
    return found | {key: value for key, value in overrides.items() if value is not None}


def with_settings(below: Mapping[str, Any], settings: Mapping[str, str]) -> dict[str, Any]:
    """`below`, a nested dict, changed by `settings`: {"train.steps": "8"}, as `--set` takes them.

    Raises BadConfig where the result is not a valid configuration.
    """
    above: dict[str, Any] = {}
    for key, value in settings.items():
        _put(above, *_parse(f"{key}={value}"))
    found = _merged(below, above)
    _validated(found)
    return found


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both, nested ones too; where both have a value, that of `above`."""
    both = {
        key: _merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
    }
    return {**below, **above, **both}


def _validated(settings: Mapping[str, object]) -> Config:
    """The configuration; raises BadConfig with the first of pydantic's errors in one line."""
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadConfig(f"{key or 'config'}: {reason.removeprefix('Value error, ')}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"{file}: {error.strerror or error}") from None
    except ValueError as error:  # of tomllib, of UTF-8, of numbers with thousands of digits
        raise BadConfig(f"{file}: not TOML: {error}") from None
    except RecursionError:
        raise BadConfig(f"{file}: nested too deeply") from None


def _parse(setting: str) -> tuple[list[str], object]:
    """E.g. "train.steps=8" gives (["train", "steps"], 8)."""
    key, found, text = setting.partition("=")
    if not found or not all(key.split(".")):
        raise BadConfig(f"--set {setting}: expected KEY=VALUE, e.g. train.steps=64")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text  # not TOML: a string without quotes, --set train.schedule=cosine
    return key.split("."), value


def _put(tree: dict[str, Any], path: list[str], value: object) -> None:
    """Set tree["train"]["steps"] for the path ["train", "steps"]; missing sections are added."""
    *sections, key = path
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise BadConfig(f"{'.'.join(path)}: {section} is not a section")
    tree[key] = value

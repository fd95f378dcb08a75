"""The configuration: frozen records read from TOML and `--set`; an unknown key is an error.

Knows what each setting means and which values make sense; knows nothing of who uses it.
"""

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
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["auto", "bf16", "fp16", "fp32"]

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM serves (0.32, `LoRAConfig.max_lora_rank`)."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainConfig(_Section):
    """The LoRA adapter of a task and how it is trained."""

    steps: Count = 60
    """Optimizer steps for each task; 0 answers with the base alone."""
    batch_size: Positive = 2
    """Lessons for each step."""
    lr: Annotated[float, Field(gt=0)] = 4e-3
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """What the learning rate does after the warm-up: stay, or fall to zero."""
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises from zero."""
    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 16.0
    rslora: StrictBool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv 2312.03732)."""
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    checkpointing: StrictBool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    max_seq_len: Positive = 4096
    """Tokens of a lesson at most; pairs are dropped until it fits."""
    loss: Literal["target", "outputs"] = "outputs"
    """Learn the target only, or also the outputs of the pairs before it but the first."""
    share: Positive = 1
    """Tasks, neighbours in their file, that share an adapter, which takes `steps` steps for each of
    them."""
    start: Path | None = None
    """An adapter (PEFT folder) to start each task from instead of a fresh one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rank not in LORA_RANKS:
            raise ValueError(f"rank must be one of {', '.join(map(str, LORA_RANKS))}")
        if not self.target_modules:
            raise ValueError("target_modules must not be empty")
        return self


class SampleConfig(_Section):
    """How predictions are drawn."""

    samples: Positive = 16
    """Predictions for each test input."""
    views: Positive | None = None
    """Different views they are spread over; by default one for each sample."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy."""
    judging_views: Count = 0
    """Views in which the likelihoods of the grids with the most votes are compared, at most one for
    each sample; 0: votes alone decide."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.views is not None and self.views > self.samples:
            raise ValueError("views cannot exceed samples")
        if self.temperature == 0 and self.views not in (None, self.samples):
            raise ValueError("greedy samples of one view are all alike: raise the temperature")
        return self


class ViewConfig(_Section):
    """How a task may be shown."""

    keep_black: Share = 0.9
    """Probability that colour 0, the usual background, stays in place."""
    permute_colours: StrictBool = True


class EngineConfig(_Section):
    """vLLM."""

    max_model_len: Positive = 4096
    """Tokens of prompt and answer at most."""
    max_loras: Positive = 2
    """Adapters that can be sampled at once."""
    max_num_seqs: Positive = 64
    """Sequences in one batch."""
    gpu_memory: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the GPU's memory for the engine; the rest is the trainer's."""
    cpu_cache_gib: Positive = 2
    """Memory for keys and values on a CPU."""


class BudgetConfig(_Section):
    """The time that a job may take."""

    seconds: Annotated[float, Field(gt=0)] | None = None
    """From its submission to the end, when every task has the best answer found by then. None:
    each task is done once, however long that takes."""
    reserve: Annotated[float, Field(ge=0)] = 10.0
    """Of these, what is kept for writing and leaving."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.seconds is not None and self.reserve >= self.seconds:
            raise ValueError("the reserve takes the whole budget")
        return self


class Config(_Section):
    """Everything that decides the answer to a task, beside the base model and the task itself."""

    seed: StrictInt = 0
    encoding: str = "auto"
    """`auto`: what the base was made for; else `cells` or layers of text, `shape+rows+digits`."""
    precision: Precision = "auto"
    """`auto`: bf16 where the device has it, else fp16 on a GPU and fp32 on a CPU."""
    lookahead: Count = 2
    """Tasks in hand beyond those in training: trained adapters that wait or are sampled."""
    trainings: Positive | None = None
    """Adapters that are trained at once; by default one on a GPU, and half of a CPU's cores, but
    two on two: they get through more with a core each than one with both."""
    order: Literal["johnson", "file", "cheapest"] = "johnson"
    """Which task comes next: short trainings first and short samplings last, so that both lanes
    are busy from the first to the last minute (Johnson's rule); the file's; the shortest. A job
    with a budget begins with the shortest, so that many are done when its time is up."""
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    views: ViewConfig = ViewConfig()
    engine: EngineConfig = EngineConfig()
    budget: BudgetConfig = BudgetConfig()

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
"""What is settled when the models are loaded, and the same for all jobs of a daemon."""


def resolve(file: Path | None = None, settings: Iterable[str] = (), **overrides: object) -> Config:
    """The configuration from a TOML file, `--set key.path=value` settings and keyword overrides.

    Later ones win; overrides that are None are ignored. Raises BadConfig in one line that names
    the key.
    """
    return _validated(tree(file, settings, **overrides))


def for_job(daemon: Config, settings: Mapping[str, object]) -> Config:
    """A job's configuration: a daemon's with a tree of settings over it.

    Raises BadConfig also for what only a daemon can settle.
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
    """A stored job's configuration on a daemon that was started with other settings."""
    return job.model_copy(update={key: getattr(daemon, key) for key in DAEMON_KEYS})


def tree(
    file: Path | None = None, settings: Iterable[str] = (), **overrides: object
) -> dict[str, Any]:
    """The settings of a TOML file, of `--set` and of keywords as one tree, not yet validated."""
    found = _read(file) if file else {}
    for setting in settings:
        _put(found, *_parse(setting))
    return found | {key: value for key, value in overrides.items() if value is not None}


def with_settings(below: Mapping[str, Any], settings: Mapping[str, str]) -> dict[str, Any]:
    """A tree with settings over it, the values as `--set` takes them.

    Raises BadConfig where the whole would be no configuration.
    """
    above: dict[str, Any] = {}
    for key, value in settings.items():
        _put(above, *_parse(f"{key}={value}"))
    found = _merged(below, above)
    _validated(found)
    return found


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
    }
    return {**below, **above, **both}


def _validated(settings: Mapping[str, object]) -> Config:
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{file}: not TOML: {error}") from None


def _parse(setting: str) -> tuple[list[str], object]:
    key, found, text = setting.partition("=")
    if not found or not all(key.split(".")):
        raise BadConfig(f"--set {setting}: expected KEY=VALUE, e.g. train.steps=64")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: --set train.schedule=cosine
    return key.split("."), value


def _put(tree: dict[str, Any], path: list[str], value: object) -> None:
    *sections, key = path
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise BadConfig(f"{'.'.join(path)}: {section} is not a section")
    tree[key] = value

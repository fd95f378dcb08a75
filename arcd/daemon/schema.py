"""The messages between client and daemon, as pydantic models; one place for limits.

The models and `accept` check all that comes in, before anything is stored. Knows nothing of HTTP.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
)

from arcd import config as configuration
from arcd.arc.tasks import MAX_GRIDS, TaskSet, from_challenges, solutions_of, to_challenges
from arcd.config import Config
from arcd.errors import BadConfig, BadInput, BadJob, BadTask
from arcd.jobs.journal import NewJob, NewTask
from arcd.system import files

MAX_BODY = 256 << 20
"""Bytes of a request; 20000 tasks of the usual size are 100 MB."""

MAX_TASKS = 20_000

Name = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,100}$")]
TaskId = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,100}$")]
Tests = Annotated[int, Strict(), Field(ge=1, le=MAX_GRIDS)]
Priority = Annotated[int, Strict(), Field(ge=1, le=100)]
JobNumber = Annotated[int, Field(ge=1, le=2**53)]


_NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, ends of lines, and lone surrogates, which are no Unicode."""


def _one_line(path: str) -> str:
    if _NO_TEXT.search(path):
        raise ValueError("a path with characters that are no text")
    return path


Out = Annotated[str, AfterValidator(_one_line)]

TakeUp = Literal["never", "unfinished", "done"]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Order(_Message):
    """A job to be done: tasks as in a challenges file, solutions as in a solutions file."""

    name: Name
    tasks: Annotated[dict[TaskId, Any], Field(min_length=1, max_length=MAX_TASKS)]
    solutions: dict[TaskId, Any] = {}
    priority: Priority = 10
    """Jobs share the machine in proportion to their priorities."""
    settings: dict[str, Any] = {}
    """They replace those of the daemon's configuration, e.g. {"train": {"steps": 30}}."""
    outs: Annotated[list[Out], Field(max_length=10)] = []
    """Absolute paths on the daemon's machine where the submission is kept as well."""
    take_up: TakeUp = "never"
    """Instead of a new job take an unfinished one, or with "done" also a finished one, that has the
    same tasks, settings and base. With "unfinished" its submission is kept at `outs` after that."""
    skipped: Annotated[dict[str, Tests], Field(max_length=MAX_TASKS)] = {}
    """Ids of the file whose tasks cannot be used, with the number of their tests: they are blank in
    the submission."""


class Status(BaseModel):
    """A job and how far it is."""

    job: int
    name: str
    priority: int
    state: Literal["queued", "running", "paused", "done", "cancelled", "failed"]
    submitted: float
    touched: float = 0.0
    """When it was last asked for or answered; both are in seconds since 1970."""
    tasks: int
    waiting: int
    started: int
    trained: int
    answered: int
    retriable: int
    """Answered tasks that failed or are doubtful."""
    unpublished: dict[str, str] = {}
    """By path, why a file does not have the job's last answers. A finished job's are written, or
    have failed, when the stream of its events ends."""


class Prediction(BaseModel):
    """Seconds that the two stages of a task should take."""

    train: float
    infer: float


class Forecast(BaseModel):
    """Seconds that the rest of a job should take, and how good such predictions were."""

    job: int
    seconds: float | None
    """Of the longer stage of all waiting tasks; None while the models load and where no daemon
    runs."""
    tasks: dict[str, Prediction]
    """Of each task that waits or is in flight."""
    accuracy: dict[Literal["train", "infer"], dict[str, float]]
    """By stage, predicted / taken: the first, fifth and ninth decile of the answered tasks."""


class Health(BaseModel):
    """The daemon and how it is."""

    state: Literal["loading", "ready", "stopping"]
    pid: int
    version: str
    base: str
    device: str
    hardware: str = ""
    """What the device is; unknown until torch is imported."""
    dtype: str
    jobs: int
    rates: dict[str, Any] | None
    """How fast it trains and samples; None while it loads."""
    ledger: dict[str, Any]


class Problem(BaseModel):
    """Why a request was refused, in one line."""

    error: str


def order(
    tasks: TaskSet,
    *,
    name: str | None = None,
    priority: int = 10,
    settings: Mapping[str, Any] | None = None,
    outs: tuple[Path, ...] = (),
    take_up: TakeUp = "never",
) -> Order:
    """The order for a set of tasks; raises BadInput naming the field that cannot be used.

    A relative `train.start` in the settings is one in this process's folder.
    """
    try:
        return Order(
            name=name or "".join(c if c.isprintable() else "?" for c in tasks.name[-100:]),
            tasks=to_challenges(tasks),
            solutions=dict(tasks.solutions),
            priority=priority,
            settings=_from_here(settings or {}),
            outs=[str(out.absolute()) for out in outs],
            take_up=take_up,
            skipped={each.id: each.tests for each in tasks.skipped},
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"{where}: {first['msg']}") from None


def _from_here(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the path in them absolute, because the daemon has another folder."""
    train = settings.get("train")
    if not isinstance(train, Mapping) or not isinstance(train.get("start"), str | Path):
        return dict(settings)
    return {**settings, "train": {**train, "start": str(Path(train["start"]).absolute())}}


def read(body: bytes | bytearray) -> Order:
    """The order in a request's body.

    Its tasks and solutions are not read yet: they stay `msgspec.Raw` until `accept`, which reads
    one after the other. Raises msgspec.DecodeError where the body is not JSON, pydantic's
    ValidationError where it is not an order.
    """
    found = msgspec.structs.asdict(_decoded(body, _Envelope))
    return Order.model_validate({k: v for k, v in found.items() if v is not msgspec.UNSET})


def accept(order: Order, daemon: Config, base: str = "") -> NewJob:
    """The job that an order is for a daemon with this configuration and base.

    Raises BadInput, naming job, task and reason.
    """
    solutions = {**order.solutions}
    tasks = tuple(
        _task(order.name, name, value, solutions.pop(name, None))
        for name, value in order.tasks.items()
    )
    for name, value in solutions.items():
        # Of no task here, but checked like others.
        solutions_of(order.name, {name: _plain(order.name, name, value)})
    if both := order.skipped.keys() & order.tasks.keys():
        raise BadInput(f"{order.name}: task {min(both)}: both among the tasks and skipped")
    config = configuration.for_job(daemon, order.settings)
    if config.train.start is not None and not config.train.start.is_absolute():
        raise BadConfig(f"train.start: {config.train.start}: not an absolute path")
    outs = tuple(Path(out) for out in order.outs)
    for out in outs:
        reason = files.obstacle(out) if out.is_absolute() else "the path is not absolute"
        if reason:
            raise BadJob(f"{out}: the submission cannot be written there: {reason}")
    return NewJob(order.name, order.priority, tasks, config, outs, base, order.skipped)


_RAW = ("tasks", "solutions")

_Envelope = msgspec.defstruct(
    "_Envelope",
    [
        (name, dict[str, msgspec.Raw] if name in _RAW else Any, msgspec.UNSET)
        for name in Order.model_fields
    ],
    forbid_unknown_fields=True,
)
"""An order as it is read in one go: 80 MB take a sixth of a second."""


def _task(job: str, name: str, value: Any, solution: Any) -> NewTask:
    """A task of an order, checked."""
    found = from_challenges(job, {name: _plain(job, name, value)})
    (task,) = found.tasks
    if solution is not None:
        solved = solutions_of(job, {name: _plain(job, name, solution)})
        found = found.solved_by(job, solved)
    return NewTask.of(task, found.solutions.get(name))


def _plain(job: str, task: str, value: Any) -> Any:
    """What a part of a request's body says of a task."""
    try:
        return _decoded(value) if isinstance(value, msgspec.Raw) else value
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadTask(f"{job}: task {task}: {error}") from None


def _decoded(text: bytes | bytearray | msgspec.Raw, kind: Any = Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except RecursionError:
        raise msgspec.DecodeError("nested too deeply") from None

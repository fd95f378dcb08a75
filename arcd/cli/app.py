"""What the verbs have in common: the consoles, the options, and what is made of them.

`settle` turns base, device, configuration file and settings into the `Options` of a daemon;
`reading` gives the daemon or, where none runs, its store. Heavy imports stand inside the functions,
so that `arcd --help` is quick. Knows nothing of any single verb.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arcd.display.palette import Palette
from arcd.display.terminal import Terminal
from arcd.errors import BadInput, NoDaemon, NoJob

if TYPE_CHECKING:
    from arcd.arc.tasks import TaskSet
    from arcd.config import Config
    from arcd.daemon.client import Client
    from arcd.daemon.offline import OfflineClient
    from arcd.daemon.options import Options
    from arcd.jobs.store import Store
    from arcd.system.home import Home

out = Terminal()
err = Terminal(stderr=True)


class Backend(StrEnum):
    """What trains and samples: a model, or fakes that know the solutions."""

    real = "real"
    fake = "fake"


Tasks = Annotated[
    str,
    typer.Argument(help="A Kaggle challenges file, a task file, a folder, or e.g. arc1-eval:50"),
]
SolutionsFile = Annotated[Path | None, typer.Option(help="Kaggle solutions file")]
SkipInvalid = Annotated[
    bool, typer.Option(help="Do without tasks that are not valid: they stay blank")
]
SubmissionFile = Annotated[Path | None, typer.Option("--out", help="Submission to write")]
JobNumber = Annotated[int, typer.Argument(help="The job's number", metavar="JOB")]
HomeFolder = Annotated[Path | None, typer.Option(help="Where arcd keeps its jobs; else ARCD_HOME")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON")]

Base = Annotated[Path | None, typer.Option(help="Base model folder; by default arcd's own")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. train.steps=64")]
Seed = Annotated[int | None, typer.Option(help="Decides lessons, views and samples")]
Budget = Annotated[
    str | None, typer.Option(help="End after this time, e.g. 11h30m, with the best answers found")
]
Reserve = Annotated[
    str | None, typer.Option(help="Part of the budget that is kept for writing, e.g. 10s")
]
Stall = Annotated[
    float,
    typer.Option(
        min=0.1,
        help="Restart the daemon after so many seconds without a step, or after 20 times the "
        "usual step time where that is longer",
    ),
]
BackendOption = Annotated[
    Backend,
    typer.Option(
        "--backend", hidden=True, help="fake: neither model nor torch, to see how arcd works"
    ),
]
Colours = Annotated[
    Palette, typer.Option("--palette", envvar="ARCD_PALETTE", help="The colours of the cells")
]

STALL_S = 60.0
"""Seconds without a step after which a daemon counts as frozen, unless `--stall` says otherwise."""


def say(text: str) -> None:
    """Print a line as it is, however long."""
    out.print(text, soft_wrap=True)


def budget_settings(budget: str | None, reserve: str | None) -> list[str]:
    """The options --budget and --reserve as settings."""
    from arcd.scheduling.budget import seconds

    given = {"budget.seconds": budget, "budget.reserve": reserve}
    return [f"{key}={seconds(text)}" for key, text in given.items() if text is not None]


def settle(
    home: Path,
    base: Path | None,
    device: str,
    config: Path | None,
    settings: Sequence[str] | None,
    *,
    seed: int | None = None,
    host: str | None = None,
    port: int = 0,
    grace: float = 30.0,
    backend: Backend = Backend.real,
) -> "Options":
    """What a daemon is started with, checked as far as that goes without torch.

    Raises BadConfig or BadBase in one line that names the setting or the folder.
    """
    from arcd import config as configuration
    from arcd.daemon.options import Options
    from arcd.model import base_model

    settled = _from_here(configuration.resolve(config, settings or (), seed=seed))
    model = (base or base_model.bundled()).absolute()
    base_model.check_wishes(model, settled.encoding, device)
    return Options(
        home=home,
        base=model,
        device=device,
        config=settled,
        host=host,
        port=port,
        grace=grace,
        backend=backend.value,
    )


def _from_here(config: "Config") -> "Config":
    """The configuration with its path absolute: a job may go on in a daemon with another folder."""
    if config.train.start is None:
        return config
    train = config.train.model_copy(update={"start": config.train.start.absolute()})
    return config.model_copy(update={"train": train})


def load_tasks(source: str, solutions: Path | None, *, skip_invalid: bool) -> "TaskSet":
    """The tasks with their solutions; those that cannot be used are named on standard error."""
    from arcd.arc import tasks

    found = tasks.load(source, skip_invalid=skip_invalid)
    found = found.with_solutions(solutions) if solutions else found
    for each in found.skipped:
        err.print(f"skipped: {each.error}", style="yellow", soft_wrap=True)
    return found


def home_of(given: Path | None) -> "Home":
    """The home folder as given, else ARCD_HOME, else the user's data folder."""
    from arcd.system.home import Home

    return Home.at(given)


def far_daemon(home: Path | None) -> str | None:
    """The URL of the daemon that a command means if it is not one of a home on this machine."""
    return None if home is not None else os.environ.get("ARCD_URL") or None


def home_to_read(given: Path | None) -> "Home":
    """The home whose files a command reads.

    Raises BadInput where ARCD_URL names a daemon: its files are elsewhere, and those of a home here
    are not of its jobs.
    """
    if url := far_daemon(given):
        raise BadInput(f"{url}: its home is not read from here: give --home, or unset ARCD_URL")
    return home_of(given)


def client_of(home: Path | None) -> "Client":
    """The client of the daemon in a home, or without one of the daemon at ARCD_URL."""
    from arcd.daemon.client import Client

    return Client(home)


@contextmanager
def reading(home: Path | None) -> "Iterator[Client | OfflineClient]":
    """The daemon where one answers, else the store that it left."""
    from arcd.daemon.offline import OfflineClient

    with client_of(home) as client:
        try:
            client.health()
        except NoDaemon:
            if far_daemon(home):
                raise  # The store on this machine is not that of the daemon at ARCD_URL.
        else:
            yield client
            return
    yield OfflineClient(home_of(home))


def seconds_left(client: "Client", job: int) -> float | None:
    """Seconds of work that wait in a job; None while there is no daemon that can tell."""
    try:
        left = client.forecast(job, detail=False)["seconds"]
    except NoDaemon:
        return None
    return None if left is None else float(left)


def store_with(home: "Home", job: int) -> "Store":
    """The store of a home, to read a job that is in it; raises NoJob, StoreFailed."""
    from arcd.jobs.store import Store

    store = Store(home.path, "read")
    if not store.jobs.has(job):
        raise NoJob(f"{home.path}: no job {job}")
    return store

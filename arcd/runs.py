"""The run folder: what was asked, what came of it, and where the time went.

    run.json          source, base, device and configuration as resolved
    tasks.json        the tasks, in the Kaggle format; solutions.json where they are known
    candidates.jsonl  one line for each sample, with its provenance, written when it finishes
    records.jsonl     one line for each task when it is answered
    submission.json   complete and valid from the first second, replaced after every answer
    ledger.json       the seconds of each lane
    adapters/         the adapters that are in use

A `Recorder` writes it from the events of a run; a `Run` reads it back, also after a kill. Knows
nothing of trainers, engines or screens.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import platformdirs

from arcd import events, submission
from arcd.errors import ArcdError, BadInput
from arcd.grids import Grid, to_grid
from arcd.ledger import Account
from arcd.selection import Candidate, Verdict
from arcd.tasks import TaskSet, load
from arcd.views import View


def home(given: Path | None) -> Path:
    """Where arcd keeps its runs: as given, else ARCD_HOME, else the user's data folder."""
    return given or Path(os.environ.get("ARCD_HOME") or platformdirs.user_data_dir("arcd"))


def create(home: Path, tasks: TaskSet, about: Mapping[str, object]) -> Path:
    """A new run folder, named by time, with its tasks and a blank submission in it."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        folder = _unused(home / "runs", stamp)
        _write_json(folder / "run.json", {"tasks": tasks.name, **about})
        _write_json(folder / "tasks.json", _challenges(tasks))
        if tasks.solutions:
            _write_json(folder / "solutions.json", tasks.solutions)
        submission.write(folder / "submission.json", submission.blank(tasks.tasks))
    except OSError as error:
        raise ArcdError(f"{home}: {error.strerror or error}") from None
    return folder


def _unused(parent: Path, stamp: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    for serial in range(1000):
        folder = parent / (f"{stamp}-{serial}" if serial else stamp)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ArcdError(f"{parent}: too many runs in one second")


def _challenges(tasks: TaskSet) -> dict[str, object]:
    return {
        task.id: {
            "train": [asdict(pair) for pair in task.train],
            "test": [{"input": grid} for grid in task.tests],
        }
        for task in tasks.tasks
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


@dataclass
class Recorder:
    """Writes the events of a run into its folder, and the submission to `outs` as well."""

    folder: Path
    tasks: TaskSet
    outs: tuple[Path, ...] = ()
    clock: Callable[[], float] = time.monotonic
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._candidates = self._append("candidates.jsonl")
        self._records = self._append("records.jsonl")
        self._open: dict[str, dict[str, object]] = {}
        self._begun: dict[str, float] = {}
        self._write_submission()

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.Started(task, lessons, samples):
                self._begun[task] = self.clock()
                self._open[task] = {"task": task, "lessons": lessons, "samples": samples}
            case events.Trained(task):
                self._open[task]["trained"] = asdict(event)
                # Here, between two trainings: what is in use in the middle of one says little.
                self._open[task]["resident_bytes"] = resident_bytes()
            case events.Sampled(_, candidate):
                _line(self._candidates, asdict(candidate))
            case events.Answered(task, verdict):
                answer = {
                    "seconds": self.clock() - self._begun.pop(task),
                    "verdict": asdict(verdict),
                }
                _line(self._records, {**self._open.pop(task), **answer})
                self.verdicts[task] = verdict
                self._write_submission()
                if verdict.adapter is not None:
                    self._discard(verdict.adapter)

    def close(self, account: Account) -> None:
        """Write the ledger and close the files."""
        _write_json(self.folder / "ledger.json", account.to_json())
        self._candidates.close()
        self._records.close()

    def _append(self, name: str) -> TextIO:
        return (self.folder / name).open("a", encoding="utf-8")

    def _write_submission(self) -> None:
        value = submission.of(self.tasks.tasks, self.verdicts)
        for path in (self.folder / "submission.json", *self.outs):
            submission.write(path, value)

    def _discard(self, serial: int) -> None:
        """Adapters are as large as the answers are small: none outlives its task."""
        shutil.rmtree(self.folder / "adapters" / f"adapter-{serial}", ignore_errors=True)


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM now; None where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _line(file: TextIO, value: object) -> None:
    file.write(json.dumps(value) + "\n")
    file.flush()


@dataclass(frozen=True)
class Run:
    """A run folder to read."""

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Raises BadInput where the folder is not a run."""
        if not (folder / "run.json").is_file():
            raise BadInput(f"{folder}: not a run folder (no run.json)")
        return cls(folder)

    @cached_property
    def tasks(self) -> TaskSet:
        """The tasks of the run, with their solutions if they were known."""
        tasks = load(str(self.folder / "tasks.json"))
        solutions = self.folder / "solutions.json"
        return tasks.with_solutions(solutions) if solutions.is_file() else tasks

    @property
    def submission(self) -> Path:
        """The submission's file."""
        return self.folder / "submission.json"

    def candidates(self) -> Iterator[Candidate]:
        """All samples, in the order in which they finished."""
        return (_to_candidate(value) for value in self._lines("candidates.jsonl"))

    def samples(self) -> dict[str, list[list[Grid | None]]]:
        """The grids of all samples by task and test; None for each invalid one."""
        found: dict[str, list[list[Grid | None]]] = {
            task.id: [[] for _ in task.tests] for task in self.tasks.tasks
        }
        for candidate in self.candidates():
            found[candidate.task][candidate.test].append(candidate.grid)
        return found

    def notes(self, task: str) -> list[str]:
        """What went other than planned with an answered task."""
        records = (r for r in self.records() if r["task"] == task)
        return [note for record in records for note in record["verdict"]["notes"]]

    def records(self) -> list[dict[str, Any]]:
        """What is known of each answered task."""
        return list(self._lines("records.jsonl"))

    def _lines(self, name: str) -> Iterator[dict[str, Any]]:
        with (self.folder / name).open(encoding="utf-8") as file:
            # A kill can tear the last line only; it was never counted.
            yield from (json.loads(line) for line in file if line.endswith("\n"))


def _to_candidate(value: dict[str, Any]) -> Candidate:
    view = value["view"]
    shown = View(view["flip"], view["turns"], tuple(view["colours"]), tuple(view["order"]))
    grid = None if value["grid"] is None else to_grid(value["grid"])
    return Candidate(**{**value, "view": shown, "shown": tuple(value["shown"]), "grid": grid})

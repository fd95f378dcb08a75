"""Stores of large jobs, written in one transaction: 100 000 tasks with 33 records each in minutes.

The records are those of a daemon that trains one task while it samples the one before. They are
made of a few example tasks, of which only names, times and serial numbers differ. `python
tests/support/scale.py HOME TASKS` makes such a store.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from arcd.arc import selection, submission
from arcd.arc.grids import Grid
from arcd.arc.selection import Verdict
from arcd.arc.tasks import Task, TaskSet
from arcd.config import resolve
from arcd.jobs import events
from arcd.jobs.events import Event, TaskEvent, Times
from arcd.jobs.journal import new_job
from arcd.jobs.store import Store
from support.small import candidate, grid, solutions, task

BEGIN = 1_800_000_000.0
DAEMON = events.DaemonStarted(7, "0.1.0", "models/base", "f", "cpu", "bfloat16")

RECORD_S = 0.25
"""Seconds between two records."""

NAME, SERIAL = "@name@", 987654321
"""Stand in an example for the name of a task and the number of its adapter."""

NOTE = "one demonstration pair: nothing to leave out, trained without pairs shown"
NOTED = 10
"""Every so many tasks one has a note."""

Row = tuple[str, str, Any]
"""Of a record the kind and the body, and of a Sampled its (test, sample), of an Answered the
attempts."""


@dataclass(frozen=True)
class Shape:
    """What the records of a job are like: by default 33 for each answered task."""

    samples: int = 16
    """Of each task."""
    steps: int = 14
    """Training records of each task."""
    side: int = 10
    """Of all grids, in cells."""
    answered: float = 1.0
    """Share of the tasks that have an answer, the first in the order of the file."""
    in_flight: int = 0
    """Tasks behind these that are trained and have half of their samples. The others wait."""
    noted: bool = True
    """Whether every tenth task has a note."""
    solved: bool = True
    """Whether the solutions are known."""


def make_store(home: Path, tasks: int, shape: Shape = Shape(), *, name: str = "large") -> int:
    """Put a job of so many tasks into the store of `home`, which may have others; its number."""
    home.mkdir(parents=True, exist_ok=True)
    pattern = task(NAME, shape.side)
    names = [f"{i:08x}" for i in range(tasks)]
    known = solutions([pattern])[NAME]
    chosen = TaskSet(
        name,
        tuple(replace(pattern, id=each) for each in names),
        dict.fromkeys(names, known) if shape.solved else {},
    )
    store = Store(home, clock=lambda: BEGIN)
    try:
        store.journal.append(None, DAEMON, events.DaemonReady(6.0))
        job = store.journal.submit(new_job(name, 10, chosen, resolve())).job
        assert job is not None
        _write(store, job, _records(names, pattern, known[0], shape))
    finally:
        store.close()
    return job


def _write(store: Store, job: int, records: Iterator[tuple[str, Row]]) -> None:
    """All records in one transaction; candidates and answers have their rows, too."""
    first = store.journal.last() + 1
    sampled: list[tuple[int, str, int, int, int]] = []
    answered: list[tuple[str, int, int, str]] = []

    def rows() -> Iterator[tuple[int, float, int, str, str]]:
        for seq, (of, (kind, body, more)) in enumerate(records, first):
            if kind == "Sampled":
                sampled.append((job, of, *more, seq))
            elif kind == "Answered":
                answered.append((more, seq, job, of))
            yield seq, BEGIN + (seq - first + 1) * RECORD_S, job, kind, body

    with store.database.transaction() as connection:
        connection.executemany(
            "INSERT INTO events (seq, at, job, kind, body) VALUES (?, ?, ?, ?, ?)", rows()
        )
        connection.executemany(
            "INSERT INTO candidates (job, task, test, sample, seq) VALUES (?, ?, ?, ?, ?)", sampled
        )
        connection.executemany(
            "UPDATE tasks SET attempts = ?, answered = ? WHERE job = ? AND task = ?", answered
        )


def _records(
    names: list[str], pattern: Task, true: Grid, shape: Shape
) -> Iterator[tuple[str, Row]]:
    """By task its records in their order, each task trained while the one before is sampled."""
    examples = [_example(pattern, true, shape, kind) for kind in range(NOTED)]
    answered = round(shape.answered * len(names))
    begun = names[: answered + shape.in_flight]
    before: Iterator[tuple[str, Row]] = iter(())
    for i, name in enumerate(begun):
        training, sampling = examples[i % NOTED]
        if i >= answered:
            sampling = sampling[: shape.samples // 2]
        at_once = zip_longest(_named(name, i, training), before)
        yield from (found for found in chain.from_iterable(at_once) if found is not None)
        before = _named(name, i, sampling)
    yield from before


def _named(name: str, serial: int, rows: list[Row]) -> Iterator[tuple[str, Row]]:
    """The rows of an example as those of a task and an adapter."""
    for kind, body, more in rows:
        yield name, (kind, body.replace(NAME, name).replace(str(SERIAL), str(serial)), more)


def _example(pattern: Task, true: Grid, shape: Shape, number: int) -> tuple[list[Row], list[Row]]:
    """The records of an example up to its training's end, and those after it.

    From example to example fewer samples are right: from all of them to none.
    """
    right = shape.samples * (NOTED - 1 - number) // (NOTED - 1)
    drawn: list[Grid | None] = [true] * right
    # The wrong ones differ from it (grid 5) and from each other, but for one that is no grid.
    drawn += [grid(shape.side, shape.side, 6 + i % 9) for i in range(shape.samples - right)]
    drawn[-1] = None if right < shape.samples else true
    candidates = [candidate(pattern, 0, i, each, SERIAL) for i, each in enumerate(drawn)]
    notes = (NOTE,) if shape.noted and number == 0 else ()
    verdict = selection.verdict(NAME, 1, candidates, SERIAL, notes)
    training: list[TaskEvent] = [
        events.Started(NAME, shape.steps, shape.samples, Times(4.0, 4.5)),
        *(events.Noted(NAME, note) for note in notes),
        *(
            events.Training(NAME, step, shape.steps, 2.0 / (step + 1), 2345.6)
            for step in range(1, shape.steps + 1)
        ),
        events.Trained(NAME, SERIAL, shape.steps, 24_000, 3.75, 0.125, 1 << 30),
    ]
    sampling: list[TaskEvent] = [*(events.Sampled(NAME, each) for each in candidates)]
    sampling.append(events.Answered(NAME, verdict))
    return [_row(each) for each in training], [_row(each) for each in sampling]


def _row(event: Event) -> Row:
    more: Any = None
    match event:
        case events.Sampled(candidate=found):
            more = found.test, found.sample
        case events.Answered(verdict=Verdict() as verdict):
            more = json.dumps(submission.entry(verdict.attempts))
    return events.kind(event), events.dump(event), more


if __name__ == "__main__":
    make_store(Path(sys.argv[1]), int(sys.argv[2]))

"""How good a job's answers are: from the store of a home, or through the daemon's interface.

Both give the same numbers, of the same samples and attempts. Knows nothing of how they are printed.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from arcd.arc import metrics, submission, tasks
from arcd.arc.grids import Grid
from arcd.arc.metrics import Report
from arcd.arc.submission import Attempts
from arcd.arc.tasks import Solutions
from arcd.errors import BadInput, BadJob, NotPublished
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.history import History
from arcd.jobs.state import FINISHED

if TYPE_CHECKING:
    from arcd.daemon.client import Client
    from arcd.jobs.store import Store

Samples = dict[str, list[list[Grid | None]]]
"""By task and test the grids of all samples; None for each that is not one."""


def load_truth(solutions: Path | None, answers: str) -> Solutions:
    """The solutions to compare `answers` with; raises BadInput where there is no file of them."""
    if solutions is None:
        raise BadInput(f"{answers}: a submission does not know its solutions: give --solutions")
    return tasks.load_solutions(solutions)


def of_job(store: "Store", job: int, given: Solutions | None = None) -> Report:
    """The metrics of a job's attempts and samples, with its own solutions or given ones.

    Of given ones those count whose ids its file had: a task that could not be used is unanswered.
    """
    attempts = submission.parse(f"job {job}", json.loads(store.jobs.submission(job)))
    known = store.jobs.tasks(job).solutions if given is None else given
    return _evaluate(job, known, attempts, store.jobs.samples(job))


def of_far_job(client: "Client", job: int, given: Solutions | None = None) -> Report:
    """As `of_job`, of a finished job of a daemon whose store is not on this machine."""
    state = client.job(job)["state"]
    if state not in FINISHED:
        raise BadJob(f"job {job}: it is {state}: at a distance only finished jobs are evaluated")
    known = client.solutions(job) if given is None else given
    attempts = submission.parse(f"job {job}", client.result(job))
    return _evaluate(job, known, attempts, followed(client, job, known)[1])


def followed(client: "Client", job: int, solutions: Solutions) -> tuple[History, Samples]:
    """What happened to a job and all its samples, once it is finished: waits for that."""
    history, samples = History(job, solutions), Samples()
    with suppress(NotPublished):  # by the daemon, whose files are not needed here
        for record in client.follow(job):
            history.apply(record)
            _collect(record, samples)
    return history, samples


def _collect(record: Record, samples: Samples) -> None:
    if isinstance(record.event, events.Sampled):
        candidate = record.event.candidate
        tests = samples.setdefault(candidate.task, [])
        tests += [[] for _ in range(candidate.test + 1 - len(tests))]
        tests[candidate.test].append(candidate.grid)


def _evaluate(job: int, known: Solutions, attempts: Attempts, samples: Samples) -> Report:
    truth = {task: grids for task, grids in known.items() if task in attempts}
    if known and not truth:
        raise BadInput(f"job {job}: the solutions are of other tasks")
    return metrics.evaluate(truth, attempts, samples)

"""Metrics: how good answers are, where the true outputs are known.

Two kinds of numbers. Sample metrics are over all samples of a test; attempt metrics are over the
answers that were chosen from them, best first. Each number is computed for a test, then averaged
over the tests of a task, then over all tasks with a known solution: a test without an answer counts
as wrong. Knows nothing of how answers are made, nor of where they were read.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from statistics import fmean

from arcd.arc.grids import Grid, GridText, to_text
from arcd.arc.submission import BLANK
from arcd.arc.tasks import Solutions
from arcd.errors import BadInput

Answers = Mapping[str, Sequence[Sequence[Grid | None]]]
"""By task id and test, the answers in order; None is an answer that is not a grid."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Numbers from 0 to 1 for a test, or their mean over tests or tasks."""

    accuracy: float
    """Share of the samples that are the true output."""
    correct_pixels: float
    """Mean share of cells with the true colour; 0 where the size differs."""
    max_correct_pixels: float
    """Share of cells with the true colour in the best sample."""
    correct_size: float
    """Share of the samples with the size of the true output."""
    any_correct_size: float
    """1 if any sample has the size of the true output."""
    pass_n: float
    """1 if the true output is among all the samples."""
    unanswered: float
    """Share of the samples that are not a grid, or of the attempts that are blank; 1 where there
    are none."""
    pass_1: float
    """1 if the first attempt is the true output."""
    pass_2: float
    """1 if one of the first two is."""

    def to_json(self) -> dict[str, float]:
        """The numbers by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """The metrics of all tasks with a known solution."""

    tasks: dict[str, Metrics]
    """By task id, each the mean over the task's tests."""
    total: Metrics
    """The mean over the tasks."""

    @property
    def score(self) -> float:
        """pass@2, ARC's official score: the mean over tasks of the share of tests that are solved.

        A test is solved if one of two attempts is the true output. Kaggle's leaderboard takes the
        mean over all tests instead, which differs where tasks have different numbers of tests.
        """
        return self.total.pass_2

    def to_json(self) -> dict[str, object]:
        """The score, the mean and each task's metrics."""
        tasks = {task_id: metrics.to_json() for task_id, metrics in self.tasks.items()}
        return {"score": self.score, "total": self.total.to_json(), "tasks": tasks}


def evaluate(truth: Solutions, attempts: Answers, samples: Answers | None = None) -> Report:
    """The metrics of these attempts and of the samples they were chosen from.

    Without samples the sample metrics, too, are of the attempts. Answers to tasks or tests that
    `truth` does not have are ignored. Raises BadInput where `truth` is empty.
    """
    if not truth:
        raise BadInput("no task with a known solution: nothing to evaluate")
    tasks = {
        task_id: _mean(
            _of_test(output, *_answered(task_id, i, output, attempts, samples))
            for i, output in enumerate(outputs)
        )
        for task_id, outputs in truth.items()
    }
    return Report(tasks, _mean(tasks.values()))


def _answered(
    task_id: str, test: int, true: Grid, attempts: Answers, samples: Answers | None
) -> tuple[Sequence[Grid | None], Sequence[Grid | None]]:
    """The attempts at a test, and what its sample metrics are of."""
    chosen = _answers(attempts, task_id, test)
    if samples is not None:
        return chosen, _answers(samples, task_id, test)
    # The blank grid stands for an attempt that was not made; where it is right, it counts.
    return chosen, [None if grid == BLANK != true else grid for grid in chosen]


def _answers(answers: Answers, task_id: str, test: int) -> Sequence[Grid | None]:
    tests = answers.get(task_id, ())
    # A test without any answer counts like one whose only answer is not a grid.
    return (tests[test] if test < len(tests) else ()) or (None,)


def report(tasks: dict[str, Metrics]) -> Report:
    """The report of these metrics, by task id. Raises BadInput where there are none."""
    if not tasks:
        raise BadInput("no task with a known solution: nothing to evaluate")
    return Report(tasks, _mean(tasks.values()))


def of_task(
    truth: Sequence[GridText],
    attempts: Sequence[Sequence[GridText | None]],
    samples: Sequence[Mapping[GridText | None, int]],
) -> Metrics:
    """The metrics of a task from the attempts and samples of each test, all as texts.

    `samples` says how often each grid was drawn; None is a sample that is not a grid.
    """
    return _mean(map(_of_texts, truth, attempts, samples))


def _of_test(
    true: Grid, attempts: Sequence[Grid | None], samples: Sequence[Grid | None]
) -> Metrics:
    return _of_texts(to_text(true), _texts(attempts), Counter(_texts(samples)))


def _texts(grids: Iterable[Grid | None]) -> list[GridText | None]:
    return [None if grid is None else to_text(grid) for grid in grids]


def _of_texts(
    true: GridText, attempts: Sequence[GridText | None], samples: Mapping[GridText | None, int]
) -> Metrics:
    # A test without any sample counts like one whose only sample is not a grid.
    drawn = {grid: count for grid, count in samples.items() if count} or {None: 1}
    counts = list(drawn.values())
    sized = [_same_shape(true, grid) for grid in drawn]
    pixels = [
        _alike(true, grid) if grid and same else 0.0
        for grid, same in zip(drawn, sized, strict=True)
    ]
    exact, none = drawn.get(true, 0), drawn.get(None, 0)
    return Metrics(
        accuracy=exact / sum(counts),
        correct_pixels=fmean(pixels, counts),
        max_correct_pixels=max(pixels),
        correct_size=fmean(sized, counts),
        any_correct_size=float(any(sized)),
        pass_n=float(exact > 0),
        unanswered=none / sum(counts),
        pass_1=float(true in attempts[:1]),
        pass_2=float(true in attempts[:2]),
    )


def _same_shape(true: GridText, sample: GridText | None) -> bool:
    if sample is None or len(sample) != len(true):
        return False
    return sample.find("/") == true.find("/")  # the first rows are as long


def _alike(true: GridText, sample: GridText) -> float:
    """Share of cells with the same colour in two grids of one shape."""
    # The bytes in which two texts differ are not 0 in their exclusive or: with all of them at once
    # in one number this takes a tenth of the time of comparing them one by one.
    differ = int.from_bytes(true.encode()) ^ int.from_bytes(sample.encode())
    ends = true.count("/")
    return (differ.to_bytes(len(true)).count(0) - ends) / (len(true) - ends)


_numbers = attrgetter(*(field.name for field in fields(Metrics)))


def _mean(metrics: Iterable[Metrics]) -> Metrics:
    return Metrics(*(fmean(column) for column in zip(*map(_numbers, metrics), strict=True)))

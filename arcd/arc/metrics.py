"""Metrics: how good answers are, where the true outputs are known.

Two kinds of numbers. Sample metrics are over all samples of a test; attempt metrics are over the
answers that were chosen from them, best first. Each number is computed for a test, then averaged
over the tests of a task, then over all tasks with a known solution: a test without an answer counts
as wrong. Knows nothing of how answers are made, nor of where they were read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from statistics import fmean

from arcd.arc.grids import Grid, shape
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


def _of_test(
    true: Grid, attempts: Sequence[Grid | None], samples: Sequence[Grid | None]
) -> Metrics:
    exact = [sample == true for sample in samples]
    pixels = [_correct_pixels(true, sample) for sample in samples]
    sized = [sample is not None and shape(sample) == shape(true) for sample in samples]
    return Metrics(
        accuracy=fmean(exact),
        correct_pixels=fmean(pixels),
        max_correct_pixels=max(pixels),
        correct_size=fmean(sized),
        any_correct_size=float(any(sized)),
        pass_n=float(any(exact)),
        unanswered=fmean(sample is None for sample in samples),
        pass_1=float(true in attempts[:1]),
        pass_2=float(true in attempts[:2]),
    )


def _correct_pixels(true: Grid, sample: Grid | None) -> float:
    """Share of cells with the true colour, 0 where the size differs."""
    if sample is None or shape(sample) != shape(true):
        return 0.0
    cells = zip((c for row in true for c in row), (c for row in sample for c in row), strict=True)
    return fmean(wanted == found for wanted, found in cells)


def _mean(metrics: Iterable[Metrics]) -> Metrics:
    return Metrics(*(fmean(column) for column in zip(*map(astuple, metrics), strict=True)))

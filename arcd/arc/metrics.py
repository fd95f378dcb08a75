"""Metrics: how good answers are, where the true outputs are known.

Two kinds of numbers. Sample metrics look at everything that was predicted for a test; attempt
metrics at the answers it was boiled down to, best first. Each is computed for a test, then
averaged over the tests of a task, then over the tasks of the truth: what was never answered
counts as wrong. Knows nothing of how answers came about, nor of files.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from statistics import fmean

from arcd.arc.grids import Grid, shape
from arcd.arc.tasks import Solutions
from arcd.errors import BadInput

Answers = Mapping[str, Sequence[Sequence[Grid | None]]]
"""By task id, for each test in order, its answers; None is an answer that is not a grid."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Numbers from 0 to 1 for a test, or their mean over tests or tasks."""

    accuracy: float
    """Share of the samples that are the true output."""
    correct_pixels: float
    """Mean share of cells with the true colour; 0 where the size differs."""
    max_correct_pixels: float
    """The same for the best sample."""
    correct_size: float
    """Share of the samples with the size of the true output."""
    any_correct_size: float
    """Does any sample have it?"""
    pass_n: float
    """Is the true output among all the samples?"""
    unanswered: float
    """Share of the samples that are not a grid; 1 where there are no samples."""
    pass_1: float
    """Is the first attempt the true output?"""
    pass_2: float
    """Is one of the first two?"""

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Report:
    """The metrics of every task of the truth, by id, and their mean."""

    tasks: dict[str, Metrics]
    total: Metrics

    @property
    def score(self) -> float:
        """The official score: mean over tasks of the share of tests that an attempt of two solves.

        That is pass@2. Kaggle's leaderboard takes the mean over all tests instead, which differs
        a little where tasks have different numbers of tests.
        """
        return self.total.pass_2

    def to_json(self) -> dict[str, object]:
        tasks = {task_id: metrics.to_json() for task_id, metrics in self.tasks.items()}
        return {"score": self.score, "total": self.total.to_json(), "tasks": tasks}


def evaluate(truth: Solutions, attempts: Answers, samples: Answers | None = None) -> Report:
    """The metrics of these attempts and of the samples they were chosen from.

    Without samples the attempts are all there is, and both kinds of numbers are about them.
    Answers to tasks or tests that the truth does not have are not looked at. Raises BadInput where
    the truth is empty.
    """
    if not truth:
        raise BadInput("no task with a known solution: nothing to evaluate")
    drawn = attempts if samples is None else samples
    tasks = {
        task_id: _mean(
            _of_test(output, _answers(attempts, task_id, i), _answers(drawn, task_id, i))
            for i, output in enumerate(outputs)
        )
        for task_id, outputs in truth.items()
    }
    return Report(tasks, _mean(tasks.values()))


def _answers(answers: Answers, task_id: str, test: int) -> Sequence[Grid | None]:
    tests = answers.get(task_id, ())
    # A test without any answer is like one whose only answer is not a grid.
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

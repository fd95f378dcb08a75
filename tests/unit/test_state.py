"""The state: what a fold of the records says of tasks, jobs and the daemon."""

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from support.small import candidate, task
from support.strategies import Happening, lives

from arcd.arc.selection import Verdict, verdict
from arcd.jobs import events
from arcd.jobs.events import Record, Times
from arcd.jobs.state import FINISHED, Answer, JobState, Phase, State

DAEMON = events.DaemonStarted(7, "0.1", "base", "f", "cpu", "float32")


def folded(happened: Iterable[Happening], *, clock: Iterable[float] | None = None) -> State:
    state = State()
    times = iter(clock) if clock else iter(range(10**6))
    for seq, (job, event) in enumerate(happened, 1):
        state.apply(Record(seq, float(next(times)), job, event))
    return state


def one_job(
    *happened: events.Event, tasks: Iterable[str] = "ab", clock: Iterable[float] | None = None
) -> State:
    """After what happened to job 1; its submission is the first tick of the clock."""
    submitted = events.Submitted("j", 10, tuple(tasks))
    return folded([(1, event) for event in (submitted, *happened)], clock=clock)


def daemons(*happened: events.DaemonEvent) -> State:
    """After what happened to daemons."""
    return folded([(None, event) for event in happened])


def answer(name: str, *votes: int, invalid: int = 0) -> Verdict:
    """A verdict on one test, by the votes of its grids."""
    counts = [*votes, *[0] * invalid]
    grids = [((i,),) for i, count in enumerate(votes) for _ in range(count)] + [None] * invalid
    assert len(counts) >= len(votes)
    found = [candidate(task(name), 0, i, grid) for i, grid in enumerate(grids)]
    return verdict(name, 1, found, 3)


SURE = answer("a", 4)


def test_a_submitted_job_waits() -> None:
    job = one_job().jobs[1]
    assert (job.name, job.priority, list(job.tasks)) == ("j", 10, ["a", "b"])
    assert job.state is JobState.queued
    assert job.counts == {Phase.waiting: 2}


def test_a_task_goes_from_waiting_to_answered() -> None:
    steps: list[tuple[events.Event, Phase]] = [
        (events.Started("a", 4, 2), Phase.started),
        (events.Training("a", 1, 2, 0.5, 9.0), Phase.started),
        (events.Trained("a", 3, 2, 10, 1.0, 0.5), Phase.trained),
        (events.Noted("a", "a note"), Phase.trained),
        (events.Sampled("a", candidate(task("a"))), Phase.trained),
        (events.Answered("a", SURE), Phase.answered),
    ]
    happened: list[events.Event] = []
    for event, phase in steps:
        happened.append(event)
        job = one_job(*happened).jobs[1]
        assert job.tasks["a"].phase is phase
        assert job.tasks["b"].phase is Phase.waiting
        assert job.tasks["a"].in_flight == (phase is not Phase.answered)
        assert job.state is JobState.running


def test_a_task_without_training_is_sampled_from_its_first_candidate_on() -> None:
    state = one_job(events.Started("a", 0, 2), events.Sampled("a", candidate(task("a"))))
    assert state.jobs[1].tasks["a"].phase is Phase.trained
    assert (state.jobs[1].tasks["a"].wanted, state.jobs[1].tasks["a"].sampled) == (2, 1)


@pytest.mark.parametrize(
    ("happened", "expected"),
    [
        ([], JobState.queued),
        ([events.Paused()], JobState.paused),
        ([events.Paused(), events.Resumed()], JobState.queued),
        ([events.Started("a", 1, 1)], JobState.running),
        ([events.Started("a", 1, 1), events.Paused()], JobState.paused),
        ([events.Started("a", 1, 1), events.Released("a")], JobState.running),
        ([events.Cancelled()], JobState.cancelled),
        ([events.Paused(), events.Cancelled()], JobState.cancelled),
        ([events.Answered("a", SURE)], JobState.queued),
        ([events.Answered("a", SURE), events.Answered("b", SURE)], JobState.done),
        (
            [events.Paused(), events.Answered("a", SURE), events.Answered("b", SURE)],
            JobState.done,
        ),
        (
            [events.Answered("a", answer("a", invalid=3)), events.Answered("b", SURE)],
            JobState.done,
        ),
        (
            [events.Answered(name, answer(name, invalid=3)) for name in "ab"],
            JobState.failed,
        ),
        ([events.Answered(name, answer(name)) for name in "ab"], JobState.failed),
        (
            [
                *(events.Answered(name, answer(name)) for name in "ab"),
                events.Retried(("a",)),
            ],
            JobState.queued,
        ),
    ],
)
def test_the_state_of_a_job_follows_from_what_happened(
    happened: list[events.Event], expected: JobState
) -> None:
    job = one_job(*happened).jobs[1]
    assert job.state is expected
    assert job.finished == (expected in FINISHED)
    assert job.to_json()["state"] == expected.value


@pytest.mark.parametrize(
    ("votes", "invalid", "failed", "doubtful"),
    [
        ((4,), 0, False, False),
        ((2, 2), 0, False, False),
        ((2, 1, 1, 1), 0, False, True),
        ((2,), 3, False, True),
        ((), 4, True, True),
        ((), 0, True, False),
    ],
)
def test_an_answer_without_half_of_the_votes_is_doubtful_and_one_without_grids_failed(
    votes: tuple[int, ...], invalid: int, failed: bool, doubtful: bool
) -> None:
    found = Answer.of(answer("a", *votes, invalid=invalid))
    assert (found.failed, found.doubtful) == (failed, doubtful)
    job = one_job(events.Answered("a", answer("a", *votes, invalid=invalid))).jobs[1]
    assert job.retriable() == (["a"] if failed or doubtful else [])


def test_one_bad_test_of_several_makes_a_task_retriable() -> None:
    of = task("a", tests=2)
    found = [candidate(of, 0, i, ((1,),)) for i in range(4)]
    found += [candidate(of, 1, i, ((i,),)) for i in range(4)]
    state = one_job(events.Answered("a", verdict("a", 2, found, 3)))
    kept = state.jobs[1].tasks["a"].answer
    assert kept is not None
    assert kept.best == (4, 1)
    assert state.jobs[1].retriable() == ["a"]


def test_what_is_not_answered_is_not_retriable() -> None:
    assert one_job(events.Started("a", 1, 1)).jobs[1].retriable() == []


def test_a_retried_task_begins_anew_and_keeps_its_notes() -> None:
    job = one_job(
        events.Started("a", 4, 2),
        events.Interrupted("a"),
        events.Started("a", 4, 2),
        events.Trained("a", 3, 2, 10, 1.0, 0.5),
        events.Answered("a", verdict("a", 1, [], 3, ("known",))),
        events.Answered("b", SURE),
        events.Retried(("a",)),
    ).jobs[1]
    again = job.tasks["a"]
    assert (again.phase, again.round, again.deaths) == (Phase.waiting, 1, 0)
    assert (again.adapter, again.wanted, again.notes) == (None, 0, ("known",))
    assert job.tasks["b"].round == 0
    assert job.state is JobState.running


def test_an_interruption_counts_a_death_and_a_release_does_not() -> None:
    started, died = events.Started("a", 4, 2), events.Interrupted("a")
    job = one_job(started, died, started, events.Released("a"), started, died).jobs[1]
    assert job.tasks["a"].deaths == 2
    assert job.tasks["a"].phase is Phase.waiting


def test_an_adapter_is_kept_through_an_interruption_until_the_answer() -> None:
    before = (events.Started("a", 4, 2), events.Trained("a", 3, 2, 10, 1.0, 0.5))
    died = (*before, events.Interrupted("a"))
    assert one_job(*died).jobs[1].tasks["a"].adapter == 3
    again = one_job(*died, events.Started("a", 4, 1)).jobs[1].tasks["a"]
    assert (again.phase, again.wanted, again.sampled) == (Phase.trained, 1, 0)
    assert one_job(*before, events.Answered("a", SURE)).jobs[1].tasks["a"].adapter is None


def test_notes_gather_and_those_of_the_verdict_stand() -> None:
    told = [events.Noted("a", "one"), events.Noted("a", "two")]
    assert one_job(*told).jobs[1].tasks["a"].notes == ("one", "two")
    found = verdict("a", 1, [], None, ("one", "two", "three"))
    notes = one_job(*told, events.Answered("a", found)).jobs[1].tasks["a"].notes
    assert notes == ("one", "two", "three")


def test_seconds_count_from_the_last_start() -> None:
    started = events.Started("a", 1, 1)
    happened = (started, events.Released("a"), started, events.Answered("a", SURE))
    state = one_job(*happened, tasks="a", clock=[0, 10, 20, 30, 42])
    assert state.jobs[1].tasks["a"].seconds == 12


def test_a_clock_that_is_set_back_makes_no_time_negative() -> None:
    happened = (events.Started("a", 1, 1), events.Answered("a", SURE))
    state = one_job(*happened, tasks="a", clock=[100, 90, 5])
    assert state.jobs[1].tasks["a"].seconds == 0


def test_the_training_under_way_is_known_until_it_ends() -> None:
    step = events.Training("a", 1, 2, 0.5, 9.0)
    under_way = (events.Started("a", 4, 2), step)
    assert one_job(*under_way).training == {(1, "a"): step}
    assert one_job(*under_way, events.Noted("b", "of another")).training == {(1, "a"): step}
    for event in (
        events.Trained("a", 3, 2, 10, 1.0, 0.5),
        events.Noted("a", "out of memory"),
        events.Interrupted("a"),
        events.Released("a"),
        events.Answered("a", SURE),
    ):
        assert one_job(*under_way, event).training == {}


def test_a_job_was_asked_for_when_it_was_submitted_resumed_or_retried_last() -> None:
    happened: list[Happening] = [
        (1, events.Submitted("j", 10, ("a",))),
        (2, events.Submitted("k", 10, ("a",))),
        (1, events.Paused()),
        (1, events.Resumed()),
        (1, events.Started("a", 1, 1)),
        (1, events.Answered("a", answer("a"))),
        (1, events.Retried(("a",))),
    ]
    asked = [[job.asked for job in folded(happened[:n]).jobs.values()] for n in range(2, 8)]
    assert asked == [[1, 2], [1, 2], [4, 2], [4, 2], [4, 2], [7, 2]]


def test_a_daemon_has_the_home_from_its_start_to_its_stop() -> None:
    ready = (DAEMON, events.DaemonReady(1.0))
    for state, expected in (
        (daemons(DAEMON), (DAEMON, False)),
        (daemons(*ready), (DAEMON, True)),
        (daemons(*ready, DAEMON), (DAEMON, False)),
        (daemons(*ready, events.DaemonStopped()), (None, False)),
    ):
        assert (state.daemon, state.ready) == expected


def test_each_start_after_an_unclean_end_is_a_restart_and_one_after_a_stop_in_order_is_not() -> (
    None
):
    died = (DAEMON, events.DaemonReady(1.0), DAEMON, DAEMON)
    assert [daemons(*died[:n]).restarts for n in range(5)] == [0, 0, 0, 1, 2]
    assert daemons(*died, events.DaemonStopped(), DAEMON).restarts == 0


def test_what_is_in_hand_is_found_in_all_jobs() -> None:
    state = folded(
        [
            (1, events.Submitted("j", 10, ("a", "b"))),
            (2, events.Submitted("k", 10, ("a",))),
            (1, events.Started("b", 1, 1)),
            (2, events.Started("a", 1, 1)),
            (2, events.Trained("a", 3, 2, 10, 1.0, 0.5)),
        ]
    )
    assert state.in_flight() == [(1, "b"), (2, "a")]


@given(lives())
def test_counts_are_those_of_the_tasks_whatever_happens(lived: list[Happening]) -> None:
    state = State()
    for seq, (job, event) in enumerate(lived, 1):
        state.apply(Record(seq, float(seq), job, event))
        assert state.seq == seq
        for each in state.jobs.values():
            assert +each.counts == Counter(t.phase for t in each.tasks.values())
            assert min(each.counts.values()) >= 0
            shown = each.to_json()
            assert sum(shown[phase.value] for phase in Phase) == shown["tasks"]
        in_flight = [
            (j.id, n) for j in state.jobs.values() for n, t in j.tasks.items() if t.in_flight
        ]
        assert state.in_flight() == in_flight


@given(lives())
def test_a_state_depends_on_nothing_but_its_records(lived: list[Happening]) -> None:
    assert folded(lived) == folded(lived)


# How good predictions were.


def predicted(name: str, train: float, infer: float) -> events.Started:
    return events.Started(name, 4, 1, Times(train, infer))


def done(name: str, seconds: float) -> list[events.Event]:
    """A training of so many seconds, a sample and an answer, a second apart each."""
    return [
        events.Trained(name, 3, 2, 10, seconds, 0.5),
        events.Sampled(name, candidate(task(name))),
        events.Answered(name, answer(name, 1)),
    ]


def test_predictions_are_judged_by_what_each_part_took() -> None:
    job = one_job(predicted("a", 6.0, 1.0), *done("a", 3.0)).jobs[1]
    ratio = {f"p{d}": 2.0 for d in (10, 50, 90)}
    half = {f"p{d}": 0.5 for d in (10, 50, 90)}
    assert job.accuracy() == {"train": ratio, "infer": half}


def test_of_several_tasks_the_deciles_are_told() -> None:
    names = [f"t{i}" for i in range(11)]
    happened: list[events.Event] = []
    for i, name in enumerate(names, 1):
        happened += [predicted(name, float(i), 1.0), *done(name, 1.0)]
    accuracy = one_job(*happened, tasks=names).jobs[1].accuracy()["train"]
    assert accuracy == {"p10": 2.0, "p50": 6.0, "p90": 10.0}


@pytest.mark.parametrize(
    "happened",
    [
        [events.Started("a", 4, 1), *done("a", 3.0)],
        [predicted("a", 6.0, 1.0)],
        [predicted("a", 6.0, 1.0), events.Answered("a", SURE)],
    ],
    ids=["nothing was predicted", "nothing is done", "it was cut short"],
)
def test_what_was_not_predicted_or_not_done_is_not_judged(happened: list[events.Event]) -> None:
    assert one_job(*happened).jobs[1].accuracy() == {}

"""The past: who had which stage when, over whole lives of jobs."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from support.past import BEGIN, DAEMON, Past
from support.small import solutions, task
from support.strategies import Happening, lives

from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.history import History
from arcd.jobs.state import Phase

A, B = task("a"), task("b")
TRUTH = solutions([A, B])
RIGHT, WRONG = TRUTH["a"][0], ((9,),)


def folded(lived: list[Happening], keep: int | None = None) -> History:
    """Of the first job; a second passes between two records."""
    history = History(1, {}, keep)
    for seq, (job, event) in enumerate(lived, 1):
        if job in (1, None):
            history.apply(Record(seq, float(seq), job, event))
    return history


@given(lives())
def test_spans_are_ordered_and_those_of_a_track_are_apart(lived: list[Happening]) -> None:
    history = folded([(j, e) for j, e in lived if not isinstance(e, events.Trained)])
    for stage in ("train", "infer"):
        mine = [span for span in history.spans() if span.stage == stage]
        for track in {span.track for span in mine}:
            held = sorted((s for s in mine if s.track == track), key=lambda s: s.number)
            assert [span.number for span in held] == list(range(len(held)))
            assert all(a.end is not None and a.end <= b.begin for a, b in pairwise(held))


@given(lives())
def test_the_open_spans_are_the_lanes_of_the_state(lived: list[Happening]) -> None:
    history = folded(lived)
    job = history.found
    tasks = job.tasks.items() if job else ()
    # The daemon that died has let go of what the state still has in hand.
    dead = any(j is None for j, _ in lived[-1:])
    sampled = {name for name, t in tasks if t.phase is Phase.trained}
    assert {t for stage, t in history.open if stage == "infer"} <= (set() if dead else sampled)
    assert {
        (1, t) for stage, t in history.open if stage == "train"
    } == history.state.training.keys()


@given(lives(), st.integers(0, 5))
def test_it_keeps_no_more_than_it_is_told(lived: list[Happening], keep: int) -> None:
    history = folded(lived, keep)
    for kept in (history.over, history.losses, history.answers, history.notices):
        assert len(kept) <= keep
    # What is forgotten does not change what goes on.
    assert history.open == folded(lived).open


def test_a_task_holds_the_trainer_then_the_engine() -> None:
    history = Past().submitted("a").solved(A, [RIGHT] * 4).history(TRUTH)
    train, infer = history.spans()
    assert (train.stage, train.task, train.begin, train.end) == ("train", "a", BEGIN, BEGIN + 10)
    assert (infer.stage, infer.task, infer.begin, infer.end) == (
        "infer",
        "a",
        BEGIN + 10,
        BEGIN + 12,
    )
    assert [step for step, _ in history.losses["a"]] == list(range(1, 11))
    assert history.ended == BEGIN + 12


def test_trainings_at_once_have_tracks_of_their_own() -> None:
    past = Past().submitted("abc").started("a").started("b").training("a", 1).training("b", 1)
    past.add(events.Trained("a", 3, 10, 100, 1.0, 0.2)).started("c").training("c", 1)
    history = past.history()
    tracks = {(s.stage, s.task): s.track for s in history.spans()}
    assert tracks == {("train", "a"): 0, ("train", "b"): 1, ("train", "c"): 0, ("infer", "a"): 0}


def test_a_daemon_that_died_held_its_lanes_until_it_was_heard_of_last() -> None:
    past = Past().submitted("a").started("a").training("a", 3)
    past.add(DAEMON, after=60).add(events.Interrupted("a")).started("a").training("a", 1)
    history = past.history()
    assert [(s.begin, s.end) for s in history.over] == [(BEGIN + 1, BEGIN + 3)]
    assert history.deaths == [BEGIN + 63]
    assert [text for _, text in history.notices] == [
        "note: the daemon was started again (pid 7)",
        "a  note: interrupted by the death of the daemon, goes on",
    ]
    # Begun anew.
    assert [step for step, _ in history.losses["a"]] == [1]


def test_right_is_the_share_of_tests_solved_in_the_last_answer() -> None:
    two = task("a", tests=2)
    truth = solutions([two])
    past = Past().submitted("a").answered(two, [truth["a"][0]])
    assert past.history(truth).right == {"a": 0.5}
    past.add(events.Retried(("a",))).answered(two, [WRONG])
    assert past.history(truth).right == {"a": 0.0}
    assert past.history().right == {}


def test_a_job_that_is_taken_up_again_has_not_ended() -> None:
    past = Past().submitted("a").solved(A, [WRONG] * 4)
    assert past.history().ended == past.at
    past.add(events.Retried(("a",)), after=5)
    assert past.history().ended is None


def test_the_speed_of_sampling_is_that_of_the_last_seconds() -> None:
    past = Past().submitted("a").started("a").trained("a").sampled(A, [WRONG] * 4, every=1.0)
    history = past.history()
    assert history.sampling_rate(past.at) == 4 * 60 / 10
    assert history.sampling_rate(past.at + 8) == 2 * 60 / 10
    assert history.sampling_rate(past.at + 60) == 0


def test_a_clock_that_is_set_back_makes_no_span_negative() -> None:
    past = Past().submitted("a").started("a").training("a", 2)
    past.at = BEGIN - 3600
    past.add(events.Trained("a", 3, 10, 100, 1.0, 0.2)).answered(A, [WRONG])
    history = past.history()
    assert all(span.end is not None and span.begin <= span.end for span in history.over)
    assert history.at == BEGIN + 2


def test_the_ledger_is_that_of_the_daemon_that_finished_the_job() -> None:
    mine, later = {"wall": 1.0}, {"wall": 2.0}
    past = Past().submitted("a").add(events.DaemonStopped({"wall": 0.5})).add(DAEMON)
    past.solved(A, [RIGHT]).add(events.DaemonStopped(mine))
    assert past.history().ledger == mine
    past.add(DAEMON, events.DaemonStopped(later))
    assert past.history().ledger == mine

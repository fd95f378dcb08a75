"""A random walk: commands, kills at any durable act, full disks, hand edits, restarts.

Each step is followed by a look at all that was promised. The lives of the daemons are in this
process; real processes are walked over in test_walk_of_processes. `--all` takes 2000 steps.
"""

import gc
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.walk import SETS, SETTINGS, Victim, Walk
from support.witness import FOLDER

from arcd.daemon.schema import TakeUp

pytestmark = pytest.mark.filterwarnings(
    # A death comes between the start of a task and its first step, too.
    "ignore:coroutine .* was never awaited:RuntimeWarning"
)

FULL_STEPS = 2000

sets, chosen = st.sampled_from(list(SETS)), st.sampled_from(list(SETTINGS))
take_ups: st.SearchStrategy[TakeUp] = st.sampled_from(["never", "unfinished", "done"])
victims: st.SearchStrategy[Victim] = st.sampled_from(["daemon", "supervisor"])
verbs = st.sampled_from(["pause", "resume", "cancel", "retry", "forget"])
places = st.sampled_from([(), (0,), (1,), (0, 1)])
picks = st.integers(0, 9)


class Walking(RuleBasedStateMachine):
    """Chooses the steps of a walk."""

    steps = 0
    """Of all walks."""

    def __init__(self) -> None:
        super().__init__()
        self._undo = ExitStack()
        folder = Path(self._undo.enter_context(tempfile.TemporaryDirectory(prefix="arcd-walk-")))
        self.walk = Walk(folder)
        self._undo.enter_context(self.walk.machine.installed())
        self._sound = True
        self._edits = 0

    @contextmanager
    def step(self) -> Iterator[Walk]:
        """One step, and the look at everything after it."""
        self._sound = False
        yield self.walk
        self.walk.check()
        self._sound = True
        Walking.steps += 1

    def outs(self, where: tuple[int, ...]) -> tuple[Path, ...]:
        return tuple(self.walk.outs[i] for i in where)

    def job(self, pick: int) -> int:
        """One of the jobs there were; sometimes none."""
        return 1 + pick % (1 + len(self.walk.archive.state().jobs))

    def runs(self) -> bool:
        return self.walk.command is not None

    @precondition(lambda self: not self.runs())
    @rule()
    def serve(self) -> None:
        with self.step() as walk:
            walk.serve()

    @precondition(lambda self: not self.runs())
    @rule(tasks=sets, chosen=chosen, where=places)
    def run(self, tasks: str, chosen: str, where: tuple[int, ...]) -> None:
        with self.step() as walk:
            walk.run(tasks, chosen, self.outs(where))

    @precondition(runs)
    @rule(tasks=sets, chosen=chosen, where=places, take_up=take_ups)
    def submit(self, tasks: str, chosen: str, where: tuple[int, ...], take_up: TakeUp) -> None:
        with self.step() as walk:
            if walk.command is not None and walk.command.job is not None:
                take_up = "never"  # whoever is to take a job up has the home for himself
            walk.submit(tasks, chosen, self.outs(where), take_up=take_up)

    @precondition(runs)
    @rule(verb=verbs, pick=picks)
    def control(self, verb: str, pick: int) -> None:
        with self.step() as walk:
            walk.control(verb, self.job(pick))

    @precondition(runs)
    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 3.0, 10.0, 60.0]))
    def advance(self, seconds: float) -> None:
        with self.step() as walk:
            walk.advance(seconds)

    @precondition(runs)
    @rule(pick=picks)
    def follow(self, pick: int) -> None:
        with self.step() as walk:
            walk.follow(self.job(pick))

    @precondition(runs)
    @rule(pick=picks)
    def wait(self, pick: int) -> None:
        with self.step() as walk:
            walk.wait(self.job(pick))

    @precondition(runs)
    @rule()
    def stop(self) -> None:
        with self.step() as walk:
            walk.stop()

    @precondition(runs)
    @rule(after=st.sampled_from([0.0, 0.1, 1.0, 4.0]))
    def stop_twice(self, after: float) -> None:
        with self.step() as walk:
            walk.stop_twice(after)

    @precondition(runs)
    @rule(victim=victims)
    def kill(self, victim: Victim) -> None:
        with self.step() as walk:
            walk.kill(victim)

    @rule(victim=victims, acts=st.integers(1, 40))
    def arm(self, victim: Victim, acts: int) -> None:
        with self.step() as walk:
            walk.arm(victim, acts)

    @precondition(runs)
    @rule(victim=victims, acts=st.integers(1, 60))
    def kill_soon(self, victim: Victim, acts: int) -> None:
        with self.step() as walk:
            walk.arm(victim, acts)
            walk.advance(30.0)

    @rule(pages=st.integers(0, 3))
    def fill(self, pages: int) -> None:
        with self.step() as walk:
            walk.machine.fill(pages)

    @precondition(lambda self: self.walk.machine.full)
    @rule()
    def make_room(self) -> None:
        with self.step() as walk:
            walk.machine.make_room()

    @rule(where=st.integers(0, 1), what=st.sampled_from(["mine", FOLDER, None]))
    def edit(self, where: int, what: str | None) -> None:
        with self.step() as walk:
            self._edits += 1
            text = f"mine, {self._edits}" if what == "mine" else what
            walk.edit(walk.outs[where], text)

    @invariant()
    def sound(self) -> None:
        assert self._sound

    def teardown(self) -> None:
        try:
            if self._sound:
                self.walk.finish()
        finally:
            self.walk.close()
            self._undo.close()
            gc.collect()  # what a death has left complains here, not in another test


def walk(walks: int, steps: int, *phases: Phase) -> None:
    """So many walks of so many steps at most."""
    profile = settings(
        max_examples=walks,
        stateful_step_count=steps,
        suppress_health_check=list(HealthCheck),
        phases=phases,
    )
    Walking.steps = 0
    run_state_machine_as_test(Walking, settings=profile)


def test_nothing_is_lost_overwritten_blanked_or_charged_to_the_innocent() -> None:
    walk(6, 20, Phase.generate)  # to make a failure short takes longer than a test may


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_nothing_is_lost_overwritten_blanked_or_charged_in_long_walks() -> None:
    walk(70, 40, Phase.generate, Phase.shrink)
    assert Walking.steps >= FULL_STEPS

"""A walk: what users, kills, full disks and hand edits do to a home, one step after the other.

`Walk` does the steps, by name; who calls it chooses them. A `Witness` tells what must hold after
each. The lives of the daemons are in this process, on a virtual clock.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from arcd.config import resolve
from arcd.daemon import foreground, schema
from arcd.daemon.options import Options
from arcd.errors import ArcdError, EngineFailed, known
from arcd.model.base_model import bundled
from arcd.system.home import Home
from support import asgi
from support.lives import Life
from support.machine import Machine
from support.small import task, task_set
from support.witness import FOLDER, Witness, content

SETS = {
    "two": task_set(task("a1", pairs=2), task("a2", pairs=2), name="two"),
    "three": task_set(task("b1", pairs=2), task("b2", pairs=2, tests=2), task("b3"), name="three"),
    "one": task_set(task("c1", pairs=2), name="one"),
}
SOLUTIONS = {name: grids for each in SETS.values() for name, grids in each.solutions.items()}

FEW = {"train": {"steps": 2, "batch_size": 1}, "sample": {"samples": 2}}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": FEW,
    "groups": {**FEW, "train": {"steps": 1, "batch_size": 1, "share": 2}},
    "long budget": {**FEW, "budget": {"seconds": 40.0, "reserve": 1.0}},
    "short budget": {**FEW, "budget": {"seconds": 4.0, "reserve": 1.0}},
}
"""What jobs are submitted with."""

SETTLED_S = 10.0
"""Virtual seconds in which everything is written that can be."""

FINISHED = ("done", "failed", "cancelled")

DONE_S = 600.0
"""Virtual seconds in which any job of these is done."""

GRACE_S = 5.0

Victim = Literal["daemon", "supervisor"]
"""What is killed: the daemon alone, or its supervisor and so both. A power cut kills both."""


@dataclass
class Command:
    """`arcd serve`, or `arcd run` for one job: a supervisor and its daemons."""

    options: Options
    job: int | None = None
    outs: tuple[Path, ...] = ()
    stopping: bool = False


class Walk:
    """A home, two files of its user, and the command that has the home, if one runs."""

    def __init__(self, path: Path) -> None:
        self.machine = Machine(path)
        self.home = Home(self.machine.disk / "home")
        self.home.path.mkdir(mode=0o700)
        self.outs = tuple(self.machine.disk / f"out{i}.json" for i in range(2))
        self.witness = Witness(self.home, self.outs, SOLUTIONS)
        self.archive = self.witness.archive
        self.life: Life | None = None
        self.command: Command | None = None
        self._victim: Victim = "daemon"

    def check(self) -> None:
        """What must hold, once what follows from the last step is done."""
        self.advance(0.01)
        self.witness.check(ready=self.life is not None and self.life.ready)

    # Commands.

    def serve(self) -> None:
        """`arcd serve`."""
        if self.command is None:
            self._begin(since=0)

    def run(self, tasks: str, settings: str, outs: tuple[Path, ...]) -> None:
        """`arcd run`, which takes up the job that asks for the same."""
        if self.command is not None:
            return
        self._begin(since=self.archive.last() + 1)
        answer = self.submit(tasks, settings, outs, take_up="unfinished")
        if self.command is not None and answer is not None:
            if answer.status == 201:
                self.command.job, self.command.outs = int(answer.json()["job"]), outs
            else:
                self.stop()  # `run` ends with the reason

    def submit(
        self,
        tasks: str,
        settings: str,
        outs: tuple[Path, ...] = (),
        *,
        take_up: schema.TakeUp = "never",
    ) -> asgi.Answer | None:
        """`arcd submit`; None if the daemon dies meanwhile."""
        order = schema.order(SETS[tasks], settings=SETTINGS[settings], outs=outs, take_up=take_up)
        obstacle = any(content(out) == FOLDER for out in outs)
        return self.ask("POST", "/jobs", order.model_dump(mode="json"), 409 if obstacle else 201)

    def control(self, verb: str, job: int) -> None:
        """pause, resume, cancel, retry or forget, where that can be done."""
        if verb == "forget":
            self.ask("DELETE", f"/jobs/{job}", None, 200, 404, 409)
        else:
            self.ask("POST", f"/jobs/{job}/{verb}", None, 200, 404, 409)

    def ask(self, method: str, path: str, document: object, *expected: int) -> asgi.Answer | None:
        """The daemon's answer; None if it is gone before."""
        if self.life is None:
            return None
        answer = self.life.ask(method, path, document)
        if answer is not None and answer.status not in expected:
            # The disk is full, and it says so.
            assert self.machine.full, (answer.status, answer.body)
            assert answer.status in (500, 507), (answer.status, answer.body)
            assert "\n" not in answer.json()["error"]
        self._see()
        return answer

    def follow(self, job: int) -> None:
        """Begin to follow a job from somewhere."""
        if self.life is not None:
            after, lines = self.archive.last() // 2, list[str]()
            self.life.follow(job, after, lines.append, lambda: None)
            self.witness.follow(job, after, lines)

    def wait(self, job: int) -> None:
        """`arcd submit --wait`: whoever has waited has the final files, or the reason."""
        if self.life is None or self.machine.full:
            return
        own = self.home.submission(job)
        ended = self.life.follow(
            job, 0, lambda _: None, lambda: {path: content(path) for path in (own, *self.outs)}
        )
        if self.life.until(ended.done, DONE_S) and job in self.archive.state().jobs:
            answer = self.life.ask("GET", f"/jobs/{job}")
            if answer is not None and answer.json()["state"] in FINISHED:
                self._check_final(job, ended.result(), answer.json()["unpublished"])
        ended.cancel()
        self._see()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        if self.life is not None:
            self.life.advance(seconds)
        self._see()

    # Ends.

    def stop(self) -> None:
        """Ctrl-C or SIGTERM, or `arcd stop`."""
        if self.command is not None and self.command.job is not None:
            self.ask("POST", f"/jobs/{self.command.job}/pause", None, 200, 404, 409)
        self._stop()

    def stop_twice(self, after: float) -> None:
        """A second Ctrl-C so many seconds after the first: the daemon is killed."""
        if self.life is not None and self.command is not None:
            self.command.stopping = True
            self.life.stop()
            self.life.advance(after)
            if not self.life.over:
                self.machine.die()
            self._see()

    def kill(self, victim: Victim) -> None:
        """A SIGKILL now."""
        if self.life is not None:
            self._victim = victim
            self.machine.die()
            self._see()

    def arm(self, victim: Victim, acts: int) -> None:
        """A SIGKILL at the durable act of this number from now on."""
        self._victim = victim
        self.machine.arm(acts)

    def _begin(self, since: int) -> None:
        self.witness.outs.begin_session()
        options = Options(
            home=self.home.path,
            base=bundled(),
            config=resolve(settings=["lookahead=2"]),
            grace=GRACE_S,
            since=since,
            began=self.archive.last(),
        )
        self.command = Command(options)
        self._live(options, predecessor_died=False)
        self._see()

    def _live(self, options: Options, *, predecessor_died: bool) -> None:
        """Start a daemon, and wait until it is ready or gone."""
        self.witness.begin_life(predecessor_died=predecessor_died)
        life = Life(self.machine, options, SOLUTIONS, predecessor_died=predecessor_died)
        self.life = life
        assert life.until(lambda: life.over or life.ready), "it does not become ready"

    def _stop(self) -> None:
        if self.life is not None and self.command is not None:
            self.command.stopping = True
            life = self.life
            life.stop()
            assert life.until(lambda: life.over), "it does not end"
            self._see()

    def _see(self) -> None:
        """Take in what became of the daemon: its supervisor starts another one, or ends too."""
        while self.life is not None and self.life.over:
            assert self.command is not None
            died, error = self.machine.dead, self.life.error
            self.life.close()
            self.life = None
            self.witness.end_life()
            if died and self._victim == "daemon" and not self.command.stopping:
                self._live(self.command.options, predecessor_died=True)
                continue
            if error is not None:
                self._check_failure(error)
            assert died or error or self.command.stopping, "it ended although nobody asked it to"
            command, self.command = self.command, None
            if not died or self._victim == "daemon":
                self._leave(command)
        if self.command is not None and self.command.job is not None and self.life is not None:
            job = self.archive.state().jobs.get(self.command.job)
            if job is None or job.finished:
                self._stop()

    def _check_failure(self, error: BaseException) -> None:
        """An error that ends the supervisor, too: the disk is full, and it says so."""
        explained = known(error)
        if explained is None or isinstance(explained, EngineFailed) or not self.machine.full:
            raise error

    def _leave(self, command: Command) -> None:
        """What `run` does when its daemon is gone for good."""
        job = self.archive.state().jobs.get(command.job or 0)
        if job is None:
            return
        try:
            foreground.publish_rest(self.home, command.outs, job.id, done=job.finished)
        except ArcdError:
            assert self.machine.full or any(content(out) == FOLDER for out in command.outs)

    # The user's own files.

    def edit(self, out: Path, text: str | None) -> None:
        """The user writes, deletes, or puts a folder where a submission is kept."""
        self.witness.outs.check(self.archive.rows())
        if out.is_dir():
            out.rmdir()
        out.unlink(missing_ok=True)
        if text == FOLDER:
            out.mkdir()
        elif text is not None:
            out.write_text(text)
        self.witness.outs.edited(out)

    def _check_final(
        self, job: int, there: dict[Path, str | None], unpublished: dict[str, str]
    ) -> None:
        """What somebody found who has waited for a job is final, or it is said why not."""
        everybodys = self.archive.outs(set(self.archive.state().jobs))
        for store in self.archive.stores():
            text = store.jobs.submission(job)
            for path in (self.home.submission(job), *store.jobs.outs(job)):
                others = sum(path in outs for outs in everybodys.values()) > 1
                mine = self.witness.outs.is_mine(path)
                assert there[path] == text or str(path) in unpublished or mine or others, path

    # The end.

    def finish(self) -> None:
        """With room and without kills all gets done; then all of it must be there."""
        self.machine.arm(0)
        self.machine.make_room()
        for out in self.outs:
            if content(out) == FOLDER:
                self.edit(out, None)
        if self.command is not None and self.command.job is not None:
            self.stop()
        self.serve()
        life = self.life
        assert life is not None
        for job in self.archive.state().jobs.values():
            if not job.finished:
                self.control("resume", job.id)
        assert life.until(self._all_finished, DONE_S)
        self.advance(SETTLED_S)
        self.check()
        for store in self.archive.stores():
            for number in self.archive.state().jobs:
                text = self.home.submission(number).read_text()
                assert text == store.jobs.submission(number)
        folders = {path.name for path in (self.home.path / "jobs").glob("*")}
        assert folders == set(map(str, self.archive.state().jobs))
        self.stop()
        self.check()
        assert not any(self.home.adapters.glob("*"))

    def _all_finished(self) -> bool:
        return all(job.finished for job in self.archive.state().jobs.values())

    def close(self) -> None:
        """End whatever runs."""
        if self.life is not None:
            self.life.close()
            self.life = None

"""The witness of a walk: remembers what a home has shown, and holds it against what is there now.

    records      none is lost or changed; each sample is there once
    deaths       only tasks in flight at a death that a supervisor saw are charged, once each
    answers      a task has all its samples, and the right answer, unless it died too often
    submissions  each file in the home is complete and valid
    outs         a file of the user changes only for a job that lacks an answer in it
    adapters     only those that somebody still needs are on the disk
    followers    get each record once, in its order

Knows nothing of how a daemon works, nor of what is done to it.
"""

import json
from collections import Counter
from pathlib import Path

from arcd.arc import submission
from arcd.arc.tasks import Solutions
from arcd.errors import BadSubmission
from arcd.jobs.state import Job, Phase, State
from arcd.jobs.store import Store
from arcd.scheduling.rounds import MOST_DEATHS
from arcd.system.home import Home
from support.archive import Archive, Row

FOLDER = "(a folder)"
"""Stands for the content of a path where a folder is in the way."""

ASKING = ("Submitted", "Resumed", "Retried", "Answered")
"""Events after which a job's outs may be written."""


def content(out: Path) -> str | None:
    """What is at a path; None: nothing."""
    if out.is_dir():
        return FOLDER
    return out.read_text() if out.exists() else None


class Outs:
    """The files of the user at these paths."""

    def __init__(self, paths: tuple[Path, ...], archive: Archive) -> None:
        self._archive = archive
        self._seen: dict[Path, str | None] = dict.fromkeys(paths)
        self._mine: set[Path] = set()
        self._behind: dict[int, tuple[Path, ...]] = {}
        self._last = self._session = 0

    def edited(self, out: Path) -> None:
        """The user has changed it: from now on it is as it is."""
        self._seen[out] = content(out)
        self._mine.add(out)

    def is_mine(self, out: Path) -> bool:
        """Whether it is as the user has left it."""
        return out in self._mine and self._seen[out] == content(out)

    def begin_session(self) -> None:
        """A command begins: jobs that were asked for or answered before have had their time."""
        self.check(self._archive.rows())
        self._session = self._last

    def check(self, rows: dict[int, Row]) -> None:
        """One has changed only if a job of this session that lacked an answer in it may have
        written it."""
        behind = self._archive.behind()
        new = self._archive.outs(_asked(rows, after=self._last))
        session = _asked(rows, after=self._session)
        may = [*self._behind.items(), *new.items(), *behind.items()]
        for out, before in self._seen.items():
            now = content(out)
            if now == before:
                continue
            assert now is not None, f"{out} was deleted"
            writers = {job for job, outs in may if out in outs and job in session}
            assert any(self._is_of(now, job) for job in writers), f"{out}: {now}, by {writers}"
            self._seen[out] = now
            self._mine.discard(out)
        self._behind, self._last = behind, max(rows, default=0)

    def _is_of(self, text: str, job: int) -> bool:
        return any(is_complete(store, job, text) for store in self._archive.stores())


def _asked(rows: dict[int, Row], after: int) -> set[int]:
    """The jobs that were asked for or answered after a record."""
    new = (row for seq, row in rows.items() if seq > after and row.kind in ASKING)
    return {row.job for row in new if row.job is not None}


def is_complete(store: Store, job: int, text: str) -> bool:
    """Whether a text is a valid submission with all that a job's must have."""
    wanted = json.loads(store.jobs.submission(job))
    try:
        found = submission.parse("file", json.loads(text))
    except (ValueError, BadSubmission):
        return False
    return {name: len(tests) for name, tests in found.items()} == {
        name: len(tests) for name, tests in wanted.items()
    }


class Witness:
    """Looks at a home with tasks of these solutions."""

    def __init__(self, home: Home, outs: tuple[Path, ...], solutions: Solutions) -> None:
        self.archive = Archive(home.path)
        self.outs = Outs(outs, self.archive)
        self._home, self._solutions = home, solutions
        self._rows: dict[int, Row] = {}
        self._charged: Counter[tuple[int | None, str]] = Counter()
        self._begun = 0
        self._followed: list[tuple[int, int, list[str]]] = []

    def begin_life(self, *, predecessor_died: bool) -> None:
        """A daemon begins; if a supervisor saw the last one die, it charges what was in flight."""
        self._begun = self.archive.last()
        in_flight = self.archive.state().in_flight() if predecessor_died else []
        self._charged = Counter(in_flight)

    def follow(self, job: int, after: int, lines: list[str]) -> None:
        """Somebody follows a job from the record `after` on, and gets these lines."""
        self._followed.append((job, after, lines))

    def end_life(self) -> None:
        """The daemon is gone, and so are its followers."""
        self.check_followers(self.archive.rows())
        self._followed.clear()

    def check(self, *, ready: bool) -> None:
        """All of it; `ready`: there is a daemon that has its models."""
        self.check_kept()
        self.check_deaths(ready=ready)
        if ready:
            self.check_adapters(self.archive.state())

    def check_kept(self) -> None:
        """All but deaths and adapters, which only who knows of each life can tell."""
        rows, state = self.archive.rows(), self.archive.state()
        self.check_records(rows)
        self.check_followers(rows)
        self.outs.check(rows)
        for store in self.archive.stores():
            for job in state.jobs.values():
                self.check_answers(store, job)
                self.check_submission(store, job)

    def check_records(self, rows: dict[int, Row]) -> None:
        """None is lost but those of forgotten jobs; no sample is there twice."""
        forgotten = {row.job for row in rows.values() if row.kind == "Forgotten"}
        for seq, row in self._rows.items():
            assert rows.get(seq) == row or row.job in forgotten, f"record {seq} is lost: {row}"
        self._rows = rows
        samples = Counter(
            (row.job, c["task"], c["test"], c["sample"])
            for row in rows.values()
            if row.kind == "Sampled" and (c := row.fields["candidate"])
        )
        twice = [sample for sample, times in samples.items() if times > 1]
        assert not twice

    def check_deaths(self, *, ready: bool) -> None:
        """Those of the last death are charged, all of them once the daemon is ready."""
        charged = Counter(
            (row.job, row.fields["task"])
            for seq, row in self._rows.items()
            if row.kind == "Interrupted" and seq > self._begun
        )
        assert charged <= self._charged, f"charged: {charged}, may be: {self._charged}"
        assert not ready or charged == self._charged, f"not charged: {self._charged - charged}"

    def check_followers(self, rows: dict[int, Row]) -> None:
        """What each got is where all that there is of its job begins."""
        for job, after, lines in self._followed:
            mine = [seq for seq, row in rows.items() if row.job == job]
            if not mine or rows[min(mine)].kind != "Submitted":
                continue  # it is forgotten
            due = [
                seq
                for seq, row in sorted(rows.items())
                if seq > max(after, min(mine) - 1) and row.job in (job, None)
            ]
            got = [json.loads(line)["seq"] for line in lines]
            assert got == due[: len(got)]

    def check_answers(self, store: Store, job: Job) -> None:
        """A healthy task of a job without a budget has all samples; the answers are right."""
        config = store.jobs.config(job.id)
        tests = {task.id: len(task.tests) for task in store.jobs.tasks(job.id).tasks}
        aside = self._set_aside(job.id)
        for verdict in store.jobs.verdicts(job.id):
            name, state = verdict.task, job.tasks[verdict.task]
            if job.budget is None and name not in aside:
                rounds = state.round + (state.phase is Phase.answered)
                asked = config.sample.samples * tests[name] * rounds
                assert verdict.samples == asked, self._told(job, name)
            alone = config.train.share == 1  # an adapter of fakes knows one task of its group
            if alone and verdict.adapter is not None and verdict.samples and not verdict.notes:
                best = tuple(test[0] if test else None for test in verdict.attempts)
                assert best == tuple(self._solutions[name]), self._told(job, name)

    def check_submission(self, store: Store, job: Job) -> None:
        """The file in the home is complete and valid."""
        own = self._home.submission(job.id)
        assert not own.exists() or is_complete(store, job.id, own.read_text())

    def check_adapters(self, state: State) -> None:
        """There are those of tasks without an answer, and of tasks with another round to come."""
        needed = {
            f"adapter-{serial}"
            for job in state.jobs.values()
            if not job.finished
            for task in job.tasks.values()
            for serial in (task.adapter, task.answered_by if job.budget is not None else None)
        }
        folder = self._home.adapters
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        assert there <= needed, f"{there - needed}: needed by nobody"

    def _told(self, job: Job, task: str) -> str:
        """What happened to a task."""
        mine = [
            f"{seq} {row.kind} {row.body[:300]}"
            for seq, row in self._rows.items()
            if row.job is None or (row.job == job.id and (f'"{task}"' in row.body))
        ]
        return "\n".join(mine)

    def _set_aside(self, job: int) -> set[str]:
        """The tasks of a job that were answered early because the daemon died with them."""
        mine = [row for row in self._rows.values() if row.job == job]
        charged = Counter(row.fields["task"] for row in mine if row.kind == "Interrupted")
        aside = {
            row.fields["task"] for row in mine if row.kind == "Answered" and "set aside" in row.body
        }
        assert all(charged[task] >= MOST_DEATHS for task in aside)
        return aside

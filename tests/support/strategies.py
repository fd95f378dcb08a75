"""What the tests draw from: grids, tasks, views, encodings, events, whole lives of jobs; and a
tokenizer without a model."""

import re
from collections.abc import Iterator, Mapping, Sequence

from hypothesis import strategies as st

from arcd.arc.grids import COLOURS, MAX_SIDE, Grid
from arcd.arc.selection import Candidate, Verdict, Vote, verdict
from arcd.arc.tasks import Pair, Task
from arcd.arc.views import View
from arcd.jobs import events
from arcd.jobs.state import Phase, State
from arcd.model.encoding import LAYERS, CellEncoding, Encoding, GridText, TextEncoding

LAYERINGS = tuple(
    "+".join((*layers, "digits"))
    for layers in (
        (),
        *((a,) for a in LAYERS),
        *((a, b) for a in LAYERS for b in LAYERS if a != b),
        *((a, b, c) for a in LAYERS for b in LAYERS for c in LAYERS if len({a, b, c}) == 3),
    )
)
"""Every text encoding there is, by name."""

WORDS = r"<\|\w+\|>|\w+|\s|[^\w\s]+"
"""Cut for a tokenizer that merges whatever letters and digits stand together."""

CHARACTERS = r"<\|\w+\|>|(?s:.)"
"""Cut for a tokenizer with one token for each character."""


class FakeTokenizer:
    """Learns a token for each new piece it sees; `<|...|>` are specials of one token.

    The pieces are what the pattern `cut` finds. With `chat` it has a template of turns that
    `<|end|>` closes; without, `<|eos|>` ends a text.
    """

    def __init__(self, cut: str = WORDS, *, chat: bool = False) -> None:
        self.chat_template = "turns" if chat else None
        self.eos_token_id: int | None = 0
        self.pad_token_id: int | None = None
        self._cut = cut
        self._ids = {"<|eos|>": 0}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        pieces = re.findall(self._cut, text)
        return [self._ids.setdefault(piece, len(self._ids)) for piece in pieces]

    def decode(self, token_ids: list[int]) -> str:
        pieces = list(self._ids)
        return "".join(pieces[token] for token in token_ids)

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, str]], *, tokenize: bool = True
    ) -> str:
        return "".join(
            f"<|start|>{turn['role']}\n{turn['content']}<|end|>\n" for turn in conversation
        )


def text_encoding(
    layering: str = "rows+digits", *, chat: bool = False, cut: str = WORDS
) -> TextEncoding:
    """A text encoding on a fake tokenizer."""
    return TextEncoding(FakeTokenizer(cut, chat=chat), GridText.named(layering))


def colours() -> st.SearchStrategy[int]:
    return st.integers(0, COLOURS - 1)


@st.composite
def grids(draw: st.DrawFn, max_side: int = MAX_SIDE) -> Grid:
    """Grids of every size; large ones are painted with few free cells, which is as good."""
    rows, columns = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    free = draw(st.lists(colours(), min_size=1, max_size=40))
    # A step that is prime to the length of most patterns moves them from row to row.
    return tuple(
        tuple(free[(r * columns + c) % len(free)] for c in range(columns)) for r in range(rows)
    )


def pairs(max_side: int = MAX_SIDE) -> st.SearchStrategy[Pair]:
    return st.builds(Pair, grids(max_side), grids(max_side))


def tasks(max_pairs: int = 5, max_side: int = 6) -> st.SearchStrategy[Task]:
    """Small tasks with 1 to `max_pairs` pairs and one or two tests."""
    return st.builds(
        Task,
        st.text("0123456789abcdef", min_size=8, max_size=8),
        st.lists(pairs(max_side), min_size=1, max_size=max_pairs).map(tuple),
        st.lists(grids(max_side), min_size=1, max_size=2).map(tuple),
    )


def views(pairs: int = 3) -> st.SearchStrategy[View]:
    """Any view of a task with this many pairs."""
    return st.builds(
        View,
        st.booleans(),
        st.integers(0, 3),
        st.permutations(range(COLOURS)).map(tuple),
        st.permutations(range(pairs)).map(tuple),
    )


ENCODINGS: dict[str, Encoding] = {
    "cells": CellEncoding(),
    "text": text_encoding(),
    "chat": text_encoding("code+shape+rows+digits", chat=True),
}
"""One of each kind."""


def encodings() -> st.SearchStrategy[Encoding]:
    return st.sampled_from(list(ENCODINGS.values()))


def _finite() -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, allow_infinity=False)


def _counts() -> st.SearchStrategy[int]:
    return st.integers(0, 10**6)


def candidates(tasks: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[Candidate]:
    return st.builds(
        Candidate,
        tasks or st.text(),
        st.integers(0, 3),
        views(),
        st.lists(st.integers(0, 9), max_size=3).map(tuple),
        _counts(),
        st.none() | _counts(),
        st.none() | grids(max_side=4),
        _finite(),
        _counts(),
    )


def verdicts() -> st.SearchStrategy[Verdict]:
    votes = st.builds(Vote, grids(max_side=4), _counts(), _finite())
    return st.builds(
        Verdict,
        st.text(),
        st.lists(st.lists(votes, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple),
        _counts(),
        _counts(),
        st.none() | _counts(),
        st.lists(st.text(), max_size=2).map(tuple),
    )


_NAMES = st.lists(st.text(), max_size=3).map(tuple)

EVENTS: dict[type[events.Event], st.SearchStrategy[events.Event]] = {
    events.Submitted: st.builds(events.Submitted, st.text(), _counts(), _NAMES),
    events.Paused: st.builds(events.Paused),
    events.Resumed: st.builds(events.Resumed),
    events.Cancelled: st.builds(events.Cancelled),
    events.Retried: st.builds(events.Retried, _NAMES),
    events.Finished: st.just(events.Finished()),
    events.Forgotten: st.just(events.Forgotten()),
    events.Started: st.builds(events.Started, st.text(), _counts(), _counts()),
    events.Training: st.builds(
        events.Training, st.text(), _counts(), _counts(), _finite(), _finite()
    ),
    events.Trained: st.builds(
        events.Trained,
        st.text(),
        _counts(),
        _counts(),
        _counts(),
        _finite(),
        _finite(),
        st.none() | _counts(),
    ),
    events.Shared: st.builds(events.Shared, st.text(), _counts()),
    events.Noted: st.builds(events.Noted, st.text(), st.text()),
    events.Sampled: st.builds(events.Sampled, st.text(), candidates()),
    events.Answered: st.builds(events.Answered, st.text(), verdicts()),
    events.Interrupted: st.builds(events.Interrupted, st.text()),
    events.Released: st.builds(events.Released, st.text()),
    events.DaemonStarted: st.builds(
        events.DaemonStarted, _counts(), st.text(), st.text(), st.text(), st.text(), st.text()
    ),
    events.DaemonReady: st.builds(events.DaemonReady, _finite()),
    events.DaemonDied: st.builds(events.DaemonDied, st.text()),
    events.DaemonStopped: st.builds(events.DaemonStopped),
}
"""Events of each kind."""


Happening = tuple[int | None, events.Event]
"""An event with the number of its job; jobs are numbered from 1 in the order of submission."""


@st.composite
def lives(draw: st.DrawFn, max_size: int = 60) -> list[Happening]:
    """What could happen to jobs and daemon, in an order in which it could.

    No candidate has the (test, sample) of another one of its task; tasks have one test.
    """
    state, lived = State(), []
    samples: dict[tuple[int, str], list[Candidate]] = {}
    for seq in range(1, draw(st.integers(1, max_size)) + 1):
        job, event = draw(st.sampled_from(list(_possible(state, samples))))
        if isinstance(event, events.Sampled):
            assert job is not None
            samples.setdefault((job, event.task), []).append(event.candidate)
        lived.append((job, event))
        state.apply(events.Record(seq, float(seq), job, event))
    return lived


def _possible(state: State, samples: dict[tuple[int, str], list[Candidate]]) -> Iterator[Happening]:
    if len(state.jobs) < 3:
        new = len(state.jobs) + 1
        yield new, events.Submitted(f"job {new}", new, ("a", "b", "c")[:new])
    yield None, events.DaemonStarted(1, "0.1", "base", "f", "cpu", "float32")
    yield None, events.DaemonReady(1.5)
    if state.ready:
        yield None, events.DaemonDied("the engine stopped")
    yield None, events.DaemonStopped()
    for job in state.jobs.values():
        if retriable := tuple(job.retriable()):
            yield job.id, events.Retried(retriable)
        if job.finished:
            continue
        yield job.id, events.Resumed() if job.paused else events.Paused()
        if state.seq > 20:
            yield job.id, events.Cancelled()
        for name, task in job.tasks.items():
            yield from (
                (job.id, event)
                for event in _next(name, task.phase, samples.get((job.id, name), []))
            )


def _next(name: str, phase: Phase, samples: list[Candidate]) -> Iterator[events.TaskEvent]:
    if phase is Phase.waiting:
        yield events.Started(name, 4, 2)
        yield events.Shared(name, 7)
    if phase is Phase.started:
        yield events.Training(name, 1, 2, 0.5, 10.0)
        yield events.Trained(name, 7, 2, 100, 1.0, 0.25)
    if phase in (Phase.started, Phase.trained):
        view = View(False, 0, tuple(range(COLOURS)), (0,))
        grid = (None, ((1,),), ((2,),))[len(samples) % 3]
        yield events.Noted(name, f"note {len(samples)}")
        yield events.Sampled(
            name, Candidate(name, 0, view, (0,), len(samples), None, grid, -0.5, 4)
        )
        yield events.Answered(name, verdict(name, 1, samples, None))
        yield events.Interrupted(name)
        yield events.Released(name)

"""A stand-in for the streams of `torch.cuda`, with what vLLM does to them (0.17 to 0.33, read).

vLLM replaces `torch.cuda.set_stream` when it is imported, and remembers which stream a thread has
set. A thread of which it remembers none gets a new stream of priority 0 at the first step. Graphs
are captured on a stream that is made for it, and their kernels keep its priority.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")


class Stream:
    """A `torch.cuda.Stream`."""

    made = 0

    def __new__(cls, device: object = None, priority: int = 0, **kwargs: Any) -> "Stream":
        """See `torch.cuda.Stream`; `stream` in place of `stream_id` and the like."""
        found = super().__new__(cls)
        Stream.made += 1
        found.stream = kwargs.get("stream", Stream.made)
        found.priority = kwargs.get("of", priority)
        return found

    stream: int
    priority: int


@dataclass(frozen=True)
class Launch:
    """A kernel on a stream."""

    stream: int
    priority: int


class ScriptedCuda:
    """The current stream of one thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace torch's streams."""
        self.launched: list[Launch] = []
        self.replayed: list[int] = []
        """Priorities of the kernels of graphs that were replayed."""
        self._monkeypatch = monkeypatch
        self._current: Any = Stream(stream=0)
        self._remembered: Any = None
        self._captured: list[int] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "set_stream", self._set)

    def _set(self, stream: Any) -> None:
        self._current = stream

    def import_vllm(self) -> None:
        """What `vllm.utils.torch_utils` does when it is imported."""
        plain = torch.cuda.set_stream

        def remembering(stream: Any) -> None:
            self._remembered = stream
            plain(stream)

        self._monkeypatch.setattr(torch.cuda, "set_stream", remembering)

    def new_stream(self) -> Any:
        """What `torch.cuda.Stream()` is now."""
        return torch.cuda.Stream()

    def current_stream(self) -> Any:
        """`vllm.utils.torch_utils.current_stream`."""
        if self._remembered is None:
            torch.cuda.set_stream(torch.cuda.Stream())
        return self._remembered

    def capture_a_graph(self) -> None:
        """What `graph_capture` and `CUDAGraphWrapper` do."""
        with self._on(torch.cuda.Stream(device="cuda:0")):
            self._captured.append(self.current_stream().priority)

    def step(self) -> None:
        """Launch on the current stream, as vLLM sees it and as torch does; replay the graph."""
        for stream in (self.current_stream(), self._current):
            self.launched.append(Launch(stream.stream, stream.priority))
        self.replayed += self._captured

    @contextmanager
    def _on(self, stream: Any) -> Iterator[None]:
        """`torch.cuda.stream`, which makes an object for the stream that was current before."""
        before = self._current
        before = torch.cuda.Stream(stream=before.stream, of=before.priority)
        torch.cuda.set_stream(stream)
        yield
        torch.cuda.set_stream(before)

"""Compiles the decoder's elementwise functions beside the first trainings.

A child process compiles them into a folder of the home, with torch's own cache, and leaves a mark
there. A thread then reads the compiled functions, which takes seconds. Trainings that begin later
use them; until then, and where there is no compiler, they are run operator by operator. torch's own
switch TORCH_COMPILE_DISABLE=1 turns it off. Knows nothing of trainings.

Run as `python -m arcd.backends.compilation FOLDER SHAPE`, it is the child.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from arcd.decoder import elementwise, layers
from arcd.decoder.elementwise import EAGER, Elementwise
from arcd.decoder.folder import Weights
from arcd.decoder.layers import Layer, Shape
from arcd.decoder.lora import Adapted, Factors
from arcd.decoder.row import Row
from arcd.system.processes import die_with_parent

log = logging.getLogger(__name__)

MARK = "compiled"
"""A file in the folder: all functions are in the cache."""

OUTPUT = "output.log"
"""A file in the folder: what the child said."""

READER = "arcd-compiled"
"""The name of the thread that reads compiled functions."""

REHEARSED_TOKENS = 96, 64
"""Tokens of the rehearsed steps: two numbers, so that what is compiled is for any number."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The sizes of a decoder whose functions are compiled."""

    width: int
    mlp_width: int
    shape: Shape
    norms: bool
    """Whether queries and keys have norms."""
    dtype: str
    device: str

    @classmethod
    def of(cls, weights: Weights) -> "Rehearsal":
        """The sizes of these weights."""
        first = weights.layers[0]
        return cls(
            weights.embedding.shape[1],
            first.down.weight.shape[1],
            weights.shape,
            first.q_norm is not None,
            str(weights.embedding.dtype).removeprefix("torch."),
            weights.embedding.device.type,
        )

    def to_json(self) -> str:
        """For the child's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Rehearsal":
        """What `to_json` wrote."""
        found = json.loads(text)
        return cls(**{**found, "shape": Shape(**found["shape"])})

    def run(self, functions: Elementwise) -> None:
        """Steps of training on a decoder of these sizes, with random weights and three layers.

        The input of the first layer has no gradient, and the last layer works at fewer places.
        """
        shape = self.shape
        norm, head_norm = self._random(self.width), self._random(shape.head_size)
        layer = Layer(
            norm,
            self._linear(self.width, (shape.heads + 2 * shape.key_heads) * shape.head_size),
            self._linear(shape.heads * shape.head_size, self.width),
            norm,
            self._linear(self.width, 2 * self.mlp_width),
            self._linear(self.mlp_width, self.width),
            head_norm if self.norms else None,
            head_norm if self.norms else None,
        )
        for tokens in REHEARSED_TOKENS:
            places = torch.arange(tokens, device=self.device)
            row = Row(places, places, places[: tokens // 2], places[: tokens // 2], ((0, tokens),))
            cosine, sine = (self._random(tokens, shape.head_size // 2) for _ in range(2))
            states = layers.run(
                self._random(tokens, self.width),
                row,
                [replace(layer) for _ in range(3)],
                shape,
                cosine,
                sine,
                norm,
                functions,
            )
            states.sum().backward()  # type: ignore[no-untyped-call]

    def _random(self, *size: int) -> Tensor:
        return torch.rand(size, dtype=getattr(torch, self.dtype), device=self.device)

    def _linear(self, inputs: int, outputs: int) -> Adapted:
        a = torch.zeros(1, inputs, device=self.device, requires_grad=True)
        b = torch.zeros(outputs, 1, device=self.device, requires_grad=True)
        factors = (Factors(0, outputs, a, b),)
        return Adapted(self._random(outputs, inputs), None, factors, scale=1.0)


class Compilation:
    """The elementwise functions for decoders of some sizes: compiled as soon as they can be had."""

    def __init__(self, cache: Path, rehearsal: Rehearsal) -> None:
        """Keep what is compiled in a folder under `cache`; nothing is compiled yet."""
        self._rehearsal = rehearsal
        self._folder = cache / self._key()
        self._child: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._found: Elementwise | None = None
        self._asking = threading.Lock()

    def __call__(self) -> Elementwise:
        """The functions for a training that begins now. The first call may begin to compile."""
        with self._asking:
            if self._found is None:
                try:
                    self._look()
                except OSError as error:
                    log.warning("nothing is compiled: %s", error)
                    self._found = EAGER
            return self._found or EAGER

    def wait(self) -> Elementwise:
        """Compile now; the functions, which are `EAGER` where they cannot be compiled."""
        self()
        if self._child is not None:
            self._child.wait()
            self()
        if self._reader is not None:
            self._reader.join()
        return self()

    def _look(self) -> None:
        """Go on: compile, then read, then set the functions to use from now on."""
        if self._reader is not None:
            return
        if (self._folder / MARK).exists():
            self._reader = threading.Thread(target=self._read, name=READER, daemon=True)
            self._reader.start()
        elif self._child is None:
            if can_compile(self._rehearsal.device):
                self._child = self._compile()
            else:
                self._found = EAGER
        elif self._child.poll():
            log.warning("compiling failed: see %s", self._folder / OUTPUT)
            self._found = EAGER

    def close(self) -> None:
        """End a compilation that still goes on; the next one continues from its cache."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _read(self) -> None:
        """In a thread of its own, because it takes seconds in which a trainer can make steps."""
        _use_cache(self._folder)
        functions = elementwise.compiled()
        try:
            # More threads would take the cores from those that work, and are not needed.
            torch.set_num_threads(1)
            self._rehearsal.run(functions)
        except Exception as error:  # a compiler fails in many ways, and none may cost a task
            log.warning("compiled functions cannot be used: %s", error)
            functions = EAGER
        self._found = functions

    def _compile(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", __name__, str(self._folder), self._rehearsal.to_json()]
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / OUTPUT).open("wb") as output:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def _key(self) -> str:
        """Differs wherever other code would be compiled."""
        source = Path(elementwise.__file__).read_text(encoding="utf-8")
        capability = torch.backends.cpu.get_cpu_capability()
        parts = (sys.version, torch.__version__, capability, source, self._rehearsal.to_json())
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def reading() -> bool:
    """Whether compiled functions are being read in this process."""
    return any(thread.name == READER for thread in threading.enumerate())


def can_compile(device: str) -> bool:
    """Whether torch can compile here: a C++ compiler for a CPU, Triton for a GPU."""
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return False
    if device == "cpu":
        return cpp_compiler() is not None
    return importlib.util.find_spec("triton") is not None


def cpp_compiler() -> str | None:
    """The path of the C++ compiler that torch would take; None where there is none."""
    names = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return next(filter(None, map(shutil.which, names)), None)


def _use_cache(folder: Path) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    # One function at a time: torch would start a process for each core.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


def _main(folder: Path, rehearsal: Rehearsal) -> None:
    die_with_parent()
    os.nice(19)
    torch.set_num_threads(1)
    _use_cache(folder)
    rehearsal.run(elementwise.compiled())
    (folder / MARK).touch()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Rehearsal.from_json(sys.argv[2]))

"""Work that failed on a device: what is raised, and that nothing of it stays in memory."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from arcd.backends.failures import attempt, explained
from arcd.backends.memory import UNLIMITED, Unlimited
from arcd.errors import DeviceLost, OutOfMemory, TrainerFailed

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is gone then is gone because it was let go."""
    gc.disable()
    yield
    gc.enable()


@dataclass
class Counted(Unlimited):
    released: int = 0

    def release(self) -> None:
        self.released += 1


class Activation:
    """Something large."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RuntimeError(FULL), OutOfMemory, "The training ran out of memory."),
        (RuntimeError("CUDA error: out of memory"), OutOfMemory, "The training ran out of memory."),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            OutOfMemory,
            "The training ran out of memory.",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 80 bytes"),
            OutOfMemory,
            "The training ran out of memory.",
        ),
        (RuntimeError("shapes differ\nhere"), TrainerFailed, "shapes differ"),
        (MemoryError(), OutOfMemory, "The training ran out of memory."),
        (RuntimeError(), TrainerFailed, "RuntimeError"),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel ..."),
            DeviceLost,
            "the GPU cannot be used any more in this process: "
            "CUDA error: an illegal memory access was encountered",
        ),
    ],
)
def test_an_error_says_what_can_be_done(
    error: Exception, kind: type[Exception], message: str
) -> None:
    found = explained(error)
    assert type(found) is kind
    assert str(found) == message


def failing(left: list[weakref.ref[Activation]], error: Exception) -> Callable[[], None]:
    """Work with activations in its frames, in a generator and in a circle."""

    def layer(held: Activation) -> None:
        kept = Activation()
        left.append(weakref.ref(kept))
        circle: list[object] = [kept]
        circle.append(circle)
        raise error

    def work() -> None:
        mine = Activation()
        left.append(weakref.ref(mine))
        list(map(layer, iter([mine])))

    return work


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("kind", [RuntimeError, MemoryError])
def test_nothing_of_the_work_is_left_when_the_failure_is_raised(kind: type[Exception]) -> None:
    left: list[weakref.ref[Activation]] = []
    memory = Counted()
    # As in autograd, where the frames of the error belong to somebody else, too.
    error = kind(FULL)
    with pytest.raises(OutOfMemory) as raised:
        attempt(failing(left, error), memory)
    assert [each() for each in left] == [None, None]
    assert memory.released == 1
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_a_lost_device_is_not_asked_for_its_memory() -> None:
    memory = Counted()
    with pytest.raises(DeviceLost):
        attempt(failing([], RuntimeError("device-side assert triggered")), memory)
    assert memory.released == 0


def test_other_errors_and_results_pass() -> None:
    def refused() -> None:
        raise TrainerFailed("no adapter in it")

    with pytest.raises(TrainerFailed, match="no adapter in it"):
        attempt(refused, UNLIMITED)
    assert attempt(lambda: 5, UNLIMITED) == 5

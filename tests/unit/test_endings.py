"""What an error that ends the daemon means: no other daemon, a second try, or a death."""

import pytest

from arcd.daemon.endings import cause, device_lost, failure, told_as_death
from arcd.daemon.heartbeat import Failure
from arcd.errors import BadBase, DeviceLost, EngineFailed, MissingPackage


def engine(reason: Exception) -> EngineFailed:
    """As the engine makes it."""
    failed = EngineFailed(f"the engine could not start: {type(reason).__name__}: {reason}")
    failed.__cause__ = reason
    return failed


FULL = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
STICKY = RuntimeError("CUDA error: an illegal memory access was encountered")
TAKEN = ValueError(
    "Free memory on device cuda:0 (1.2/22.0 GiB) on startup is less than desired GPU memory "
    "utilization (0.5, 11.0 GiB). Decrease GPU memory utilization or reduce GPU memory used by "
    "other processes."
)
RETURNED = AssertionError(
    "Error in memory profiling. This happens when other processes sharing the same container "
    "release GPU memory while vLLM is profiling during initialization."
)


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("error", [BadBase("no such base"), MissingPackage()])
def test_what_is_wrong_with_the_home_or_the_wishes_is_told_at_once(
    error: BadBase | MissingPackage, ready: bool
) -> None:
    wrapped = ExceptionGroup("tasks", [ExceptionGroup("tasks", [error])])
    assert failure(wrapped, ready=ready) == Failure(str(error), error.exit_code)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (engine(ValueError("max_lora_rank is too large")), False),
        (engine(FULL), True),
        (engine(TAKEN), True),
        (engine(RETURNED), True),
        (engine(STICKY), True),
        (DeviceLost(), True),
        (STICKY, True),
        (FULL, True),
        (MemoryError("out of memory"), True),
    ],
)
def test_a_start_that_fails_is_told_and_only_what_may_be_free_soon_is_tried_again(
    error: Exception, passing: bool
) -> None:
    found = failure(ExceptionGroup("tasks", [error]), ready=False)
    assert found is not None
    assert (found.passing, found.exit_code) == (passing, 1)
    assert str(error) in found.message
    assert "\n" not in found.message


@pytest.mark.parametrize("error", [engine(FULL), engine(STICKY), DeviceLost(), STICKY, FULL])
def test_a_daemon_that_was_ready_dies_and_is_replaced(error: Exception) -> None:
    assert failure(ExceptionGroup("tasks", [error]), ready=True) is None


@pytest.mark.parametrize("ready", [True, False])
def test_an_error_that_nobody_can_explain_is_a_death(ready: bool) -> None:
    assert failure(ExceptionGroup("tasks", [KeyError("bug")]), ready=ready) is None


def test_only_what_has_a_name_is_told_and_only_a_lost_device_ends_the_process_at_once() -> None:
    for error, told, lost in (
        (engine(FULL), True, False),
        (engine(STICKY), True, True),
        (STICKY, True, True),
        (DeviceLost("the GPU: ECC error"), True, True),
        (KeyError("bug"), False, False),
        (BadBase(), False, False),
    ):
        wrapped = ExceptionGroup("tasks", [error])
        assert (told_as_death(wrapped), device_lost(wrapped)) == (told, lost), error


def test_the_cause_is_one_line() -> None:
    assert cause(ExceptionGroup("tasks", [RuntimeError("a\nb")])) == "RuntimeError: a b"
    assert cause(DeviceLost("the GPU fell\noff")) == "the GPU fell off"

"""The virtual clock that other tests rely on."""

from collections.abc import Awaitable, Callable

import anyio
import pytest
from support import virtual


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


@pytest.mark.anyio
async def test_what_sleeps_wakes_at_its_time_in_its_order() -> None:
    woken: list[tuple[float, float]] = []
    begun = anyio.current_time()

    async def sleep(seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append((seconds, anyio.current_time() - begun))

    async with anyio.create_task_group() as sleepers:
        for seconds in (1e6, 0.5, 0.0, 3.0):
            sleepers.start_soon(sleep, seconds)
    assert [seconds for seconds, _ in woken] == [0.0, 0.5, 3.0, 1e6]
    assert all(at == pytest.approx(seconds) for seconds, at in woken)


@pytest.mark.anyio
async def test_a_deadline_comes_before_what_takes_longer() -> None:
    begun = anyio.current_time()
    with anyio.move_on_after(5) as scope:
        await anyio.sleep(10)
    assert scope.cancelled_caught
    assert anyio.current_time() - begun == pytest.approx(5)


@pytest.mark.parametrize("wait", [anyio.sleep_forever, lambda: anyio.Event().wait()])
def test_who_would_wait_for_ever_fails_at_once(wait: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(virtual.Stuck):
        anyio.run(wait, backend=virtual.BACKEND[0], backend_options=virtual.BACKEND[1])

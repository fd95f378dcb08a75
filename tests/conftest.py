"""What all tests share: asyncio as anyio's backend, hypothesis's profiles, time limits."""

import os

import pytest
from hypothesis import settings

ENGINE_TIMEOUT_S = 600
"""For a test with real models; all others have the `timeout` of pyproject.toml."""

# Its assertions say what they compared, as those of test modules do.
pytest.register_assert_rewrite("support.kill_bench")

# A busy machine is no failure, so examples have no deadline. In the gate they are the same each
# time: what fails there, fails again.
settings.register_profile("gate", deadline=None, max_examples=40, derandomize=True)
settings.register_profile("random", deadline=None, max_examples=100)
# A daemon of the tests has a home of its own, and would compile for half a minute in each.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
settings.load_profile(os.environ.get("ARCD_HYPOTHESIS", "gate"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("engine") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(ENGINE_TIMEOUT_S))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

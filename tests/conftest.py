"""What all tests share: asyncio as anyio's backend, and how hypothesis runs."""

import pytest
from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("arcd", deadline=None, max_examples=40)
settings.load_profile("arcd")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

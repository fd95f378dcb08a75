"""Shared fixtures: asyncio as anyio's backend, a small task, rigs of fake backends."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"

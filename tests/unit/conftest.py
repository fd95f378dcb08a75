"""What unit tests share beside the fixtures of all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.works import Build, building


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Makes the inner parts of daemons on one home; they are closed after the test."""
    with building(tmp_path) as build:
        yield build

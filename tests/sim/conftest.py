"""The processes that run seeds, one pool for all tests: each needs a second until it has loaded what it runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sim.pool import Pool, cores


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    with Pool(cores()) as started:
        yield started

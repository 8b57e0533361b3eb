"""How long to wait before asking a store again: exponential, jittered, bounded. Pure but for its randomness."""

from __future__ import annotations

import random
from collections.abc import Iterator

FIRST_SECONDS = 0.01
LONGEST_SECONDS = 2.0


def backoff_seconds(random_source: random.Random) -> Iterator[float]:
    """Endless waits, each between half and all of a bound that doubles from 10 ms to 2 s."""
    bound = FIRST_SECONDS
    while True:
        yield bound * (0.5 + random_source.random() / 2)
        bound = min(bound * 2, LONGEST_SECONDS)

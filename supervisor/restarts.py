"""How long to wait before a worker is started again: not at all, unless it keeps dying. Pure.

A bucket that drains: a death adds to it, more if the worker never came to serve; while it is below its brim a worker is
replaced at once, so that chance deaths (and a test that kills ten in a row) cost nothing; beyond, the wait doubles with
every further step up to half a minute, with jitter so that workers don't start in step.
"""

from __future__ import annotations

import math
import random

BRIM = 12.0
DEATH = 1.0
DEATH_BEFORE_SERVING = 4.0
DRAIN_PER_SECOND = 0.1
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
# What more deaths add to a full bucket is forgotten, so that a worker that was mended is trusted again within minutes.
_FULL = BRIM + DEATH_BEFORE_SERVING * 8


class Restarts:
    """The bucket of one worker index."""

    def __init__(self, random_source: random.Random) -> None:
        self._random = random_source
        self._level = 0.0
        self._drained_at = 0.0

    def looping(self, now: float) -> bool:
        """Whether the worker is in a crash loop: its next start would have to wait."""
        return self._drain(now) > BRIM

    def died(self, now: float, *, served: bool) -> float:
        """Count a death; returns the seconds to wait before the next start."""
        level = self._drain(now) + (DEATH if served else DEATH_BEFORE_SERVING)
        self._level = min(level, _FULL)
        if self._level <= BRIM:
            return 0.0
        steps = (self._level - BRIM) / DEATH_BEFORE_SERVING
        wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * math.pow(2.0, steps))
        return wait * (0.5 + self._random.random() / 2)

    def _drain(self, now: float) -> float:
        self._level = max(0.0, self._level - (now - self._drained_at) * DRAIN_PER_SECOND)
        self._drained_at = now
        return self._level

"""Whether the object store answers this broker: for its readiness, and for what it tells the other brokers of itself.

Owns when the store last answered, and since when it has done so without a break. It decides nothing. A store that fails
for good (a disk that lost a write) ends the loop, and so the broker.
"""

from __future__ import annotations

import asyncio
import logging

from kafscale.clock import Clock
from kafscale.errors import StoreError, StoreFailed, StoreUnavailable
from kafscale.storage.cluster_log import FIRST_VERSION
from kafscale.storage.keys import Keys
from kafscale.storage.store import ObjectStore, Purpose

log = logging.getLogger(__name__)

PROBE_SECONDS = 2.0
# A question without an answer is given up after so long.
PATIENCE_SECONDS = 4.0
SILENT_SECONDS = 10.0
# After a silence that all brokers shared each has noticed by then that it is over: a question given up, a pause, an
# answer, and some to spare.
STEADY_SECONDS = 15.0


class StoreWatch:
    """`run` until cancelled. `is_silent`: the store has left several questions in a row without an answer, over so long
    that nothing can be expected of it. One alone says nothing: this process may have been paused."""

    def __init__(self, store: ObjectStore, keys: Keys, clock: Clock) -> None:
        self.is_silent = False
        self._store = store
        self._key = keys.cluster(FIRST_VERSION)
        self._clock = clock
        self._answered_at = self._steady_since = clock.monotonic()
        # Whether the object asked for has been there: in an empty bucket it is not, yet.
        self._was_there = False
        # When the first of the questions in a row that had no answer was asked; None after an answer.
        self._unanswered_since: float | None = None

    @property
    def is_steady(self) -> bool:
        """Whether the store answers now and has long done so. Whom it doesn't answer then is cut off from it."""
        now = self._clock.monotonic()
        return now - self._steady_since >= STEADY_SECONDS and now - self._answered_at < 2 * PROBE_SECONDS

    async def run(self) -> None:
        """Ask, now and then. Raises StoreFailed."""
        while True:
            await self._ask()
            await self._clock.sleep(PROBE_SECONDS)

    async def _ask(self) -> None:
        asked_at = self._clock.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                is_there = await self._store.exists(self._key, Purpose.CLUSTER)
            if self._was_there and not is_there:
                raise StoreUnavailable("the bucket or directory has lost the cluster log's first version")
        except StoreFailed:
            raise
        except (StoreError, TimeoutError) as error:
            cause = str(error) or f"nothing for {PATIENCE_SECONDS:g} s"
            log.warning("the object store does not answer", extra={"cause": cause})
            now = self._clock.monotonic()
            if self._unanswered_since is None:
                self._unanswered_since = asked_at
            else:
                self.is_silent = now - self._unanswered_since >= SILENT_SECONDS
        else:
            self._was_there = is_there
            self._answered_at = self._clock.monotonic()
            if self._unanswered_since is not None:
                self._steady_since = self._answered_at
                self._unanswered_since = None
            self.is_silent = False

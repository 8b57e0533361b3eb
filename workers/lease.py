"""Whether this worker may still believe that it has not been replaced.

Writes need no such belief: the log's put-if-absent fences them. Reads do: a replaced owner that doesn't know it may not
go on answering fetches, offsets, heartbeats or joins. So a worker with neither a ping of its supervisor nor a PUT
confirmed for one time-to-live asks the store for the next number of its log before it answers anything more. If the
store is silent too it goes on, with what it has in memory.
"""

from __future__ import annotations

from kafscale.clock import Clock
from kafscale.errors import StoreUnavailable, StoreUnclear
from kafscale.storage.worker_log import WorkerLog

# While the supervisor is silent the store is asked at most so often.
CHECK_SECONDS = 1.0


class Lease:
    """The time until which this worker answers without asking."""

    def __init__(self, clock: Clock, log: WorkerLog, ttl_seconds: float) -> None:
        self._clock = clock
        self._log = log
        self._ttl = ttl_seconds
        self._pinged_at = clock.monotonic()
        self._checked_until = 0.0
        # Some earlier answer of `_until`, which only rises: spares the hot path a look at all three.
        self._fresh_until = 0.0

    def pinged(self, heard_at: float) -> None:
        """The supervisor last heard of this worker at `heard_at` (monotonic seconds), and had not replaced it."""
        self._pinged_at = max(self._pinged_at, heard_at)

    def is_fresh(self, now: float) -> bool:
        """Whether to answer at monotonic time `now` without asking the store first."""
        if now < self._fresh_until:
            return True
        self._fresh_until = self._until()
        return now < self._fresh_until

    def runs_out_soon(self, now: float) -> bool:
        return now + CHECK_SECONDS > self._until()

    async def check(self) -> bool:
        """Ask the store. False: this worker has been replaced, and its log is fenced now."""
        try:
            holds = await self._log.check_not_fenced()
        except (StoreUnavailable, StoreUnclear):
            self._checked_until = self._clock.monotonic() + CHECK_SECONDS
            return True
        return holds

    def _until(self) -> float:
        return max(self._pinged_at + self._ttl, self._log.confirmed_at + self._ttl, self._checked_until)

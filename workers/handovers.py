"""Slots that come and go while this worker lives: taken over when earlier owners are done with them, released when they
were given to others.

Owns nothing but which of the two is going on: each is one task at most. What must always hold: nothing is served for a
slot before a checkpoint of ours names it; nothing is released before all that was appended for it is durable and its
last manifest is named. What a slot goes through is at the head of `workers/ownership.py`. Slots that can't be loaded
for damage hold up no others and are tried again now and then. It fails as the log does: when that is fenced both end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

from kafscale.clock import Clock, Timer
from kafscale.control import Released, ToSupervisor
from kafscale.metrics import SLOTS_RELEASED, SLOTS_TAKEN_OVER, MetricsBlock
from kafscale.storage.compaction import Compactor
from kafscale.storage.earlier_logs import EarlierLogs
from kafscale.storage.flush import Flush
from kafscale.storage.flusher import Flusher
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from workers.checkpoints import Checkpointer
from workers.futures import settle
from workers.ownership import Ownership

log = logging.getLogger(__name__)

# What could not be loaded is tried again this often: a read may have gone wrong, an object may have been put back.
TRY_AGAIN_SECONDS = 30.0


class Handovers:
    """`take_over_ready`, then `begin`; `follow` whenever the cluster state has changed."""

    def __init__(
        self,
        log_id: str,
        clock: Clock,
        ownership: Ownership,
        earlier_logs: EarlierLogs,
        checkpointer: Checkpointer,
        flusher: Flusher,
        compactor: Compactor,
        metrics: MetricsBlock,
        send: Callable[[ToSupervisor], None],
        spawn: Callable[[Coroutine[None, None, None]], None],
        bugs: PlantedBugs = NO_BUGS,
    ) -> None:
        self._log_id = log_id
        self._clock = clock
        self._ownership = ownership
        self._earlier_logs = earlier_logs
        self._checkpointer = checkpointer
        self._flusher = flusher
        self._compactor = compactor
        self._metrics = metrics
        self._send = send
        self._spawn = spawn
        self._bugs = bugs
        self._has_begun = False
        self._is_loading = False
        self._is_releasing = False
        self._again: Timer | None = None

    async def take_over_ready(self) -> None:
        """Take over what is assigned and can be loaded now."""
        await self._take_over(is_waiting=False)

    def begin(self) -> None:
        """From now on take over the rest, and release, in the background."""
        self._has_begun = True
        self.follow()

    def follow(self) -> None:
        self._earlier_logs.wake()
        if not self._has_begun:
            return
        if self._ownership.failed and self._again is None:
            self._again = self._clock.call_later(TRY_AGAIN_SECONDS, self._try_again)
        if not self._is_loading and self._ownership.wanted():
            self._spawn(self._take_over(is_waiting=True))
        if not self._is_releasing and self._ownership.to_release():
            self._spawn(self._release())

    def heard(self, log_id: str, sequence: int) -> None:
        """Another's log is said to have released something in its object of that number."""
        self._earlier_logs.heard(log_id, sequence)

    def stop(self) -> None:
        """Wait for nobody's release any more. The tasks are whoever's `spawn` made them."""
        self._earlier_logs.close()
        if self._again is not None:
            self._again.cancel()

    def _try_again(self) -> None:
        self._again = None
        self._ownership.try_again()
        self.follow()

    async def _take_over(self, is_waiting: bool) -> None:
        if self._is_loading:
            return
        self._is_loading = True
        try:
            while (loaded := await self._ownership.load(is_waiting)) is not None:
                if loaded:
                    await self._checkpointer.write(loaded)
                    self._ownership.serve(loaded)
                    self._compactor.slots_loaded()
                    self._metrics.cells[SLOTS_TAKEN_OVER] += len(loaded)
                    log.info("slots were taken over", extra={"slots": len(loaded)})
                # Some of it may have been given away meanwhile.
                self.follow()
        finally:
            self._is_loading = False

    async def _release(self) -> None:
        """Give up what was given to others; it is closed already."""
        if self._is_releasing:
            return
        self._is_releasing = True
        try:
            while epochs := self._ownership.to_release():
                log.info("slots were given to others", extra={"slots": len(epochs)})
                # Others go on appending: what is closed waits for what holds some of it, and no longer.
                if not self._bugs.released_before_flush:
                    await durable(self._flusher.hasten())
                sequence = await self._checkpointer.write(releasing=epochs)
                self._ownership.released_at(epochs)
                self._metrics.cells[SLOTS_RELEASED] += len(epochs)
                log.info("slots were released", extra={"slots": len(epochs), "sequence": sequence})
                self._send(Released(self._log_id, epochs, sequence))
        finally:
            self._is_releasing = False
        # Some of it may have been given back meanwhile.
        self.follow()


async def durable(flush: Flush | None) -> None:
    """Wait until the flush is durable, if there is one."""
    if flush is not None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        flush.answers.append(lambda _: settle(waiter))
        await waiter

"""Events on their way to the audit log: kept until the supervisor says that they are written.

Owns what is not written yet, in bytes, and how many events found no room. Events go in batches: what has gathered goes
out a moment after the first, or at once when somebody waits for it. What strangers can cause (denials, failed logins)
may fill only a part of the room, so that they can't keep changes from being recorded. Never blocks; knows neither what
events say nor what is done when there is no room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from kafscale.clock import Clock, Timer
from kafscale.control import AuditBatch
from kafscale.metrics import AUDIT_LOST, AUDIT_PENDING_BYTES, MetricsBlock
from kafscale.security.audit_event import AuditEvent, encode_event, join_events
from workers.futures import settle

GATHER_SECONDS: Final = 0.02
BATCH_BYTES_MAX: Final = 256 * 1024
# Of the room, what strangers may fill.
STRANGERS_SHARE: Final = 0.75


class Outbox:
    """`on_written` is to be called with every `AuditWritten`."""

    def __init__(self, clock: Clock, metrics: MetricsBlock, send: Callable[[AuditBatch], None], bytes_max: int) -> None:
        self._clock = clock
        self._cells = metrics.cells
        self._send = send
        self._bytes_max = bytes_max
        self._open: list[msgspec.Raw] = []
        self._open_bytes = 0
        self._pending_bytes = 0
        self._number = 0
        # Batches sent and not written: number and size.
        self._sent: deque[tuple[int, int]] = deque()
        self._lost = 0
        self._timer: Timer | None = None
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._on_room: list[Callable[[], None]] = []

    @property
    def is_full(self) -> bool:
        """Whether there is no room for one more."""
        return self._pending_bytes >= self._bytes_max

    def put(self, event: AuditEvent, *, is_strangers: bool = False) -> bool:
        """Have the event put on record; False if there is no room, which is counted."""
        room = self._bytes_max * STRANGERS_SHARE if is_strangers else self._bytes_max
        if self._pending_bytes >= room:
            self._lost += 1
            self._cells[AUDIT_LOST] += 1
            return False
        encoded = encode_event(event)
        size = len(encoded)
        self._open.append(encoded)
        self._open_bytes += size
        self._pending_bytes += size
        self._cells[AUDIT_PENDING_BYTES] = self._pending_bytes
        if self._open_bytes >= BATCH_BYTES_MAX:
            self.flush()
        elif self._timer is None:
            self._timer = self._clock.call_later(GATHER_SECONDS, self.flush)
        return True

    def flush(self) -> None:
        """Send what has gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._open and not self._lost:
            return
        self._number += 1
        self._sent.append((self._number, self._open_bytes))
        lost, self._lost = self._lost, 0
        events, self._open = self._open, []
        self._open_bytes = 0
        self._send(AuditBatch(self._number, join_events(events), lost))

    def on_written(self, number: int) -> None:
        """The supervisor has written the batches up to this one."""
        while self._sent and self._sent[0][0] <= number:
            self._pending_bytes -= self._sent.popleft()[1]
        self._cells[AUDIT_PENDING_BYTES] = self._pending_bytes
        waiters, self._waiters = self._waiters, []
        for wanted, future in waiters:
            if wanted > number:
                self._waiters.append((wanted, future))
            elif not future.done():
                future.set_result(None)
        if self._lost and self._timer is None:
            # Now it can be said.
            self._timer = self._clock.call_later(GATHER_SECONDS, self.flush)
        if self._on_room and not self.is_full:
            callbacks, self._on_room = self._on_room, []
            for callback in callbacks:
                callback()

    async def until_written(self, seconds: float) -> None:
        """Return when everything that was put is written, or after so long."""
        self.flush()
        if not self._sent:
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((self._number, written))
        timer = self._clock.call_later(seconds, settle, written)
        try:
            await written
        finally:
            timer.cancel()

    def call_when_room(self, callback: Callable[[], None]) -> None:
        """Call it once, when there is room again."""
        self._on_room.append(callback)

    async def until_room(self) -> None:
        """Return when there is room."""
        while self.is_full:
            free: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.call_when_room(lambda free=free: settle(free))  # type: ignore[misc]
            await free

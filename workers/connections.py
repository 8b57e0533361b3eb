"""What a worker's connections share: the receive buffer, slab memory, the flush of answers, limits and time-outs.

One object per worker. There are no timers per connection: one sweep a second looks at the connections that have begun a
request, and at a slice of all for idleness. It knows nothing of Kafka's messages: complete frames go to `dispatch`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from kafscale.census import Census
from kafscale.clock import Clock, Timer
from kafscale.config import Settings
from kafscale.logs import RateLimited
from kafscale.metrics import CONNECTIONS_ACCEPTED, CONNECTIONS_CLOSED, CONNECTIONS_OPEN, MetricsBlock
from workers.caller import Caller
from workers.connection import BEGUN_PER_TURN_MAX, SMALL_FRAME_BYTES, Connection
from workers.pending import Pending
from workers.slabs import SlabPool

CallSoon = Callable[[Callable[[], None]], object]

log = logging.getLogger(__name__)

RECEIVE_BUFFER_BYTES: Final = 256 * 1024
# Enough of a large frame that it gets memory of its own, into which the rest is received straight.
SHORT_RECEIVE_BYTES: Final = SMALL_FRAME_BYTES + 4096
# Of a request's bytes: none is as large.
NO_LIMIT: Final = 1 << 62
# Unsent bytes at which a connection is no longer read from, and at which it is again.
WRITE_HIGH_WATER_BYTES: Final = 256 * 1024
WRITE_LOW_WATER_BYTES: Final = 64 * 1024

SWEEP_INTERVAL_SECONDS: Final = 1.0
# All connections are looked at for idleness once in so many sweeps.
SWEEPS_PER_ROUND: Final = 10
# A request must arrive within `frame_header_timeout_ms`, and at this rate beyond; slower is taken for an attack.
FRAME_BYTES_PER_SECOND_MIN: Final = 32 * 1024
# While memory is short, a request that holds some and has not moved for so long gives it up.
STALLED_SECONDS: Final = 3.0
STARVED_RETRY_SECONDS: Final = 0.01
# A connection that is closing and whose last bytes nobody takes.
CLOSING_SECONDS: Final = 10.0
DRAIN_POLL_SECONDS: Final = 0.005
COMPLAINT_INTERVAL_SECONDS: Final = 10.0


class Dispatch(Protocol):
    """Takes a complete frame (see `workers.connection` on what of it may be kept) and answers `pending`, now or later.

    Raises ProtocolError for bytes that are no request; nothing else.
    """

    def __call__(
        self, connection: Caller, buffer: bytearray | memoryview, start: int, end: int, pending: Pending
    ) -> None: ...


class Holdable(Protocol):
    """What may have Produce requests that are not begun."""

    def release_held(self) -> None: ...


class Connections:
    """All client connections of a worker; `start` before the first."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        slabs: SlabPool,
        metrics: MetricsBlock,
        dispatch: Dispatch,
        census: Census | None = None,
    ) -> None:
        """`census`: where the connections of the whole broker are counted; without one, this worker's are all there
        are."""
        self.slabs = slabs
        self.dispatch = dispatch
        self.cells = metrics.cells
        # Shared by all: the loop reads from one connection at a time, and a frame is handled or copied at once.
        self.receive_buffer = bytearray(RECEIVE_BUFFER_BYTES)
        self.receive_view = memoryview(self.receive_buffer)
        self.short_receive_view = self.receive_view[:SHORT_RECEIVE_BYTES]
        # A frame that the pool could never hold would wait for memory for ever.
        self.frame_bytes_max = min(settings.socket_request_max_bytes, slabs.max_bytes)
        # The time of the last sweep: good enough for time-outs, and costs a request nothing.
        self.now = clock.monotonic()
        # Produce requests that are larger wait: see `hold_produce`.
        self.produce_bytes_max = NO_LIMIT
        self.turn_left = BEGUN_PER_TURN_MAX
        self._clock = clock
        self._connections_max = settings.connections_max
        self._per_address_max = settings.connections_max_per_address
        self._authentication_seconds = settings.authentication_timeout_ms / 1000
        self._idle_seconds = settings.connections_idle_ms / 1000
        self._frame_seconds = settings.frame_header_timeout_ms / 1000
        self._complaints = RateLimited(clock, COMPLAINT_INTERVAL_SECONDS)
        self._call_soon: CallSoon | None = None
        self._timer: Timer | None = None
        self._starved_timer: Timer | None = None
        self._is_draining = False
        # Insertion order is what makes these dicts and not sets: runs are repeatable, and the first came first.
        self._all: dict[Connection, None] = {}
        self._receiving: dict[Connection, None] = {}
        # Who has not authenticated yet, with the time until which it must have; the first came first.
        self._unknown: dict[Connection, float] = {}
        # Sockets that were accepted and are no connections yet: handshakes in progress.
        self.arriving = 0
        self._census = census or Census.alone()
        self._starved: dict[Connection, None] = {}
        self._held: dict[Holdable, None] = {}
        # Who has used up its quota, with the time until which it is not read, and the timer that ends that.
        self._muted: dict[Connection, tuple[float, Timer]] = {}
        self._round: list[Connection] = []
        self._dirty: list[Connection] = []
        self._is_flush_due = False
        self._later: list[Connection] = []

    def __len__(self) -> int:
        return len(self._all)

    def start(self, call_soon: CallSoon) -> None:
        """Begin the sweeps. `call_soon` is that of the loop which serves the connections."""
        self._call_soon = call_soon
        self._timer = self._clock.call_later(SWEEP_INTERVAL_SECONDS, self._sweep)

    def stop(self) -> None:
        """Close what is open and end the sweeps."""
        self._is_draining = True
        for timer in (self._timer, self._starved_timer):
            if timer is not None:
                timer.cancel()
        self.flush_dirty()
        for connection in list(self._all):
            connection.close("drain")
            self.forget_muted(connection)

    async def drain(self) -> None:
        """Receive nothing more, and return when all that was received is answered and handed to the transports."""
        self._is_draining = True
        for connection in list(self._all):
            connection.stop_reading()
        self.unmute_all()
        while any(connection.unanswered for connection in self._all):
            await self._clock.sleep(DRAIN_POLL_SECONDS)
        self.flush_dirty()

    def abandon(self, reason: str) -> None:
        """Drop every connection without another byte: this incarnation may say nothing more."""
        self._is_draining = True
        for connection in list(self._all):
            connection.close(reason)
            self.forget_muted(connection)
            connection.abort()

    # -- coming and going --------------------------------------------------------------------------------------------

    def add(self, connection: Connection, transport: asyncio.Transport) -> None:
        self._all[connection] = None
        cells = self.cells
        cells[CONNECTIONS_ACCEPTED] += 1
        cells[CONNECTIONS_OPEN] = len(self._all)
        self._count()
        if self._is_draining:
            connection.close("drain")
        elif len(self._all) > self._connections_max:
            self.complain(connection, "limit", f"more than {self._connections_max} connections (connections_max)")
            connection.close("limit")
        else:
            transport.set_write_buffer_limits(WRITE_HIGH_WATER_BYTES, WRITE_LOW_WATER_BYTES)

    @property
    def is_draining(self) -> bool:
        """Whether this worker lets nobody in any more."""
        return self._is_draining

    @property
    def is_full(self) -> bool:
        """Whether no more may come to this broker."""
        return self._census.open >= self._connections_max

    def arrive(self) -> None:
        """Count a socket that is on its way to be a connection; `settle` when it is one, or is not to be."""
        self.arriving += 1
        self._count()

    def settle(self) -> None:
        self.arriving -= 1
        self._count()

    def _count(self) -> None:
        self._census.set_open(len(self._all) + self.arriving)

    def enter(self, host: str) -> bool:
        """Count a client's address, unless there are too many of it already. To be undone by `leave`."""
        if self._per_address_max is None:
            return True
        if self._census.count(host) >= self._per_address_max:
            return False
        self._census.enter(host)
        return True

    def leave(self, host: str) -> None:
        if self._per_address_max is not None:
            self._census.leave(host)

    def await_authentication(self, connection: Connection) -> None:
        """Close the connection if `forget_unknown` does not come in time."""
        self._unknown[connection] = self._clock.monotonic() + self._authentication_seconds

    def forget_unknown(self, connection: Connection) -> None:
        self._unknown.pop(connection, None)

    def refuse(self, host: str, reason: str, what: str) -> None:
        """Count and log that a client was turned away before there was a connection."""
        self.count_closed(reason)
        self._complaints.log(log, logging.WARNING, "connection refused", key=reason, client=host, why=what)

    def remove(self, connection: Connection) -> None:
        self._all.pop(connection, None)
        self._unknown.pop(connection, None)
        if connection.counted_at:
            self.leave(connection.counted_at)
        self._receiving.pop(connection, None)
        self._starved.pop(connection, None)
        self._held.pop(connection, None)
        self.forget_muted(connection)
        self.cells[CONNECTIONS_OPEN] = len(self._all)
        self._count()

    def count_closed(self, reason: str) -> None:
        self.cells[CONNECTIONS_CLOSED.at(reason)] += 1

    def complain(self, connection: Connection, reason: str, what: str) -> None:
        """Log why a connection is closed, seldom enough that an attacker can't fill a disk with it."""
        self._complaints.log(
            log, logging.WARNING, "connection closed", key=reason, client=connection.client_host, why=what
        )

    # -- answers -----------------------------------------------------------------------------------------------------

    def mark_dirty(self, connection: Connection) -> None:
        """There are answers to write: once, at the end of the loop's turn, or at the next `flush_dirty`."""
        connection.is_dirty = True
        self._dirty.append(connection)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._soon(self._flush_turn)

    def flush_dirty(self) -> None:
        """Write the answers that are due, one write per connection. For whoever has just answered many."""
        dirty = self._dirty
        if dirty:
            self._dirty = []
            for connection in dirty:
                if connection.is_dirty:
                    connection.flush()

    def _flush_turn(self) -> None:
        self._is_flush_due = False
        self.flush_dirty()

    def begin_later(self, connection: Connection) -> None:
        """Let others have a turn before the connection's next requests begin."""
        if not self._later:
            self._soon(self._begin_later_turn)
        self._later.append(connection)

    def _begin_later_turn(self) -> None:
        later = self._later
        self._later = []
        for connection in dict.fromkeys(later):
            self.turn_left = BEGUN_PER_TURN_MAX
            connection.begin_waiting()

    def _soon(self, callback: Callable[[], None]) -> None:
        assert self._call_soon is not None, "start() comes before the first connection"
        self._call_soon(callback)

    # -- holding back ------------------------------------------------------------------------------------------------

    @property
    def is_produce_held(self) -> bool:
        """Whether some Produce requests are not begun."""
        return self.produce_bytes_max < NO_LIMIT

    def hold_produce(self, bytes_max: int = 0) -> None:
        """Begin no Produce request of more than `bytes_max` from now on: too much is received and not durable. Their
        senders are not read."""
        self.produce_bytes_max = bytes_max

    def release_produce(self) -> None:
        """Begin them again, those that waited longest first, until `hold_produce` is called again."""
        self.produce_bytes_max = NO_LIMIT
        for connection in list(self._held):
            if self.is_produce_held:
                break
            del self._held[connection]
            connection.release_held()

    def hold(self, connection: Holdable) -> None:
        """Call its `release_held` when Produce requests are begun again."""
        self._held[connection] = None

    def forget_held(self, connection: Holdable) -> None:
        """Undo `hold`."""
        self._held.pop(connection, None)

    def mute(self, connection: Connection, seconds: float) -> bool:
        """Call its `unmute` after so long. False, and nothing done, where all that was received is to be served now."""
        if self._is_draining:
            return False
        until = self._clock.monotonic() + seconds
        before = self._muted.get(connection)
        if before is not None:
            if before[0] >= until:
                return True
            before[1].cancel()
        self._muted[connection] = (until, self._clock.call_later(seconds, self._unmute, connection))
        return True

    def _unmute(self, connection: Connection) -> None:
        self.forget_muted(connection)
        self.turn_left = BEGUN_PER_TURN_MAX
        connection.unmute()

    def forget_muted(self, connection: Connection) -> None:
        """Undo `mute`."""
        muted = self._muted.pop(connection, None)
        if muted is not None:
            muted[1].cancel()

    def unmute_all(self) -> None:
        for connection in list(self._muted):
            self._unmute(connection)

    def quotas_changed(self) -> None:
        """Nothing that was found out about what counts for whom holds any more; who owes still owes."""
        for connection in self._all:
            connection.end_charging()
        self.unmute_all()

    def starve(self, connection: Connection) -> None:
        """Give the connection memory for its frame as soon as there is some."""
        self._starved[connection] = None
        if self._starved_timer is None:
            self._starved_timer = self._clock.call_later(STARVED_RETRY_SECONDS, self._feed_starved)

    def _feed_starved(self) -> None:
        self._starved_timer = None
        self.turn_left = BEGUN_PER_TURN_MAX
        for connection in list(self._starved):
            del self._starved[connection]
            if not connection.feed_starved():
                # In its old place, ahead of all others.
                self._starved = {connection: None, **self._starved}
                break
        if self._starved and self._starved_timer is None:
            self._starved_timer = self._clock.call_later(STARVED_RETRY_SECONDS, self._feed_starved)

    # -- time-outs ---------------------------------------------------------------------------------------------------

    def frame_begun(self, connection: Connection) -> None:
        if connection not in self._receiving:
            self._receiving[connection] = None
            connection.frame_began = self.now

    def frame_ended(self, connection: Connection) -> None:
        self._receiving.pop(connection, None)

    def _sweep(self) -> None:
        self._timer = self._clock.call_later(SWEEP_INTERVAL_SECONDS, self._sweep)
        self.now = self._clock.monotonic()
        for connection in list(self._receiving):
            self._check_frame(connection)
        for connection in [one for one, until in self._unknown.items() if until <= self.now]:
            self.complain(connection, "authentication", "it did not authenticate in time")
            connection.close("authentication")
            self._unknown.pop(connection, None)
        if not self._round:
            self._round = list(self._all)
        for _ in range(min(len(self._round), 1 + len(self._all) // SWEEPS_PER_ROUND)):
            self._check_idle(self._round.pop())

    def _check_frame(self, connection: Connection) -> None:
        if connection.is_paused:
            # It is ours that the rest has not come. But time goes on, or pausing would be a way out.
            connection.frame_began += SWEEP_INTERVAL_SECONDS
            return
        allowed = self._frame_seconds + connection.assembling / FRAME_BYTES_PER_SECOND_MIN
        if self.now - connection.frame_began > allowed:
            self.complain(connection, "slow_request", "a request that did not arrive in time")
            connection.close("slow_request")
        elif self._starved and connection.holds_region and self.now - connection.last_active > STALLED_SECONDS:
            self.complain(connection, "slow_request", "a request that stalled while memory was short")
            connection.close("slow_request")

    def _check_idle(self, connection: Connection) -> None:
        if connection not in self._all:
            return
        silent = self.now - connection.last_active
        if connection.is_closed:
            if silent > CLOSING_SECONDS:
                connection.abort()
        # Whoever waits for an answer is not idle, unless it is its own fault that it does not go out.
        elif (
            silent > self._idle_seconds
            and not connection.is_muted
            and (not connection.unanswered or connection.is_paused)
        ):
            connection.close("idle")

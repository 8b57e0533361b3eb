"""Small real stand-ins for what surrounds a worker's connections: a manual clock, a transport, a loop's turn."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

from kafscale.config import Settings
from kafscale.metrics import MetricsBlock
from workers.connection import Connection
from workers.connections import Connections, Dispatch
from workers.listener import Listener
from workers.slabs import SlabPool


class ManualTimer:
    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._callback = callback
        self._args = args
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def fire(self) -> None:
        if not self.is_cancelled:
            self._callback(*self._args)


class ManualClock:
    """Time moves only in `advance`, which runs what falls due on the way."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._timers: list[tuple[float, int, ManualTimer]] = []
        self._numbers = itertools.count()

    def wall_ms(self) -> int:
        return int(self.time * 1000) + 1_700_000_000_000

    def monotonic(self) -> float:
        return self.time

    def call_later(self, seconds: float, callback: Callable[..., Any], *args: Any) -> ManualTimer:
        timer = ManualTimer(callback, args)
        heapq.heappush(self._timers, (self.time + seconds, next(self._numbers), timer))
        return timer

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        self.call_later(seconds, lambda: woken.done() or woken.set_result(None))
        await woken

    def advance(self, seconds: float) -> None:
        end = self.time + seconds
        while self._timers and self._timers[0][0] <= end:
            self.time, _, timer = heapq.heappop(self._timers)
            timer.fire()
        self.time = end


class FakeTransport:
    """Delivers what `send` is given as a loop would, in pieces no larger than the protocol's buffer, and keeps writes.

    While reading is paused, bytes wait in `unread`, as in a socket.
    """

    def __init__(self, protocol: Connection, host: str = "10.1.2.3") -> None:
        self.protocol = protocol
        self.host = host
        self.writes: list[bytes] = []
        self.unread = bytearray()
        self.is_reading = True
        self.is_closing = False
        self.was_aborted = False
        protocol.connection_made(self)  # type: ignore[arg-type]

    # What the protocol calls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.host, 40000) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.write_limits = (high, low)

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def writelines(self, parts: list[Any]) -> None:
        self.writes.append(b"".join(bytes(part) for part in parts))

    def close(self) -> None:
        self.is_closing = True

    def abort(self) -> None:
        self.is_closing = self.was_aborted = True

    # What a test calls

    def send(self, data: bytes = b"", chunk_bytes: int = 1 << 20) -> None:
        self.unread += data
        while self.unread and self.is_reading and not self.is_closing:
            buffer = self.protocol.get_buffer(-1)
            count = min(len(self.unread), len(buffer), chunk_bytes)
            assert count > 0
            buffer[:count] = self.unread[:count]
            del buffer, self.unread[:count]
            self.protocol.buffer_updated(count)

    def lose(self, error: Exception | None = None) -> None:
        self.is_closing = True
        self.protocol.connection_lost(error)

    @property
    def written(self) -> bytes:
        return b"".join(self.writes)


class Bench:
    """Connections with everything around them; `dispatch` is the test's."""

    def __init__(
        self,
        dispatch: Dispatch,
        settings: Settings | None = None,
        slabs: SlabPool | None = None,
        listener: Listener | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.metrics = MetricsBlock.in_memory()
        self.slabs = slabs or SlabPool(1 << 20, 1 << 24)
        self._soon: list[Callable[[], None]] = []
        self.connections = Connections(settings or Settings(), self.clock, self.slabs, self.metrics, dispatch)
        # Of the connections that are made from now on.
        self.listener = listener or Listener("clients")
        self.connections.start(self._soon.append)

    def connection(self) -> Connection:
        return Connection(self.connections, self.listener)

    def connect(self, host: str = "10.1.2.3") -> FakeTransport:
        return FakeTransport(self.connection(), host)

    def turn(self) -> None:
        """The rest of the loop's turn: what was put off with call_soon."""
        soon, self._soon[:] = list(self._soon), []
        for callback in soon:
            callback()

    def settle(self) -> None:
        """Turns until nothing is put off any more."""
        while self._soon:
            self.turn()

    def count(self, cell: int) -> int:
        return self.metrics.cells[cell]

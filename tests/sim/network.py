"""Connections between simulated clients and workers: bytes in order, late, in pieces, and sometimes cut off.

The worker's end is an asyncio transport that drives the production protocol object as uvloop would (`get_buffer`,
`buffer_updated`, `connection_lost`); the client's end is a plain object. Bytes reach a process through its gate. As
with inherited listening sockets, several processes may listen on one port: whoever runs accepts.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.sim.world import Process, World

HIGH_WATER_BYTES = 64 * 1024


class NetworkFaults(msgspec.Struct, kw_only=True):
    """Delays in seconds; probabilities per piece of data sent."""

    delay_least: float = 0.0001
    delay_usual: float = 0.001
    slow: float = 0.01
    slow_seconds: float = 0.3
    broken: float = 0.0
    in_pieces: float = 0.1


@dataclass
class Listener:
    """A process that accepts on a port."""

    process: Process
    factory: Callable[[], asyncio.BaseProtocol]


class Network:
    """Everything between processes."""

    def __init__(self, world: World, faults: NetworkFaults | None = None) -> None:
        self.world = world
        self.faults = faults or NetworkFaults()
        self.random = world.stream("network")
        self._listeners: dict[int, list[Listener]] = {}
        self.links: dict[Link, None] = {}
        self._ports = 30_000

    def listen(self, port: int, process: Process, factory: Callable[[], asyncio.BaseProtocol]) -> Listener:
        listener = Listener(process, factory)
        self._listeners.setdefault(port, []).append(listener)
        return listener

    def unlisten(self, listener: Listener) -> None:
        for listeners in self._listeners.values():
            if listener in listeners:
                listeners.remove(listener)

    def delay(self) -> float:
        faults = self.faults
        if self.random.random() < faults.slow:
            return faults.delay_least + self.random.expovariate(1 / faults.slow_seconds)
        return faults.delay_least + self.random.expovariate(1 / faults.delay_usual)

    async def connect(self, port: int, client: Process) -> ClientEnd:
        """A connection, once somebody accepts. Raises ConnectionRefusedError where nobody ever could."""
        await asyncio.sleep(self.delay())
        alive = [listener for listener in self._listeners.get(port, ()) if not listener.process.is_dead]
        self._listeners[port] = alive
        if not alive:
            raise ConnectionRefusedError(f"nobody listens on port {port}")
        # Whoever is awake takes it from the shared backlog; else it waits for one of them to wake.
        awake = [listener for listener in alive if not listener.process.is_paused] or alive
        listener = awake[self.random.randrange(len(awake))]
        self._ports += 1
        link = Link(self, client, listener, self._ports)
        self.links[link] = None
        listener.process.deliver(link.accept)
        return link.client

    def cut(self, link: Link) -> None:
        """Break a connection; what is on its way is lost."""
        link.break_off()

    def links_of(self, process: Process) -> list[Link]:
        return [link for link in self.links if link.server_process is process]


class Way:
    """One direction of a connection: what was sent first arrives first."""

    def __init__(self, network: Network, target: Process) -> None:
        self._network = network
        self._target = target
        self._last = 0.0
        self.is_open = True

    def send(self, callback: Callable[..., Any], *args: Any) -> None:
        if not self.is_open:
            return
        loop = self._network.world.loop
        # Timers of the same time come in no certain order.
        self._last = max(self._last + 1e-7, loop.time() + self._network.delay())
        loop.call_at(self._last, self._arrive, callback, args, context=contextvars.Context())

    def _arrive(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self.is_open:
            self._target.deliver(callback, *args)


class Link:
    """A connection."""

    def __init__(self, network: Network, client: Process, listener: Listener, client_port: int) -> None:
        self.network = network
        self.server_process = listener.process
        self.to_server = Way(network, listener.process)
        self.to_client = Way(network, client)
        self.client = ClientEnd(self, client)
        self.server = ServerEnd(self, listener, client_port)
        self.is_broken = False
        listener.process.on_crash.append(self._server_crashed)

    def accept(self) -> None:
        self.server.begin()

    def _server_crashed(self) -> None:
        """The kernel resets the connections of a process that ends."""
        self.to_server.is_open = False
        self.network.links.pop(self, None)
        self.to_client.send(self.client.lost)

    def maybe_break(self) -> bool:
        if self.network.random.random() < self.network.faults.broken:
            self.break_off()
            return True
        return False

    def break_off(self) -> None:
        if self.is_broken:
            return
        self.is_broken = True
        self.network.world.trace(f"network breaks {self.client.name} -> {self.server_process.name}")
        for way in (self.to_server, self.to_client):
            way.is_open = False
        self.network.links.pop(self, None)
        # Not within the call that broke it, as with a real transport.
        reset = ConnectionResetError("the simulated connection broke")
        soon, outside = self.network.world.loop.call_soon, contextvars.Context()
        soon(self.server_process.deliver, self.server.lost, reset, context=outside)
        soon(self.client.process.deliver, self.client.lost, context=outside)


class ClientEnd:
    """The client's side: `on_data` gets bytes, `on_lost` is called once when the connection is gone."""

    def __init__(self, link: Link, process: Process) -> None:
        self.process = process
        self.name = process.name
        self.on_data: Callable[[bytes], None] = lambda data: None
        self.on_lost: Callable[[], None] = lambda: None
        self.is_lost = False
        self._link = link

    @property
    def server_process(self) -> Process:
        return self._link.server_process

    def send(self, data: bytes) -> None:
        if not self.is_lost and not self._link.maybe_break():
            self._link.to_server.send(self._link.server.receive, data)

    def close(self) -> None:
        if not self.is_lost:
            self._link.to_client.is_open = False
            self._link.to_server.send(self._link.server.lost, None)
            self.lost()

    def received(self, data: bytes) -> None:
        if not self.is_lost:
            self.on_data(data)

    def lost(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._link.network.links.pop(self._link, None)
            self.on_lost()


class ServerEnd(asyncio.Transport):
    """The worker's side: a transport that lives in the simulated network."""

    def __init__(self, link: Link, listener: Listener, client_port: int) -> None:
        super().__init__({"peername": ("10.0.0.1", client_port), "sockname": ("10.0.0.2", 0), "socket": None})
        self._link = link
        self._listener = listener
        self._protocol: Any = None
        self._is_closing = False
        self._is_lost = False
        self._is_reading = True
        self._waiting: list[bytes] = []
        self._unsent = 0
        self._is_writing_paused = False
        self._high = HIGH_WATER_BYTES
        self._low = HIGH_WATER_BYTES // 4

    def begin(self) -> None:
        if self._link.is_broken:
            return
        self._protocol = self._listener.factory()
        self._protocol.connection_made(self)
        self._feed()

    # The network's side.

    def receive(self, data: bytes) -> None:
        if not self._is_lost and not self._is_closing:
            self._waiting.append(data)
            self._feed()

    def _feed(self) -> None:
        """Hand over what has come, as large as the protocol's buffer or in small pieces."""
        if self._protocol is None:
            return
        network = self._link.network
        while self._waiting and self._is_reading and not self._is_closing and not self._is_lost:
            data = self._waiting.pop(0)
            buffer = self._protocol.get_buffer(-1)
            count = min(len(buffer), len(data))
            if network.random.random() < network.faults.in_pieces:
                count = min(count, network.random.randrange(1, 64))
            buffer[:count] = data[:count]
            if count < len(data):
                self._waiting.insert(0, data[count:])
            del buffer
            self._protocol.buffer_updated(count)

    def lost(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_lost = True
            self._is_closing = True
            self._waiting.clear()
            self._link.network.links.pop(self._link, None)
            if self._protocol is not None:
                self._protocol.connection_lost(error)

    def _sent(self, count: int) -> None:
        """The client's machine has taken so many bytes."""
        self._unsent -= count
        if self._is_writing_paused and self._unsent <= self._low and not self._is_lost:
            self._is_writing_paused = False
            self._protocol.resume_writing()

    # The protocol's side: asyncio.Transport.

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._waiting.clear()
            link = self._link
            link.to_client.send(link.client.lost)
            link.network.world.loop.call_soon(self._finish)

    def abort(self) -> None:
        self._is_closing = True
        self._link.to_client.send(self._link.client.lost)
        self._link.network.world.loop.call_soon(self._finish)

    def _finish(self) -> None:
        if not self._link.server_process.is_dead:
            self.lost(None)

    def is_reading(self) -> bool:
        return self._is_reading and not self._is_closing

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._link.network.world.loop.call_soon(self._feed_alive)

    def _feed_alive(self) -> None:
        if not self._link.server_process.is_dead:
            self._feed()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._write(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self._write(b"".join(list_of_data))

    def _write(self, data: bytes) -> None:
        link = self._link
        if self._is_lost or link.server_process.is_dead or link.maybe_break():
            return
        if self._is_closing:
            link.network.world.complain(f"{link.server_process.name} writes to a connection that it closed")
            return
        link.to_client.send(link.client.received, data)
        self._unsent += len(data)
        link.network.world.loop.call_later(
            link.network.delay(), link.server_process.deliver, self._sent, len(data), context=contextvars.Context()
        )
        if self._unsent > self._high and not self._is_writing_paused:
            self._is_writing_paused = True
            link.network.world.loop.call_soon(self._pause_writing)

    def _pause_writing(self) -> None:
        if not self._is_lost and self._is_writing_paused:
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError

"""A proxy that stands between a broker and its store or etcd, and makes the network worse: slower, narrower, broken.

One process (`python -m loadtest.proxy`) serves any number of links, each a port of its own in front of one address, so
that one broker's network can fail while another's does not. `Proxy` starts it and says how each link behaves, at any
moment: with a delay of every answer, a cap on bytes a second, cut (connections break, new ones are refused), hanging
(nothing passes, nothing breaks), and for HTTP with a share of requests that are refused with 503, or whose answer is
lost after the store has done what was asked. It counts requests and bytes.

It knows HTTP/1.1 only as far as where a request begins and ends, and expects no pipelining.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Self, cast

import uvloop

# Held back on a connection for delay and cap before its sender is told to wait.
HELD_MAX_BYTES = 8 << 20
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
_REFUSAL = b"HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\ncontent-length: %d\r\n\r\n" % len(_SLOW_DOWN)
_REFUSAL_OF_HEAD = b"HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n"
PASS, CUT, HANG = "pass", "cut", "hang"


class Link:
    """One port in front of one address: its rules, its counts, its connections."""

    def __init__(self, name: str, host: str, port: int, is_http: bool) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.is_http = is_http
        self.delay_s = 0.0
        self.bytes_per_second = 0.0
        self.mode = PASS
        # Shares of HTTP requests.
        self.refuse = 0.0
        self.lose = 0.0
        self.counts: Counter[str] = Counter()
        self.connections: set[Connection] = set()
        self._free_at = {"up": 0.0, "down": 0.0}

    def set(self, rules: Mapping[str, Any]) -> None:
        for name, value in rules.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        if self.mode == CUT:
            for connection in list(self.connections):
                connection.abort()
        for connection in list(self.connections):
            connection.follow()

    def due(self, direction: str, size: int, now: float) -> float:
        """When bytes that arrive now may be passed on."""
        due = now + (self.delay_s if direction == "down" else 0.0)
        if self.bytes_per_second:
            begins = max(now, self._free_at[direction])
            self._free_at[direction] = begins + size / self.bytes_per_second
            due = max(due, self._free_at[direction])
        return due


class Pipe:
    """One direction of a connection: bytes on their way, in order."""

    def __init__(self, link: Link, direction: str) -> None:
        self._link = link
        self._direction = direction
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_full = False
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self._ends = False

    def push(self, data: bytes) -> None:
        now = self._loop.time()
        self._queue.append((self._link.due(self._direction, len(data), now), data))
        self._held += len(data)
        self._link.counts[f"{self._direction}_bytes"] += len(data)
        if self._held > HELD_MAX_BYTES and not self._is_full and self.source is not None:
            self._is_full = True
            self.source.pause_reading()
        self.pump()

    def end(self) -> None:
        """The source has no more; what is on its way still arrives."""
        self._ends = True
        self.pump()

    def pump(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        while self._queue and self._link.mode != HANG and self.sink is not None:
            due, data = self._queue[0]
            if due > now:
                self._timer = self._loop.call_at(due, self.pump)
                break
            self._queue.popleft()
            self._held -= len(data)
            if not self.sink.is_closing():  # Else nobody is left to hear it.
                self.sink.write(data)
        if self._is_full and self._held < HELD_MAX_BYTES // 2 and self.source is not None:
            self._is_full = False
            if not self.source.is_closing():
                self.source.resume_reading()
        if self._ends and not self._queue and self.sink is not None:
            self.sink.close()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._queue.clear()


class Connection(asyncio.Protocol):
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._up = Pipe(link, "up")
        self._down = Pipe(link, "down")
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        # Of the HTTP request that is being received.
        self._head = bytearray()
        self._body_left = 0
        self._is_head = False
        self._is_refused = False
        self._loses = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no asyncio.Transport by type.
        self._client = self._up.source = self._down.sink = cast(asyncio.Transport, transport)
        if self._link.mode == CUT:
            self._client.abort()
            return
        self._link.connections.add(self)
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_connection(lambda: _Server(self), self._link.host, self._link.port)
        except OSError:
            self.abort()
            return
        self._server = self._up.sink = self._down.source = transport
        if self._client is None or self._client.is_closing():
            transport.abort()
        self._up.pump()

    def data_received(self, data: bytes) -> None:
        if not self._link.is_http:
            self._up.push(data)
            return
        view = memoryview(data)
        while view:
            if self._body_left:
                taken = view[: self._body_left]
                self._body_left -= len(taken)
                view = view[len(taken) :]
                if not self._is_refused:
                    self._up.push(bytes(taken))
                elif not self._body_left:
                    self._answer_refusal()
                continue
            self._head += view
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            rest = len(self._head) - end - 4
            view = view[len(view) - rest :]
            head = bytes(self._head[: end + 4])
            self._head.clear()
            self._begin(head)

    def _begin(self, head: bytes) -> None:
        """A request's head is complete."""
        link = self._link
        link.counts[head[: head.index(b" ")].decode()] += 1
        self._body_left = _content_length(head)
        self._is_head = head.startswith(b"HEAD ")
        self._is_refused = random.random() < link.refuse
        self._loses = not self._is_refused and random.random() < link.lose
        if not self._is_refused:
            self._up.push(head)
        elif not self._body_left:
            self._answer_refusal()

    def _answer_refusal(self) -> None:
        self._link.counts["refused"] += 1
        self._down.push(_REFUSAL_OF_HEAD if self._is_head else _REFUSAL + _SLOW_DOWN)

    def answered(self, data: bytes) -> None:
        """The server answers."""
        if self._loses:
            self._link.counts["lost"] += 1
            self.abort()
            return
        self._down.push(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._link.connections.discard(self)
        self._down.stop()
        self._up.end()

    def server_lost(self) -> None:
        self._down.end()

    def follow(self) -> None:
        """The link's rules have changed."""
        self._up.pump()
        self._down.pump()

    def abort(self) -> None:
        self._link.connections.discard(self)
        for pipe in (self._up, self._down):
            pipe.stop()
        for transport in (self._client, self._server):
            if transport is not None:
                transport.abort()


class _Server(asyncio.Protocol):
    """The connection to the server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def data_received(self, data: bytes) -> None:
        self._connection.answered(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._connection.server_lost()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


# The process


async def serve(specifications: list[str]) -> None:
    """Serve links until standard input ends; every line of it is a command, and gets a line as answer."""
    loop = asyncio.get_running_loop()
    links: dict[str, Link] = {}
    ports: dict[str, int] = {}
    for text in specifications:
        name, kind, address = text.split("=", 2)
        host, _, port = address.rpartition(":")
        link = links[name] = Link(name, host, int(port), kind == "http")
        server = await loop.create_server(lambda link=link: Connection(link), "127.0.0.1", 0, backlog=1024)
        ports[name] = server.sockets[0].getsockname()[1]
    print(json.dumps(ports), flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        link = links[command["link"]]
        link.set(command.get("set", {}))
        print(json.dumps(link.counts), flush=True)


class Proxy:
    """The process and its links; a context. `links`: name → ("http" or "tcp", "host:port")."""

    def __init__(self, links: Mapping[str, tuple[str, str]]) -> None:
        words = [f"{name}={kind}={address}" for name, (kind, address) in links.items()]
        self._lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.proxy", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.ports: dict[str, int] = json.loads(self.process.stdout.readline())

    def set(self, link: str, **rules: Any) -> dict[str, int]:
        """Change how a link behaves; see `Link`. Returns its counts."""
        with self._lock:
            assert self.process.stdin is not None and self.process.stdout is not None
            self.process.stdin.write(json.dumps({"link": link, "set": rules}) + "\n")
            self.process.stdin.flush()
            counts: dict[str, int] = json.loads(self.process.stdout.readline())
            return counts

    def counts(self, link: str) -> dict[str, int]:
        """Requests by method, `refused`, `lost`, `up_bytes`, `down_bytes`, since the start."""
        return self.set(link)

    def url(self, link: str) -> str:
        return f"http://127.0.0.1:{self.ports[link]}"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("links", nargs="+", metavar="NAME=http|tcp=HOST:PORT")
    uvloop.run(serve(parser.parse_args().links))


if __name__ == "__main__":
    main()

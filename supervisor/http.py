"""A small HTTP/1.1 server for probes and scrapes: GET and HEAD of a few fixed paths, one request per connection.

Owns its connections, of which it takes a bounded number, each for a bounded time and with a bounded request head.
Bodies are not read. Must not know what the pages say. Status codes and framing: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple, cast

from kafscale.clock import Clock

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 8192
MAX_CONNECTIONS = 64
REQUEST_SECONDS = 5.0


class Response(NamedTuple):
    status: int
    content_type: str
    body: bytes


Page = Callable[[], Response]


class HttpServer:
    """Serves `pages` (path → page) on a socket that listens."""

    def __init__(self, pages: Mapping[str, Page], clock: Clock) -> None:
        self._pages = pages
        self._clock = clock
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self, bound: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), sock=bound)

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.cut()
            await self._server.wait_closed()

    def answer(self, head: bytes) -> bytes:
        """The whole response to a request head."""
        method, target = _request_line(head)
        if method is None:
            return _encoded(_error(HTTPStatus.BAD_REQUEST), body=True)
        if method not in ("GET", "HEAD"):
            return _encoded(_error(HTTPStatus.METHOD_NOT_ALLOWED), body=True, more="Allow: GET, HEAD\r\n")
        page = self._pages.get(target.partition("?")[0])
        if page is None:
            return _encoded(_error(HTTPStatus.NOT_FOUND), body=method == "GET")
        try:
            response = page()
        except Exception:
            log.exception("a page could not be made", extra={"path": target})
            response = _error(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _encoded(response, body=method == "GET")

    def opened(self, connection: _Connection) -> bool:
        """Whether there is room for one more."""
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def closed(self, connection: _Connection) -> None:
        self._connections.discard(connection)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self._clock.call_later(seconds, callback)


class _Connection(asyncio.Protocol):
    """Reads one request head, answers, closes. Cut after REQUEST_SECONDS, whatever it is doing."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._head = bytearray()
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        if not self._server.opened(self):
            self._respond(_encoded(_error(HTTPStatus.SERVICE_UNAVAILABLE), body=True))
            return
        self._server.call_later(REQUEST_SECONDS, self.cut)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._head += data[: MAX_HEAD_BYTES + 1 - len(self._head)]
        end = self._head.find(b"\r\n\r\n")
        if end >= 0:
            self._respond(self._server.answer(bytes(self._head[:end])))
        elif len(self._head) > MAX_HEAD_BYTES:
            self._respond(_encoded(_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE), body=True))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.closed(self)

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _respond(self, response: bytes) -> None:
        self._answered = True
        assert self._transport is not None
        self._transport.write(response)
        self._transport.close()


def _request_line(head: bytes) -> tuple[str | None, str]:
    parts = head.split(b"\r\n", 1)[0].split(b" ")
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1.") or not head.isascii():
        return None, ""
    return parts[0].decode(), parts[1].decode()


def _error(status: HTTPStatus) -> Response:
    return Response(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode())


def _encoded(response: Response, *, body: bool, more: str = "") -> bytes:
    head = (
        f"HTTP/1.1 {int(response.status)} {HTTPStatus(response.status).phrase}\r\n"
        f"Content-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n"
        f"Cache-Control: no-store\r\n{more}Connection: close\r\n\r\n"
    ).encode()
    return head + response.body if body else head

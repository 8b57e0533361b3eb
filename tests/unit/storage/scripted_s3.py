"""A server in place of a bucket, of which a test says what it answers, or that it doesn't."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Respond = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers every request as `respond` does; keeps what was asked."""

    def __init__(self, respond: Respond) -> None:
        self.requests: list[bytes] = []
        self._respond = respond

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
                if fields.get(b"expect") == b"100-continue":
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await reader.readexactly(int(fields.get(b"content-length", 0)))
                self.requests.append(head + body)
                await self._respond(head, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def status(code: int, error: str = "", body: bytes | None = None, more: str = "") -> Respond:
    """Answer with a status, and an S3 error document or a body."""

    async def respond(head: bytes, writer: asyncio.StreamWriter) -> None:
        content = f"<Error><Code>{error}</Code><Message>because</Message></Error>".encode() if body is None else body
        writer.write(f"HTTP/1.1 {code} X\r\ncontent-length: {len(content)}\r\n{more}\r\n".encode() + content)
        await writer.drain()

    return respond


async def reset(head: bytes, writer: asyncio.StreamWriter) -> None:
    """The connection breaks once the request was taken."""
    writer.transport.abort()


async def reset_hard(head: bytes, writer: asyncio.StreamWriter) -> None:
    """The same, and the client is told so by a RST."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def hang(head: bytes, writer: asyncio.StreamWriter) -> None:
    """No answer for as long as the client waits."""
    await asyncio.get_running_loop().create_future()


async def short(head: bytes, writer: asyncio.StreamWriter) -> None:
    """Half a body, and then the connection breaks."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf.")
    await writer.drain()
    writer.close()


def raw(answer: bytes, is_over: bool = False) -> Respond:
    """An answer as it goes over the wire, and the end of the connection after it."""

    async def respond(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        if is_over:
            writer.close()

    return respond


def one_after_the_other(*answers: Respond) -> Respond:
    """To each request the next of them."""
    left = iter(answers)

    async def respond(head: bytes, writer: asyncio.StreamWriter) -> None:
        await next(left)(head, writer)

    return respond


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhalf.\r\n"
PAGE = b"<html><body>404 Not Found, says the proxy</body></html>"


@asynccontextmanager
async def serving(respond: Respond) -> AsyncIterator[tuple[str, list[bytes]]]:
    """The address of a server that answers so, and the requests that it gets."""
    server = Server(respond)
    listening = await asyncio.start_server(server.accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", server.requests
    finally:
        listening.close()

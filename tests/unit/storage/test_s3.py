"""Goal: whatever a bucket answers, or doesn't, comes out as what the callers must do; and nothing is tried twice."""

from __future__ import annotations

import asyncio
import base64
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
from crc32c import crc32c

from kafscale.errors import ObjectExists, ObjectMissing, StoreError, StoreUnavailable, StoreUnclear
from kafscale.storage.s3 import S3Store, S3Target
from kafscale.storage.store import ObjectStore, Purpose

Respond = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
HANG_SECONDS = 0.3


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
        if head.startswith(b"HEAD"):
            writer.write(f"HTTP/1.1 {code} X\r\ncontent-length: 0\r\n\r\n".encode())
        else:
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


def asked(respond: Respond, call: Callable[[ObjectStore], Awaitable[object]]) -> tuple[object, list[bytes]]:
    """The outcome of a call (a result, or an error), and the requests that it made."""

    async def scenario() -> tuple[object, list[bytes]]:
        server = Server(respond)
        listening = await asyncio.start_server(server.accept, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        target = S3Target(
            bucket="bucket",
            endpoint=f"http://127.0.0.1:{port}",
            path_style=True,
            access_key="key",
            secret_key="secret",
            kms_arn="arn:aws:kms:eu-west-1:1:key/2",
        )
        store = S3Store(target, connect_timeout_s=HANG_SECONDS, read_timeout_s=HANG_SECONDS)
        try:
            return await call(store), server.requests
        except StoreError as error:
            return error, server.requests
        finally:
            await store.close()
            listening.close()

    return asyncio.run(scenario())


def put(store: ObjectStore) -> Awaitable[None]:
    return store.put_if_absent("ns/log/1", [b"some", b" bytes"], Purpose.FLUSH)


@pytest.mark.parametrize(
    ("respond", "expected"),
    [
        (status(412, "PreconditionFailed"), ObjectExists),
        (status(409, "ConditionalRequestConflict"), StoreUnclear),
        (status(500, "InternalError"), StoreUnclear),
        (status(503, "ServiceUnavailable"), StoreUnclear),
        (status(502, ""), StoreUnclear),
        (status(503, "SlowDown"), StoreUnavailable),
        (status(429, "TooManyRequests"), StoreUnavailable),
        (status(403, "AccessDenied"), StoreUnavailable),
        (status(404, "NoSuchBucket"), StoreUnavailable),
        (reset, StoreUnclear),
        (reset_hard, StoreUnclear),
        (hang, StoreUnclear),
    ],
)
def test_what_a_put_that_failed_means(respond: Respond, expected: type[StoreError]) -> None:
    """Goal: only an answer that says so means that nothing was applied; and each put goes out once, or twice where the
    HTTP client takes a broken connection for one that had been idle too long."""
    outcome, requests = asked(respond, put)
    assert type(outcome) is expected, outcome
    assert len(requests) == (2 if respond in (reset, reset_hard) else 1)


@pytest.mark.parametrize(
    ("respond", "expected"),
    [
        (status(404, "NoSuchKey"), ObjectMissing),
        (status(404, "NoSuchBucket"), StoreUnavailable),
        (status(403, "AccessDenied"), StoreUnavailable),
        (status(500, "InternalError"), StoreUnavailable),
        (status(503, "SlowDown"), StoreUnavailable),
        (reset, StoreUnavailable),
        (reset_hard, StoreUnavailable),
        (hang, StoreUnavailable),
        (short, StoreUnavailable),
    ],
)
def test_what_a_read_that_failed_means(respond: Respond, expected: type[StoreError]) -> None:
    """Goal: a missing object is told from a store that gives no answer, and half an object is none."""
    outcome, requests = asked(respond, lambda store: store.get("ns/log/1", Purpose.COLD_READ))
    assert type(outcome) is expected, outcome
    assert len(requests) == (2 if respond in (reset, reset_hard) else 1)


def test_nobody_listens() -> None:
    """Goal: a put that never reached the store is known not to be applied."""

    async def scenario() -> None:
        target = S3Target(bucket="b", endpoint="http://127.0.0.1:1", path_style=True, access_key="k", secret_key="s")
        store = S3Store(target)
        try:
            with pytest.raises(StoreUnavailable, match="can't be reached"):
                await put(store)
        finally:
            await store.close()

    asyncio.run(scenario())


def test_a_put_says_what_the_store_must_check() -> None:
    """Goal: the condition, our own CRC32C and the key to encrypt with are in the one request; no second hash is."""
    outcome, (request,) = asked(status(200, body=b""), put)
    assert outcome is None
    head, _, body = request.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert body == b"some bytes"
    assert fields[b"if-none-match"] == b"*"
    crc = base64.b64encode(crc32c(b"some bytes").to_bytes(4, "big"))
    assert fields[b"x-amz-checksum-crc32c"] == crc.lower()
    assert fields[b"x-amz-server-side-encryption"] == b"aws:kms"
    assert fields[b"x-amz-server-side-encryption-aws-kms-key-id"] == b"arn:aws:kms:eu-west-1:1:key/2"
    # Nor is the store asked whether it wants the body: that would be a round trip more.
    assert b"content-md5" not in fields and b"expect" not in fields


def test_an_object_that_could_not_be_deleted_is_named() -> None:
    """Goal: a batch in which one key failed is no success."""
    answer = (
        b"<DeleteResult><Error><Key>ns/b</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    )
    outcome, _ = asked(status(200, body=answer), lambda store: store.delete(["ns/a", "ns/b"], Purpose.SWEEP))
    assert isinstance(outcome, StoreUnavailable)
    assert "ns/b: AccessDenied" in str(outcome)

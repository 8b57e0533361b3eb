"""Goal: probes and scrapes are answered; whatever else is sent costs bounded time and memory."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.clock import SystemClock
from supervisor import http
from supervisor.http import HttpServer, Response


def ok() -> Response:
    return Response(200, "text/plain", b"all well\n")


def broken() -> Response:
    raise RuntimeError("no")


def answers(*requests: bytes, half_close: bool = False) -> list[bytes]:
    """What a server says to each request, on a connection each, until it closes."""

    async def scenario() -> list[bytes]:
        server = HttpServer({"/ok": ok, "/broken": broken}, SystemClock())
        bound = socket.create_server(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        await server.start(bound)
        try:
            found = []
            for request in requests:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                if half_close:
                    writer.write_eof()
                try:
                    found.append(await reader.read())
                except ConnectionResetError:
                    found.append(b"")
                writer.close()
            return found
        finally:
            await server.close()

    return asyncio.run(scenario())


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def test_a_page_is_served() -> None:
    (answer,) = answers(b"GET /ok?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and body == b"all well\n"
    assert b"Content-Length: 9" in head and b"Connection: close" in head


def test_head_has_the_length_and_no_body() -> None:
    (answer,) = answers(b"HEAD /ok HTTP/1.0\r\n\r\n")
    assert b"Content-Length: 9" in answer and answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET /none HTTP/1.1\r\n\r\n", 404),
        (b"POST /ok HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /broken HTTP/1.1\r\n\r\n", 500),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /ok\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400),
        (b"GET /ok HTTP/1.1\r\nX: " + b"y" * http.MAX_HEAD_BYTES, 431),
    ],
)
def test_other_requests_are_refused(request_bytes, expected) -> None:
    (answer,) = answers(request_bytes)
    assert status(answer) == expected


@settings(max_examples=20)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=10))
def test_no_bytes_break_the_server(garbage) -> None:
    found = answers(*garbage, b"GET /ok HTTP/1.1\r\n\r\n", half_close=True)
    assert status(found[-1]) == 200


def test_a_request_that_never_ends_is_cut(monkeypatch) -> None:
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.05)
    assert answers(b"GET /ok HTTP/1.1\r\n") == [b""]


def test_there_is_room_for_so_many_and_no_more(monkeypatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 3)

    async def scenario() -> None:
        server = HttpServer({"/ok": ok}, SystemClock())
        bound = socket.create_server(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        await server.start(bound)
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert status(await reader.read()) == 503
        writer.close()
        for _, one in idle:
            one.close()
        await server.close()

    asyncio.run(scenario())

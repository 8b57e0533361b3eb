"""Goal: what a stranger on the network can do to a broker that is set up safely: nothing, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Producer

from loadtest.broker_process import wait_for
from tests.e2e.conftest import MakeBroker
from tests.e2e.secure_broker import SecureBroker
from tests.e2e.tls_prober import (
    AEAD_SUITES,
    DEFLATE,
    NULL_COMPRESSION,
    SSL_3,
    TLS_1_0,
    TLS_1_1,
    TLS_1_2,
    TLS_1_3,
    TLS_1_3_SUITES,
    WEAK_SUITES,
    probe,
)

SLOW_CLIENTS = 1000
PER_ADDRESS = 20
# ApiVersions v0: size, key, version, correlation id, null client id.
API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 7, -1)


@pytest.fixture(scope="module")
def secure(make_module_broker: MakeBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    yield SecureBroker(
        make_module_broker,
        tmp_path_factory.mktemp("attacks"),
        HANDSHAKE_TIMEOUT_MS="3000",
        AUTHENTICATION_TIMEOUT_MS="4000",
        FRAME_HEADER_TIMEOUT_MS="3000",
    )


@pytest.fixture(params=["tls", "mutual", "sasl_tls"])
def tls_port(secure: SecureBroker, request: pytest.FixtureRequest) -> int:
    return secure.ports[request.param]


# What TLS is spoken


@pytest.mark.parametrize("version", [SSL_3, TLS_1_0, TLS_1_1])
def test_old_versions(tls_port: int, version: int) -> None:
    """Nothing below TLS 1.2, whatever else is offered."""
    everything = [suite for suites in WEAK_SUITES.values() for suite in suites]
    assert probe("127.0.0.1", tls_port, version, [*AEAD_SUITES, *everything]) is None


@pytest.mark.parametrize("kind", WEAK_SUITES)
def test_weak_suites(tls_port: int, kind: str) -> None:
    """No suite that doesn't authenticate what it encrypts, or has no forward secrecy."""
    assert probe("127.0.0.1", tls_port, TLS_1_2, WEAK_SUITES[kind]) is None


def test_good_suites(tls_port: int) -> None:
    """The same question, with what is spoken: so the refusals above mean something. Compression is never agreed to, nor
    a session ticket, in which a revoked certificate would live on."""
    weak = [suite for suites in WEAK_SUITES.values() for suite in suites]
    agreed = probe("127.0.0.1", tls_port, TLS_1_2, [*weak, *AEAD_SUITES], [DEFLATE, NULL_COMPRESSION], [(35, b"")])
    assert agreed is not None
    assert agreed.version == TLS_1_2 and agreed.suite in AEAD_SUITES and agreed.compression == NULL_COMPRESSION
    assert 35 not in agreed.extensions
    agreed = probe("127.0.0.1", tls_port, TLS_1_3, [*weak, *TLS_1_3_SUITES])
    assert agreed is not None and agreed.version == TLS_1_3 and agreed.suite in TLS_1_3_SUITES


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_renegotiation(secure: SecureBroker) -> None:
    """A client that asks for it, the old way or the safe one, is refused."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{secure.ports['tls']}", "-tls1_2"]
    # The end of the input must not end it before it has heard back: what it reads then is nothing.
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert client.stdin is not None and client.stdout is not None
    try:
        client.stdin.write(b"R\n")
        client.stdin.flush()
        said = client.stdout.read()
        assert b"RENEGOTIATING" in said and b"no renegotiation" in said, said[-2000:]
    finally:
        client.kill()
        client.wait(30)


def test_sessions_are_not_resumed(secure: SecureBroker) -> None:
    """No connection goes on from an earlier one: certificates are looked at every time."""
    context = ssl.create_default_context(cafile=str(secure.folder / "ca.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    session = None
    for _ in range(4):
        with (
            socket.create_connection(("127.0.0.1", secure.ports["tls"]), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as secured,
        ):
            secured.sendall(API_VERSIONS)
            assert secured.recv(4)
            session = secured.session
            assert not secured.session_reused


# Frames


def first_answer(port: int, data: bytes) -> bytes:
    """What comes back, until the connection is closed or something came."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            return client.recv(1000)
        return b""


@pytest.mark.parametrize("listener", ["plain", "sasl"])
@pytest.mark.parametrize("size", [-1, -(2**31), 2**31 - 1, 100 * 2**20 + 1, 0x50524F58])
def test_sizes_that_nobody_may_announce(secure: SecureBroker, listener: str, size: int) -> None:
    """A size that is none, and what a second PROXY header would be: closed at once, and no memory is set aside."""
    before = secure.broker.resident_bytes()
    for _ in range(5):
        assert first_answer(secure.ports[listener], struct.pack(">i", size)) == b""
    assert secure.broker.resident_bytes() - before < 2**20


def test_a_large_frame_before_authentication(secure: SecureBroker) -> None:
    """Case 26: half a mebibyte is the most; of a frame that may come, nothing is set aside before its bytes are."""
    assert first_answer(secure.ports["sasl"], struct.pack(">i", 512 * 1024 + 1) + bytes(1000)) == b""
    before = secure.broker.resident_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", secure.ports["sasl"]), timeout=30))
            client.sendall(struct.pack(">i", 512 * 1024) + bytes(1000))
        assert first_answer(secure.ports["sasl"], API_VERSIONS) != b""
        assert secure.broker.resident_bytes() - before < 5 * 2**20


# Slowness


def test_a_thousand_slow_clients(secure: SecureBroker, topic: str) -> None:
    """Case 27: a thousand clients that send a byte a second, on every kind of listener, are gone in time. A producer
    beside them notices nothing."""
    acknowledged: list[float] = []

    def note(error: Any, _: Any) -> None:
        assert error is None
        acknowledged.append(time.monotonic())

    async def dawdle(port: int) -> float:
        """How long the broker put up with it."""
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        ended = asyncio.ensure_future(reader.read())
        sent = 0
        # What each listener expects first begins so: a TLS handshake record, or a size.
        first = (
            b"\x16\x03\x01\x02\x00\x01" if port in (secure.ports["tls"], secure.ports["mutual"]) else b"\0\0\1\0\0\22"
        )
        while not ended.done():
            with contextlib.suppress(ConnectionError):
                writer.write(first[sent : sent + 1] or b"\0")
            sent += 1
            await asyncio.wait({ended}, timeout=1)
            assert time.monotonic() - began < 60, "it is still connected"
        with contextlib.suppress(ConnectionError):
            ended.result()
        writer.close()
        return time.monotonic() - began

    async def all_of_them() -> list[float]:
        ports = [secure.ports[name] for name in ("plain", "tls", "mutual", "sasl")]
        return await asyncio.gather(*(dawdle(ports[number % 4]) for number in range(SLOW_CLIENTS)))

    producer = Producer(secure.confluent("mutual") | {"linger.ms": 0, "message.timeout.ms": 30_000})
    producer.produce(topic, b"first", on_delivery=note)
    assert producer.flush(30) == 0
    with asyncio.Runner() as runner:
        slow = runner.get_loop().run_in_executor(None, lambda: _produce_steadily(producer, topic, note))
        lasted = runner.run(all_of_them())
        runner.run(_until(slow))
    assert len(lasted) == SLOW_CLIENTS and min(lasted) > 1
    assert len(acknowledged) == 201


def _produce_steadily(producer: Producer, topic: str, note: Any) -> None:
    pause = 0.02
    for _ in range(200):
        producer.produce(topic, b"x", on_delivery=note)
        producer.poll(pause)
    assert producer.flush(30) == 0


async def _until(waited: Any) -> None:
    await waited


# Numbers


def test_limits_hold_for_all_workers_together(
    make_broker: MakeBroker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From one address no more than may, whichever worker they come to; who goes makes room."""
    secure = SecureBroker(make_broker, tmp_path_factory.mktemp("limits"), CONNECTIONS_MAX_PER_ADDRESS=str(PER_ADDRESS))
    ports = [secure.ports["plain"], *secure.broker.worker_ports()]
    with contextlib.ExitStack() as stack:
        served: list[socket.socket] = []
        refused = 0
        for number in range(3 * PER_ADDRESS):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", ports[number % 3]), timeout=30))
            client.sendall(API_VERSIONS)
            try:
                is_served = bool(client.recv(1))
            except ConnectionResetError:
                is_served = False
            served += [client] if is_served else []
            refused += not is_served
        assert len(served) == PER_ADDRESS and refused == 2 * PER_ADDRESS
        served.pop().close()
        wait_for(lambda: first_answer(ports[0], API_VERSIONS), 30, "room for another")
    assert 'reason="limit"' in secure.broker.http_body("/metrics")

"""Goal: who comes in is who the proxy, the certificate or the address says; whoever can't show that, comes too often or
dawdles stays outside; a new certificate costs nobody his connection."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.x509.oid import NameOID

from kafscale.census import Census
from kafscale.clock import SystemClock
from kafscale.config import Endpoint, Settings
from kafscale.config.listeners import ListenerSettings
from kafscale.control import TlsFiles
from kafscale.metrics import AUTHENTICATIONS, CONNECTIONS_CLOSED, HANDSHAKES, MetricsBlock
from kafscale.security.access import ANONYMOUS
from kafscale.security.proxy_protocol import SIGNATURE_V2
from tests.unit.security.certificates import Authority
from tests.unit.workers.doubles import ManualClock
from workers.acceptor import Acceptor, Pace
from workers.authentication import Authenticator, Login
from workers.connections import Connections
from workers.entrance import Entrance
from workers.listener import Listener
from workers.pending import Pending
from workers.slabs import SlabPool

CA = Authority()
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7")
PROXY_V1 = b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 9092\r\n"
PROXY_V2 = SIGNATURE_V2 + struct.pack(">BBH", 0x21, 0x21, 36) + V6 + V6 + struct.pack(">HH", 1, 2)
REQUEST = struct.pack(">i", 4) + b"\0\1hi"


class Door:
    """An entrance with a listening socket before it. Every frame is answered with the client's principal and host."""

    def __init__(self, settings: Settings, own: ListenerSettings) -> None:
        self.metrics = MetricsBlock.in_memory()
        clock = SystemClock()
        self.connections = Connections(settings, clock, SlabPool(1 << 20, 1 << 22), self.metrics, self._dispatch)
        self.logins: list[Login] = []
        authenticator = Authenticator(settings, clock, self.metrics, lambda: None, self.logins.append)
        self.entrance = Entrance(settings, own, Listener(own.name), self.connections, authenticator)
        self.acceptor = Acceptor(Pace(settings.connections_per_second_max, clock, Census.alone()), clock)
        self.listening = socket.create_server((own.listen.host, 0))
        self.port = self.listening.getsockname()[1]
        self.streams: list[asyncio.StreamWriter] = []

    def _dispatch(
        self, connection: Any, buffer: bytearray | memoryview, start: int, end: int, pending: Pending
    ) -> None:
        body = f"{connection.principal} {connection.client_host}".encode()
        pending.answer(struct.pack(">i", len(body)) + body)

    def count(self, cell: int) -> int:
        return self.metrics.cells[cell]

    def closed(self, reason: str) -> int:
        return self.count(CONNECTIONS_CLOSED.at(reason))

    async def connect(self, context: ssl.SSLContext | None = None, first: bytes = b"") -> Talk:
        """A client; `first` goes out before TLS does."""
        loop = asyncio.get_running_loop()
        client = socket.socket()
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", self.port))
        await loop.sock_sendall(client, first)
        name = None if context is None else "localhost"
        reader, writer = await asyncio.open_connection(sock=client, ssl=context, server_hostname=name)
        self.streams.append(writer)
        return Talk(reader, writer)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - counters have no events
            await asyncio.sleep(0.005)


class Talk:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, data: bytes = REQUEST) -> str | None:
        """Who one is; None if the connection is closed instead."""
        try:
            self.writer.write(data)
            async with asyncio.timeout(10):
                head = await self.reader.readexactly(4)
                return (await self.reader.readexactly(int.from_bytes(head, "big"))).decode()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return None


@asynccontextmanager
async def door(settings: Settings | None = None, files: TlsFiles | None = None, **listener: Any) -> AsyncIterator[Door]:
    values = {
        "name": "x",
        "protocol": "PLAINTEXT",
        "listen": Endpoint("127.0.0.1", 0),
        "principal_source": "remote_addr",
    }
    made = Door(settings or Settings(), ListenerSettings(**values | listener))  # type: ignore[arg-type]
    made.connections.start(asyncio.get_running_loop().call_soon)
    if files is not None:
        await made.entrance.use(files)
    made.acceptor.open(made.listening.fileno(), made.entrance.arrive)
    try:
        yield made
    finally:
        made.acceptor.close_all()
        made.entrance.stop()
        made.connections.abandon("drain")
        made.connections.stop()
        made.listening.close()
        for writer in made.streams:
            writer.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On the loop that workers have."""
    uvloop.run(test())


def proxied(**more: Any) -> dict[str, Any]:
    return {"proxy_protocol": True, "trusted_proxies": ("127.0.0.0/8",), "principal_source": "proxy_addr"} | more


TLS = TlsFiles(*CA.server())
MUTUAL = TlsFiles(*CA.server(), None, CA.pem)


def client_context(folder: Path, certificate: tuple[bytes, bytes] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=CA.pem.decode())
    if certificate is not None:
        path = folder / "client.pem"
        path.write_bytes(b"".join(certificate))
        context.load_cert_chain(path)
    return context


@pytest.mark.parametrize(
    ("header", "who"),
    [
        (PROXY_V1, "192.0.2.1"),
        (PROXY_V2, "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (SIGNATURE_V2 + struct.pack(">BBH", 0x20, 0, 0), "127.0.0.1"),
        (b"PROXY TCP6 ::ffff:192.0.2.9 ::1 1 2\r\n", "192.0.2.9"),
    ],
)
@pytest.mark.parametrize("is_tls", [False, True])
def test_proxied_clients(tmp_path: Path, header: bytes, who: str, is_tls: bool) -> None:
    """The client's address is the proxy's word, and TLS begins behind the header."""

    async def check() -> None:
        protocol = "SSL" if is_tls else "PLAINTEXT"
        async with door(files=TLS if is_tls else None, **proxied(protocol=protocol)) as made:
            talk = await made.connect(client_context(tmp_path) if is_tls else None, header)
            assert await talk.ask() == f"User:{who} {who}"
            assert await talk.ask() == f"User:{who} {who}"

    run(check)


def test_a_header_in_crumbs() -> None:
    """Byte by byte, with the first request right behind it in the same packet as the last."""

    async def check() -> None:
        async with door(**proxied()) as made:
            talk = await made.connect()
            for position in range(len(PROXY_V1) - 1):
                talk.writer.write(PROXY_V1[position : position + 1])
                await asyncio.sleep(0)
            assert await talk.ask(PROXY_V1[-1:] + REQUEST) == "User:192.0.2.1 192.0.2.1"

    run(check)


@pytest.mark.parametrize(
    "first",
    [
        REQUEST,
        PROXY_V1.replace(b"\r\n", b"\n") + REQUEST,
        b"PROXY UNKNOWN " + b"x" * 200 + b"\r\n",
        SIGNATURE_V2 + struct.pack(">BBH", 0x11, 0x11, 12) + bytes(12) + REQUEST,
        SIGNATURE_V2 + struct.pack(">BBH", 0x2F, 0x11, 12) + bytes(12) + REQUEST,
    ],
)
def test_bad_headers(first: bytes) -> None:
    """No header, or one that is not exactly right: closed, and nothing is served."""

    async def check() -> None:
        async with door(**proxied()) as made:
            assert await (await made.connect(first=first)).ask() is None
            assert made.closed("proxy") == 1
            assert len(made.connections) == 0

    run(check)


def test_a_second_header() -> None:
    """It is taken for what stands where a request should be: a frame of more than a gigabyte."""

    async def check() -> None:
        async with door(**proxied()) as made:
            assert await (await made.connect(first=PROXY_V1)).ask(PROXY_V1) is None
            assert made.closed("too_large") == 1

    run(check)


def test_a_proxy_that_nobody_trusts() -> None:
    """Whoever is not among the trusted addresses is refused, whatever it says."""

    async def check() -> None:
        async with door(**proxied(trusted_proxies=("10.0.0.0/8", "::1"))) as made:
            assert await (await made.connect(first=PROXY_V1)).ask() is None
            assert made.closed("proxy") == 1

    run(check)


@pytest.mark.parametrize("is_tls", [False, True])
def test_dawdlers(is_tls: bool) -> None:
    """A header, or a handshake, that does not come to its end in time: closed. Others are served meanwhile."""

    async def check() -> None:
        settings = Settings(handshake_timeout_ms=300)
        listener = {"protocol": "SSL"} if is_tls else proxied()
        async with door(settings, TLS if is_tls else None, **listener) as made:
            slow = [await made.connect(first=b"P" if not is_tls else b"\x16\x03\x01") for _ in range(50)]
            if not is_tls:
                assert await (await made.connect(first=PROXY_V1)).ask() == "User:192.0.2.1 192.0.2.1"
            for talk in slow:
                async with asyncio.timeout(10):
                    assert await talk.reader.read() == b""
            assert made.closed("handshake" if is_tls else "proxy") == 50
            assert made.connections.arriving == 0

    run(check)


def test_as_many_as_may() -> None:
    """Over the limit in all, those on their way included, a client is turned away; when one goes another may come."""

    async def check() -> None:
        async with door(Settings(connections_max=3)) as made:
            talks = [await made.connect() for _ in range(3)]
            for talk in talks:
                assert await talk.ask() is not None
            assert await (await made.connect()).ask() is None
            assert made.closed("limit") == 1
            talks[0].writer.close()
            await until(lambda: len(made.connections) == 2)
            assert await (await made.connect()).ask() is not None

    run(check)


def test_nobody_comes_to_a_worker_that_ends() -> None:
    """It says so of no limit: nobody need raise one."""

    async def check() -> None:
        async with door(Settings(connections_max=3)) as made:
            made.connections.abandon("fenced")
            assert await (await made.connect()).ask() is None
            assert made.closed("limit") == 0

    run(check)


def test_as_many_as_may_from_one_address() -> None:
    """The limit counts the client's address, behind a proxy not the proxy's; failed handshakes count no more."""

    async def check() -> None:
        async with door(Settings(connections_max_per_address=2), **proxied()) as made:
            others = PROXY_V1.replace(b"192.0.2.1", b"192.0.2.2")
            talks = [await made.connect(first=PROXY_V1) for _ in range(2)]
            for talk in talks:
                assert await talk.ask() is not None
            assert await (await made.connect(first=PROXY_V1)).ask() is None
            assert await (await made.connect(first=others)).ask() is not None
            assert made.closed("limit") == 1
            talks[0].writer.close()
            await until(lambda: len(made.connections) == 2)
            assert await (await made.connect(first=PROXY_V1)).ask() is not None
        async with door(Settings(connections_max_per_address=1), TLS, protocol="SSL") as made:
            for number in range(1, 4):
                await (await made.connect()).ask(b"this is no TLS, but long enough to be taken for some of it")
                await until(lambda number=number: made.closed("handshake") == number)  # type: ignore[misc]
            assert made.closed("limit") == 0

    run(check)


def test_the_pace() -> None:
    """So many in a second of the clock, by all workers together; an idle hour saves nothing up."""
    clock = ManualClock()
    clock.advance(0.25 - clock.monotonic() % 1)
    census = Census.create(2, 0)
    assert census.fd is not None
    paces = [Pace(10, clock, census), Pace(10, clock, Census.attach(os.dup(census.fd), 1))]

    def let_in() -> int:
        count = 0
        while paces[count % 2].wait() == 0.0:
            paces[count % 2].count()
            count += 1
        return count

    assert let_in() == 10
    assert [pace.wait() for pace in paces] == [pytest.approx(0.75)] * 2
    clock.advance(0.75)
    assert let_in() == 10
    clock.advance(3600)
    assert let_in() == 10
    unbounded = Pace(None, clock, census)
    for _ in range(1000):
        assert unbounded.wait() == 0.0
        unbounded.count()
    census.close()


def test_more_than_the_pace_wait() -> None:
    """Clients beyond the rate are let in with the next second, and none is turned away."""

    async def check() -> None:
        async with door(Settings(connections_per_second_max=20)) as made:
            began = SystemClock().monotonic()
            talks = [await made.connect() for _ in range(41)]
            answers = await asyncio.gather(*(talk.ask() for talk in talks))
            assert None not in answers
            assert made.closed("limit") == 0
            # A whole second lies between the first twenty and the last.
            assert SystemClock().monotonic() - began > 1

    run(check)


def test_when_descriptors_run_out() -> None:
    """Accepting rests, says so, and goes on; the client waits in the backlog."""

    class Exhausted(socket.socket):
        left = 2

        def accept(self) -> Any:
            if self.left:
                self.left -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def check() -> None:
        clock = ManualClock()
        listening = Exhausted()
        listening.bind(("127.0.0.1", 0))
        listening.setblocking(False)
        arrived: list[str] = []

        def arrive(accepted: socket.socket, host: str) -> None:
            arrived.append(host)
            accepted.close()

        acceptor = Acceptor(Pace(None, clock, Census.alone()), clock)
        # In the place of the duplicate that `open` makes.
        listening.listen()
        acceptor._open[listening.fileno()] = listening, arrive
        loop = asyncio.get_running_loop()
        loop.add_reader(listening.fileno(), acceptor._accept, listening, arrive)
        client = socket.create_connection(listening.getsockname())
        for expected in (1, 0):
            await until(lambda expected=expected: listening.left == expected)  # type: ignore[misc]
            clock.advance(1.1)
        await until(lambda: bool(arrived))
        acceptor.close_all()
        client.close()

    run(check)


def subject(*parts: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts])


RULES = "RULE:^CN=([a-z]+),O=Acme$/$1/"
ACME = [(NameOID.ORGANIZATION_NAME, "Acme"), (NameOID.COMMON_NAME, "alice")]


@pytest.mark.parametrize(
    ("certificate", "principal"),
    [
        (CA.client(subject(*ACME)), "User:alice"),
        # Neither half of a value nor another name is alice.
        (CA.client(subject((NameOID.COMMON_NAME, "alice,O=Acme"))), None),
        (CA.client(subject((NameOID.COMMON_NAME, "alice"))), None),
        (Authority("Other").client(subject(*ACME)), None),
        (None, None),
    ],
)
def test_clients_with_certificates(
    tmp_path: Path, certificate: tuple[bytes, bytes] | None, principal: str | None
) -> None:
    """A good certificate whose subject a rule matches names the client; all else is refused, and recorded."""

    async def check() -> None:
        own = {"protocol": "SSL", "client_auth": "required", "principal_source": "mtls"}
        async with door(files=MUTUAL, **own, principal_mapping_rules=RULES) as made:
            try:
                talk = await made.connect(client_context(tmp_path, certificate))
                answer = await talk.ask()
            except ssl.SSLError:
                answer = None
            assert answer == (None if principal is None else f"{principal} 127.0.0.1")
            await until(lambda: len(made.logins) == 1)
            (login,) = made.logins
            assert login.is_granted == (principal is not None)
            assert made.count(AUTHENTICATIONS.at("TLS", "success" if principal else "failure")) == 1

    run(check)


EXPIRED = {"not_before": datetime(2020, 1, 1, tzinfo=UTC), "not_after": datetime(2021, 1, 1, tzinfo=UTC)}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("certificate", "alert"),
    [
        (None, "CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE"),
        (CA.client("alice", **EXPIRED), "CERTIFICATE_EXPIRED"),
        (Authority("Other").client("alice"), "UNKNOWN_CA"),
    ],
)
def test_the_client_is_told_why(
    tmp_path: Path, version: ssl.TLSVersion, certificate: tuple[bytes, bytes] | None, alert: str
) -> None:
    """A handshake that fails ends with TLS's alert, though in TLS 1.3 the client has sent its first request by then."""

    def come(port: int) -> str:
        context = client_context(tmp_path, certificate)
        context.minimum_version = context.maximum_version = version
        try:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as secured,
            ):
                secured.sendall(REQUEST)
                return f"read {secured.recv(100)!r}"
        except ssl.SSLError as error:
            return error.reason or ""

    async def check() -> None:
        own = {"protocol": "SSL", "client_auth": "required", "principal_source": "mtls"}
        async with door(files=MUTUAL, **own) as made:
            for _ in range(5):
                told = await asyncio.to_thread(come, made.port)
                assert any(told.endswith(one) for one in alert.split("|")), told
            await until(lambda: made.connections.arriving == 0)
            assert made.closed("handshake") == 5

    run(check)


def test_certificates_that_are_only_asked_for(tmp_path: Path) -> None:
    """Without one a client is nobody in particular."""

    async def check() -> None:
        own = {"protocol": "SSL", "client_auth": "requested", "principal_source": "mtls"}
        async with door(files=MUTUAL, **own) as made:
            assert await (await made.connect(client_context(tmp_path))).ask() == f"{ANONYMOUS} 127.0.0.1"
            talk = await made.connect(client_context(tmp_path, CA.client("bob")))
            assert await talk.ask() == "User:CN=bob 127.0.0.1"

    run(check)


def test_another_certificate(tmp_path: Path) -> None:
    """Who comes from now on gets the new one, and is held to the new CA; who is in stays in."""

    async def check() -> None:
        other = Authority("Other")
        own = {"protocol": "SSL", "client_auth": "required", "principal_source": "mtls"}
        async with door(files=MUTUAL, **own) as made:
            early = await made.connect(client_context(tmp_path, CA.client("early")))
            assert await early.ask() == "User:CN=early 127.0.0.1"
            first = early.writer.get_extra_info("ssl_object").getpeercert(True)
            await made.entrance.use(TlsFiles(*CA.server(), None, other.pem))
            late = await made.connect(client_context(tmp_path, other.client("late")))
            assert await late.ask() == "User:CN=late 127.0.0.1"
            assert late.writer.get_extra_info("ssl_object").getpeercert(True) != first
            assert await early.ask() == "User:CN=early 127.0.0.1"
            with pytest.raises((ssl.SSLError, AssertionError)):
                talk = await made.connect(client_context(tmp_path, CA.client("of old")))
                assert await talk.ask() is not None
            assert made.count(HANDSHAKES.at("success")) == 2

    run(check)


def test_plain_text_before_tls(tmp_path: Path) -> None:
    """What was sent in clear before the handshake is no part of what TLS protects (CVE-2023-40217)."""

    async def check() -> None:
        async with door(files=TLS, protocol="SSL") as made:
            client = socket.create_connection(("127.0.0.1", made.port))
            client.sendall(REQUEST)
            client.shutdown(socket.SHUT_WR)
            await until(lambda: made.closed("handshake") == 1)
            client.setblocking(False)
            data = await asyncio.get_running_loop().sock_recv(client, 4096)
            assert b"User:" not in data
            client.close()

    run(check)

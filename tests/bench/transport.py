"""What TLS and logins cost: throughput beside plain text, idle connections, logins and handshakes a core can bear.

Run: python -m tests.bench.transport [--seconds 5] [--write]; `make bench-security` writes its part of
docs/bench-security.md. Client and broker share the machine, and the same broker serves both kinds, in turns: look at
the ratios, and at the worker's own CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import secrets
import socket
import ssl
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kafscale.protocol.api import ApiKey
from kafscale.protocol.messages.api_versions import ApiVersionsRequest
from kafscale.protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from kafscale.protocol.messages.sasl_authenticate import SaslAuthenticateRequest
from kafscale.protocol.messages.sasl_handshake import SaslHandshakeRequest
from kafscale.security.credentials import format_credential, make_credential
from kafscale.security.scram import HASH_OF
from kafscale.security.scram_client import ScramClient
from loadtest import full_speed_producer
from loadtest.broker_process import BrokerProcess, free_port
from loadtest.measure import GB
from loadtest.target import Target, from_broker_json
from tests.bench.acls import exchange
from tests.bench.security_page import Rows, SecurityPage
from tests.e2e.secure_broker import AUDIENCE, ISSUER, token
from tests.unit.security import tokens
from tests.unit.security.certificates import Authority

ROUNDS = 6
IDLE_CONNECTIONS = 2000
WARM_UP = 200
LOGINS = 600
USER, PASSWORD = "alice", "wonderland"


class Server:
    """A broker of one worker with listeners `plain`, `tls`, `mutual` and `sasl`, and how clients speak to them."""

    def __init__(self, process: BrokerProcess, folder: Path) -> None:
        self.target: Target = from_broker_json(process.data_dir / "broker.json")
        listeners = {one["name"]: one for one in process.info()["listeners"]}
        self.ports = {name: int(one["ports"][0]) for name, one in listeners.items()}
        self.ca_file = str(folder / "ca.pem")
        self.context = ssl.create_default_context(cafile=self.ca_file)
        self.certified = ssl.create_default_context(cafile=self.ca_file)
        self.certified.load_cert_chain(folder / "client.pem")


@contextlib.contextmanager
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as name:
        folder, authority = Path(name), Authority()
        chain, key = authority.server()
        keys = [
            format_credential(USER, mechanism, make_credential(mechanism, PASSWORD, os.urandom(24), 4096))
            for mechanism in HASH_OF
        ]
        files = {
            "ca.pem": authority.pem,
            "client.pem": b"".join(authority.client(USER)),
            "server.pem": chain,
            "server.key": key,
            "keys.json": tokens.key_set(),
        }
        for file, content in (files | {"users": "\n".join(keys).encode()}).items():
            (folder / file).write_bytes(content)
        ports = {kind: free_port() for kind in ("plain", "tls", "mutual", "sasl")}
        mechanisms = ",".join((*HASH_OF, "PLAIN", "OAUTHBEARER"))
        settings = {
            "LISTENERS": f"plain://127.0.0.1:{ports['plain']}?protocol=PLAINTEXT,"
            f"tls://127.0.0.1:{ports['tls']}?protocol=SSL&advertise=localhost&client_auth=none,"
            f"mutual://127.0.0.1:{ports['mutual']}?protocol=SSL&advertise=localhost,"
            f"sasl://127.0.0.1:{ports['sasl']}?protocol=SASL_PLAINTEXT&mechanisms={mechanisms}",
            "BROKER_TLS_CERT_FILE": str(folder / "server.pem"),
            "BROKER_TLS_KEY_FILE": str(folder / "server.key"),
            "BROKER_TLS_CLIENT_CA_FILE": str(folder / "ca.pem"),
            "SASL_CREDENTIALS_FILE": str(folder / "users"),
            "SASL_OAUTHBEARER_JWKS_FILE": str(folder / "keys.json"),
            "SASL_OAUTHBEARER_ISSUER": ISSUER,
            "SASL_OAUTHBEARER_AUDIENCE": AUDIENCE,
        }
        process = BrokerProcess(environment={f"KAFSCALE_{setting}": value for setting, value in settings.items()})
        process.port = ports["plain"]
        with process:
            yield Server(process, folder)


# Throughput


def throughput(served: Server, seconds: float) -> Rows:
    """A producer at full speed with librdkafka's default batches, by each way in turns."""
    topic = served.target.create_topic(8)
    ways = {
        "plain": (f"127.0.0.1:{served.ports['plain']}", {}),
        "TLS": (
            f"localhost:{served.ports['tls']}",
            {"security.protocol": "SSL", "ssl.ca.location": served.ca_file},
        ),
    }
    rows = []
    for record_bytes in (1_000, 100):
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
        for number in range(-1, ROUNDS):
            for name in ways if number % 2 else reversed(ways):
                bootstrap, settings = ways[name]
                before = served.target.worker_cpu_seconds()
                sent = full_speed_producer.run(bootstrap, topic, seconds, record_bytes, settings)
                worker = served.target.worker_cpu_seconds() - before
                if number >= 0:
                    amount = sent["bytes"] / GB
                    found[name].append((amount / sent["seconds"], worker / amount, sent["cpu_seconds"] / amount))
        median = {
            name: [statistics.median(column) for column in zip(*each, strict=True)] for name, each in found.items()
        }
        plain, tls = median["plain"], median["TLS"]
        rows.append(
            {
                "record bytes": record_bytes,
                "plain MB/s": plain[0] * 1000,
                "TLS MB/s": tls[0] * 1000,
                "TLS / plain": tls[0] / plain[0],
                "worker CPU-s/GB, plain": plain[1],
                "worker CPU-s/GB, TLS": tls[1],
                "of these plain / TLS": plain[1] / tls[1],
                "client CPU-s/GB, plain": plain[2],
                "client CPU-s/GB, TLS": tls[2],
            }
        )
    return rows


# Idle connections


def idle(served: Server) -> Rows:
    """What the worker's memory grows by for each connection that has asked for versions and is silent."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    cases: list[tuple[str, str, ssl.SSLContext | None, int]] = [
        ("plain text", "plain", None, 0),
        ("TLS", "tls", served.context, 0),
        ("TLS with client certificates", "mutual", served.certified, 0),
        ("TLS, after a request of 300 KB", "tls", served.context, 300),
    ]
    return [_idle(served, *case) for case in cases]


def _idle(served: Server, what: str, listener: str, context: ssl.SSLContext | None, topics: int) -> dict[str, object]:
    def greeted() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", served.ports[listener]), 60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            connection = context.wrap_socket(connection, server_hostname="localhost")
        exchange(connection, ApiKey.API_VERSIONS, 3, ApiVersionsRequest())
        if topics:
            named = [MetadataRequestTopic(name="/" * 1000) for _ in range(topics)]
            request = MetadataRequest(topics=named, allow_auto_topic_creation=False)
            exchange(connection, ApiKey.METADATA, 9, request)
        return connection

    for _ in range(WARM_UP):
        greeted().close()
    with contextlib.ExitStack() as stack:
        before = served.target.worker_resident_bytes()
        for _ in range(IDLE_CONNECTIONS):
            stack.enter_context(greeted())
        grown = served.target.worker_resident_bytes() - before
    return {"connections": what, "number": IDLE_CONNECTIONS, "KB each": grown / IDLE_CONNECTIONS / 1000}


# Logins


def logins(served: Server) -> Rows:
    """Worker CPU for a connection that logs in and goes, less that of one that only comes and goes."""
    bearer = token(USER)

    def come(_: socket.socket) -> None:
        pass

    def handshake(connection: socket.socket, mechanism: str) -> None:
        exchange(connection, ApiKey.SASL_HANDSHAKE, 1, SaslHandshakeRequest(mechanism=mechanism))

    def say(connection: socket.socket, data: bytes) -> bytes:
        answer = exchange(connection, ApiKey.SASL_AUTHENTICATE, 2, SaslAuthenticateRequest(auth_bytes=data))
        assert answer.error_code == 0, answer
        return bytes(answer.auth_bytes)

    def scram(mechanism: str) -> Callable[[socket.socket], None]:
        def log_in(connection: socket.socket) -> None:
            client = ScramClient(mechanism, USER, PASSWORD, secrets.token_urlsafe(24).encode())
            handshake(connection, mechanism)
            client.verify(say(connection, client.final(say(connection, client.first()))))

        return log_in

    def plain(connection: socket.socket) -> None:
        handshake(connection, "PLAIN")
        say(connection, f"\0{USER}\0{PASSWORD}".encode())

    def oauthbearer(connection: socket.socket) -> None:
        handshake(connection, "OAUTHBEARER")
        say(connection, f"n,,\x01auth=Bearer {bearer}\x01\x01".encode())

    def tls(connection: socket.socket) -> None:
        with served.context.wrap_socket(connection, server_hostname="localhost") as secured:
            exchange(secured, ApiKey.API_VERSIONS, 3, ApiVersionsRequest())

    bare = _cpu_each(served, "plain", come)
    rows = []
    for what, listener, log_in in (
        *((name, "sasl", scram(name)) for name in HASH_OF),
        ("PLAIN, the password seen before", "sasl", plain),
        ("OAUTHBEARER, RS256", "sasl", oauthbearer),
        ("a TLS 1.3 handshake, ECDSA P-256, and a request", "tls", tls),
    ):
        each = _cpu_each(served, listener, log_in) - bare
        rows.append({"login": what, "ms of worker CPU": each * 1e3, "a second for each core": 1 / each})
    return rows


def _cpu_each(served: Server, listener: str, do: Callable[[socket.socket], None]) -> float:
    """Seconds, the median of five lots."""
    found = []
    for _ in range(6):
        before = served.target.worker_cpu_seconds()
        for _ in range(LOGINS):
            with socket.create_connection(("127.0.0.1", served.ports[listener]), 60) as connection:
                do(connection)
        found.append((served.target.worker_cpu_seconds() - before) / LOGINS)
    return statistics.median(found[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="how long to measure each turn of throughput")
    parser.add_argument("--write", action="store_true", help="write the result to docs/bench-security.md")
    options = parser.parse_args()
    page = SecurityPage("TLS and logins", "bench-security")
    with server() as served:
        page.add(
            "Idle connections",
            "Resident memory of the worker. Aim: 50 KB for each TLS connection.",
            idle(served),
        )
        page.add(
            "Logins",
            "4096 iterations. The hash that SCRAM spares the server is the client's; PLAIN's is in a thread, once.",
            logins(served),
        )
        page.add(
            "Throughput",
            f"One worker, a local directory, acks=all, medians of {ROUNDS} turns. Aim: TLS at 0.4 of plain text or more"
            " for 1 KB records, 0.75 for 100 B.",
            throughput(served, options.seconds),
        )
    if options.write:
        page.write()


if __name__ == "__main__":
    main()

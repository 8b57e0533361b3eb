"""A broker with a listener of every kind, the certificates, users and tokens that go with it, and what each client
library must be told to come in."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kafscale.security.credentials import format_credential, make_credential
from loadtest.broker_process import free_port
from tests.e2e.broker import Broker
from tests.unit.security import tokens
from tests.unit.security.certificates import Authority

MakeBroker = Callable[..., Broker]

USER, PASSWORD = "alice", "wonder, land=1"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
AUDIENCE, ISSUER = "kafka", "https://issuer.example.com"
RULES = "RULE:^CN=([a-z]+),O=Acme$/$1/,RULE:^CN=([a-z]+)$/$1/"
# (listener, mechanism): every way in.
WAYS = [
    ("plain", ""),
    ("tls", ""),
    ("mutual", ""),
    *((name, how) for name in ("sasl", "sasl_tls") for how in MECHANISMS),
]


def token(user: str = USER, seconds: int = 300, **claims: Any) -> str:
    """A token as the identity provider would issue it now."""
    now = int(time.time())
    given = {"sub": user, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + seconds} | claims
    return tokens.token_of("RS256", **given)


class SecureBroker:
    """`folder` holds its files. `more` are settings as variables, without the prefix."""

    def __init__(self, make_broker: MakeBroker, folder: Path, workers: int = 2, **more: str) -> None:
        self.folder = folder
        self.authority = Authority()
        self.other_authority = Authority("Other CA")
        self.ports = {name: free_port() for name in ("tls", "mutual", "sasl", "sasl_tls")}
        self.write("ca.pem", self.authority.pem)
        self.write_certificate()
        self.write_client("client", self.authority.client(USER))
        self.write_users({USER: PASSWORD, "bob": "builder"})
        self.write("keys.json", tokens.key_set())
        self.broker = make_broker(start=False, workers=workers)
        self.ports["plain"] = self.broker.port
        settings = self.settings() | more
        if "SASL_OAUTHBEARER_JWKS_URL" in more:
            del settings["SASL_OAUTHBEARER_JWKS_FILE"]
        self.broker.environment = {f"KAFSCALE_{name}": text for name, text in settings.items()}
        self.broker.start()

    def settings(self) -> dict[str, str]:
        path = self.folder
        all_of_them = ",".join(MECHANISMS)
        listeners = [
            f"plain://127.0.0.1:{self.ports['plain']}?protocol=PLAINTEXT",
            f"tls://127.0.0.1:{self.ports['tls']}?protocol=SSL&advertise=localhost&client_auth=none",
            f"mutual://127.0.0.1:{self.ports['mutual']}?protocol=SSL&advertise=localhost",
            f"sasl://127.0.0.1:{self.ports['sasl']}?protocol=SASL_PLAINTEXT&mechanisms={all_of_them}",
            f"sasl_tls://127.0.0.1:{self.ports['sasl_tls']}?protocol=SASL_SSL&advertise=localhost&client_auth=none"
            f"&mechanisms={all_of_them}",
        ]
        return {
            "LISTENERS": ",".join(listeners),
            "BROKER_TLS_CERT_FILE": str(path / "server.pem"),
            "BROKER_TLS_KEY_FILE": str(path / "server.key"),
            "BROKER_TLS_CLIENT_CA_FILE": str(path / "ca.pem"),
            "PRINCIPAL_MAPPING_RULES": RULES,
            "SASL_CREDENTIALS_FILE": str(path / "users"),
            "SASL_OAUTHBEARER_JWKS_FILE": str(path / "keys.json"),
            "SASL_OAUTHBEARER_ISSUER": ISSUER,
            "SASL_OAUTHBEARER_AUDIENCE": AUDIENCE,
            "SECURITY_CHECK_INTERVAL_MS": "100",
            "GROUP_INITIAL_REBALANCE_DELAY_MS": "100",
        }

    # Files

    def write(self, name: str, content: bytes) -> None:
        """Replace a file in one step."""
        temporary = self.folder / f".{name}"
        temporary.write_bytes(content)
        os.replace(temporary, self.folder / name)

    def write_certificate(self, authority: Authority | None = None) -> None:
        """A new certificate and key for the broker."""
        chain, key = (authority or self.authority).server()
        self.write("server.key", key)
        self.write("server.pem", chain)

    def write_client(self, name: str, certificate: tuple[bytes, bytes]) -> Path:
        self.write(f"{name}.pem", certificate[0])
        self.write(f"{name}.key", certificate[1])
        return self.folder / f"{name}.pem"

    def write_users(self, users: dict[str, str], iterations: int = 4096) -> None:
        lines = [
            format_credential(user, mechanism, make_credential(mechanism, password, os.urandom(24), iterations))
            for user, password in users.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        ]
        self.write("users", "\n".join(lines).encode())

    # What clients are told

    def bootstrap(self, listener: str) -> str:
        host = "localhost" if "tls" in listener or listener == "mutual" else "127.0.0.1"
        return f"{host}:{self.ports[listener]}"

    def protocol(self, listener: str) -> str:
        return {"plain": "PLAINTEXT", "sasl": "SASL_PLAINTEXT", "sasl_tls": "SASL_SSL"}.get(listener, "SSL")

    def client_context(self, listener: str, certificate: str = "client") -> ssl.SSLContext | None:
        """TLS as Python clients speak it."""
        if "SSL" not in self.protocol(listener):
            return None
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if listener == "mutual" and certificate:
            context.load_cert_chain(self.folder / f"{certificate}.pem", self.folder / f"{certificate}.key")
        return context

    def confluent(
        self, listener: str, mechanism: str = "", user: str = USER, password: str = PASSWORD
    ) -> dict[str, Any]:
        """Settings of librdkafka."""
        settings: dict[str, Any] = {
            "bootstrap.servers": self.bootstrap(listener),
            "security.protocol": self.protocol(listener),
            "socket.timeout.ms": 10_000,
        }
        if "SSL" in self.protocol(listener):
            settings["ssl.ca.location"] = str(self.folder / "ca.pem")
        if listener == "mutual":
            settings["ssl.certificate.location"] = str(self.folder / "client.pem")
            settings["ssl.key.location"] = str(self.folder / "client.key")
        if mechanism:
            settings["sasl.mechanism"] = mechanism
            if mechanism == "OAUTHBEARER":
                settings["oauth_cb"] = lambda _: (token(user), time.time() + 300)
            else:
                settings |= {"sasl.username": user, "sasl.password": password}
        return settings

"""A client before a listener with SASL, without sockets: frames go in, answers come out, time moves by hand."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

from kafscale.config import Endpoint, Settings
from kafscale.config.listeners import MECHANISMS, ListenerSettings
from kafscale.control import Credential, Security
from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.messages.sasl_authenticate import SaslAuthenticateRequest
from kafscale.protocol.messages.sasl_handshake import SaslHandshakeRequest
from kafscale.protocol.schema import Message
from kafscale.security.credentials import make_credential
from tests.unit.workers.doubles import FakeTransport
from tests.unit.workers.node import Node
from workers.authentication import Authenticator, Login
from workers.connection import Connection
from workers.entrance import Entrance

USERS = {"alice": "secret", "bob": "builder"}
SALT = b"0123456789abcdefghij"


def credentials(**users: str) -> list[Credential]:
    return [
        Credential(user, mechanism, *make_credential(mechanism, password, SALT, 4096))
        for user, password in users.items()
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
    ]


class Gatehouse:
    """A node with one listener; `logins` is what an audit would be told."""

    def __init__(self, settings: Settings | None = None, **listener: Any) -> None:
        self.node = Node(settings)
        self.clock = self.node.clock
        self.logins: list[Login] = []
        self.keys_wanted = 0
        self.authenticator = Authenticator(
            self.node.settings, self.clock, self.node.bench.metrics, self._want_keys, self._logged_in
        )
        self._news = asyncio.Event()
        self.node.context.authenticator = self.authenticator
        self.security = Security(credentials=credentials(**USERS))
        self.authenticator.replace_security(self.security)
        self.authenticator.follow(self.node.cluster.state)
        values: dict[str, Any] = {
            "name": "clients",
            "protocol": "SASL_PLAINTEXT",
            "listen": Endpoint("127.0.0.1", 9092),
            "mechanisms": MECHANISMS,
            "principal_source": "sasl",
        }
        own = ListenerSettings(**values | listener)
        bench = self.node.bench
        self.entrance = Entrance(self.node.settings, own, bench.listener, bench.connections, self.authenticator)

    def _logged_in(self, login: Login) -> None:
        self.logins.append(login)
        self._news.set()

    async def logged_in(self, count: int) -> None:
        """Wait for so many logins, granted or refused."""
        while len(self.logins) < count:
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 10)

    def _want_keys(self) -> None:
        self.keys_wanted += 1

    def connect(self, host: str = "10.1.2.3") -> Client:
        return Client(self, host)


class Client:
    """One connection. Answers are looked for when asked for."""

    def __init__(self, house: Gatehouse, host: str = "10.1.2.3") -> None:
        self._house = house
        self.connection: Connection = house.entrance.connection()
        self.transport = FakeTransport(self.connection, host)
        self._read_to = 0
        self._number = 0

    @property
    def is_closed(self) -> bool:
        return self.transport.is_closing

    def send(self, key: int, version: int, message: Message, client_id: str | None = "c") -> None:
        self._number += 1
        parts = encode_request(APIS[key], version, self._number, client_id, message)
        self.transport.send(b"".join(parts))
        self._house.node.bench.settle()

    def send_raw(self, data: bytes) -> None:
        """A frame of any bytes."""
        self.transport.send(struct.pack(">i", len(data)) + data)
        self._house.node.bench.settle()

    def frame(self) -> bytes | None:
        """The next answer without its size; None if there is none yet."""
        self._house.node.bench.settle()
        written = self.transport.written[self._read_to :]
        if len(written) < 4:
            return None
        end = 4 + int.from_bytes(written[:4], "big")
        assert len(written) >= end, "half an answer"
        self._read_to += end
        return written[4:end]

    def answer(self, key: int, version: int) -> Any:
        raw = self.frame()
        return None if raw is None else decode_response(APIS[key], version, raw, 0, len(raw))[1]

    def wait(self, seconds: float) -> None:
        self._house.clock.advance(seconds)
        self._house.node.bench.settle()

    # SASL

    def shake_hands(self, mechanism: str, version: int = 1) -> Any:
        self.send(ApiKey.SASL_HANDSHAKE, version, SaslHandshakeRequest(mechanism=mechanism))
        return self.answer(ApiKey.SASL_HANDSHAKE, version)

    def authenticate(self, token: bytes, version: int = 2) -> Any:
        """The answer, if it comes at once."""
        self.send(ApiKey.SASL_AUTHENTICATE, version, SaslAuthenticateRequest(auth_bytes=token))
        return self.answer(ApiKey.SASL_AUTHENTICATE, version)

    async def authenticate_slowly(self, token: bytes, version: int = 2) -> Any:
        """The answer to a token that a thread has to look at; a refusal comes once time has moved."""
        count = len(self._house.logins)
        self.send(ApiKey.SASL_AUTHENTICATE, version, SaslAuthenticateRequest(auth_bytes=token))
        await self._house.logged_in(count + 1)
        return self.answer(ApiKey.SASL_AUTHENTICATE, version)

    async def log_in(self, user: str = "alice", password: str = "secret") -> Any:
        """By PLAIN."""
        assert self.shake_hands("PLAIN").error_code == 0
        return await self.authenticate_slowly(f"\0{user}\0{password}".encode())

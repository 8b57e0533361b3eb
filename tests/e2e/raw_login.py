"""Logging in by hand, at one address, to see exactly what is answered and when; SCRAM by scramp."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import time
from typing import Any, NamedTuple

from scramp import ScramClient, ScramException

from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.messages.sasl_authenticate import SaslAuthenticateRequest
from kafscale.protocol.messages.sasl_handshake import SaslHandshakeRequest
from kafscale.protocol.schema import Message


class Outcome(NamedTuple):
    """What the last answer said (code -1: there was none, the connection was closed), and how long it took to come."""

    code: int
    text: str | None
    seconds: float


class RawClient:
    """A connection that sends one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=30)
        self._numbers = itertools.count(1)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def call(self, key: ApiKey, version: int, message: Message) -> Any:
        """The answer, or None if the connection was closed instead."""
        api = APIS[key]
        number = next(self._numbers)
        self.socket.sendall(b"".join(encode_request(api, version, number, "raw", message)))
        data = self.read(4)
        frame = self.read(struct.unpack(">i", data)[0]) if data else b""
        if not frame:
            return None
        answered, response = decode_response(api, version, frame, 0, len(frame))
        assert answered == number
        return response

    def read(self, size: int) -> bytes:
        """So many bytes, or none if the connection ends before."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while len(data) < size:
                more = self.socket.recv(size - len(data))
                if not more:
                    return b""
                data += more
        return data if len(data) == size else b""

    def authenticate(self, token: bytes) -> Any:
        return self.call(ApiKey.SASL_AUTHENTICATE, 2, SaslAuthenticateRequest(auth_bytes=token))

    def log_in(self, user: str, password: str, mechanism: str = "SCRAM-SHA-256") -> Outcome:
        shaken = self.call(ApiKey.SASL_HANDSHAKE, 1, SaslHandshakeRequest(mechanism=mechanism))
        assert shaken is not None and shaken.error_code == 0
        if mechanism == "PLAIN":
            at = time.monotonic()
            return _outcome(self.authenticate(f"\0{user}\0{password}".encode()), at)
        client = ScramClient([mechanism], user, password)
        at = time.monotonic()
        first = self.authenticate(client.get_client_first().encode())
        if first is None or first.error_code:
            return _outcome(first, at)
        with contextlib.suppress(ScramException):
            client.set_server_first(first.auth_bytes.decode())
        at = time.monotonic()
        last = self.authenticate(client.get_client_final().encode())
        if last is not None and not last.error_code:
            client.set_server_final(last.auth_bytes.decode())
        return _outcome(last, at)


def log_in(port: int, user: str, password: str, mechanism: str = "SCRAM-SHA-256") -> Outcome:
    """Log in at 127.0.0.1:`port`."""
    with RawClient("127.0.0.1", port) as client:
        return client.log_in(user, password, mechanism)


def _outcome(answer: Any, began_at: float) -> Outcome:
    seconds = time.monotonic() - began_at
    return Outcome(-1, None, seconds) if answer is None else Outcome(answer.error_code, answer.error_message, seconds)

"""SASL OAUTHBEARER (RFC 7628, KIP-255): a signed token in the client's first message says who it is.

Sans-I/O; the token itself is checked by `tokens`. A refusal takes two steps, as the RFC wants it: the server says
that the token is no good, the client acknowledges with one byte, and only then the exchange has failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from kafscale.security.exchange import Accepted, Challenge, Refused, Step
from kafscale.security.tokens import Bearer, TokenError

OAUTHBEARER: Final = "OAUTHBEARER"
MESSAGE_BYTES_MAX: Final = 128 * 1024

_VALUE: Final = rb"[\x21-\x7e \t\r\n]*"
_NAME: Final = rb"(?:[^\0\x01,=]|=2C|=3D)+"
_MESSAGE: Final = re.compile(rb"n,(?:a=(" + _NAME + rb"))?,\x01((?:[A-Za-z]+=" + _VALUE + rb"\x01)+)\x01", re.DOTALL)
_TOKEN: Final = re.compile(rb"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9_.-]+)[ \t]*")
_INVALID_TOKEN: Final = b'{"status":"invalid_token"}'


class OauthbearerExchange:
    """One client's login. `check` says whose a token is, or raises TokenError."""

    def __init__(self, check: Callable[[str], Bearer]) -> None:
        self._check = check
        self._refused: Refused | None = None

    def step(self, token: bytes) -> Step:
        if self._refused is not None:
            return self._refused
        if len(token) > MESSAGE_BYTES_MAX:
            return Refused("a message of OAUTHBEARER that is too long")
        match = _MESSAGE.fullmatch(token)
        if match is None:
            return Refused("a message that is not OAUTHBEARER's")
        authorization, pairs = match.groups()
        tokens = [value for key, value in _split(pairs) if key == b"auth"]
        bearer = _TOKEN.fullmatch(tokens[0]) if len(tokens) == 1 else None
        if bearer is None:
            return Refused("a message of OAUTHBEARER without a token, or with several")
        try:
            found = self._check(bearer.group(1).decode("ascii"))
        except TokenError as error:
            return self._refuse(Refused(f"token refused: {error}"))
        if authorization is not None and _unescaped(authorization) != found.name.encode():
            return self._refuse(Refused("wants to act as somebody else", found.name))
        return Accepted(b"", found.name, found.expires_at_ms)

    def settle(self, is_right: bool) -> Step:
        raise AssertionError("OAUTHBEARER leaves nothing to verify elsewhere")

    def _refuse(self, refused: Refused) -> Step:
        self._refused = refused
        return Challenge(_INVALID_TOKEN)


def _split(pairs: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    for pair in pairs.split(b"\x01")[:-1]:
        key, _, value = pair.partition(b"=")
        found.append((key, value))
    return found


def _unescaped(name: bytes) -> bytes:
    return name.replace(b"=2C", b",").replace(b"=3D", b"=")

"""SCRAM-SHA-256 and SCRAM-SHA-512 (RFC 5802, RFC 7677): the server's side, and what is derived from a password.

Sans-I/O. Only the form that Kafka clients use is spoken: no channel binding (`p=` and `y` are refused, so nobody can be
talked out of one), no mandatory extension, and none of Kafka's (`tokenauth`). The nonce and the header that the client
began with must come back unchanged (CVE-2024-56128). Whoever is unknown is taken through the same steps, with a decoy.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from kafscale.security.exchange import Accepted, Challenge, Refused, Step, Verifier

SCRAM_SHA_256: Final = "SCRAM-SHA-256"
SCRAM_SHA_512: Final = "SCRAM-SHA-512"
# The names that hashlib knows.
HASH_OF: Final[Mapping[str, str]] = {SCRAM_SHA_256: "sha256", SCRAM_SHA_512: "sha512"}

# Kafka's bounds (ScramMechanism.minIterations, maxIterations).
MIN_ITERATIONS: Final = 4096
MAX_ITERATIONS: Final = 16384
USER_BYTES_MAX: Final = 1024
MESSAGE_BYTES_MAX: Final = 16 * 1024
NONCE_BYTES: Final = 24

_PRINTABLE: Final = rb"[\x21-\x2b\x2d-\x7e]+"
_VALUE: Final = rb"[^\0,]+"
_NAME: Final = rb"(?:[^\0,=]|=2C|=3D)+"
_EXTENSIONS: Final = rb"((?:,[A-Za-z]=" + _VALUE + rb")*)"
_CLIENT_FIRST: Final = re.compile(
    rb"(n,(?:a=(" + _NAME + rb"))?,)(n=(" + _NAME + rb"),r=(" + _PRINTABLE + rb")((?:,[A-Za-z]+=" + _VALUE + rb")*))"
)
_CLIENT_FINAL: Final = re.compile(
    rb"(c=([A-Za-z0-9+/]+=*),r=(" + _PRINTABLE + rb")" + _EXTENSIONS + rb"),p=([A-Za-z0-9+/]+=*)"
)


class Keys(NamedTuple):
    """What a server keeps of a password."""

    salt: bytes
    stored_key: bytes
    server_key: bytes
    iterations: int


def salted_password(mechanism: str, password: bytes, salt: bytes, iterations: int) -> bytes:
    """PBKDF2 (RFC 5802's Hi). Takes about a millisecond for 4096 iterations; hashlib lets other threads run."""
    return hashlib.pbkdf2_hmac(HASH_OF[mechanism], password, salt, iterations)


def keys_of(mechanism: str, salted: bytes, salt: bytes, iterations: int) -> Keys:
    """What to keep of a salted password: the keys alone."""
    name = HASH_OF[mechanism]
    client_key = hmac.digest(salted, b"Client Key", name)
    return Keys(
        salt=salt,
        stored_key=hashlib.new(name, client_key).digest(),
        server_key=hmac.digest(salted, b"Server Key", name),
        iterations=iterations,
    )


def is_password(mechanism: str, password: bytes, verifier: Verifier) -> bool:
    """Whether the password is the verifier's, in a time that says nothing but the number of iterations."""
    salted = salted_password(mechanism, password, verifier.salt, verifier.iterations)
    found = keys_of(mechanism, salted, verifier.salt, verifier.iterations)
    return hmac.compare_digest(found.stored_key, verifier.stored_key)


class ScramExchange:
    """One client's login. `find` gives the user's verifier or None, `decoy` one that looks like it for anybody;
    `nonce` is the server's part of the nonce, fresh for every exchange, printable and without a comma."""

    def __init__(
        self,
        mechanism: str,
        find: Callable[[str], Verifier | None],
        decoy: Callable[[str], Verifier],
        nonce: bytes,
    ) -> None:
        self._hash = HASH_OF[mechanism]
        self._find = find
        self._decoy = decoy
        self._server_nonce = nonce
        self._user = ""
        self._is_known = False
        self._verifier: Verifier | None = None
        self._header = b""
        self._nonce = b""
        self._client_first = b""
        self._server_first = b""

    def step(self, token: bytes) -> Step:
        if len(token) > MESSAGE_BYTES_MAX:
            return Refused("a message of SCRAM that is too long", self._user)
        if self._verifier is None:
            return self._first(token)
        return self._final(token, self._verifier)

    def settle(self, is_right: bool) -> Step:
        raise AssertionError("SCRAM leaves nothing to verify elsewhere")

    def _first(self, token: bytes) -> Step:
        match = _CLIENT_FIRST.fullmatch(token)
        if match is None:
            return Refused("a first message that is not SCRAM's, or asks for channel binding or more")
        self._header, authorization, self._client_first, name, client_nonce, extensions = match.groups()
        try:
            user = _unescaped(name)
            authorized = None if authorization is None else _unescaped(authorization)
        except UnicodeDecodeError:
            return Refused("a user name that is not UTF-8")
        if len(name) > USER_BYTES_MAX:
            return Refused("a user name that is too long")
        self._user = user
        if authorized is not None and authorized != user:
            return Refused("wants to act as somebody else", user)
        if b",tokenauth=" in extensions:
            return Refused("wants to log in by delegation token, which is not served", user)
        # Made for everybody, so that nobody can tell by the time it takes.
        decoy = self._decoy(user)
        found = self._find(user)
        self._is_known = found is not None and MIN_ITERATIONS <= found.iterations <= MAX_ITERATIONS
        self._verifier = verifier = found if found is not None and self._is_known else decoy
        self._nonce = client_nonce + self._server_nonce
        salt = base64.b64encode(verifier.salt)
        self._server_first = b"r=%b,s=%b,i=%d" % (self._nonce, salt, verifier.iterations)
        return Challenge(self._server_first)

    def _final(self, token: bytes, verifier: Verifier) -> Step:
        match = _CLIENT_FINAL.fullmatch(token)
        if match is None:
            return Refused("a final message that is not SCRAM's", self._user)
        without_proof, binding, nonce, _, proof_text = match.groups()
        try:
            is_same_header = base64.b64decode(binding, validate=True) == self._header
            proof = base64.b64decode(proof_text, validate=True)
        except binascii.Error:
            return Refused("a final message that is not base64", self._user)
        if not is_same_header:
            return Refused("a channel binding that is not what the client began with", self._user)
        if not hmac.compare_digest(nonce, self._nonce):
            return Refused("a nonce that is not this exchange's", self._user)
        message = b",".join((self._client_first, self._server_first, without_proof))
        signature = hmac.digest(verifier.stored_key, message, self._hash)
        client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=False))
        stored_key = hashlib.new(self._hash, client_key).digest()
        is_right = hmac.compare_digest(stored_key, verifier.stored_key) and len(proof) == len(signature)
        if not (is_right and self._is_known):
            return Refused("wrong password" if self._is_known else "unknown user", self._user)
        server_signature = hmac.digest(verifier.server_key, message, self._hash)
        return Accepted(b"v=" + base64.b64encode(server_signature), self._user)


def _unescaped(name: bytes) -> str:
    return name.replace(b"=2C", b",").replace(b"=3D", b"=").decode()

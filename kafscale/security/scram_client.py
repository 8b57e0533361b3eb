"""The client's side of SCRAM (RFC 5802), for our own tools: what to say, and whether the server knows the password.

Sans-I/O: `first`, then `final` with the server's answer, then `verify` with its last one. A server that asks for fewer
or more iterations than Kafka does, or changes the nonce, is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import Final

from kafscale.errors import ProtocolError
from kafscale.security.scram import HASH_OF, MAX_ITERATIONS, MIN_ITERATIONS, salted_password

_HEADER: Final = b"n,,"
_SERVER_FIRST: Final = re.compile(rb"(r=([\x21-\x2b\x2d-\x7e]+),s=([A-Za-z0-9+/]+=*),i=(\d{1,9}))(?:,.*)?")


class ScramClient:
    """One login. `nonce` is fresh, printable and without a comma."""

    def __init__(self, mechanism: str, user: str, password: str, nonce: bytes) -> None:
        self._mechanism = mechanism
        self._hash = HASH_OF[mechanism]
        self._password = password.encode()
        self._nonce = nonce
        name = user.encode().replace(b"=", b"=3D").replace(b",", b"=2C")
        self._bare = b"n=" + name + b",r=" + nonce
        self._server_signature = b""

    def first(self) -> bytes:
        return _HEADER + self._bare

    def final(self, answer: bytes) -> bytes:
        """Raises ProtocolError where the server's answer is none that may be gone on from."""
        match = _SERVER_FIRST.fullmatch(answer)
        if match is None or not match[2].startswith(self._nonce) or len(match[2]) == len(self._nonce):
            raise ProtocolError("the server's first SCRAM message is not an answer to ours")
        iterations = int(match[4])
        if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
            raise ProtocolError(f"the server asks for {iterations} SCRAM iterations")
        salt = base64.b64decode(match[3])
        salted = salted_password(self._mechanism, self._password, salt, iterations)
        client_key = hmac.digest(salted, b"Client Key", self._hash)
        without_proof = b"c=" + base64.b64encode(_HEADER) + b",r=" + match[2]
        message = b",".join((self._bare, answer, without_proof))
        signature = hmac.digest(hashlib.new(self._hash, client_key).digest(), message, self._hash)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = hmac.digest(hmac.digest(salted, b"Server Key", self._hash), message, self._hash)
        return without_proof + b",p=" + base64.b64encode(proof)

    def verify(self, answer: bytes) -> None:
        """Raises ProtocolError where the server has not shown that it knows the password."""
        try:
            found = base64.b64decode(answer.removeprefix(b"v="), validate=True)
        except binascii.Error:
            found = b""
        if not answer.startswith(b"v=") or not hmac.compare_digest(found, self._server_signature):
            raise ProtocolError("the server does not know the password: it is not who it says it is")

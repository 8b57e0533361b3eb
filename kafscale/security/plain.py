"""SASL PLAIN (RFC 4616): user and password in clear, checked against what SCRAM keeps of them.

Sans-I/O. The check is a PBKDF2 of milliseconds, left to a thread (`Verification`); `KnownPasswords` spares it
to a client that comes again with what was right a moment ago. Whoever is unknown is checked against a decoy.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from kafscale.security.exchange import Accepted, Challenge, Refused, Step, Verification, Verifier
from kafscale.security.scram import MAX_ITERATIONS, MIN_ITERATIONS, USER_BYTES_MAX, is_password

PLAIN: Final = "PLAIN"
PASSWORD_BYTES_MAX: Final = 4096
KNOWN_MAX: Final = 4096

# (mechanism whose hash it is for, what is kept)
Found = tuple[str, Verifier]


class KnownPasswords:
    """Which passwords were right, as keyed digests: nothing here says a password, and the key dies with the process.

    A digest covers the verifier too, so that a password that was changed is no longer known. Bounded: the one that was
    not used for longest is forgotten.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def digest(self, user: str, password: bytes, verifier: Verifier) -> bytes:
        parts = (user.encode(), password, verifier.salt, verifier.stored_key)
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._key, message, "sha256")

    def knows(self, digest: bytes) -> bool:
        if digest not in self._digests:
            return False
        self._digests.move_to_end(digest)
        return True

    def remember(self, digest: bytes) -> None:
        self._digests[digest] = None
        while len(self._digests) > KNOWN_MAX:
            self._digests.popitem(last=False)


class PlainExchange:
    """One client's login. `find` gives the user's verifier or None, `decoy` one for anybody."""

    def __init__(
        self, find: Callable[[str], Found | None], decoy: Callable[[str], Found], known: KnownPasswords
    ) -> None:
        self._find = find
        self._decoy = decoy
        self._known = known
        self._user = ""
        self._is_known = False
        self._digest = b""

    def step(self, token: bytes) -> Step:
        if not token:
            # RFC 4422: a client without initial response is asked for it.
            return Challenge(b"")
        parts = token.split(b"\0")
        if len(parts) != 3:
            return Refused("a PLAIN message that has not three parts")
        authorization, name, password = parts
        try:
            user, authorized = name.decode(), authorization.decode()
        except UnicodeDecodeError:
            return Refused("a user name that is not UTF-8")
        if len(name) > USER_BYTES_MAX or len(password) > PASSWORD_BYTES_MAX:
            return Refused("a user name or password that is too long")
        self._user = user
        if not user or not password:
            return Refused("an empty user name or password", user)
        if authorized and authorized != user:
            return Refused("wants to act as somebody else", user)
        decoy = self._decoy(user)
        found = self._find(user)
        self._is_known = found is not None and MIN_ITERATIONS <= found[1].iterations <= MAX_ITERATIONS
        mechanism, verifier = found if found is not None and self._is_known else decoy
        self._digest = self._known.digest(user, password, verifier)
        if self._is_known and self._known.knows(self._digest):
            return Accepted(b"", user)
        return Verification(lambda: is_password(mechanism, password, verifier))

    def settle(self, is_right: bool) -> Step:
        if not (is_right and self._is_known):
            return Refused("wrong password" if self._is_known else "unknown user", self._user)
        self._known.remember(self._digest)
        return Accepted(b"", self._user)

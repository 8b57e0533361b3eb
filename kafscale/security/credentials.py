"""Whose password is what: credentials of the catalogue and of the bootstrap file, looked up by user and mechanism.

A credential is what SCRAM keeps of a password (`scram.Keys`), never the password. The catalogue's word wins over the
file's, be it another credential or that there is none any more; so the file gives a cluster its first users, and from
then on they are changed as all others are. Pure: files are read, and the catalogue is known, elsewhere.

The file is text: a line for each credential, in the notation of Kafka's tools, empty lines and lines with # left out:

    alice SCRAM-SHA-512=[salt=…,stored_key=…,server_key=…,iterations=8192]
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from kafscale.security.exchange import Verifier
from kafscale.security.plain import Found
from kafscale.security.scram import (
    HASH_OF,
    MAX_ITERATIONS,
    MIN_ITERATIONS,
    SCRAM_SHA_256,
    USER_BYTES_MAX,
    Keys,
    keys_of,
    salted_password,
)

FILE_BYTES_MAX: Final = 4 << 20
SALT_BYTES_MAX: Final = 1024
DEFAULT_ITERATIONS: Final = 8192
# Different kinds of credentials that decoys are modelled on.
SHAPES_MAX: Final = 16

_LINE: Final = re.compile(
    r"(\S+)\s+(SCRAM-SHA-\d+)=\[salt=([^,\]]+),stored_key=([^,\]]+),server_key=([^,\]]+),iterations=(\d{1,9})\]"
)
_DIGEST_BYTES: Final[Mapping[str, int]] = {"sha256": 32, "sha512": 64}
# Java's AdminClient makes its random salts of these.
_BASE_36: Final = b"0123456789abcdefghijklmnopqrstuvwxyz"

# user → mechanism → credential. In the catalogue None says: deleted, whatever the file says.
ByUser = Mapping[str, Mapping[str, Keys]]
CatalogueByUser = Mapping[str, Mapping[str, Verifier | None]]


class _Shape(NamedTuple):
    """What a client sees of a credential: a decoy must not stand out."""

    iterations: int
    salt_bytes: int
    is_base_36: bool


class CredentialBook:
    """Credentials as they are at one moment; made anew when they change. `decoy_key` is secret, and the same on all
    nodes of a cluster: someone unknown must see the same salt everywhere and always, as a user does."""

    def __init__(self, catalogue: CatalogueByUser, bootstrap: ByUser, decoy_key: bytes) -> None:
        self._catalogue = catalogue
        self._bootstrap = bootstrap
        self._decoy_key = decoy_key
        self._shapes = {mechanism: self._shapes_of(mechanism) for mechanism in HASH_OF}

    def find(self, user: str, mechanism: str) -> Verifier | None:
        said = self._catalogue.get(user, {})
        if mechanism in said:
            return said[mechanism]
        return self._bootstrap.get(user, {}).get(mechanism)

    def find_any(self, user: str) -> Found | None:
        """For PLAIN, which serves with any."""
        for mechanism in HASH_OF:
            verifier = self.find(user, mechanism)
            if verifier is not None:
                return mechanism, verifier
        return None

    def decoy(self, user: str, mechanism: str) -> Verifier:
        """A credential that nobody has, always the same for a user, and of the kind that real ones are."""
        seed = hmac.digest(self._decoy_key, f"{mechanism}\0{user}".encode("utf-8", "surrogatepass"), "sha512")
        # Whichever is nearest stays so when other kinds come and go, for most users.
        shape = max(self._shapes[mechanism], key=lambda kind: hmac.digest(seed, repr(kind).encode(), "sha256"))
        blocks = -(-shape.salt_bytes // len(seed))
        stream = b"".join(hmac.digest(seed, b"salt%d" % number, "sha512") for number in range(blocks))
        salt = stream[: shape.salt_bytes]
        if shape.is_base_36:
            salt = bytes(_BASE_36[byte % len(_BASE_36)] for byte in salt)
        key = hmac.digest(seed, b"key", "sha512")[: _DIGEST_BYTES[HASH_OF[mechanism]]]
        return Keys(salt, key, key, shape.iterations)

    def decoy_for_any(self, user: str) -> Found:
        return SCRAM_SHA_256, self.decoy(user, SCRAM_SHA_256)

    def users(self) -> list[str]:
        """Who has a credential, in order."""
        names = self._catalogue.keys() | self._bootstrap.keys()
        return sorted(name for name in names if self.mechanisms(name))

    def mechanisms(self, user: str) -> dict[str, int]:
        """The user's mechanisms, and the iterations of each."""
        found = ((mechanism, self.find(user, mechanism)) for mechanism in HASH_OF)
        return {mechanism: verifier.iterations for mechanism, verifier in found if verifier is not None}

    def is_of_file(self, user: str, mechanism: str) -> bool:
        """Whether the bootstrap file has such a credential, whatever the catalogue says."""
        return mechanism in self._bootstrap.get(user, {})

    def _shapes_of(self, mechanism: str) -> list[_Shape]:
        shapes: set[_Shape] = set()
        for name in self._catalogue.keys() | self._bootstrap.keys():
            verifier = self.find(name, mechanism)
            if verifier is not None:
                salt = verifier.salt
                shapes.add(_Shape(verifier.iterations, len(salt), not salt.strip(_BASE_36)))
        return sorted(shapes)[:SHAPES_MAX] or [_Shape(DEFAULT_ITERATIONS, 32, is_base_36=False)]


def parse_credentials(text: str) -> dict[str, dict[str, Keys]]:
    """Read a bootstrap file. Raises ValueError that names the line, and nothing that stands in it."""
    found: dict[str, dict[str, Keys]] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(
                f"line {number} is no credential; write USER SCRAM-SHA-256=[salt=…,stored_key=…,server_key=…,"
                "iterations=…], as `kafscale credential` prints it"
            )
        user, mechanism, *values, iterations = match.groups()
        problem = _problem(user, mechanism, int(iterations))
        if problem is None and mechanism in found.get(user, {}):
            problem = "its user has another credential of this mechanism above"
        try:
            salt, stored_key, server_key = (base64.b64decode(value, validate=True) for value in values)
        except binascii.Error:
            problem = "salt, stored_key and server_key are base64"
        else:
            size = _DIGEST_BYTES.get(HASH_OF.get(mechanism, ""), 0)
            if problem is None and not (len(stored_key) == len(server_key) == size and len(salt) <= SALT_BYTES_MAX):
                problem = "salt, stored_key or server_key has the wrong length"
        if problem is not None:
            raise ValueError(f"line {number}: {problem}")
        found.setdefault(user, {})[mechanism] = Keys(salt, stored_key, server_key, int(iterations))
    return found


def _problem(user: str, mechanism: str, iterations: int) -> str | None:
    if mechanism not in HASH_OF:
        return f"{mechanism} is none of {', '.join(HASH_OF)}"
    if not MIN_ITERATIONS <= iterations <= MAX_ITERATIONS:
        return f"{iterations} iterations; from {MIN_ITERATIONS} to {MAX_ITERATIONS} are allowed"
    if len(user.encode()) > USER_BYTES_MAX:
        return f"a user name has at most {USER_BYTES_MAX} bytes"
    return None


def format_credential(user: str, mechanism: str, keys: Keys) -> str:
    """A line of the bootstrap file."""
    salt, stored_key, server_key = (base64.b64encode(part).decode() for part in keys[:3])
    return (
        f"{user} {mechanism}=[salt={salt},stored_key={stored_key},server_key={server_key},iterations={keys.iterations}]"
    )


def make_credential(mechanism: str, password: str, salt: bytes, iterations: int = DEFAULT_ITERATIONS) -> Keys:
    """The credential of a password. Takes milliseconds."""
    return keys_of(mechanism, salted_password(mechanism, password.encode(), salt, iterations), salt, iterations)

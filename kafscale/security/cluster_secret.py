"""The secret that the brokers of a cluster share, and what is made of it: keys, proofs, signed datagrams.

Pure. What must hold: nothing that is sent lets a reader compute the secret or a proof of it, and a proof made for one
use is good for no other, since each use has a label of its own. Several secrets may be given: the first is used, all
are accepted, so that a secret can be changed one broker at a time. A guessable secret is not made good by any of this:
who hears a proof can try words against it, hence the least length.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kafscale.errors import StartError

SECRET_CHARACTERS_MIN: Final = 16
SECRETS_MAX: Final = 4
KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 4
# Of an HMAC-SHA256, how much is sent: half is what RFC 2104 recommends as the least, and 128 bits.
MAC_BYTES: Final = 16

_SEPARATORS: Final = re.compile(r"[,\n]")


class ClusterKey:
    """A secret, as the key that everything else is derived from. `key_id` tells keys apart and gives nothing away."""

    __slots__ = ("_key", "key_id")

    def __init__(self, secret: str) -> None:
        self._key = hmac.digest(b"kafscale cluster secret", secret.encode(), "sha256")
        self.key_id = self.derive(b"key id")[:KEY_ID_BYTES]

    def derive(self, label: bytes, context: bytes = b"") -> bytes:
        """A key or proof of 32 bytes for this use (a label never holds a zero byte) in this context."""
        return hmac.digest(self._key, label + b"\0" + context, "sha256")


class ClusterSecret:
    """The secrets a broker was given, strongest claim first."""

    def __init__(self, secrets: Sequence[str]) -> None:
        if not 1 <= len(secrets) <= SECRETS_MAX:
            raise ValueError(f"from one to {SECRETS_MAX} secrets can be given, not {len(secrets)}")
        for secret in secrets:
            if len(secret) < SECRET_CHARACTERS_MIN:
                raise ValueError(
                    f"a secret of {len(secret)} characters can be guessed; use at least {SECRET_CHARACTERS_MIN} random "
                    "ones (openssl rand -base64 32)"
                )
        self.keys = tuple(ClusterKey(secret) for secret in secrets)

    @classmethod
    def parse(cls, text: str) -> ClusterSecret:
        """Secrets with commas between them, or on lines of their own. ValueError where one is too short, which does not
        repeat it."""
        return cls([part.strip() for part in _SEPARATORS.split(text) if part.strip()])

    def key(self, key_id: bytes) -> ClusterKey | None:
        """The key that a peer names, if it is one of ours."""
        return next((key for key in self.keys if key.key_id == key_id), None)

    # Datagrams

    def seal(self, label: bytes, payload: bytes) -> bytes:
        """The payload with a proof that it comes from who knows the secret. It can be read, and sent again, by anyone:
        for news that do no harm when they are old."""
        key = self.keys[0]
        return key.key_id + key.derive(label, payload)[:MAC_BYTES] + payload

    def open(self, label: bytes, datagram: bytes) -> bytes | None:
        """What was sealed under the same label; None for anything else."""
        key = self.key(datagram[:KEY_ID_BYTES])
        body = KEY_ID_BYTES + MAC_BYTES
        if key is None or len(datagram) < body:
            return None
        payload = datagram[body:]
        is_good = hmac.compare_digest(datagram[KEY_ID_BYTES:body], key.derive(label, payload)[:MAC_BYTES])
        return payload if is_good else None


def read_secret(text: str | None, file: str | None) -> str | None:
    """The secret as set, or as it stands in a file; None where neither is given. Raises StartError, one line without
    the secret."""
    source = "cluster_secret"
    if text is None and file is not None:
        source = f"cluster_secret_file {file}"
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StartError(f"{source}: {getattr(error, 'strerror', None) or 'is no text'}") from None
    if text is None:
        return None
    try:
        ClusterSecret.parse(text)
    except ValueError as error:
        raise StartError(f"{source}: {error}") from None
    return text

"""What travels on a link between two workers, as bytes: frames, and the proof on each that it is the other's next one.

A frame is a header (length of the body, kind, two numbers), a body, and on a link that others could write to a MAC: an
HMAC-SHA256 under the key of this connection and direction, over a count of the frames so far, the header and the body.
So a frame can be neither made, changed, left out, repeated nor moved by who doesn't know the key. What the numbers mean
is said at `Kind`. Sans-IO; it knows no Kafka.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import msgspec

from kafscale.protocol.schema import Buffer
from kafscale.security.cluster_secret import MAC_BYTES

HEADER: Final = struct.Struct(">IBII")
HEADER_BYTES: Final = HEADER.size
# Of an answer, so much goes into one frame; and so large is a frame that is handled where it was received.
CHUNK_BYTES: Final = 64 * 1024
SMALL_BODY_BYTES: Final = CHUNK_BYTES + 64

_COUNT: Final = struct.Struct(">Q")


class Kind(IntEnum):
    """Kinds of frames, with what their two numbers and their body are."""

    # From the one who connected, the sender of requests.
    OPEN = 1  # channel, 0; an Identity
    REQUEST = 2  # channel, stream; a RequestHead, then a Kafka request without its size
    HURRY = 3  # stream, 0; answer with what there is
    GRANT = 4  # stream, bytes of answer that may be sent more
    CLOSE = 5  # channel, 0; its client is gone
    # From the other, the owner.
    ANSWER = 16  # stream, flags; bytes of the answer
    FAILED = 17  # stream, 0; a word why
    FOUND = 18  # stream, bytes that a waiting fetch has found
    TAKEN = 19  # bytes of requests taken, 0
    DRAINING = 20  # 0, 0; send no more requests
    # From either.
    PING = 32
    PONG = 33


# Flags of ANSWER.
LAST: Final = 1
NOTHING: Final = 2  # the request gets no answer
RESULTS: Final = 4  # not bytes for a client but a fetch's results, to be joined with others'
ERRORS: Final = 8  # some of what a Produce sent was refused


class Identity(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """On whose behalf a channel's requests are made, as the worker knows that its client is connected to."""

    principal: str
    client_host: str
    listener: str


# Before a passed request: flags (RESULTS), and how much of the answer may be sent before it is granted more.
REQUEST_HEAD: Final = struct.Struct(">BI")


def is_bulk(request: Buffer, start: int, size: int) -> bool:
    """Whether a Kafka request waits until the owner has room: Produce, whose API key is 0, and whatever is large."""
    return size > CHUNK_BYTES or request[start] == 0 == request[start + 1]


_encoder = msgspec.msgpack.Encoder()
_identity_decoder = msgspec.msgpack.Decoder(Identity)


def encode_identity(identity: Identity) -> bytes:
    return _encoder.encode(identity)


def decode_identity(body: Buffer) -> Identity:
    """ValueError where the bytes are no identity."""
    try:
        return _identity_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ValueError("an identity can't be read") from None


class Sealer:
    """Makes the frames of one direction, in order. Without a key they carry no MAC."""

    def __init__(self, key: bytes | None) -> None:
        self._base = None if key is None else hmac.new(key, digestmod="sha256")
        self._count = 0

    def seal(self, kind: int, first: int, second: int, parts: Sequence[Buffer] = ()) -> list[Buffer]:
        """The buffers of one frame; `parts` are passed through uncopied and must stay as they are."""
        header = HEADER.pack(sum(map(len, parts)), kind, first, second)
        if self._base is None:
            return [header, *parts]
        mac = self._base.copy()
        mac.update(_COUNT.pack(self._count) + header)
        for part in parts:
            mac.update(part)
        self._count += 1
        return [header, *parts, mac.digest()[:MAC_BYTES]]


class Opener:
    """Checks the frames of one direction, in order."""

    def __init__(self, key: bytes | None) -> None:
        self._base = None if key is None else hmac.new(key, digestmod="sha256")
        self._count = 0
        self.mac_bytes = 0 if key is None else MAC_BYTES

    def is_genuine(self, header: Buffer, body_and_mac: memoryview) -> bool:
        """Whether the frame is the other's next one. To be asked once for every frame."""
        if self._base is None:
            return True
        mac = self._base.copy()
        mac.update(_COUNT.pack(self._count))
        mac.update(header)
        mac.update(body_and_mac[:-MAC_BYTES])
        self._count += 1
        return hmac.compare_digest(mac.digest()[:MAC_BYTES], body_and_mac[-MAC_BYTES:])

"""How two brokers' workers prove to each other that they know the cluster's secret, and what keys they then use.

Sans-IO: each side is an object that is given the other's messages and returns what to send. Four messages: the one who
connects says who it is and whom it wants (`Hello`); the other who it is (`Challenge`); then each proves that it knows
the secret, the one who connects first. A proof covers both first messages, each with 32 fresh random bytes, and is
labelled with its maker's role: it can't be replayed, reflected, or moved to a connection between other nodes. The keys
of a connection, one for each direction, follow from the same, so what was recorded on one is worth nothing on another.

It fails by raising PeerRefused, which says why in a word for a counter and in a sentence for a person.
"""

from __future__ import annotations

import hmac
from typing import Final, TypeVar

import msgspec

from kafscale.errors import KafscaleError
from kafscale.security.cluster_secret import ClusterKey, ClusterSecret

# No Kafka frame begins so: as a size it would be above a gigabyte. And no Kafka client sends it.
MAGIC: Final = b"KAFSPEER"
VERSION: Final = 1
NONCE_BYTES: Final = 32
# A message of the handshake is a length of two bytes and so many at most.
MESSAGE_BYTES_MAX: Final = 1024
REASONS: Final = ("magic", "version", "cluster", "node", "secret", "message")

_LENGTH_BYTES: Final = 2


class PeerRefused(KafscaleError):
    """The other side is not who it should be. `reason` is one of REASONS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """From who connects. `is_private`: the way between the two can't be read or written by others, so that frames need
    no proof of their own."""

    version: int
    cluster_id: str
    from_node: int
    to_node: int
    key_id: bytes
    nonce: bytes
    is_private: bool


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    """From who was connected to. `window_bytes`: how much may be sent that was not taken yet. `refusal`: one of
    REASONS instead of a welcome."""

    version: int
    node: int
    nonce: bytes
    window_bytes: int
    refusal: str = ""


class Session(msgspec.Struct, frozen=True):
    """What holds once both are proven. Keys are None on a private way."""

    peer_node: int
    window_bytes: int
    send_key: bytes | None
    receive_key: bytes | None


class HandshakeReader:
    """Cuts the messages of a handshake out of a stream: each a length and a body, the first behind the magic."""

    def __init__(self, expects_magic: bool) -> None:
        self._expects_magic = expects_magic
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data

    def next(self) -> bytes | None:
        """The next message; None until it is complete. Raises PeerRefused."""
        buffer = self._buffer
        if self._expects_magic:
            if buffer[: len(MAGIC)] != MAGIC[: len(buffer)]:
                raise PeerRefused("magic", "what connected speaks another protocol; this port is for brokers")
            if len(buffer) < len(MAGIC):
                return None
            del buffer[: len(MAGIC)]
            self._expects_magic = False
        if len(buffer) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(buffer[:_LENGTH_BYTES], "big")
        if length > MESSAGE_BYTES_MAX:
            raise PeerRefused("message", f"a message of {length} bytes in a handshake")
        if len(buffer) < _LENGTH_BYTES + length:
            return None
        message = bytes(buffer[_LENGTH_BYTES : _LENGTH_BYTES + length])
        del buffer[: _LENGTH_BYTES + length]
        return message

    def rest(self) -> bytes:
        """What came behind the last message."""
        return bytes(self._buffer)


class Initiator:
    """The side that connects: send `hello`, then what `prove` makes of the challenge; `finish` with their proof."""

    def __init__(
        self, secret: ClusterSecret, cluster_id: str, own_node: int, peer_node: int, nonce: bytes, *, is_private: bool
    ) -> None:
        self._key = secret.keys[0]
        self._is_private = is_private
        self._peer_node = peer_node
        self._cluster_id = cluster_id
        hello = Hello(VERSION, cluster_id, own_node, peer_node, self._key.key_id, nonce, is_private)
        self._hello = _encoder.encode(hello)
        self._transcript = b""
        self._proof = b""
        self._window_bytes = 0

    def hello(self) -> bytes:
        return MAGIC + _framed(self._hello)

    def prove(self, message: bytes) -> bytes:
        """Raises PeerRefused."""
        challenge = _decoded(_challenge_decoder, message)
        if challenge.refusal:
            raise PeerRefused(*_refusal_text(challenge.refusal, self._peer_node, self._cluster_id))
        if challenge.version != VERSION:
            raise PeerRefused("version", f"node {self._peer_node} speaks version {challenge.version} of the protocol")
        if challenge.node != self._peer_node:
            raise PeerRefused("node", f"node {challenge.node} answers where node {self._peer_node} should be")
        _check_nonce(challenge.nonce)
        self._window_bytes = challenge.window_bytes
        self._transcript = _transcript(self._hello, message)
        self._proof = self._key.derive(b"connector's proof", self._transcript)
        return _framed(self._proof)

    def finish(self, proof: bytes) -> Session:
        """Raises PeerRefused."""
        expected = self._key.derive(b"acceptor's proof", self._transcript + self._proof)
        if not hmac.compare_digest(proof, expected):
            raise PeerRefused("secret", f"node {self._peer_node} does not prove that it knows the cluster secret")
        return _session(
            self._key, self._transcript, self._peer_node, self._window_bytes, self._is_private, is_connector=True
        )


class PeerAcceptor:
    """The side that is connected to: `challenge` with the hello, and send that; `finish` with the proof, and send what
    it returns."""

    def __init__(
        self,
        secret: ClusterSecret,
        cluster_id: str,
        own_node: int,
        nonce: bytes,
        *,
        window_bytes: int,
        is_private: bool,
    ) -> None:
        self._secret = secret
        self._cluster_id = cluster_id
        self._own_node = own_node
        self._nonce = nonce
        self._window_bytes = window_bytes
        self._is_private = is_private
        self._key: ClusterKey = secret.keys[0]
        self._peer_node = -1
        self._transcript = b""

    def challenge(self, message: bytes) -> bytes:
        """Raises PeerRefused; `refusal` is what to send then."""
        hello = _decoded(_hello_decoder, message)
        if hello.version != VERSION:
            raise PeerRefused("version", f"node {hello.from_node} speaks version {hello.version} of the protocol")
        if hello.cluster_id != self._cluster_id:
            raise PeerRefused(
                "cluster",
                f"node {hello.from_node} belongs to cluster {hello.cluster_id!r}, this is {self._cluster_id!r}",
            )
        if hello.to_node != self._own_node:
            raise PeerRefused(
                "node", f"node {hello.from_node} looks for node {hello.to_node}, this is {self._own_node}"
            )
        if hello.is_private != self._is_private:
            raise PeerRefused("message", f"node {hello.from_node} takes this for another kind of connection")
        _check_nonce(hello.nonce)
        key = self._secret.key(hello.key_id)
        if key is None:
            raise PeerRefused("secret", f"node {hello.from_node} has another cluster secret")
        self._key = key
        self._peer_node = hello.from_node
        challenge = _encoder.encode(Challenge(VERSION, self._own_node, self._nonce, self._window_bytes))
        self._transcript = _transcript(message, challenge)
        return _framed(challenge)

    def refusal(self, reason: str) -> bytes:
        """What to tell who is refused: the word alone."""
        return _framed(_encoder.encode(Challenge(VERSION, self._own_node, b"", 0, reason)))

    def finish(self, proof: bytes) -> tuple[bytes, Session]:
        """Raises PeerRefused."""
        if not hmac.compare_digest(proof, self._key.derive(b"connector's proof", self._transcript)):
            raise PeerRefused("secret", f"who says to be node {self._peer_node} does not know the cluster secret")
        ours = self._key.derive(b"acceptor's proof", self._transcript + proof)
        return _framed(ours), _session(
            self._key, self._transcript, self._peer_node, self._window_bytes, self._is_private, is_connector=False
        )


def _session(
    key: ClusterKey, transcript: bytes, peer_node: int, window_bytes: int, is_private: bool, *, is_connector: bool
) -> Session:
    if is_private:
        return Session(peer_node, window_bytes, None, None)
    there = key.derive(b"key from connector to acceptor", transcript)
    back = key.derive(b"key from acceptor to connector", transcript)
    return Session(peer_node, window_bytes, there if is_connector else back, back if is_connector else there)


def _transcript(hello: bytes, challenge: bytes) -> bytes:
    """Both first messages, in a form that can be read in one way only."""
    return len(hello).to_bytes(2, "big") + hello + challenge


def _framed(body: bytes) -> bytes:
    assert len(body) <= MESSAGE_BYTES_MAX
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def _check_nonce(nonce: bytes) -> None:
    if len(nonce) != NONCE_BYTES:
        raise PeerRefused("message", f"{len(nonce)} random bytes where {NONCE_BYTES} belong")


def _refusal_text(reason: str, peer_node: int, cluster_id: str) -> tuple[str, str]:
    texts = {
        "secret": "has another cluster secret",  # nosec B105
        "cluster": f"belongs to another cluster than {cluster_id!r}",
        "node": "is another node",
        "version": "speaks another version of the protocol",
    }
    known = reason if reason in REASONS else "message"
    return known, f"node {peer_node} refuses the connection: it {texts.get(reason, 'could not read the first message')}"


_Message = TypeVar("_Message")
_encoder = msgspec.msgpack.Encoder()
_hello_decoder = msgspec.msgpack.Decoder(Hello)
_challenge_decoder = msgspec.msgpack.Decoder(Challenge)


def _decoded(decoder: msgspec.msgpack.Decoder[_Message], message: bytes) -> _Message:
    try:
        return decoder.decode(message)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise PeerRefused("message", "a message of the handshake can't be read") from None

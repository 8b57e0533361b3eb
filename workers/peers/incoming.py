"""The end of a link that serves requests: those of another worker's clients, as if they were connected here.

Each channel is a `Caller` that says who the client is, by the word of the other worker, which has proven that it knows
the cluster's secret. Its requests pass dispatch and all its guards. Nothing is kept in order here: the other end begins
a client's next request when it may, and Produce requests that it sends one after the other are begun in that order.

Memory: a request that may not begin (too much waits to be durable) is kept and not yet taken, and the other end sends
no more than its window of such; an answer is held as the views that the handler gave, and sent in pieces as granted.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from kafscale.errors import ProtocolError
from kafscale.protocol.fetch import FetchResult
from kafscale.protocol.schema import Buffer
from kafscale.security.peer_handshake import PeerAcceptor, PeerRefused
from workers.caller import Caller
from workers.listener import Listener
from workers.peers.frames import (
    CHUNK_BYTES,
    ERRORS,
    LAST,
    NOTHING,
    REQUEST_HEAD,
    RESULTS,
    Kind,
    decode_identity,
    is_bulk,
)
from workers.peers.link import Link
from workers.pending import Answer, Pending

if TYPE_CHECKING:
    from workers.peers.peers import Peers

# What is added to a link's writes in one turn, so that small answers don't wait long behind large ones.
SENT_PER_TURN_BYTES: Final = 256 * 1024
REASON_BYTES_MAX: Final = 256

_LENGTH: Final = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()


class PeerChannel(Caller):
    """A client of another worker."""

    __slots__ = ("_link", "pendings", "waiting")

    def __init__(self, link: IncomingLink, listener: Listener, client_host: str, principal: str) -> None:
        super().__init__(listener, client_host, principal, forwards=False)
        self._link = link
        self.pendings: dict[int, PeerPending] = {}
        # Produce requests that may not begin yet.
        self.waiting: deque[tuple[memoryview, PeerPending]] = deque()

    def release_held(self) -> None:
        """Produce requests may begin again."""
        self._link.begin_waiting(self)


class PeerPending(Pending):
    """Where the answer to another worker's request goes."""

    __slots__ = (
        "_errors",
        "_flags",
        "_is_answered",
        "_is_gone",
        "_left",
        "_link",
        "channel",
        "is_sending",
        "stream",
        "window",
    )

    def __init__(self, link: IncomingLink, channel: PeerChannel, stream: int, flags: int, window: int) -> None:
        super().__init__()
        self._link = link
        self.channel = channel
        self.stream = stream
        self.window = window
        self._flags = flags
        self.is_sending = False
        self._is_answered = False
        self._is_gone = False
        self._errors = 0
        self._left: deque[memoryview] = deque()

    @property
    def caller(self) -> PeerChannel:
        return self.channel

    @property
    def wants_results(self) -> bool:
        return self._flags & RESULTS != 0

    def answer(self, buffers: Answer | None) -> None:
        if self._is_gone:
            return
        if buffers is None:
            self._end()
            self._link.send(Kind.ANSWER, self.stream, LAST | NOTHING)
        else:
            self._give(buffers if isinstance(buffers, list) else [buffers], self._errors)

    def give_results(self, results: Sequence[FetchResult]) -> None:
        if self._is_gone:
            return
        # All of a result but what the other end knows and the records, which follow in the same order.
        told = _encoder.encode([(*result[2:9], result[10]) for result in results])
        records = [piece for result in results for piece in result[9]]
        self._give([_LENGTH.pack(len(told)), told, *records], RESULTS)

    def close_connection(self, reason: str) -> None:
        if self._is_gone:
            return
        self._end()
        self._link.send(Kind.FAILED, self.stream, 0, reason.encode()[:REASON_BYTES_MAX])

    def note_errors(self) -> None:
        self._errors = ERRORS

    def report(self, found: int) -> None:
        self._link.send(Kind.FOUND, self.stream, min(found, 0xFFFFFFFF))

    def _give(self, buffers: Sequence[Buffer], flags: int) -> None:
        assert not self._is_answered, "a request was answered twice"
        self._is_answered = True
        self._flags = flags
        size = sum(map(len, buffers))
        if size <= CHUNK_BYTES and size <= self.window and not self._link.is_congested:
            self._end()
            self._link.send(Kind.ANSWER, self.stream, LAST | flags, *buffers)
            return
        self._left.extend(memoryview(buffer) for buffer in buffers if len(buffer))
        self._link.send_later(self)

    def send_chunk(self) -> int:
        """Send the next piece of the answer, as far as granted; returns its size."""
        room = min(CHUNK_BYTES, self.window)
        parts: list[Buffer] = []
        size = 0
        left = self._left
        while left and size < room:
            piece = left.popleft()
            if len(piece) > room - size:
                left.appendleft(piece[room - size :])
                piece = piece[: room - size]
            parts.append(piece)
            size += len(piece)
        self.window -= size
        if left:
            self._link.send(Kind.ANSWER, self.stream, self._flags, *parts)
        else:
            self._end()
            self._link.send(Kind.ANSWER, self.stream, LAST | self._flags, *parts)
        return size

    @property
    def has_more(self) -> bool:
        """Whether some of the answer is still to be sent."""
        return bool(self._left)

    def call_off(self) -> None:
        """The client is gone."""
        self._is_gone = True
        self._left.clear()
        if not self._is_answered and self.on_close is not None:
            self.on_close()
        self.on_close = None

    def _end(self) -> None:
        """It is answered, wholly."""
        self._is_answered = True
        self._link.forget(self)


class IncomingLink(Link):
    """A link from another worker."""

    def __init__(self, shared: Peers, acceptor: PeerAcceptor) -> None:
        super().__init__(shared, expects_magic=True)
        self.body_bytes_max = shared.request_bytes_max
        self._acceptor = acceptor
        self._has_challenged = False
        self._channels: dict[int, PeerChannel] = {}
        self._streams: dict[int, PeerPending] = {}
        self._sending: deque[PeerPending] = deque()
        self._taken = 0
        self._is_draining = False

    # The handshake

    def shake_hands(self, message: bytes) -> None:
        if self._has_challenged:
            proof, session = self._acceptor.finish(message)
            self.write_raw(proof)
            self.established(session)
            self._shared.established(self)
            return
        try:
            self.write_raw(self._acceptor.challenge(message))
        except PeerRefused as refused:
            self.write_raw(self._acceptor.refusal(refused.reason))
            raise
        self._has_challenged = True

    # What the other worker says

    def frame_received(
        self, kind: int, first: int, second: int, buffer: bytearray | memoryview, start: int, end: int
    ) -> None:
        if kind == Kind.REQUEST:
            self._request(first, second, buffer, start, end)
        elif kind == Kind.GRANT:
            pending = self._streams.get(first)
            if pending is not None:
                pending.window += second
                if pending.has_more:
                    self.send_later(pending)
        elif kind == Kind.HURRY:
            pending = self._streams.get(first)
            if pending is not None and pending.on_hurry is not None:
                pending.on_hurry()
        elif kind == Kind.OPEN:
            identity = decode_identity(buffer[start:end])
            listener = self._shared.listener(identity.listener)
            if first in self._channels or listener is None:
                raise ValueError(f"channel {first} of listener {identity.listener!r}")
            self._channels[first] = PeerChannel(self, listener, identity.client_host, identity.principal)
        elif kind == Kind.CLOSE:
            channel = self._channels.pop(first, None)
            if channel is not None:
                self._call_off(channel)
        else:
            raise ValueError(f"a frame of kind {kind}")

    def _request(self, number: int, stream: int, buffer: bytearray | memoryview, start: int, end: int) -> None:
        channel = self._channels.get(number)
        if channel is None or stream in self._streams or end - start < REQUEST_HEAD.size + 2:
            raise ValueError(f"a request on channel {number}, stream {stream}")
        flags, window = REQUEST_HEAD.unpack_from(buffer, start)
        start += REQUEST_HEAD.size
        pending = PeerPending(self, channel, stream, flags, window)
        self._streams[stream] = channel.pendings[stream] = pending
        size = end - start
        if self._is_draining:
            if is_bulk(buffer, start, size):
                self._take_bulk(size)
            pending.close_connection("drain")
            return
        if not is_bulk(buffer, start, size):
            self._begin(buffer, start, end, pending)
        elif channel.waiting or self._shared.holds_produce(size):
            # A large frame's own memory stays; what lies in the receive buffer does not.
            kept = buffer[start:end] if isinstance(buffer, memoryview) else memoryview(bytes(buffer[start:end]))
            channel.waiting.append((kept, pending))
            self._shared.hold(channel)
        else:
            self._take_bulk(size)
            self._begin(buffer, start, end, pending)

    def begin_waiting(self, channel: PeerChannel) -> None:
        """Begin what waits and may begin by now."""
        while channel.waiting and not self.is_closed:
            frame, pending = channel.waiting[0]
            if self._shared.holds_produce(len(frame)):
                self._shared.hold(channel)
                return
            channel.waiting.popleft()
            self._take_bulk(len(frame))
            self._begin(frame, 0, len(frame), pending)

    def _begin(self, buffer: bytearray | memoryview, start: int, end: int, pending: PeerPending) -> None:
        self._shared.count_served()
        try:
            self._shared.dispatch(pending.channel, buffer, start, end, pending)
        except ProtocolError:
            # The client's fault: the other end closes its connection.
            pending.close_connection("protocol")

    def _take_bulk(self, size: int) -> None:
        self._taken += size
        self.mark_dirty()

    # What is said to it

    def send_later(self, pending: PeerPending) -> None:
        """It has an answer to be sent in pieces."""
        if pending.window > 0 and not pending.is_sending:
            pending.is_sending = True
            self._sending.append(pending)
            self.mark_dirty()

    def pump(self) -> None:
        if self._taken:
            self.send(Kind.TAKEN, self._taken, 0)
            self._taken = 0
        sending = self._sending
        room = SENT_PER_TURN_BYTES
        while sending and room > 0 and not self.is_congested:
            pending = sending.popleft()
            pending.is_sending = False
            room -= pending.send_chunk()
            if pending.has_more:
                self.send_later(pending)

    def flush(self) -> None:
        super().flush()
        if self._sending and not self.is_congested:
            self.mark_dirty()

    def forget(self, pending: PeerPending) -> None:
        self._streams.pop(pending.stream, None)
        pending.channel.pendings.pop(pending.stream, None)

    # The end

    @property
    def unanswered_count(self) -> int:
        return len(self._streams)

    def drain(self) -> None:
        """Have no more requests sent; those that are here are served."""
        self._is_draining = True
        self.send(Kind.DRAINING, 0, 0)

    def _call_off(self, channel: PeerChannel) -> None:
        self._shared.forget_held(channel)
        for frame, _ in channel.waiting:
            self._take_bulk(len(frame))
        channel.waiting.clear()
        for pending in channel.pendings.values():
            self._streams.pop(pending.stream, None)
            if pending.is_sending:
                self._sending.remove(pending)
            pending.call_off()
        channel.pendings.clear()

    def lost(self, reason: str) -> None:
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            self._call_off(channel)

"""The end of a link that sends requests: to one other worker, on behalf of clients that are connected here.

Each client has a channel, which says once who it is; each request on it is a stream with an answer of its own. Many
share one link. Bulk (Produce, and whatever is large) is sent only as far as the owner has taken what was sent before:
what waits here keeps its client from being read. Answers come in pieces, as far as the asker grants.

It fails as a whole: every asker is told `failed`, with whether its request had been sent, for then nobody knows whether
it was served. It knows no Kafka beyond what `frames.is_bulk` looks at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from kafscale.protocol.schema import Buffer
from kafscale.security.peer_handshake import Initiator
from workers.peers.frames import (
    LAST,
    NOTHING,
    REQUEST_HEAD,
    Identity,
    Kind,
    encode_identity,
    is_bulk,
)
from workers.peers.link import Link

if TYPE_CHECKING:
    from workers.peers.peers import Peers

# How much of an answer may come before more is granted.
ANSWER_WINDOW_BYTES: Final = 512 * 1024


class Asker(Protocol):
    """Whoever waits for a request's answer. One of `answered` with is_last, `unanswered` and `failed` comes, once, and
    nothing after it."""

    def held(self) -> None:
        """It can't be sent yet: let no more come of where it comes from."""
        ...

    def sent(self) -> None:
        """It was sent, after `held`."""
        ...

    def answered(self, data: bytes, is_last: bool, flags: int) -> None:
        """A piece of the answer. `flags`: RESULTS for one that was asked for so, ERRORS."""
        ...

    def unanswered(self) -> None:
        """It was served and gets no answer."""
        ...

    def found(self, byte_count: int) -> None:
        """A fetch goes on waiting and has found so many bytes."""
        ...

    def failed(self, reason: str, was_sent: bool) -> None:
        """There will be no answer, or no more of it: for the reason that the owner gives, or as the link was lost."""
        ...


class Channel:
    """A client as the other worker knows it."""

    __slots__ = ("_link", "identity", "is_open", "number", "requests")

    def __init__(self, link: OutgoingLink, number: int, identity: Identity) -> None:
        self._link = link
        self.number = number
        self.identity = identity
        self.is_open = False
        self.requests: dict[PassedRequest, None] = {}

    @property
    def is_usable(self) -> bool:
        return not self._link.is_closed and not self._link.is_draining

    def request(
        self, parts: Sequence[Buffer], asker: Asker, flags: int = 0, window: int = ANSWER_WINDOW_BYTES
    ) -> PassedRequest:
        """Pass on a Kafka request, given without its size; `parts` must stay as they are. `window`: how much of the
        answer may come before more is granted."""
        return self._link.request(self, parts, asker, flags, window)

    def close(self) -> None:
        """The client is gone: whatever it asked for is called off."""
        self._link.close_channel(self)


class PassedRequest:
    """A request on its way, or being served elsewhere."""

    __slots__ = (
        "_link",
        "asker",
        "channel",
        "flags",
        "is_bulk",
        "is_held",
        "is_hurried",
        "is_sent",
        "parts",
        "size",
        "stream",
        "window",
    )

    def __init__(
        self, link: OutgoingLink, channel: Channel, parts: Sequence[Buffer], asker: Asker, flags: int, window: int
    ) -> None:
        self._link = link
        self.channel = channel
        self.parts: Sequence[Buffer] = parts
        self.size = sum(map(len, parts))
        self.is_bulk = is_bulk(parts[0], 0, self.size)
        self.asker = asker
        self.flags = flags
        self.window = window
        self.stream = -1
        self.is_sent = False
        self.is_held = False
        self.is_hurried = False

    @property
    def frame(self) -> memoryview:
        """The request, while it is not sent."""
        assert not self.is_sent
        (frame,) = self.parts
        return memoryview(frame)

    def hurry(self) -> None:
        """Have it answered now, with whatever there is."""
        self.is_hurried = True
        if self.is_sent:
            self._link.send(Kind.HURRY, self.stream, 0)

    def grant(self, byte_count: int) -> None:
        """Let so many more bytes of the answer come."""
        if self.is_sent:
            self._link.send(Kind.GRANT, self.stream, byte_count)


class OutgoingLink(Link):
    """A link to node `node_id`. It may be asked from the moment it is made: what is asked waits until it is there."""

    def __init__(self, shared: Peers, initiator: Initiator, node_id: int) -> None:
        super().__init__(shared, expects_magic=False)
        self.node_id = node_id
        self.is_draining = False
        self._initiator = initiator
        self._has_proven = False
        self._streams: dict[int, PassedRequest] = {}
        self._channels: dict[int, Channel] = {}
        self._next_stream = 0
        self._next_channel = 0
        self._small: deque[PassedRequest] = deque()
        self._bulk: deque[PassedRequest] = deque()
        # Bytes of bulk that may be sent, and that were sent and not taken.
        self._window = 0
        self._untaken = 0

    # The handshake

    def connected(self) -> None:
        self.write_raw(self._initiator.hello())

    def shake_hands(self, message: bytes) -> None:
        if not self._has_proven:
            self.write_raw(self._initiator.prove(message))
            self._has_proven = True
            return
        session = self._initiator.finish(message)
        self._window = session.window_bytes
        self.established(session)
        self._shared.established(self)

    # Asking

    @property
    def unanswered_count(self) -> int:
        return len(self._streams) + len(self._small) + len(self._bulk)

    def open_channel(self, identity: Identity) -> Channel:
        self._next_channel += 1
        channel = self._channels[self._next_channel] = Channel(self, self._next_channel, identity)
        return channel

    def close_channel(self, channel: Channel) -> None:
        if self._channels.pop(channel.number, None) is None or self.is_closed:
            return
        for request in channel.requests:
            if request.is_sent:
                self._streams.pop(request.stream, None)
            else:
                (self._bulk if request in self._bulk else self._small).remove(request)
        channel.requests.clear()
        if channel.is_open:
            self.send(Kind.CLOSE, channel.number, 0)

    def request(
        self, channel: Channel, parts: Sequence[Buffer], asker: Asker, flags: int, window: int
    ) -> PassedRequest:
        request = PassedRequest(self, channel, parts, asker, flags, window)
        channel.requests[request] = None
        if request.is_bulk:
            if self.peer_node < 0 or self._bulk or self.is_congested or not self._fits(request.size):
                self._bulk.append(request)
                request.is_held = True
                asker.held()
            else:
                self._untaken += request.size
                self._send(request)
        elif self.peer_node < 0:
            self._small.append(request)
        else:
            self._send(request)
        return request

    def _fits(self, size: int) -> bool:
        """Whether so much may be sent. One that is larger than all that may be is sent when nothing else is there."""
        return self._untaken == 0 or self._untaken + size <= self._window

    def pump(self) -> None:
        while self._small:
            self._send(self._small.popleft())
        while self._bulk and not self.is_congested and self._fits(self._bulk[0].size):
            request = self._bulk.popleft()
            self._untaken += request.size
            self._send(request)
            request.asker.sent()

    def _send(self, request: PassedRequest) -> None:
        channel = request.channel
        if not channel.is_open:
            channel.is_open = True
            self.send(Kind.OPEN, channel.number, 0, encode_identity(channel.identity))
        self._next_stream = stream = (self._next_stream + 1) & 0xFFFFFFFF
        request.stream = stream
        request.is_sent = True
        self._streams[stream] = request
        head = REQUEST_HEAD.pack(request.flags, request.window)
        self.send(Kind.REQUEST, channel.number, stream, head, *request.parts)
        request.parts = ()
        if request.is_hurried:
            self.send(Kind.HURRY, stream, 0)

    # What the owner says

    def frame_received(
        self, kind: int, first: int, second: int, buffer: bytearray | memoryview, start: int, end: int
    ) -> None:
        if kind == Kind.ANSWER:
            self._answered(first, second, bytes(buffer[start:end]))
        elif kind == Kind.TAKEN:
            self._untaken -= first
            if self._untaken < 0:
                raise ValueError("more was taken than was sent")
            if self._bulk:
                self.mark_dirty()
        elif kind == Kind.FOUND:
            request = self._streams.get(first)
            if request is not None:
                request.asker.found(second)
        elif kind == Kind.FAILED:
            request = self._forget(first)
            if request is not None:
                request.asker.failed(str(bytes(buffer[start:end]), "utf-8", "replace"), True)
        elif kind == Kind.DRAINING:
            self.is_draining = True
            self._shared.retire(self)
        else:
            raise ValueError(f"a frame of kind {kind}")

    def _answered(self, stream: int, flags: int, data: bytes) -> None:
        if not flags & LAST:
            request = self._streams.get(stream)
            if request is not None:
                request.asker.answered(data, False, flags)
            return
        request = self._forget(stream)
        if request is None:
            return
        if flags & NOTHING:
            request.asker.unanswered()
        else:
            request.asker.answered(data, True, flags)

    def _forget(self, stream: int) -> PassedRequest | None:
        """The request is over. None if its client was gone already."""
        request = self._streams.pop(stream, None)
        if request is not None:
            request.channel.requests.pop(request, None)
        return request

    def release_waiting(self) -> None:
        """Call off what may take long: all but bulk, of which a client's are the only ones it has asked for."""
        for channel in list(self._channels.values()):
            waiting = [request for request in channel.requests if not request.is_bulk]
            if waiting:
                self.close_channel(channel)
            for request in waiting:
                request.asker.failed("drain", True)

    def lost(self, reason: str) -> None:
        sent, waiting = list(self._streams.values()), [*self._small, *self._bulk]
        self._streams.clear()
        self._small.clear()
        self._bulk.clear()
        self._channels.clear()
        self._shared.retire(self)
        told = f"link {reason}"
        for request in sent:
            request.asker.failed(told, True)
        for request in waiting:
            if request.is_held:
                request.asker.sent()
            request.asker.failed(told, False)

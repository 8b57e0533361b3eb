"""One end of a link between two workers: bytes in, frames out; frames in, bytes out, once per turn of the loop.

What both ends have in common: the handshake's messages, cutting frames out of a receive buffer that all links share,
large ones into slab memory, checking that each is genuine, gathering what is sent, and noticing that the other is
silent. What the frames say is for `outgoing.py` and `incoming.py`. Whatever is wrong with what comes in ends the link
and nothing else: its other end connects again, its requests are answered with an error that clients retry.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, cast

from kafscale.metrics import PEER_BYTES_RECEIVED, PEER_BYTES_SENT
from kafscale.protocol.schema import Buffer
from kafscale.security.peer_handshake import HandshakeReader, PeerRefused, Session
from workers.peers.frames import HEADER, HEADER_BYTES, SMALL_BODY_BYTES, Kind, Opener, Sealer

if TYPE_CHECKING:
    from workers.peers.peers import Peers

log = logging.getLogger(__name__)

# Unsent bytes at which nothing but small frames is added, and at which more is again.
WRITE_HIGH_WATER_BYTES: Final = 512 * 1024
WRITE_LOW_WATER_BYTES: Final = 128 * 1024
# Buffers that together are no larger are joined: cheaper than handing them to the kernel one by one.
JOIN_BYTES_MAX: Final = 64 * 1024
HANDSHAKE_SECONDS: Final = 3.0
# A ping goes out after so long without a word, and after so long the other is taken for gone.
PING_SECONDS: Final = 2.0
SILENT_SECONDS: Final = 8.0
STARVED_RETRY_SECONDS: Final = 0.01


class Link(asyncio.BufferedProtocol):
    """Methods with asyncio's names are called by the transport. `peer_node` is -1 until the other has proven itself."""

    # The largest body that is accepted.
    body_bytes_max = SMALL_BODY_BYTES

    def __init__(self, shared: Peers, *, expects_magic: bool) -> None:
        self._shared = shared
        self.peer_node = -1
        self.is_closed = False
        self.is_dirty = False
        self.is_congested = False
        self.heard_at = self.began_at = shared.now
        self._transport: asyncio.Transport | None = None
        self._handshake: HandshakeReader | None = HandshakeReader(expects_magic)
        self._sealer: Sealer | None = None
        self._opener = Opener(None)
        self._out: list[Buffer] = []
        # A frame whose end has not come: what there is of it, or, of a large one, its header, memory and fill.
        self._carry = b""
        self._header = b""
        self._region: memoryview | None = None
        self._filled = 0

    # For the two kinds of ends

    def connected(self) -> None:
        """The transport is there."""

    def shake_hands(self, message: bytes) -> None:
        """A message of the handshake. Raises PeerRefused."""
        raise NotImplementedError

    def frame_received(
        self, kind: int, first: int, second: int, buffer: bytearray | memoryview, start: int, end: int
    ) -> None:
        """A genuine frame. A bytearray is overwritten after the call. Raises ValueError for one that makes no sense."""
        raise NotImplementedError

    def pump(self) -> None:
        """Send what waits to be sent, as far as it may be."""

    def lost(self, reason: str) -> None:
        """The link is over; called once."""

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.is_closed:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(WRITE_HIGH_WATER_BYTES, WRITE_LOW_WATER_BYTES)
        self._shared.add(self)
        self.connected()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close("lost" if exc is None else f"lost: {exc}")

    def pause_writing(self) -> None:
        self.is_congested = True

    def resume_writing(self) -> None:
        self.is_congested = False
        self.mark_dirty()

    def eof_received(self) -> bool:
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._region is not None:
            return self._region[self._filled :]
        view = self._shared.receive_view
        carry = self._carry
        if carry:
            view[: len(carry)] = carry
            return view[len(carry) :]
        return view

    def buffer_updated(self, nbytes: int) -> None:
        if self.is_closed:
            return
        shared = self._shared
        self.heard_at = shared.now
        shared.cells[PEER_BYTES_RECEIVED] += nbytes
        try:
            if self._region is not None:
                self._filled += nbytes
                if self._filled == len(self._region):
                    self._finish_region()
                return
            position, end = 0, len(self._carry) + nbytes
            self._carry = b""
            if self._handshake is not None:
                rest = self._shake(bytes(shared.receive_view[:end]))
                if not rest:
                    return
                # What came behind the handshake, in the place where frames are looked for.
                shared.receive_view[: len(rest)] = rest
                end = len(rest)
            self._consume(position, end)
        except PeerRefused as refused:
            self._shared.refused(self, refused)
            self.close(refused.reason)
        except ValueError as error:
            self._shared.distrust(self, str(error))
            self.close("protocol")

    # From bytes to frames

    def _shake(self, data: bytes) -> bytes:
        handshake = self._handshake
        assert handshake is not None
        handshake.feed(data)
        while self._handshake is not None and (message := handshake.next()) is not None:
            self.shake_hands(message)
        return b"" if self._handshake is not None or self.is_closed else handshake.rest()

    def established(self, session: Session) -> None:
        """Both sides are proven: frames from now on."""
        self.peer_node = session.peer_node
        self._handshake = None
        self._sealer = Sealer(session.send_key)
        self._opener = Opener(session.receive_key)
        self.mark_dirty()

    def _consume(self, position: int, end: int) -> None:
        """Take every complete frame of the receive buffer and keep the rest."""
        buffer, view = self._shared.receive_buffer, self._shared.receive_view
        mac_bytes = self._opener.mac_bytes
        while end - position >= HEADER_BYTES:
            length, kind, first, second = HEADER.unpack_from(buffer, position)
            body = position + HEADER_BYTES
            if length > SMALL_BODY_BYTES:
                self._begin_large(view[position:end], length + mac_bytes)
                return
            next_position = body + length + mac_bytes
            if next_position > end:
                break
            if mac_bytes and not self._opener.is_genuine(view[position:body], view[body:next_position]):
                raise ValueError("a frame that was forged or changed on its way")
            self._take(kind, first, second, buffer, body, body + length)
            if self.is_closed:
                return
            position = next_position
        if position < end:
            self._carry = bytes(view[position:end])

    def _begin_large(self, data: memoryview, size: int) -> None:
        """Get memory for a large frame, which is `size` bytes behind its header, and put in what came of it."""
        if size > self.body_bytes_max + self._opener.mac_bytes:
            raise ValueError(f"a frame of {size} bytes")
        region = self._shared.slabs.take(size)
        if region is None:
            # There is none at the moment: nothing more is read from this worker until there is.
            self._carry = bytes(data)
            assert self._transport is not None
            self._transport.pause_reading()
            self._shared.clock.call_later(STARVED_RETRY_SECONDS, self._feed)
            return
        self._header = bytes(data[:HEADER_BYTES])
        there = min(len(data) - HEADER_BYTES, size)
        region[:there] = data[HEADER_BYTES : HEADER_BYTES + there]
        self._region = region
        self._filled = there
        if there == size:
            rest = bytes(data[HEADER_BYTES + there :])
            self._finish_region()
            if rest and not self.is_closed:
                self._shared.receive_view[: len(rest)] = rest
                self._consume(0, len(rest))

    def _feed(self) -> None:
        """Look again for memory."""
        if self.is_closed or self._transport is None:
            return
        carry, self._carry = self._carry, b""
        length = HEADER.unpack_from(carry)[0]
        self._transport.resume_reading()
        try:
            self._begin_large(memoryview(carry), length + self._opener.mac_bytes)
        except ValueError as error:
            self._shared.distrust(self, str(error))
            self.close("protocol")

    def _finish_region(self) -> None:
        region, self._region = self._region, None
        assert region is not None
        if not self._opener.is_genuine(self._header, region):
            raise ValueError("a frame that was forged or changed on its way")
        length, kind, first, second = HEADER.unpack(self._header)
        self._take(kind, first, second, region, 0, length)

    def _take(self, kind: int, first: int, second: int, buffer: bytearray | memoryview, start: int, end: int) -> None:
        if kind == Kind.PING:
            self.send(Kind.PONG, 0, 0)
        elif kind != Kind.PONG:
            self.frame_received(kind, first, second, buffer, start, end)

    # From frames to bytes

    def write_raw(self, data: bytes) -> None:
        """Send bytes of the handshake at once."""
        if self._transport is not None and not self.is_closed:
            self._transport.write(data)

    def send(self, kind: int, first: int, second: int, *parts: Buffer) -> None:
        """Send a frame at the end of the turn. Nothing once the link is closed."""
        if self._sealer is None or self.is_closed:
            return
        self._out += self._sealer.seal(kind, first, second, parts)
        if not self.is_dirty:
            self.mark_dirty()

    def mark_dirty(self) -> None:
        """Have `flush` called at the end of the turn."""
        if not self.is_dirty and not self.is_closed:
            self.is_dirty = True
            self._shared.mark_dirty(self)

    def flush(self) -> None:
        """Write what is to be sent, in one call."""
        if self.is_closed or self._transport is None:
            return
        if self._sealer is not None:
            self.pump()
        self.is_dirty = False
        out = self._out
        if not out:
            return
        self._out = []
        size = sum(map(len, out))
        self._shared.cells[PEER_BYTES_SENT] += size
        if size <= JOIN_BYTES_MAX:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)

    # Time, and the end

    def tick(self, now: float) -> None:
        """Called every second or so."""
        if self._handshake is not None:
            if now - self.began_at > HANDSHAKE_SECONDS:
                self.close("handshake took too long")
        elif now - self.heard_at > SILENT_SECONDS:
            self.close("silent")
        elif now - self.heard_at > PING_SECONDS:
            self.send(Kind.PING, 0, 0)

    def close(self, reason: str) -> None:
        """End the link at once, but for what was handed to the transport."""
        if self.is_closed:
            return
        self.is_closed = True
        self._out = []
        self._region = None
        self._shared.remove(self)
        if self._transport is not None:
            self._transport.close()
        self.lost(reason)

    def abort(self) -> None:
        """End it without another byte."""
        transport: Any = self._transport
        self.close("aborted")
        if transport is not None:
            transport.abort()

"""One client connection: bytes in, frames out to dispatch; answers in, bytes out, in the order of the requests.

A `Connection` is an asyncio protocol without a task and without a timer: what it shares with all others (the receive
buffer, slab memory, the flush of answers, time-outs) is in `Connections`. It knows of Kafka only a frame's size and, of
a request, whether it is a Produce; headers, versions and messages are dispatch's. An idle connection holds nothing but
its slots.

Order: Kafka handles a connection's requests one at a time. So does this, but for Produce requests that follow only
Produce requests: these are handed on at once and answered in order, so that a producer's pipeline shares a flush.

Buffers: dispatch is given `(buffer, start, end)`. Where `buffer` is a memoryview the bytes may be kept for as long as
one likes (a view keeps its memory from being used again); a bytearray is overwritten after the call: copy what must
last.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from kafscale.errors import ProtocolError
from kafscale.metrics import BYTES_RECEIVED, BYTES_SENT
from kafscale.protocol.schema import Buffer
from kafscale.security.access import ANONYMOUS
from kafscale.security.addresses import normalized_address
from workers.caller import Caller, Gate
from workers.pending import ChargedPending, OrderedPending

if TYPE_CHECKING:
    from workers.connections import Connections
    from workers.listener import Listener

# Called once, with a connection that was just made and its transport.
Welcome = Callable[["Connection", asyncio.Transport], None]
Frame = tuple[bytearray | memoryview, int, int]

# A frame up to this size is parsed where it was received; a larger one gets memory of its own, once this much of it is
# there: a size alone, which costs an attacker four bytes, reserves nothing.
SMALL_FRAME_BYTES: Final = 64 * 1024
# What a connection may have received and not begun, and begun and not answered; beyond, it is not read from.
WAITING_BYTES_MAX: Final = 1024 * 1024
WAITING_FRAMES_MAX: Final = 1024
IN_FLIGHT_MAX: Final = 1024
# Requests (but Produce) begun in one turn of the loop, so that one client's pipeline doesn't hold up all others.
BEGUN_PER_TURN_MAX: Final = 32
# Answers that together are no larger are joined into one buffer: cheaper than handing them to the kernel one by one.
JOIN_BYTES_MAX: Final = 64 * 1024

_SIZE: Final = struct.Struct(">i")

# Why a connection is not read from: bits of a mask.
_PAUSED_WAITING: Final = 1
_PAUSED_WRITING: Final = 2
_PAUSED_MEMORY: Final = 4
_PAUSED_HELD: Final = 8
_PAUSED_FOR_GOOD: Final = 16
_PAUSED_MUTED: Final = 32
# Why no request is begun.
_PAUSED_BEGINNING: Final = _PAUSED_WRITING | _PAUSED_MUTED


class Forwarded(Protocol):
    """What was made of a connection elsewhere."""

    def close(self) -> None: ...


class Connection(Caller, asyncio.BufferedProtocol):
    """The state of one connection. Methods with asyncio's names are called by the transport."""

    __slots__ = (
        "_carry",
        "_filled",
        "_frame_bytes_max",
        "_had_large",
        "_in_flight",
        "_is_exclusive",
        "_is_working",
        "_out",
        "_paused",
        "_pending_type",
        "_region",
        "_shared",
        "_tail",
        "_transport",
        "_waiting",
        "_waiting_bytes",
        "_welcome",
        "counted_at",
        "forwarded",
        "frame_began",
        "head",
        "is_authenticated",
        "is_closed",
        "is_dirty",
        "last_active",
    )

    def __init__(self, shared: Connections, listener: Listener, welcome: Welcome | None = None) -> None:
        """`welcome` says, when the connection is made, who the client is."""
        Caller.__init__(self, listener, "", ANONYMOUS, forwards=listener.is_shared)
        self._shared = shared
        self._transport: asyncio.Transport | None = None
        self._welcome = welcome
        # Smaller while nobody knows who the client is.
        self._frame_bytes_max = shared.frame_bytes_max
        # Whether the client has shown who it is; where its listener has SASL, what it may do depends on that.
        self.is_authenticated = False
        # The address for which it counts against the limit of connections from one; empty for none.
        self.counted_at = ""
        # What other workers know of it, if anything was passed on; to be closed with it.
        self.forwarded: Forwarded | None = None
        self.is_closed = False
        # Coarse times, in seconds of the shared clock.
        self.last_active = shared.now
        self.frame_began = 0.0
        # A frame whose end has not come: the bytes so far, or, of a large one, its memory and how much of it is filled.
        self._carry: bytearray | None = None
        self._region: memoryview | None = None
        self._filled = 0
        self._had_large = False
        # Requests begun and not answered, in order; whether the one there is keeps all others waiting.
        self.head: OrderedPending | None = None
        self._tail: OrderedPending | None = None
        self._pending_type: type[OrderedPending] = OrderedPending
        self._in_flight = 0
        self._is_exclusive = False
        # Requests received and not begun.
        self._waiting: deque[Frame] | None = None
        self._waiting_bytes = 0
        self._is_working = False
        # Answers not yet handed to the transport.
        self._out: list[Buffer] | None = None
        self.is_dirty = False
        self._paused = 0

    # -- the transport's side ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self.client_host:
            peer: Any = transport.get_extra_info("peername")
            self.client_host = _host_of(peer)
        self._shared.add(self, self._transport)
        welcome = self._welcome
        if welcome is not None and not self.is_closed:
            self._welcome = None
            welcome(self, self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._shared.count_closed("client")
        self._shared.remove(self)
        self._forget()

    def get_buffer(self, sizehint: int) -> memoryview:
        region = self._region
        if region is not None:
            return region[self._filled :]
        # Behind a large frame comes another, and what is received here of that must be copied: no more than it takes.
        return self._shared.short_receive_view if self._had_large else self._shared.receive_view

    def buffer_updated(self, nbytes: int) -> None:
        if self._paused & _PAUSED_FOR_GOOD:
            return
        shared = self._shared
        self.last_active = shared.now
        shared.turn_left = BEGUN_PER_TURN_MAX
        shared.cells[BYTES_RECEIVED] += nbytes
        region = self._region
        if region is not None:
            self._filled += nbytes
            if self._filled == len(region):
                self._region = None
                shared.frame_ended(self)
                self._receive(region, 0, len(region))
            return
        position = 0
        if self._carry is not None:
            position = self._complete_carry(shared.receive_buffer, nbytes)
        self._consume(shared.receive_buffer, position, nbytes)

    def eof_received(self) -> bool:
        # A client that sends no more reads no more answers either: Kafka clients never half-close.
        return False

    def pause_writing(self) -> None:
        self._pause(_PAUSED_WRITING)

    def resume_writing(self) -> None:
        self.last_active = self._shared.now
        self._resume(_PAUSED_WRITING)
        if self.head is not None and self.head.on_writable is not None:
            self.head.on_writable()
        self.begin_waiting()

    # -- from bytes to frames ----------------------------------------------------------------------------------------

    def _consume(self, buffer: bytearray, position: int, end: int) -> None:
        """Hand on every complete frame of `buffer[position:end]` and keep the rest."""
        while end - position >= 4:
            if self._paused & _PAUSED_FOR_GOOD:
                return
            size: int = _SIZE.unpack_from(buffer, position)[0]
            if 0 <= size <= SMALL_FRAME_BYTES:
                frame_end = position + 4 + size
                if frame_end > end:
                    break
                self._receive(buffer, position + 4, frame_end)
                position = frame_end
            elif not 0 <= size <= self._frame_bytes_max:
                self._refuse_size(size)
                return
            elif end - position <= SMALL_FRAME_BYTES:
                break
            else:
                region = self._shared.slabs.take(size, self.records_at)
                if region is None:
                    self._keep(buffer[position:end])
                    self._starve()
                    return
                position = self._assemble(region, buffer, position + 4, end)
        if position < end and not self._paused & _PAUSED_FOR_GOOD:
            self._keep(buffer[position:end])

    def _complete_carry(self, buffer: bytearray, end: int) -> int:
        """Add to the kept start of a frame what `buffer[:end]` has of it; returns the position after that."""
        carry = self._carry
        assert carry is not None
        position = 0
        if len(carry) < 4:
            position = min(4 - len(carry), end)
            carry += buffer[:position]
            if len(carry) < 4:
                return position
        size: int = _SIZE.unpack_from(carry)[0]
        if not 0 <= size <= self._frame_bytes_max:
            self._refuse_size(size)
            return end
        # Of a large frame no more is kept here than it takes to deserve memory of its own.
        wanted = min(4 + size, SMALL_FRAME_BYTES + 1) if size > SMALL_FRAME_BYTES else 4 + size
        added = min(wanted - len(carry), end - position)
        with memoryview(buffer) as view:
            carry += view[position : position + added]
        position += added
        if len(carry) < wanted:
            return position
        if size <= SMALL_FRAME_BYTES:
            self._carry = None
            self._shared.frame_ended(self)
            self._receive(carry, 4, len(carry))
            return position
        region = self._shared.slabs.take(size, self.records_at)
        if region is None:
            carry += buffer[position:end]
            self._starve()
            return end
        self._carry = None
        self._assemble(region, carry, 4, len(carry))
        return self._assemble_more(buffer, position, end)

    def _assemble(self, region: memoryview, buffer: bytearray, position: int, end: int) -> int:
        """Begin a large frame in `region` with its bytes from `buffer`; returns the position after them."""
        self._region = region
        self._filled = 0
        self._had_large = True
        self._shared.frame_begun(self)
        return self._assemble_more(buffer, position, end)

    def _assemble_more(self, buffer: bytearray, position: int, end: int) -> int:
        region = self._region
        if region is None:
            return position
        filled = self._filled
        count = min(len(region) - filled, end - position)
        with memoryview(buffer) as view:
            region[filled : filled + count] = view[position : position + count]
        self._filled = filled + count
        if self._filled == len(region):
            self._region = None
            self._shared.frame_ended(self)
            self._receive(region, 0, len(region))
        return position + count

    def _keep(self, carry: bytearray) -> None:
        self._carry = carry
        self._shared.frame_begun(self)

    def _starve(self) -> None:
        """Stop reading until there is memory for the frame whose beginning is kept."""
        self._pause(_PAUSED_MEMORY)
        self._shared.starve(self)

    def feed_starved(self) -> bool:
        """Try again to get memory; False if there still is none."""
        carry = self._carry
        if carry is None or self.is_closed:
            return True
        size: int = _SIZE.unpack_from(carry)[0]
        region = self._shared.slabs.take(size, self.records_at)
        if region is None:
            return False
        self._carry = None
        self._resume(_PAUSED_MEMORY)
        position = self._assemble(region, carry, 4, len(carry))
        self._consume(carry, position, len(carry))
        return True

    def _refuse_size(self, size: int) -> None:
        self._shared.complain(self, "too_large", f"a frame of {size} bytes")
        self.close("too_large")

    @property
    def assembling(self) -> int:
        """Size of the frame being received in bytes; 0 if none is, or its size is not known yet."""
        if self._region is not None:
            return len(self._region)
        if self._carry is not None and len(self._carry) >= 4:
            return int(_SIZE.unpack_from(self._carry)[0])
        return 0

    @property
    def holds_region(self) -> bool:
        """Whether slab memory is held for a frame whose end has not come."""
        return self._region is not None

    @property
    def is_paused(self) -> bool:
        """Whether it is we who don't read."""
        return self._paused != 0

    # -- from frames to requests -------------------------------------------------------------------------------------

    def _receive(self, buffer: bytearray | memoryview, start: int, end: int) -> None:
        """A complete frame: begin it now or let it wait its turn."""
        if self._waiting is None:
            # A header begins with the API's key, and Produce's is 0.
            is_produce = end - start >= 2 and buffer[start] == 0 == buffer[start + 1]
            if self._may_begin(is_produce, end - start):
                self._begin(buffer, start, end, is_produce)
                return
        self._wait(buffer, start, end)

    def _may_begin(self, is_produce: bool, size: int) -> bool:
        """Whether the next request, of `size` bytes, may begin now. If not, something is set up that will call
        `begin_waiting`."""
        if self._paused & _PAUSED_BEGINNING:
            return False
        if not is_produce:
            if self.head is not None:
                return False
            self._shared.turn_left -= 1
            if self._shared.turn_left < 0:
                self._shared.begin_later(self)
                return False
            return True
        if self._is_exclusive or self._in_flight >= IN_FLIGHT_MAX:
            return False
        if size > self._shared.produce_bytes_max:
            self._pause(_PAUSED_HELD)
            self._shared.hold(self)
            return False
        return True

    def _begin(self, buffer: bytearray | memoryview, start: int, end: int, is_produce: bool) -> None:
        pending = self._pending_type(self)
        if self._tail is None:
            self.head = pending
        else:
            self._tail._next = pending
        self._tail = pending
        self._in_flight += 1
        self._is_exclusive = not is_produce
        if self._in_flight >= IN_FLIGHT_MAX:
            self._pause(_PAUSED_WAITING)
        try:
            self._shared.dispatch(self, buffer, start, end, pending)
        except ProtocolError as error:
            self._shared.complain(self, "protocol", str(error))
            self._stop_receiving()
            # Another has taken its place, if charging has begun with it.
            (self._tail or pending).close_connection("protocol")

    def _wait(self, buffer: bytearray | memoryview, start: int, end: int) -> None:
        if self._waiting is None:
            self._waiting = deque()
        size = end - start
        if isinstance(buffer, memoryview):
            self._waiting.append((buffer, start, end))
        else:
            self._waiting.append((buffer[start:end], 0, size))
        self._waiting_bytes += size
        if self._waiting_bytes >= WAITING_BYTES_MAX or len(self._waiting) >= WAITING_FRAMES_MAX:
            self._pause(_PAUSED_WAITING)

    def begin_waiting(self) -> None:
        """Begin what waits and may begin by now."""
        # Dispatch may answer before it returns, and so lead back here: the outer call goes on then.
        if self._is_working or self._waiting is None:
            return
        self._is_working = True
        try:
            while self._waiting and not self.is_closed:
                buffer, start, end = self._waiting[0]
                is_produce = end - start >= 2 and buffer[start] == 0 == buffer[start + 1]
                if not self._may_begin(is_produce, end - start):
                    break
                self._waiting.popleft()
                self._waiting_bytes -= end - start
                self._begin(buffer, start, end, is_produce)
        finally:
            self._is_working = False
        if not self._waiting:
            self._waiting = None
        self._read_on()

    def _read_on(self) -> None:
        if (
            self._paused & _PAUSED_WAITING
            and self._in_flight < IN_FLIGHT_MAX
            and (
                self._waiting is None
                or (self._waiting_bytes < WAITING_BYTES_MAX and len(self._waiting) < WAITING_FRAMES_MAX)
            )
        ):
            self._resume(_PAUSED_WAITING)

    def hold_back(self) -> None:
        """Read no more until `release_held`: what was received waits for something."""
        self._pause(_PAUSED_HELD)

    def release_held(self) -> None:
        """Produce requests may begin again."""
        self._resume(_PAUSED_HELD)
        self.begin_waiting()

    # -- quotas ------------------------------------------------------------------------------------------------------

    def begin_charging(self, before: OrderedPending, charged: ChargedPending) -> None:
        """Let the request that was begun last be answered by `charged`, and all that come by such."""
        self._pending_type = ChargedPending
        if self.head is before:
            self.head = charged
        else:
            previous = self.head
            while previous is not None and previous._next is not before:
                previous = previous._next
            assert previous is not None, "only what is under way can be charged"
            previous._next = charged
        assert self._tail is before
        self._tail = charged

    def end_charging(self) -> None:
        """Nothing that was found out about what counts for the client holds any more."""
        self._pending_type = OrderedPending
        self.repeated_produce = None

    def mute(self, seconds: float) -> None:
        """Read nothing, and begin nothing that was received, for so long: the client has used up its quota."""
        if not self.is_closed and self._shared.mute(self, seconds):
            self._pause(_PAUSED_MUTED)

    def unmute(self) -> None:
        # The silence was not the client's.
        self.last_active = self._shared.now
        self._resume(_PAUSED_MUTED)
        self.begin_waiting()

    @property
    def is_muted(self) -> bool:
        return self._paused & _PAUSED_MUTED != 0

    @property
    def unanswered(self) -> int:
        """Requests received and not answered."""
        return self._in_flight + (0 if self._waiting is None else len(self._waiting))

    # -- from answers to bytes ---------------------------------------------------------------------------------------

    def emit(self) -> None:
        """Take every answer that has come up to the front of the order, and see to it that they are sent."""
        self._gather()
        if self._out is not None and not self.is_dirty:
            self._shared.mark_dirty(self)

    def _gather(self) -> None:
        """Take every answer that has come up to the front of the order."""
        out = self._out
        if out is None:
            out = self._out = []
        pending = self.head
        while pending is not None and pending._is_answered:
            answer = pending._answer
            if answer is not None:
                pending._answer = None
                if isinstance(answer, list):
                    out += answer
                else:
                    out.append(answer)
            self._in_flight -= 1
            if pending._close_reason is not None:
                self._send()
                self.close(pending._close_reason)
                return
            pending = pending._next
        self.head = pending
        if pending is None:
            self._tail = None
            self._is_exclusive = False
        if not out:
            self._out = None
        if self._waiting is not None:
            self.begin_waiting()
        elif self._paused & _PAUSED_WAITING:
            self._read_on()

    def emit_part(self, buffer: Buffer) -> None:
        """Send some bytes of the first answer."""
        if self._out is None:
            self._out = []
        self._out.append(buffer)
        if not self.is_dirty:
            self._shared.mark_dirty(self)

    @property
    def is_congested(self) -> bool:
        """Whether the client takes less than it was sent."""
        return self._paused & _PAUSED_WRITING != 0

    def flush(self) -> None:
        """Hand the answers to the transport, in one call."""
        head = self.head
        if head is not None and head._is_answered:
            self._gather()
        self._send()

    def _send(self) -> None:
        self.is_dirty = False
        out = self._out
        self._out = None
        if not out or self.is_closed or self._transport is None:
            return
        self.last_active = self._shared.now
        size = sum(map(len, out))
        self._shared.cells[BYTES_SENT] += size
        if len(out) == 1:
            self._transport.write(out[0])
        elif size <= JOIN_BYTES_MAX:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)

    @property
    def was_made(self) -> bool:
        """Whether there has been a transport: if so, `connection_lost` comes, or has come."""
        return self._transport is not None

    # -- who the client is -------------------------------------------------------------------------------------------

    def must_authenticate(self, gate: Gate, frame_bytes_max: int) -> None:
        """Let nothing pass but by the gate, which calls `authenticated`; and no large frame, and not for long."""
        self.gate = gate
        self._frame_bytes_max = min(frame_bytes_max, self._shared.frame_bytes_max)
        self._shared.await_authentication(self)

    def authenticated(self, principal: str) -> None:
        """The client has shown that it is `principal`."""
        self.principal = principal
        self.access = None
        self.repeated_produce = None
        if not self.is_authenticated:
            self.is_authenticated = True
            self._frame_bytes_max = self._shared.frame_bytes_max
            self._shared.forget_unknown(self)

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """Close now, after what was handed to the transport. Requests not answered are called off."""
        if self.is_closed:
            return
        self.is_closed = True
        self._stop_receiving()
        self._shared.count_closed(reason)
        self._forget()
        if self._transport is not None:
            self.last_active = self._shared.now
            self._transport.close()

    def abort(self) -> None:
        """Give up on a transport that does not finish closing."""
        if self._transport is not None:
            self._transport.abort()

    def stop_reading(self) -> None:
        """Receive nothing more; what was received goes on."""
        self._pause(_PAUSED_FOR_GOOD)

    def _stop_receiving(self) -> None:
        self._pause(_PAUSED_FOR_GOOD)
        self._carry = None
        self._region = None
        self._waiting = None
        self._waiting_bytes = 0
        self._shared.frame_ended(self)

    def _forget(self) -> None:
        """Call off what is unanswered and let go of all memory."""
        pending = self.head
        self.head = None
        self._tail = None
        self._in_flight = 0
        self._out = None
        self._carry = None
        self._region = None
        self._waiting = None
        self._waiting_bytes = 0
        while pending is not None:
            if pending.on_close is not None and not pending._is_answered:
                pending.on_close()
            pending.on_close = None
            pending = pending._next
        if self.forwarded is not None:
            self.forwarded.close()
            self.forwarded = None

    def _pause(self, why: int) -> None:
        if not self._paused and self._transport is not None and not self.is_closed:
            self._transport.pause_reading()
        self._paused |= why

    def _resume(self, why: int) -> None:
        if self._paused & why:
            self._paused &= ~why
            if not self._paused and self._transport is not None and not self.is_closed:
                self._transport.resume_reading()


def _host_of(peer: Any) -> str:
    """The client's address without its port; an IPv4 address that came in through an IPv6 socket as IPv4."""
    return normalized_address(str(peer[0])) if isinstance(peer, (tuple, list)) and peer else "unknown"

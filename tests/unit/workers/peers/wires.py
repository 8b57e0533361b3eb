"""Wires between two ends of a link in one loop: bytes go over in order, in pieces, when the test lets them.

A wire can be watched, changed on the way, held, and cut. It behaves as a socket does: what a paused reader does not
take waits, and a writer with much waiting is told to pause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

Tamper = Callable[[bytes], bytes]


class End(Protocol):
    """asyncio.BufferedProtocol, as far as wires call it."""

    def connection_made(self, transport: Any) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def get_buffer(self, sizehint: int) -> memoryview: ...
    def buffer_updated(self, nbytes: int) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class WireTransport:
    """What one end writes to and reads from. `tamper` gets every piece before it arrives at this end."""

    def __init__(self, protocol: End, piece_bytes: int) -> None:
        self.protocol = protocol
        self.other: WireTransport | None = None
        self.unread = bytearray()
        self.received = bytearray()
        self.is_reading = True
        self.is_closing = False
        self.is_held = False
        self.tamper: Tamper | None = None
        self.most_unread = 0
        self._piece_bytes = piece_bytes
        self._high = 1 << 30
        self._low = 1 << 30
        self._is_full = False
        self._is_due = False

    # What the protocol calls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("10.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        self._high, self._low = high, low

    def write(self, data: Any) -> None:
        other = self.other
        assert other is not None
        if self.is_closing or other.is_closing:
            return
        other.unread += data
        other.most_unread = max(other.most_unread, len(other.unread))
        other.arrive_soon()
        if len(other.unread) > self._high and not self._is_full:
            self._is_full = True
            self.protocol.pause_writing()

    def writelines(self, parts: list[Any]) -> None:
        self.write(b"".join(parts))

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True
        self.arrive_soon()

    def close(self) -> None:
        if not self.is_closing:
            self.is_closing = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self.protocol.connection_lost, None)
            assert self.other is not None
            loop.call_soon(self.other.end_of_file)

    abort = close

    # The wire

    def hold(self) -> None:
        """Let nothing arrive at this end until `release`."""
        self.is_held = True

    def release(self) -> None:
        self.is_held = False
        self.arrive_soon()

    def arrive_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._arrive)

    def _arrive(self) -> None:
        self._is_due = False
        if self.unread and self.is_reading and not self.is_held and not self.is_closing:
            buffer = self.protocol.get_buffer(-1)
            piece = bytes(self.unread[: min(len(buffer), self._piece_bytes)])
            del self.unread[: len(piece)]
            if self.tamper is not None:
                piece = self.tamper(piece)
            buffer[: len(piece)] = piece
            del buffer
            self.received += piece
            if piece:
                self.protocol.buffer_updated(len(piece))
            if self.unread:
                self.arrive_soon()
            other = self.other
            assert other is not None
            if other._is_full and len(self.unread) <= other._low:
                other._is_full = False
                other.protocol.resume_writing()

    def end_of_file(self) -> None:
        """The other end is gone, once what it sent has been read."""
        if self.is_closing:
            return
        if self.unread and self.is_reading and not self.is_held:
            asyncio.get_running_loop().call_soon(self.end_of_file)
            return
        self.is_closing = True
        self.protocol.connection_lost(None)

    def cut(self) -> None:
        """As when a machine dies: both ends lose the connection, and whatever was on the way."""
        self.unread.clear()
        self.close()


def join(one: End, other: End, piece_bytes: int = 1 << 20) -> tuple[WireTransport, WireTransport]:
    """Connect two protocols; returns their transports."""
    first, second = WireTransport(one, piece_bytes), WireTransport(other, piece_bytes)
    first.other, second.other = second, first
    other.connection_made(second)
    one.connection_made(first)
    return first, second

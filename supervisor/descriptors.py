"""Handing open descriptors to a worker, over a socket of its own beside the control socket.

The control socket can't carry them: its transport is uvloop's, which sends bytes. What is handed over is always the
newest of its kind, so a worker that doesn't read for a while gets the last one, not all of them. Owns the parent's end.
"""

from __future__ import annotations

import asyncio
import os
import socket


class DescriptorSender:
    """The sending end for one worker. Needs a running loop."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        # A duplicate of the last one, while the worker's end takes no more.
        self._waiting: int | None = None

    def send(self, fd: int) -> None:
        """Hand over a descriptor; it stays the caller's. One that can't be sent any more is dropped."""
        self._drop_waiting()
        if not self._try(fd):
            self._waiting = os.dup(fd)
            asyncio.get_running_loop().add_writer(self._socket.fileno(), self._send_waiting)

    def close(self) -> None:
        self._drop_waiting()
        self._socket.close()

    def _try(self, fd: int) -> bool:
        """False if it must be tried again."""
        try:
            socket.send_fds(self._socket, [b"\0"], [fd])
        except BlockingIOError:
            return False
        except OSError:
            return True  # The worker is gone, and its successor gets its own.
        return True

    def _send_waiting(self) -> None:
        if self._waiting is not None and self._try(self._waiting):
            self._drop_waiting()

    def _drop_waiting(self) -> None:
        if self._waiting is not None:
            asyncio.get_running_loop().remove_writer(self._socket.fileno())
            os.close(self._waiting)
            self._waiting = None

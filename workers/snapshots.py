"""The ACL snapshots that the supervisor hands over, as they arrive: descriptors of sealed memory on a socket.

Owns the receiving end. Only the newest of several that have arrived counts. One that is not sound is refused and
counted, and whatever was in force before stays so. Knows no rules: what is received goes to `on_snapshot`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from kafscale.errors import Corrupt
from kafscale.security.sealed_memory import open_sealed
from kafscale.security.snapshot import Snapshot

log = logging.getLogger(__name__)

_AT_ONCE_MAX: Final = 16


class SnapshotReceiver:
    """`start` inside a running loop. `on_refused` is called for each that is not sound."""

    def __init__(
        self, sock: socket.socket, on_snapshot: Callable[[Snapshot], None], on_refused: Callable[[], None]
    ) -> None:
        self._socket = sock
        self._on_snapshot = on_snapshot
        self._on_refused = on_refused

    def start(self) -> None:
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._receive)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _receive(self) -> None:
        newest: int | None = None
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, 1, _AT_ONCE_MAX)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data, fds = b"", []
            if not data and not fds:
                # The supervisor is gone: the control socket says so too.
                asyncio.get_running_loop().remove_reader(self._socket.fileno())
                break
            for fd in fds:
                if newest is not None:
                    os.close(newest)
                newest = fd
        if newest is not None:
            self._open(newest)

    def _open(self, fd: int) -> None:
        try:
            snapshot = open_sealed(fd)
        except Corrupt as error:
            log.critical("a snapshot of ACLs is refused; the one before stays in force", extra={"why": str(error)})
            self._on_refused()
        else:
            self._on_snapshot(snapshot)

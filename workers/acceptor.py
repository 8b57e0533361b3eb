"""Accepting: listening sockets on one side, entrances on the other, and how many connections a second go through.

Owns duplicates of the listening sockets, so that closing one here closes it for nobody else. Accepts by hand, since
what asyncio's servers accept has gone through TLS before anyone could count it. Where connections come faster than they
may, they wait in the backlog, which costs nothing; so they do when descriptors run out.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from kafscale.census import Census
from kafscale.clock import Clock, Timer
from kafscale.logs import RateLimited

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
# Of one socket in one turn of the loop, so that a storm of connections doesn't hold up those that are open.
ACCEPTED_PER_TURN_MAX: Final = 16
# After which accepting is tried again when descriptors or memory have run out.
EXHAUSTED_SECONDS: Final = 1.0
COMPLAINT_INTERVAL_SECONDS: Final = 10.0
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# (accepted socket, client's address)
Arrive = Callable[[socket.socket, str], None]


class Pace:
    """So many a second of the clock, all workers of the broker together."""

    def __init__(self, per_second: int | None, clock: Clock, census: Census) -> None:
        self._per_second = per_second
        self._clock = clock
        self._census = census

    def wait(self) -> float:
        """After how many seconds the next may come; 0 for now."""
        if self._per_second is None:
            return 0.0
        now = self._clock.monotonic()
        return 0.0 if self._census.arrived(int(now)) < self._per_second else int(now) + 1 - now

    def count(self) -> None:
        """One has come."""
        if self._per_second is not None:
            self._census.arrive(int(self._clock.monotonic()))


class Acceptor:
    """The listening sockets that a worker accepts on."""

    def __init__(self, pace: Pace, clock: Clock) -> None:
        self._pace = pace
        self._clock = clock
        self._open: dict[int, tuple[socket.socket, Arrive]] = {}
        self._timer: Timer | None = None
        self._complaints = RateLimited(clock, COMPLAINT_INTERVAL_SECONDS)

    def open(self, fd: int, arrive: Arrive) -> None:
        """Accept on the listening socket `fd` from now on; nothing if that is done already."""
        if fd in self._open:
            return
        listening = socket.socket(fileno=os.dup(fd))
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._open[fd] = listening, arrive
        if self._timer is None:
            asyncio.get_running_loop().add_reader(listening.fileno(), self._accept, listening, arrive)

    def close(self, fd: int) -> None:
        """Accept no more on it."""
        found = self._open.pop(fd, None)
        if found is not None:
            asyncio.get_running_loop().remove_reader(found[0].fileno())
            found[0].close()

    def close_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for fd in list(self._open):
            self.close(fd)

    def _accept(self, listening: socket.socket, arrive: Arrive) -> None:
        for _ in range(ACCEPTED_PER_TURN_MAX):
            wait = self._pace.wait()
            if wait > 0.0:
                self._rest(wait)
                return
            try:
                accepted, address = listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._complaints.log(
                        log, logging.ERROR, "no connection can be accepted", key=error.errno, cause=str(error)
                    )
                    self._rest(EXHAUSTED_SECONDS)
                    return
                continue  # The client is gone already.
            self._pace.count()
            accepted.setblocking(False)
            arrive(accepted, address[0])

    def _rest(self, seconds: float) -> None:
        """Let all sockets be for a while."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            for listening, _ in self._open.values():
                loop.remove_reader(listening.fileno())
            self._timer = self._clock.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for listening, arrive in self._open.values():
            loop.add_reader(listening.fileno(), self._accept, listening, arrive)

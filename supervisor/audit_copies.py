"""Copies of audit records on their way to the internal topic: handed to a worker that serves, which appends them.

The record itself is what the sink has; a copy is for consumers, and nothing waits for it. Owns what was written while
no worker served, in bytes, and how many records found no room: a copy that lacks some says so by its numbers. Does not
know what is in them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from kafscale.control import AuditCopy
from supervisor.post import Post

# Records waiting for a worker: those of a start, and of the time until a worker is replaced.
WAITING_BYTES_MAX: Final = 4 << 20


class AuditCopies:
    """`send` hands something to a worker that serves; False if there is none."""

    def __init__(self, send: Callable[[AuditCopy], bool]) -> None:
        self._send = send
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._lost = 0

    def put(self, lines: bytes) -> None:
        """Copy these records, each a line."""
        self._waiting.append(lines)
        self._waiting_bytes += len(lines)
        while self._waiting_bytes > WAITING_BYTES_MAX:
            dropped = self._waiting.popleft()
            self._waiting_bytes -= len(dropped)
            self._lost += dropped.count(b"\n")
        self.hand_on()

    def hand_on(self) -> None:
        """Give what waits to a worker, if there is one now."""
        while self._waiting:
            if not self._send(AuditCopy(self._waiting[0], self._lost)):
                return
            self._lost = 0
            self._waiting_bytes -= len(self._waiting.popleft())


def hand_to_one(posts: Iterable[Post], copy: AuditCopy) -> bool:
    """Give it to the first worker that serves; False if none does."""
    for post in posts:
        if post.serving and post.child is not None:
            post.child.send(copy)
            return True
    return False

"""What goes on in the background of a broker: loops that run until it drains, and tasks that end by themselves.

Owns the tasks, so that none is collected while it runs and none outlives the broker. A failure that nobody expected is
handed on, and ends the broker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


class Background:
    """`on_failure` gets what a loop or task raised."""

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._on_failure = on_failure
        self._loops: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn_loop(self, work: Awaitable[None], name: str) -> None:
        """Run until `end_loops`."""
        self._spawn(work, name, self._loops)

    def spawn_task(self, work: Awaitable[None], name: str) -> None:
        """Run to its end."""
        self._spawn(work, name, self._tasks)

    async def end_loops(self) -> None:
        await _cancel(self._loops)

    async def end(self) -> None:
        await _cancel(self._loops)
        await _cancel(self._tasks)

    def _spawn(self, work: Awaitable[None], name: str, among: set[asyncio.Task[None]]) -> None:
        task = asyncio.ensure_future(work)
        among.add(task)
        task.add_done_callback(lambda done: self._ended(done, name, among))

    def _ended(self, task: asyncio.Task[None], name: str, among: set[asyncio.Task[None]]) -> None:
        among.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            log.error("%s failed", name, exc_info=error)
            self._on_failure(error)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    cancelled = list(tasks)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)

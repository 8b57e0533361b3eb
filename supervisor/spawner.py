"""The worker processes of this broker: how they are started, the spare one, and that none is left when the broker ends.

A spare is a process that has imported its code and waits to be told who it is, so that a dead worker is replaced within
milliseconds rather than the time Python takes to start. All processes inherit the same descriptors, as any of them may
become any worker. Must not know what workers do.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence

from kafscale.clock import Clock
from supervisor.child import Child

log = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-m", "workers")


class Spawner:
    """Starts worker processes and knows all that have not ended."""

    def __init__(self, command: Sequence[str], inherited: Sequence[int], clock: Clock) -> None:
        self._command = command
        self._inherited = inherited
        self._clock = clock
        self._children: set[Child] = set()
        self._spare: Child | None = None
        self._preparing = False

    async def start(self) -> Child:
        """A new process. Raises OSError."""
        child = Child.launch(self._command, self._inherited, self._clock)
        self._children.add(child)
        child.gone.add_done_callback(lambda _: self._children.discard(child))
        try:
            await child.connect()
        except BaseException:
            child.kill()
            raise
        return child

    async def take(self) -> Child:
        """The spare, if there is one, else a new process. Raises OSError."""
        spare, self._spare = self._spare, None
        if spare is not None and not spare.over.done():
            return spare
        return await self.start()

    async def prepare_spare(self) -> None:
        """Have a process in reserve."""
        if self._preparing or (self._spare is not None and not self._spare.over.done()):
            return
        self._preparing = True
        try:
            self._spare = await self.start()
        except OSError as error:
            log.warning("no spare worker process could be started", extra={"cause": str(error)})
        finally:
            self._preparing = False

    def release_spare(self) -> None:
        """End the spare: it would only keep the ports open."""
        if self._spare is not None:
            self._spare.kill()
            self._spare = None

    async def close(self) -> None:
        """End every process that is left, and wait for it."""
        self.release_spare()
        left = list(self._children)
        for child in left:
            child.kill()
        await asyncio.gather(*(child.gone for child in left))

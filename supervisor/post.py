"""A worker's post: one worker index through all its incarnations, and what is done when one of them ends.

The order of a replacement: siblings take over accepting; the old log is sealed; a process that still runs is killed; a
version of the cluster log gives the slots to a new log; a process, if possible the spare one, is told that it is that
incarnation. Knows the processes of its own index only.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from kafscale.clock import Clock
from kafscale.control import (
    AclsInForce,
    AuditBatch,
    CommandRequest,
    Configure,
    KeysWanted,
    Released,
    Serving,
    StoreBroken,
    ToSupervisor,
)
from kafscale.coordination.assignment import EndedLog, Incarnation
from kafscale.errors import Corrupt, Retry, StoreUnavailable, StoreUnclear
from supervisor.child import Child, Ending, EndingKind
from supervisor.controller import Controller
from supervisor.restarts import Restarts
from supervisor.sealing import LogEnder
from supervisor.spawner import Spawner

log = logging.getLogger(__name__)

# A process that still runs is killed once its log is sealed, or after so long when the store doesn't answer.
SEAL_BEFORE_KILL_SECONDS = 1.0
# A fenced worker ends by itself, and says so.
FENCED_EXIT_SECONDS = 2.0
RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Duties:
    """What a post needs of the broker that it belongs to."""

    clock: Clock
    spawner: Spawner
    controller: Controller
    ender: LogEnder
    hang_seconds: float
    kill_hung: bool
    configure: Callable[[Post], Configure]
    on_change: Callable[[Post], None]
    on_command: Callable[[Child, CommandRequest], None]
    on_store_broken: Callable[[str], None]
    on_released: Callable[[Post, Released], None] = lambda post, released: None
    on_keys_wanted: Callable[[], None] = lambda: None
    on_acls_in_force: Callable[[Child, int], None] = lambda child, generation: None
    on_audit: Callable[[Child, AuditBatch], None] = lambda child, batch: None


class Post:
    """The state of one worker index. `down_since` is None while it serves, and before its first start."""

    def __init__(self, index: int, node_id: int, restarts: Restarts, duties: Duties) -> None:
        self.index = index
        self.node_id = node_id
        self.log_id = new_log_id()
        self.child: Child | None = None
        self.serving = False
        # Whether its bootstrap socket listens, so that connections arrive there.
        self.ever_served = False
        self.down_since: float | None = None
        self.trouble = "is starting"
        self.restart_count = 0
        self.hung_count = 0
        self._restarts = restarts
        self._duties = duties

    @property
    def incarnation(self) -> Incarnation:
        return Incarnation(self.node_id, self.log_id)

    def looping(self) -> bool:
        """Whether the worker keeps dying, so that its starts are held back."""
        return self._restarts.looping(self._duties.clock.monotonic())

    async def run(self, child: Child) -> None:
        """Keep a worker at the post, beginning with `child`, whose log is assigned already. Never returns.

        Raises StoreFailed when the store can no longer be trusted.
        """
        while True:
            self.child = child
            child.on_message = lambda message, child=child: self._heard(child, message)  # type: ignore[misc]
            child.configure(self._duties.configure(self), self._duties.hang_seconds)
            ending = await asyncio.shield(child.over)
            child = await self._replace(child, ending)

    def _heard(self, child: Child, message: ToSupervisor) -> None:
        if isinstance(message, AuditBatch):
            # What happened happened, whoever is at the post by now.
            self._duties.on_audit(child, message)
        if child is not self.child:
            return
        match message:
            case Serving():
                if not self.serving:
                    self.serving = self.ever_served = True
                    if self.down_since is not None:
                        seconds = round(self._duties.clock.monotonic() - self.down_since, 3)
                        log.info("worker serves again", extra={"index": self.index, "pid": child.pid, "after": seconds})
                    self.down_since = None
                    self._duties.on_change(self)
            case CommandRequest():
                self._duties.on_command(child, message)
            case StoreBroken(reason):
                self._duties.on_store_broken(reason)
            case Released():
                self._duties.on_released(self, message)
            case AclsInForce(generation):
                self._duties.on_acls_in_force(child, generation)
            case KeysWanted():
                self._duties.on_keys_wanted()
            case _:
                pass

    async def _replace(self, child: Child, ending: Ending) -> Child:
        duties = self._duties
        now = duties.clock.monotonic()
        wait = self._restarts.died(now, served=self.serving)
        self._note_ending(child, ending, now)
        ended = asyncio.create_task(
            duties.ender.end_or_leave(self.log_id, f"worker {self.index} {ending.kind}: {ending.detail}")
        )
        try:
            if ending.kind != EndingKind.EXITED:
                await self._stop_process(child, ending, ended)
            if wait > 0:
                self.trouble = f"keeps dying ({ending.detail}), next start in {wait:.1f} s"
                log.error("worker is in a crash loop", extra={"index": self.index, "wait_seconds": round(wait, 1)})
                await duties.clock.sleep(wait)
            await self._assign_anew(await ended)
        finally:
            ended.cancel()
        return await self._process()

    def _note_ending(self, child: Child, ending: Ending, now: float) -> None:
        self.serving = False
        self.child = None
        self.trouble = f"is being replaced ({ending.kind}: {ending.detail})"
        if self.down_since is None:
            self.down_since = now
        self.restart_count += 1
        self.hung_count += ending.kind == EndingKind.HUNG
        log.warning(
            "worker is replaced",
            extra={"index": self.index, "pid": child.pid, "ending": ending.kind.value, "cause": ending.detail},
        )
        self._duties.on_change(self)

    async def _stop_process(self, child: Child, ending: Ending, ended: asyncio.Task[EndedLog]) -> None:
        child.stop_pings()
        if ending.kind == EndingKind.FENCED:
            self._duties.clock.call_later(FENCED_EXIT_SECONDS, child.kill)
            return
        await asyncio.wait({ended}, timeout=SEAL_BEFORE_KILL_SECONDS)
        if self._duties.kill_hung or ending.kind == EndingKind.BROKEN:
            child.kill()

    async def _assign_anew(self, ended: EndedLog) -> None:
        log_id = new_log_id()
        while True:
            try:
                await self._duties.controller.replace(ended, Incarnation(self.node_id, log_id))
                break
            except (StoreUnavailable, StoreUnclear, Retry, Corrupt) as error:
                # An unclear one is found done, or done again, by the next.
                self.trouble = f"waits for the cluster log: {error}"
                await self._duties.clock.sleep(RETRY_SECONDS)
        self.log_id = log_id

    async def _process(self) -> Child:
        while True:
            try:
                child = await self._duties.spawner.take()
            except OSError as error:
                self.trouble = f"can't be started: {error}"
                log.error("no worker process can be started", extra={"index": self.index, "cause": str(error)})
                await self._duties.clock.sleep(RETRY_SECONDS)
            else:
                self.trouble = "loads its slots"
                return child


def new_log_id() -> str:
    """128 random bits: no incarnation's log is ever another's."""
    return secrets.token_hex(16)

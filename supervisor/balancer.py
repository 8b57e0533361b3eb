"""The leader's work on who owns what: lost brokers' slots are given to the living, the shares are evened out, and lists
of assignments are shortened. Every supervisor runs one; it acts only while it leads and coordination is available.

A broker whose registration says that the store doesn't answer it can take nothing in, and is as good as lost, if the
store answers here and has long done so: were it silent for all, nothing would be decided. Since the leader may be the
one that is cut off, the first of the others acts beside it then.

Owns no state but when it looked last. Leading is no ground for a write: each decision is made anew on the newest
version of the cluster log, so two that both believe to lead do no harm. Should the store not answer, or a lost log be
unreadable, it says so and tries again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable

from kafscale.clock import Clock
from kafscale.coordination.assignment import (
    EndedLog,
    Incarnation,
    balance,
    broker_of,
    hand_over,
    shorten,
    unsettled_logs,
)
from kafscale.coordination.cluster import Assign, ClusterState
from kafscale.coordination.store import CoordinationStore
from kafscale.errors import Corrupt, Retry, StoreUnavailable, StoreUnclear
from kafscale.storage.takeover import LogReader, find_end
from supervisor.controller import Controller
from supervisor.sealing import LogEnder
from supervisor.store_watch import StoreWatch

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
# A log whose slots are not settled is read after this, and then after waits that double up to the longest.
FIRST_LOOK_SECONDS = 0.25
LONGEST_LOOK_SECONDS = 10.0
LOOKS_AT_ONCE = 8
STORE_SILENT_SECONDS = 10.0


class Presence:
    """Which brokers are lost. Pure.

    One whose registration is gone is lost at once, if coordination has been available for the whole of `grace_seconds`;
    before that its registration may be missing because coordination lost it, and it may be about to come again.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._available_since: float | None = None

    def observe(self, now: float, is_available: bool) -> None:
        if not is_available:
            self._available_since = None
        elif self._available_since is None:
            self._available_since = now

    def lost(self, now: float, owning: Iterable[int], registered: Collection[int]) -> set[int]:
        """Those of the brokers `owning` slots that are lost."""
        if self._available_since is None or now - self._available_since < self._grace_seconds:
            return set()
        return set(owning) - set(registered)


class Balancer:
    """`run` until cancelled; `wake` when members, leadership or the cluster log have changed."""

    def __init__(
        self,
        coordination: CoordinationStore,
        controller: Controller,
        ender: LogEnder,
        reader: LogReader,
        clock: Clock,
        grace_seconds: float,
        store_watch: StoreWatch,
        broker_id: int,
    ) -> None:
        self._coordination = coordination
        self._store_watch = store_watch
        self._broker_id = broker_id
        self._controller = controller
        self._ender = ender
        self._reader = reader
        self._clock = clock
        self._presence = Presence(grace_seconds)
        self._woken = asyncio.Event()
        self._looks: dict[str, _Look] = {}
        # Logs of lost brokers that were ended here and that lists still name.
        self._ended: dict[str, EndedLog] = {}

    def wake(self) -> None:
        self._presence.observe(self._clock.monotonic(), self._coordination.is_available)
        self._woken.set()

    async def run(self) -> None:
        while True:
            timer = self._clock.call_later(TICK_SECONDS, self.wake)
            try:
                await self._woken.wait()
            finally:
                timer.cancel()
            self._woken.clear()
            try:
                await self.step()
            except (Corrupt, Retry, StoreUnavailable, StoreUnclear, TimeoutError) as error:
                log.warning("slots could not be balanced", extra={"cause": str(error)})
                await self._clock.sleep(TICK_SECONDS)

    async def step(self) -> None:
        """Do what there is to do now. Raises Corrupt, Retry, StoreError, TimeoutError."""
        self._presence.observe(self._clock.monotonic(), self._coordination.is_available)
        if not self._coordination.is_available or not self._acts():
            return
        await self._settle()
        await self._replace_lost()
        if self._evened_out(self._controller.state) is not None:
            moved = await self._controller.assign(self._evened_out)
            if moved:
                log.info("slots are moved to even out the brokers' shares", extra={"slots": moved})

    def _acts(self) -> bool:
        if self._coordination.is_leader:
            return True
        members = self._coordination.members()
        if not self._store_watch.is_steady or not any(member.store_silent for member in members):
            return False
        return self._broker_id == min((m.broker_id for m in members if not m.store_silent), default=None)

    # Lost brokers

    async def _replace_lost(self) -> None:
        """End the logs of lost brokers, of which slots may still wait to be released too, and give their slots to those
        that stay."""
        named = {
            entry.log_id: broker_of(entry.node_id) for entries in self._controller.state.slots for entry in entries
        }
        cut_off_counts = self._store_watch.is_steady
        registered = {m.broker_id for m in self._coordination.members() if not (cut_off_counts and m.store_silent)}
        lost = self._presence.lost(self._clock.monotonic(), named.values(), registered)
        if not lost or not self._staying():
            return
        self._ended = {log_id: read for log_id, read in self._ended.items() if log_id in named}
        to_end = sorted(log_id for log_id, broker in named.items() if broker in lost and log_id not in self._ended)
        outcomes: list[EndedLog | BaseException] = []
        if to_end:
            log.warning("brokers are lost", extra={"brokers": sorted(lost), "logs": len(to_end)})
            outcomes = await asyncio.gather(
                *(self._ender.end_log(log_id, "its broker is lost") for log_id in to_end), return_exceptions=True
            )
            self._ended |= {read.log_id: read for read in outcomes if isinstance(read, EndedLog)}
        if self._handed_over(self._controller.state) is not None:
            moved = await self._controller.assign(self._handed_over)
            if moved:
                log.info("lost brokers' slots have new owners", extra={"slots": moved})
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _handed_over(self, state: ClusterState) -> Assign | None:
        return hand_over(state, self._staying(), self._ended)

    # Shares

    def _staying(self) -> list[Incarnation]:
        return [worker for m in self._coordination.members() if m.can_take_over for worker in m.incarnations]

    def _evened_out(self, state: ClusterState) -> Assign | None:
        leaving = [worker for m in self._coordination.members() if m.leaving for worker in m.incarnations]
        return balance(state, self._staying(), leaving)

    # Lists

    async def _settle(self) -> None:
        """Read the logs that own slots which are not settled, and shorten the lists by what their checkpoints say."""
        now = self._clock.monotonic()
        unsettled = unsettled_logs(self._controller.state)
        self._looks = {
            log_id: look if (look := self._looks.get(log_id)) is not None and look.slots == slots else _Look(slots, now)
            for log_id, slots in unsettled.items()
        }
        due = sorted(log_id for log_id, look in self._looks.items() if look.due_at <= now)[:LOOKS_AT_ONCE]
        if not due:
            return
        for log_id in due:
            self._looks[log_id].postpone(now)
        async with asyncio.timeout(STORE_SILENT_SECONDS):
            read = dict(zip(due, await asyncio.gather(*map(self._checkpoint_epochs, due)), strict=True))
        for log_id, epochs in read.items():
            if shorten(self._controller.state, log_id, epochs) is not None:
                await self._controller.assign(
                    lambda state, log_id=log_id, epochs=epochs: shorten(state, log_id, epochs)  # type: ignore[misc]
                )

    async def _checkpoint_epochs(self, log_id: str) -> dict[int, int]:
        """Slot → epoch, as the newest counting checkpoint of the log names them."""
        # Walked to its end: the newest checkpoint may be the newest object, and no pointer names it yet.
        end = await find_end(self._reader, log_id)
        return {} if end.checkpoint is None else {slot: place.epoch for slot, place in end.checkpoint.slots.items()}


class _Look:
    """When a log with slots that are not settled is read next."""

    def __init__(self, slots: set[int], now: float) -> None:
        self.slots = slots
        self._wait = FIRST_LOOK_SECONDS
        self.due_at = now + self._wait

    def postpone(self, now: float) -> None:
        self._wait = min(2 * self._wait, LONGEST_LOOK_SECONDS)
        self.due_at = now + self._wait

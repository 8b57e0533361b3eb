"""Whether the earlier owners of slots are done with them: their logs have ended, or have released the slots.

Owns what was read of the logs that slots to be loaded were assigned to before, and when each is looked at next. What
must always hold: a slot is said to be ready only when for every earlier assignment in its list the log has ended, or a
counting checkpoint of it says that the slot was released at that epoch or a later one. What an ended log says may have
been written down by whoever ended it (`ended_logs.py`). A hint (`heard`) only says where to look at once. It reads the
store; should it give no answers, the reading waits. A log that keeps a slot for longer than its patience is ended:
whoever writes it is fenced, and what it acknowledged is kept. A log that can't be read, since an object of it is
missing or damaged, makes ready none of the slots that wait for it, and holds up no others: `ready` names these slots,
and looks at the log anew when they are wanted again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from kafscale.clock import Clock
from kafscale.errors import Corrupt
from kafscale.storage.ended_logs import read_ended
from kafscale.storage.keys import Keys
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.store import ObjectStore
from kafscale.storage.takeover import LogEnd, LogReader, find_end, read_release, seal_log

log = logging.getLogger(__name__)

# How long after a look that found a log in use comes the next; it doubles up to the longest.
FIRST_LOOK_SECONDS = 0.1
LONGEST_LOOK_SECONDS = 1.0


class Earlier(msgspec.Struct, frozen=True):
    """An earlier assignment of a slot: the log that may hold its newest manifest, and the epoch it was given at."""

    epoch: int
    log_id: str


Lists = Mapping[int, Sequence[Earlier]]


class Ready(NamedTuple):
    """The slots that can be loaded, and how far each log that their lists name goes; and the slots that can't be,
    since a log that they wait for is damaged."""

    lists: Lists
    ends: Mapping[str, LogEnd]
    damaged: Mapping[int, Corrupt]


class _Awaited:
    """A log that is not done with a slot, as far as is known."""

    __slots__ = ("damage", "due_at", "end", "hint", "hinted", "log_id", "since", "wait", "watch")

    def __init__(self, log_id: str, now: float) -> None:
        self.log_id = log_id
        self.since = self.due_at = now
        self.wait = FIRST_LOOK_SECONDS
        self.end: LogEnd | None = None
        # Why it can't be read.
        self.damage: Corrupt | None = None
        # Where the log is said to have released something.
        self.hint: int | None = None
        self.hinted = asyncio.Event()
        # Goes on while slots are being loaded: what comes next is ready the sooner.
        self.watch: asyncio.Task[None] | None = None

    def take_hint(self) -> int | None:
        hint, self.hint = self.hint, None
        self.hinted.clear()
        return hint

    def raise_failure(self) -> None:
        if self.watch is not None and self.watch.done():
            self.watch.result()

    def close(self) -> None:
        if self.watch is not None:
            self.watch.cancel()


class EarlierLogs:
    """The logs that one loader of slots waits for. `close` when it ends."""

    def __init__(
        self,
        store: ObjectStore,
        keys: Keys,
        clock: Clock,
        random_source: random.Random,
        writer: str,
        patience_seconds: float,
        bugs: PlantedBugs = NO_BUGS,
    ) -> None:
        """`writer` is named in the seals of logs that are ended from here."""
        self._store = store
        self._keys = keys
        self._reader = LogReader(store, keys, clock, random_source)
        self._clock = clock
        self._random = random_source
        self._writer = writer
        self._patience_seconds = patience_seconds
        self._bugs = bugs
        self._awaited: dict[str, _Awaited] = {}
        self._woken = asyncio.Event()

    def heard(self, log_id: str, sequence: int) -> None:
        """The log is said to have released slots in its object of that number."""
        awaited = self._awaited.get(log_id)
        if awaited is not None and (awaited.end is None or sequence > awaited.end.checkpoint_sequence):
            awaited.hint = sequence
            awaited.hinted.set()

    def wake(self) -> None:
        """What is wanted has changed."""
        self._woken.set()

    async def ready(self, wanted: Callable[[], Lists], is_waiting: bool) -> Ready:
        """The slots of `wanted()` that can be loaded now, and those that wait for a damaged log.

        Where there is neither it waits, as long as something is wanted; or, where not `is_waiting`, returns what there
        is once every log was looked at. No other task runs between the last call of `wanted` and the return.
        """
        try:
            while lists := wanted():
                in_use = self._follow(lists)
                found = {slot: entries for slot, entries in lists.items() if self._are_done(slot, entries)}
                damaged = self._damaged({slot: entries for slot, entries in lists.items() if slot not in found})
                looked_at = all(awaited.end is not None or awaited.damage is not None for awaited in in_use)
                if (found or damaged) if is_waiting else looked_at:
                    ends = {log_id: a.end for log_id, a in self._awaited.items() if a.end is not None}
                    for log_id in [log_id for log_id, a in self._awaited.items() if a.damage is not None]:
                        self._awaited.pop(log_id).close()
                    return Ready(found, ends, damaged)
                await self._woken.wait()
                self._woken.clear()
                for awaited in in_use:
                    awaited.raise_failure()
        except BaseException:
            self.close()
            raise
        self.close()
        return Ready({}, {}, {})

    def close(self) -> None:
        """Wait for nothing more."""
        for awaited in self._awaited.values():
            awaited.close()
        self._awaited.clear()

    def _follow(self, lists: Lists) -> list[_Awaited]:
        """Watch the logs that the lists name, and no others; returns those that are not done with some slot."""
        named = {entry.log_id for entries in lists.values() for entry in entries}
        for log_id in sorted(self._awaited.keys() - named):
            self._awaited.pop(log_id).close()
        in_use = sorted(
            {entry.log_id for slot, entries in lists.items() for entry in entries if not self._is_done(slot, entry)}
        )
        for log_id in in_use:
            awaited = self._awaited.get(log_id)
            if awaited is None:
                awaited = self._awaited[log_id] = _Awaited(log_id, self._clock.monotonic())
            if awaited.watch is None:
                awaited.watch = asyncio.ensure_future(self._watch(awaited))
        return [self._awaited[log_id] for log_id in in_use]

    def _damaged(self, lists: Lists) -> dict[int, Corrupt]:
        """The slots that wait for a log that can't be read."""
        found: dict[int, Corrupt] = {}
        for slot, entries in lists.items():
            for entry in entries:
                awaited = self._awaited.get(entry.log_id)
                if awaited is not None and awaited.damage is not None and not self._is_done(slot, entry):
                    found.setdefault(slot, awaited.damage)
        return found

    def _are_done(self, slot: int, entries: Sequence[Earlier]) -> bool:
        return all(self._is_done(slot, entry) for entry in entries)

    def _is_done(self, slot: int, entry: Earlier) -> bool:
        awaited = self._awaited.get(entry.log_id)
        if awaited is None or awaited.end is None:
            return False
        end = awaited.end
        if end.sealed or self._bugs.gap_is_the_end:
            return True
        return end.checkpoint is not None and end.checkpoint.released.get(slot, 0) >= entry.epoch

    async def _watch(self, awaited: _Awaited) -> None:
        """Look at one log whenever it is due or hinted at, until it has ended or turns out to be damaged."""
        try:
            while awaited.end is None or not awaited.end.sealed:
                await self._rest(awaited)
                awaited.end = await self._read(awaited)
                awaited.due_at = self._clock.monotonic() + awaited.wait
                awaited.wait = min(2 * awaited.wait, LONGEST_LOOK_SECONDS)
                self._woken.set()
        except Corrupt as error:
            awaited.damage = error
        finally:
            self._woken.set()

    async def _rest(self, awaited: _Awaited) -> None:
        timer = self._clock.call_later(max(0.0, awaited.due_at - self._clock.monotonic()), awaited.hinted.set)
        try:
            await awaited.hinted.wait()
        finally:
            timer.cancel()

    async def _read(self, awaited: _Awaited) -> LogEnd:
        """How far the log goes. A busy log is long to walk: a right hint spares that, a wrong one does no more."""
        walk: asyncio.Task[LogEnd] | None = None
        try:
            while True:
                hint = awaited.take_hint()
                found = None if hint is None else await read_release(self._reader, awaited.log_id, hint)
                if found is not None:
                    return found
                walk = walk or asyncio.ensure_future(self._walk(awaited))
                hinted = asyncio.ensure_future(awaited.hinted.wait())
                try:
                    await asyncio.wait({walk, hinted}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    hinted.cancel()
                if walk.done():
                    return walk.result()
        finally:
            if walk is not None:
                walk.cancel()

    async def _walk(self, awaited: _Awaited) -> LogEnd:
        if awaited.end is None:
            written_down = await read_ended(self._store, self._keys, self._clock, awaited.log_id)
            if written_down is not None:
                return written_down
        if self._clock.monotonic() - awaited.since >= self._patience_seconds:
            log.warning("a log does not release its slots and is ended", extra={"log_id": awaited.log_id})
            await seal_log(
                self._store,
                self._keys,
                awaited.log_id,
                self._clock,
                self._random,
                self._writer,
                "it did not release slots that were given to others",
            )
        return await find_end(self._reader, awaited.log_id, awaited.end)

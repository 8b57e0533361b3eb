"""Walking a worker's log as a takeover does, but past what is damaged or missing, and only reading.

It ends no log and waits for nobody. Where a takeover would stop with Corrupt, the walk notes the number as lost
and goes on, so that one damaged object does not hide what lies behind it. The rules are those of `storage/takeover.py`;
what is free in a log without a seal means nothing, unless so much lies above as an owner never has in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from kafscale.errors import Corrupt
from kafscale.storage.keys import Keys
from kafscale.storage.log_objects import Checkpoint
from kafscale.storage.takeover import LogObject, LogReader
from kafscale.storage.verification import Wrong, wrong_of
from kafscale.storage.worker_log import MAX_IN_FLIGHT

READS_AT_ONCE = 16


class LostObject(msgspec.Struct, frozen=True):
    """A number of a log that counts and can't be read; `problem` is empty where nothing is there."""

    number: int
    problem: str
    wrong: Wrong


class WalkedLog(msgspec.Struct):
    """What a log holds from its newest checkpoint on. `sealed`: it has ended at `end`; else that is the first number
    that does not count yet. `damaged` was met on the way and lies below the newest checkpoint. `problem` says why that
    checkpoint could not be found the regular way, and `culprit` what stood in the way (None: not known): whoever
    takes over would stop there."""

    log_id: str
    sealed: bool = False
    end: int = 0
    covered: int = 0
    checkpoint: Checkpoint | None = None
    checkpoint_sequence: int = -1
    objects: list[LogObject] = []
    lost: list[LostObject] = []
    damaged: list[LostObject] = []
    problem: str = ""
    culprit: LostObject | None = None


class LogWalker:
    """Walks logs of one namespace."""

    def __init__(self, reader: LogReader, keys: Keys) -> None:
        self._reader = reader
        self._keys = keys

    async def walk(self, log_id: str, listed: Sequence[int]) -> WalkedLog:
        """`listed` are the numbers that a listing showed, in order."""
        log = WalkedLog(log_id)
        await self._begin(log, listed)
        number = log.covered
        highest = listed[-1] if listed else -1
        while True:
            window = await asyncio.gather(*(self._read(log_id, number + i) for i in range(READS_AT_ONCE)))
            for index, entry in enumerate(window):
                if isinstance(entry, LogObject):
                    if entry.seal is not None:
                        log.sealed, log.end = True, number
                        return log
                    _count(log, number, entry)
                elif isinstance(entry, LostObject):
                    log.lost.append(entry)
                elif _is_gap(number, window[index + 1 :], highest):
                    log.lost.append(LostObject(number, "", Wrong.MISSING))
                else:
                    log.end = number
                    return log
                number += 1

    async def _begin(self, log: WalkedLog, listed: Sequence[int]) -> None:
        """Find the newest checkpoint, or, where what leads to it is damaged, the highest that can be read."""
        try:
            newest = await self._reader.newest_checkpoint(log.log_id)
            found = None if newest.checkpoint is None else (newest.sequence, newest.checkpoint)
        except Corrupt as error:
            log.problem = str(error)
            found = await self._highest_readable(log, listed)
            if found is None:
                log.covered = listed[0] if listed else 0
        if found is not None:
            log.checkpoint_sequence, log.checkpoint = found
            log.covered = found[1].covered

    async def _highest_readable(self, log: WalkedLog, listed: Sequence[int]) -> tuple[int, Checkpoint] | None:
        for number in reversed(listed):
            entry = await self._read(log.log_id, number)
            if isinstance(entry, LostObject):
                _blame(log, entry)
            elif entry is not None and entry.checkpoint is not None:
                return number, entry.checkpoint
            elif entry is not None and entry.seal is None and entry.header.checkpoint_sequence not in listed:
                _blame(log, LostObject(entry.header.checkpoint_sequence, "", Wrong.CORRUPT))
        return None

    async def _read(self, log_id: str, number: int) -> LogObject | LostObject | None:
        try:
            return await self._reader.read(log_id, number)
        except Corrupt as error:
            return LostObject(number, str(error), wrong_of(error))


def _blame(log: WalkedLog, lost: LostObject) -> None:
    if log.culprit is None or log.culprit.number < lost.number:
        log.culprit = lost


def _count(log: WalkedLog, number: int, entry: LogObject) -> None:
    if entry.checkpoint is not None and number > log.checkpoint_sequence:
        log.checkpoint, log.checkpoint_sequence = entry.checkpoint, number
        log.covered = entry.checkpoint.covered
        log.objects = [held for held in log.objects if held.header.sequence >= log.covered]
        log.damaged += [lost for lost in log.lost if lost.number < log.covered and lost.problem]
        log.lost = [lost for lost in log.lost if lost.number >= log.covered]
    log.objects.append(entry)


def _is_gap(number: int, following: Sequence[LogObject | LostObject | None], highest: int) -> bool:
    """Whether a number that is free must have been taken: more lies above than can be in flight, or a seal."""
    if highest >= number + MAX_IN_FLIGHT:
        return True
    return any(isinstance(entry, LogObject) and entry.seal is not None for entry in following)

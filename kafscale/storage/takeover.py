"""The reading end of a worker's log: finding its newest checkpoint, ending it with a seal, reading what counts.

Used by whoever takes over slots: the supervisor seals, the new owner verifies that the log has ended, then replays. The
rules (docs/adr/0003-the-log-and-fencing.md):

- A checkpoint at sequence s that covers c counts when every number in [c, s) is taken and none of them is a seal. That
  everything below c is taken is vouched for by its writer, who alone writes checkpoints into its log and only covers
  what was confirmed to it; objects below c may since have been deleted, but only once a later checkpoint counts too, so
  that the walk never begins below a gap that deletion made.
- A log has ended when every number from its last counting checkpoint's covered sequence (or 0) up to a seal is taken;
  its end is the lowest such seal. What lies above never existed. In a log without a seal a gap means nothing yet.
- Seals are tried at the next eight numbers at once, twice the most that an owner has in flight. So a free number with
  more above it than owner and sealers ever put above a free one, or with a counting checkpoint above it, was taken and
  is missing: that is damage, and never the end. No seal is put there, or what lies above would be lost for good.
- Of a log with the sweep's mark nothing counts any more, and it has ended, whatever is left of it (`sweep.py`). The
  mark is a seal of the sweep's above all numbers that owner or sealers ever try, put before anything is deleted.
- Of a log that has ended nothing changes any more, so whoever ended it may write down what it read (`ended_logs.py`),
  and whoever takes over may go by that.

Decisions rest on objects read by key; a listing only says where to look first.
"""

from __future__ import annotations

import asyncio
import random

import msgspec

from kafscale.clock import Clock
from kafscale.errors import Corrupt, Misplaced, ObjectExists, ObjectMissing, StoreUnavailable, StoreUnclear
from kafscale.storage.backoff import backoff_seconds
from kafscale.storage.keys import Keys, sequence_of
from kafscale.storage.log_objects import (
    HEADER_BYTES,
    TAIL_BYTES,
    BatchGroup,
    Checkpoint,
    Header,
    Kind,
    LogStart,
    Seal,
    decode_checkpoint,
    decode_data_table,
    decode_footer,
    decode_header,
    decode_seal,
    encode_header,
    encode_small,
)
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.store import Buffer, ObjectStore, Purpose
from kafscale.storage.worker_log import MAX_IN_FLIGHT

SEALS_AT_ONCE = 2 * MAX_IN_FLIGHT
# Who writes the seals that mark swept logs (`sweep.py`): the rest of such a log may be gone.
SWEEPER = "sweep"
# How many numbers are read at once; beyond those that a listing showed fewer at first, since it may be in vain.
READS_AT_ONCE = 64
FIRST_READS_BEYOND = 4


class LogEnd(msgspec.Struct, frozen=True):
    """How far a log goes: `objects`, numbers `replay_from` up to `end` (exclusive), count and are to be replayed onto
    `checkpoint` (None: onto nothing). Where it is not `sealed`, `end` is the lowest free number, and means nothing yet.
    """

    log_id: str
    sealed: bool
    end: int
    replay_from: int
    checkpoint: Checkpoint | None
    objects: list[LogObject]
    checkpoint_sequence: int = -1


class LogObject(msgspec.Struct, frozen=True):
    """One object of a log, without its body: exactly one of the three is set. Of what was read `undecoded` data objects
    have their table instead, and checkpoints have theirs too."""

    key: str
    header: Header
    groups: list[BatchGroup | LogStart] | None = None
    checkpoint: Checkpoint | None = None
    seal: Seal | None = None
    table: bytes = b""


def decode_object(key: str, header: Header, table: Buffer, undecoded: bool = False) -> LogObject:
    """From header and table, which are known to be whole. Raises Corrupt."""
    match header.kind:
        case Kind.DATA if undecoded:
            return LogObject(key, header, table=bytes(table))
        case Kind.DATA:
            return LogObject(key, header, groups=decode_data_table(table, key))
        case Kind.CHECKPOINT:
            kept = bytes(table) if undecoded else b""
            return LogObject(key, header, checkpoint=decode_checkpoint(table, key), table=kept)
        case Kind.SEAL:
            return LogObject(key, header, seal=decode_seal(table, key))


class NewestCheckpoint(msgspec.Struct, frozen=True):
    """The highest number of a log that a listing showed, the highest of its owner's, and its newest checkpoint that is
    known to count."""

    highest: int
    newest: int = -1
    sequence: int = -1
    checkpoint: Checkpoint | None = None

    def shows_taken(self, number: int) -> bool:
        """Whether the number must have been taken when the listing was made, for all that lies above it: the owner
        puts nothing MAX_IN_FLIGHT above a free one, nobody SEALS_AT_ONCE above it."""
        return number < max(self.sequence, self.newest - MAX_IN_FLIGHT + 1, self.highest - SEALS_AT_ONCE + 1)


class _Swept(Exception):
    """The log bears the sweep's mark."""


class LogReader:
    """Reads objects of logs by key, asking again while the store gives no answer. `undecoded`: for those who only want
    to know where a log ends."""

    def __init__(
        self,
        store: ObjectStore,
        keys: Keys,
        clock: Clock,
        random_source: random.Random,
        purpose: Purpose = Purpose.RECOVERY,
        undecoded: bool = False,
    ) -> None:
        self._undecoded = undecoded
        self._store = store
        self._keys = keys
        self._clock = clock
        self._random = random_source
        self._purpose = purpose

    def key(self, log_id: str, sequence: int) -> str:
        return self._keys.log(log_id, sequence)

    async def read(self, log_id: str, sequence: int) -> LogObject | None:
        """The object of that number, or None while the number is free. Raises Corrupt."""
        key = self._keys.log(log_id, sequence)
        for wait in backoff_seconds(self._random):
            try:
                return await self._read(key, log_id, sequence)
            except ObjectMissing:
                return None
            except (StoreUnavailable, StoreUnclear):
                await self._clock.sleep(wait)
        raise AssertionError("backoff never ends")

    async def _read(self, key: str, log_id: str, sequence: int) -> LogObject:
        tail, size = await self._store.get_tail(key, TAIL_BYTES, self._purpose)
        footer = decode_footer(tail, key)
        footer.check_size(size, key)
        tail_position = size - len(tail)
        if tail_position == 0:
            head = tail
        else:
            head = footer.header or await self._store.get_range(key, 0, HEADER_BYTES, self._purpose)
        header = decode_header(head, key)
        if header.log_id != log_id or header.sequence != sequence:
            raise Misplaced(f"{key}: holds number {header.sequence} of log {header.log_id}")
        if footer.position >= tail_position:
            start = footer.position - tail_position
            table = tail[start : start + footer.length]
        else:
            table = await self._store.get_range(key, footer.position, footer.length, self._purpose)
        footer.check_table(table, key)
        return decode_object(key, header, table, self._undecoded)

    async def header(self, log_id: str, sequence: int) -> Header | None:
        """Only the header of the object of that number, or None while the number is free. Raises Corrupt."""
        key = self._keys.log(log_id, sequence)
        for wait in backoff_seconds(self._random):
            try:
                head = await self._store.get_range(key, 0, HEADER_BYTES, self._purpose)
            except ObjectMissing:
                return None
            except (StoreUnavailable, StoreUnclear):
                await self._clock.sleep(wait)
            else:
                return decode_header(head, key)
        raise AssertionError("backoff never ends")

    async def sequences(self, log_id: str, after: int = -1) -> list[int]:
        """The numbers above `after` that a listing shows as taken, in order."""
        start_after = self._keys.log(log_id, after) if after >= 0 else ""
        for wait in backoff_seconds(self._random):
            try:
                found = await self._store.list(self._keys.log_objects(log_id), self._purpose, start_after)
                return [sequence_of(info.key) for info in found]
            except (StoreUnavailable, StoreUnclear):
                await self._clock.sleep(wait)
        raise AssertionError("backoff never ends")

    async def newest_checkpoint(self, log_id: str) -> NewestCheckpoint:
        """The newest checkpoint that is known to count, by the pointer in the newest objects' headers.

        Later ones may exist: they are met while walking up from what this one covers. While this looks, a living owner
        may write on and delete what was just found: then it looks again. Raises _Swept, Corrupt.
        """
        missing = -1
        while True:
            is_outdated = False
            sequences = await self.sequences(log_id)
            highest = sequences[-1] if sequences else -1
            at_once = 1
            while sequences:
                top = sequences[-at_once:][::-1]
                del sequences[-at_once:]
                # Of a log that has ended these are seals: what lies below all of them is read with the next look.
                at_once = SEALS_AT_ONCE
                newest = None
                for entry in await asyncio.gather(*(self.read(log_id, each) for each in top), return_exceptions=True):
                    if isinstance(entry, BaseException):
                        raise entry
                    if entry is None:
                        is_outdated = True
                    elif entry.seal is None:
                        newest = entry
                        break
                    elif entry.seal.writer == SWEEPER:
                        raise _Swept
                if newest is None:
                    continue
                # Any object of the owner names the newest checkpoint that counted when it was made.
                pointer = newest.header.checkpoint_sequence
                number = newest.header.sequence
                if pointer < 0:
                    return NewestCheckpoint(highest, number)
                named = await self.read(log_id, pointer)
                if named is not None and named.checkpoint is not None:
                    return NewestCheckpoint(highest, number, pointer, named.checkpoint)
                # Where it was deleted, a seal that came late may lie there.
                is_gone = named is None or named.seal is not None
                # Of a listing that is outdated the newest object is none: what it names may be gone by rights.
                if not is_gone or (pointer == missing and not is_outdated):
                    raise Corrupt(f"{newest.key} names a checkpoint at {pointer} that is not there")
                missing, is_outdated = pointer, True
                break
            if not is_outdated:
                return NewestCheckpoint(highest)


async def find_end(reader: LogReader, log_id: str, so_far: LogEnd | None = None) -> LogEnd:
    """How far the log goes now; of a swept one nothing counts any more. Raises Corrupt.

    What was found `so_far` is not read again, unless a newer checkpoint counts by now: then what was above it may have
    been deleted, and numbers that were taken may be free, or hold a seal that came late.
    """
    if so_far is not None and so_far.sealed:
        return so_far
    try:
        found = await reader.newest_checkpoint(log_id)
        while True:
            if so_far is None or found.sequence > so_far.checkpoint_sequence:
                covered = found.checkpoint.covered if found.checkpoint is not None else 0
                so_far = LogEnd(log_id, False, covered, covered, found.checkpoint, [], found.sequence)
            so_far = await _walk_on(reader, so_far, found.highest)
            was_taken = found.shows_taken(so_far.end)
            if not so_far.sealed and not was_taken:
                return so_far
            # The seal is the end, and what was taken is missing, unless the number was the owner's before, covered by a
            # checkpoint and deleted while this walked: then that checkpoint is found now.
            found = await reader.newest_checkpoint(log_id)
            if found.sequence <= so_far.checkpoint_sequence:
                if so_far.sealed:
                    return so_far
                raise Corrupt(f"{reader.key(log_id, so_far.end)} is missing: later objects of the log are there")
    except _Swept:
        return LogEnd(log_id, True, 0, 0, None, [])


async def _walk_on(reader: LogReader, so_far: LogEnd, highest: int) -> LogEnd:
    """From where that ends up to a gap or a seal. Numbers up to `highest` are likely to be taken."""
    checkpoint, checkpoint_sequence = so_far.checkpoint, so_far.checkpoint_sequence
    number, replay_from, walked = so_far.end, so_far.replay_from, list(so_far.objects)
    beyond = FIRST_READS_BEYOND
    while True:
        # One more, which shows that there is none.
        at_once = min(highest + 2 - number, READS_AT_ONCE)
        if at_once <= 0:
            at_once, beyond = beyond, min(2 * beyond, READS_AT_ONCE)
        window = await asyncio.gather(*(reader.read(so_far.log_id, number + i) for i in range(at_once)))
        for entry in window:
            if entry is None or entry.seal is not None:
                is_sealed = entry is not None
                return LogEnd(so_far.log_id, is_sealed, number, replay_from, checkpoint, walked, checkpoint_sequence)
            if entry.checkpoint is not None and number > checkpoint_sequence:
                # Everything from its covered sequence up to here has been walked: it counts.
                checkpoint, checkpoint_sequence = entry.checkpoint, number
                del walked[: checkpoint.covered - replay_from]
                replay_from = checkpoint.covered
            walked.append(entry)
            number += 1


async def read_release(reader: LogReader, log_id: str, sequence: int) -> LogEnd | None:
    """How far the log goes, as far as its object `sequence` says: a checkpoint, and every number from what that covers
    up to it. None where it is no checkpoint that counts. Raises Corrupt."""
    found = await reader.read(log_id, sequence)
    if found is None or found.checkpoint is None:
        return None
    covered = found.checkpoint.covered
    walked = []
    for start in range(covered, sequence, READS_AT_ONCE):
        numbers = range(start, min(start + READS_AT_ONCE, sequence))
        for entry in await asyncio.gather(*(reader.read(log_id, number) for number in numbers)):
            if entry is None or entry.seal is not None:
                return None
            walked.append(entry)
    return LogEnd(log_id, False, sequence + 1, covered, found.checkpoint, [*walked, found], sequence)


async def seal_log(
    store: ObjectStore,
    keys: Keys,
    log_id: str,
    clock: Clock,
    random_source: random.Random,
    writer: str,
    reason: str,
    bugs: PlantedBugs = NO_BUGS,
) -> LogEnd:
    """End the log, however busy its owner is, and say where; data objects come undecoded. Waits as long as the store
    gives no answers.

    Raises Corrupt where what counts of the log can't be read.
    """
    reader = LogReader(store, keys, clock, random_source, undecoded=True)
    found: LogEnd | None = None
    while True:
        found = await find_end(reader, log_id, found)
        if found.sealed or bugs.gap_is_the_end:
            return found
        await asyncio.gather(
            *(
                _try_seal(store, keys.log(log_id, number), log_id, number, clock, random_source, Seal(writer, reason))
                for number in range(found.end, found.end + SEALS_AT_ONCE)
            )
        )


async def _try_seal(
    store: ObjectStore, key: str, log_id: str, number: int, clock: Clock, random_source: random.Random, seal: Seal
) -> None:
    """Make sure that the number is taken, by a seal if nobody was there first."""
    header = encode_header(Kind.SEAL, log_id, number, clock.wall_ms(), -1)
    parts = encode_small(header, seal)
    for wait in backoff_seconds(random_source):
        try:
            await store.put_if_absent(key, parts, Purpose.RECOVERY)
        except ObjectExists:
            return
        except (StoreUnavailable, StoreUnclear):
            await clock.sleep(wait)
        else:
            return

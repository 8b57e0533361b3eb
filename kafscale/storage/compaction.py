"""Compaction: rewrites small objects into segments and packs, so that few objects are live and old data reads in runs.

Owns the counters that say when it is due and the numbers of the new objects. A round takes what lies in small pieces
(`compaction_plan.py` says which), from memory where it still is there, writes segments and one pack, and puts the new
extents in the place of the old. What must always hold:

- Only durable extents are rewritten, and replaced only after the new object is durable; whoever crashes in between
  leaves an object that nothing names, which the sweep takes.
- The replacement lives in this worker's memory until a checkpoint that counts names it. A worker that has been replaced
  writes none, so its compaction changes nothing for anyone.
- Every batch is checked before its old bytes are given up. Damage is reported, and what is damaged stays as it is.
- Memory: at most ROUND_BYTES and one object more, read or pinned, and never more than that is waiting to be written.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec
from crc32c import crc32c

from kafscale.clock import Clock
from kafscale.errors import ObjectExists, StoreUnavailable, StoreUnclear
from kafscale.storage.backoff import backoff_seconds
from kafscale.storage.compaction_plan import (
    FAN_IN,
    Run,
    Sizes,
    Survey,
    largest_segment_bytes,
    pieces_in,
    rounds_of,
    runs_in,
    unsettled,
)
from kafscale.storage.extents import Extent
from kafscale.storage.keys import Keys, index_of
from kafscale.storage.log_objects import HEADER_BYTES, encode_footer
from kafscale.storage.packs import PACK_ROW, encode_pack_header
from kafscale.storage.partition import PartitionLog
from kafscale.storage.rewriting import STEP_WORK, Chunk, DamagedExtent, Pace, Place, Source, cut_into_chunks
from kafscale.storage.segment import SEGMENT_HEADER_BYTES, encode_index, frame_segment
from kafscale.storage.store import Buffer, ObjectStore, Purpose
from kafscale.storage.tail_cache import TailCache

log = logging.getLogger(__name__)

WRITES_AT_ONCE = 8
# How often an object is tried before the round is given up.
WRITE_TRIES = 6
# An index of ours has an entry for each extent; KafScale's readers take the interval for no more than a hint.
_INDEX_INTERVAL = 1000
_EXTENTS_PER_WORK = 8


class ObjectReferences(Protocol):
    """Who counts the extents that refer to each object (`workers/ownership.py`)."""

    unreferenced: list[str]

    def add(self, key: str, count: int = 1) -> None: ...
    def drop(self, extents: Iterable[Extent]) -> None: ...


class CompactionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When the small extents of data objects are compacted: when so many objects have some, or so many bytes lie in
    them, or two objects have some and none was added for so long. `bytes` should be well below the tail cache, so that
    nothing need be read back."""

    objects: int = 256
    bytes: int = 128 << 20
    idle_s: float = 30.0
    sizes: Sizes = Sizes()


class CompactionResult(msgspec.Struct):
    """What a call of `run_once` did. `damaged` runs were left as they are; `outrun` ones were gone when it came to
    replacing them."""

    segments: int = 0
    packs: int = 0
    bytes_written: int = 0
    bytes_read: int = 0
    extents_before: int = 0
    extents_after: int = 0
    damaged: int = 0
    outrun: int = 0


class _SegmentBody:
    """What one segment is to hold; `crc` is of all its pieces."""

    __slots__ = ("bytes", "chunks", "crc", "pieces")

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.pieces: list[Buffer] = []
        self.bytes = 0
        self.crc = 0

    def add(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.bytes += chunk.length
        self.pieces += chunk.pieces
        for piece in chunk.pieces:
            self.crc = crc32c(piece, self.crc)


class Compactor:
    """Compacts the objects of one worker's partitions, one round at a time.

    `serves` says whether the partition is still served here and its slot's last manifest not yet written; `changed` is
    told of every partition whose extents were replaced, so that the next checkpoint writes its slot's manifest.
    """

    def __init__(
        self,
        store: ObjectStore,
        keys: Keys,
        log_id: str,
        clock: Clock,
        random_source: random.Random,
        references: ObjectReferences,
        tail: TailCache,
        serves: Callable[[PartitionLog], bool],
        changed: Callable[[PartitionLog], None],
        policy: CompactionPolicy | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._log_id = log_id
        self._clock = clock
        self._random = random_source
        self._references = references
        self._tail = tail
        self._serves = serves
        self._changed = changed
        self._policy = policy or CompactionPolicy()
        self._pace = Pace(clock)
        self._number = 0
        # Data objects with small extents, as far as known, and the bytes of these.
        self._objects = 0
        self._bytes = 0
        self._flushed_at = clock.monotonic()
        self._look_at_all = True
        # Up to where each partition's data is compacted or to stay: see `Survey`.
        self._settled: dict[PartitionLog, int] = {}
        self._rounds = 0
        # Extents that could not be read as what they must be: left alone from then on.
        self._damaged: set[Place] = set()
        self._running = asyncio.Lock()

    def flushed(self, small_bytes: int) -> None:
        """One more data object is durable, `small_bytes` of it in extents that are not large; 0: there is nothing
        to compact in it."""
        if small_bytes:
            self._objects += 1
            self._bytes += small_bytes
            self._flushed_at = self._clock.monotonic()

    def slots_loaded(self) -> None:
        """Slots were taken over: what they hold is yet to be looked at."""
        self._look_at_all = True

    def due(self) -> bool:
        """Whether `run_once` has something to do; cheap, to be asked at any rate."""
        return self._look_at_all or self._is_data_due()

    def _is_data_due(self) -> bool:
        if self._objects >= self._policy.objects or self._bytes >= self._policy.bytes:
            return True
        return self._objects >= 2 and self._is_idle()

    def _is_idle(self) -> bool:
        return self._clock.monotonic() - self._flushed_at >= self._policy.idle_s

    async def run_once(self, partitions: Iterable[PartitionLog]) -> CompactionResult:
        """One job: a round of data objects, or else a class of packs, or else segments to be merged; perhaps nothing.

        Raises StoreUnavailable where the store gives no answer: try again later, nothing is lost.
        """
        async with self._running:
            result = CompactionResult()
            for members in rounds_of(await self._next_job(list(partitions))):
                if members is None:
                    await self._pace.spend(STEP_WORK)
                else:
                    await self._rewrite(members, result)
            return result

    async def _next_job(self, partitions: list[PartitionLog]) -> list[Run]:
        whole = self._look_at_all and not self._is_data_due()
        survey = Survey(self._keys, whole, self._damaged, self._settled, self._policy.sizes)
        objects_before, bytes_before = self._objects, self._bytes
        for partition in partitions:
            for looked_at in survey.add(partition):
                await self._pace.spend(1 + looked_at // _EXTENTS_PER_WORK)
        self._settled = survey.settled
        # What was flushed meanwhile is counted on top, seen or not.
        self._objects += len(survey.data) - objects_before
        self._bytes += sum(survey.data.values()) - bytes_before
        if self._is_data_due():
            chosen = survey.oldest_data()
            self._rounds += 1
            # Packs and segments grow in number with the rounds; when nothing happens there is time to look.
            if self._rounds % FAN_IN == 0 or self._is_idle():
                self._look_at_all = True
            self._objects -= len(chosen)
            self._bytes -= sum(survey.data[key] for key in chosen)
            return await self._data_runs(partitions, chosen)
        if not whole:
            return []
        for is_full, packs in survey.packs_by_class():
            runs = await self._pack_runs(partitions, set(packs))
            if not is_full or sum(map(pieces_in, runs)) >= FAN_IN * len(runs):
                return runs
        self._look_at_all = bool(survey.segment_runs)
        return survey.segment_runs

    async def _data_runs(self, partitions: list[PartitionLog], chosen: set[str]) -> list[Run]:
        runs: list[Run] = []
        for partition in partitions:
            extents = unsettled(partition, self._settled)
            found = runs_in(extents, partition, chosen, self._damaged, self._policy.sizes.large)
            await self._add_runs(found, runs)
        return runs

    async def _pack_runs(self, partitions: list[PartitionLog], chosen: set[str]) -> list[Run]:
        runs: list[Run] = []
        for partition in partitions:
            extents = list(partition.extents)
            await self._add_runs(runs_in(extents, partition, chosen, self._damaged), runs)
        return runs

    async def _add_runs(self, found: Iterable[Run | None], runs: list[Run]) -> None:
        for run in found:
            if run is not None:
                runs.append(run)
            await self._pace.spend(STEP_WORK if run is None else 1)

    async def _rewrite(self, runs: list[Run], result: CompactionResult) -> None:
        """Rewrite the runs, at most ROUND_BYTES of them, and put them in place."""
        source = Source()
        for run in runs:
            source.add(run.extents)
            await self._pace.spend(len(run.extents) // _EXTENTS_PER_WORK)
        await source.read(self._store, self._pace)
        result.bytes_read += source.bytes_read
        large: list[tuple[Run, list[Chunk]]] = []
        small: list[tuple[Run, list[Chunk]]] = []
        for run in runs:
            if not self._serves(run.partition):
                continue
            try:
                chunks = await cut_into_chunks(run.extents, source, self._pace)
            except DamagedExtent as error:
                self._damaged.add(error.place)
                result.damaged += 1
                log.error("compaction leaves damaged records as they are", extra={"cause": str(error)})
                continue
            (large if run.bytes >= self._policy.sizes.segment_min else small).append((run, chunks))
        if small:
            await self._write_pack(small, result)
        for start in range(0, len(large), WRITES_AT_ONCE):
            # Here, and not in each of the writes that go on at once: these would all take their steps in the same turn.
            bodies = [
                (run, await self._segment_bodies(run, chunks)) for run, chunks in large[start : start + WRITES_AT_ONCE]
            ]
            written = await asyncio.gather(
                *(self._write_segments(run, parts, result) for run, parts in bodies), return_exceptions=True
            )
            for outcome in written:
                if isinstance(outcome, BaseException):
                    raise outcome

    async def _write_pack(self, members: list[tuple[Run, list[Chunk]]], result: CompactionResult) -> None:
        number = self._take_number()
        key = self._keys.pack(self._log_id, number)
        parts: list[Buffer] = [encode_pack_header(self._log_id, number, self._clock.wall_ms())]
        table = bytearray()
        position = HEADER_BYTES
        replacements: list[list[Extent]] = []
        for run, chunks in members:
            placed = _place(chunks, key, position)
            replacements.append(placed)
            for chunk, extent in zip(chunks, placed, strict=True):
                parts += chunk.pieces
                position += chunk.length
                table += PACK_ROW.pack(
                    run.partition.topic_id,
                    run.partition.index,
                    extent.base_offset,
                    extent.last_offset,
                    extent.max_timestamp,
                    extent.position,
                    extent.length,
                )
            await self._pace.spend(2 * len(chunks))
        parts += [table, encode_footer(position, table)]
        try:
            await self._write(key, parts)
        except BaseException:
            self._references.unreferenced.append(key)
            raise
        result.packs += 1
        result.bytes_written += position
        # Held until all runs are in place: the first of them may be deleted before the second refers to the pack.
        self._references.add(key)
        try:
            for (run, _), placed in zip(members, replacements, strict=True):
                self._replace(run, placed, result)
                await self._pace.spend(1 + len(run.extents) // _EXTENTS_PER_WORK)
        finally:
            self._references.drop(replacements[0][:1])

    async def _segment_bodies(self, run: Run, chunks: list[Chunk]) -> list[_SegmentBody]:
        """The run as segments, each no larger than the topic's setting."""
        largest = largest_segment_bytes(run.partition, self._policy.sizes.segment_min)
        bodies = [_SegmentBody()]
        for chunk in chunks:
            if bodies[-1].chunks and bodies[-1].bytes + chunk.length > largest:
                bodies.append(_SegmentBody())
            bodies[-1].add(chunk)
            await self._pace.spend_on(chunk.length)
        return bodies

    async def _write_segments(self, run: Run, bodies: list[_SegmentBody], result: CompactionResult) -> None:
        """Write a run's segments, and replace it when all are durable."""
        replacements: list[Extent] = []
        keys: list[str] = []
        try:
            for body in bodies:
                key, placed = await self._write_segment(run.partition, body)
                keys.append(key)
                replacements += placed
        except BaseException:
            # Broken off too, as when a drain begins.
            self._give_up_segments(keys)
            raise
        result.segments += len(keys)
        result.bytes_written += sum(body.bytes for body in bodies)
        if not self._replace(run, replacements, result):
            self._give_up_segments(keys)

    async def _write_segment(self, partition: PartitionLog, body: _SegmentBody) -> tuple[str, list[Extent]]:
        chunks = body.chunks
        base_offset, last_offset = chunks[0].base_offset, chunks[-1].last_offset
        key = self._keys.segment(
            partition.topic, partition.topic_id, partition.index, base_offset, self._log_id, self._take_number()
        )
        placed = _place(chunks, key, SEGMENT_HEADER_BYTES)
        index = encode_index(_INDEX_INTERVAL, [(extent.base_offset, extent.position) for extent in placed])
        records = sum(chunk.records for chunk in chunks)
        head, foot = frame_segment(base_offset, last_offset, records, self._clock.wall_ms(), body.crc)
        try:
            await self._write(index_of(key), [index])
            await self._write(key, [head, *body.pieces, foot])
        except BaseException:
            self._give_up_segments([key])
            raise
        return key, placed

    def _replace(self, run: Run, replacements: list[Extent], result: CompactionResult) -> bool:
        """Put the new extents, durable by now, in the place of the old ones; False if these are gone."""
        partition = run.partition
        if not self._serves(partition) or not partition.replace(
            run.extents[0].base_offset, run.extents[-1].last_offset, replacements
        ):
            result.outrun += 1
            return False
        for extent in replacements:
            self._references.add(extent.key)
        self._references.drop(run.extents)
        self._tail.replace(run.extents, replacements)
        self._changed(partition)
        result.extents_before += len(run.extents)
        result.extents_after += len(replacements)
        return True

    def _give_up_segments(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._references.unreferenced += (key, index_of(key))

    def _take_number(self) -> int:
        self._number += 1
        return self._number

    async def _write(self, key: str, parts: Sequence[Buffer]) -> None:
        """Create the object. A taken key is our own earlier try: no other incarnation builds keys with this log's id,
        and a number stays bound to its bytes. Raises StoreUnavailable after WRITE_TRIES; the caller then gives the key
        up, as it does when it is cancelled: the object may be there."""
        waits = backoff_seconds(self._random)
        for _ in range(WRITE_TRIES):
            try:
                await self._store.put_if_absent(key, parts, Purpose.COMPACTION)
            except ObjectExists:
                return
            except (StoreUnavailable, StoreUnclear):
                await self._clock.sleep(next(waits))
            else:
                return
        raise StoreUnavailable(f"{key} could not be written: the store gave no answer {WRITE_TRIES} times")


def _place(chunks: Sequence[Chunk], key: str, position: int) -> list[Extent]:
    """The extents of chunks that lie one after the other from `position` of `key` on."""
    placed = []
    for chunk in chunks:
        views = chunk.pieces if chunk.is_hot else None
        extent = Extent(chunk.base_offset, chunk.last_offset, chunk.max_timestamp, key, position, chunk.length, views)
        if chunk.checksum is not None:
            extent.batches = chunk.batches
            extent.checksum = chunk.checksum
        placed.append(extent)
        position += chunk.length
    return placed

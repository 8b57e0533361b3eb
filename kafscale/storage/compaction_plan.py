"""What compaction does next: which objects are rewritten together, and which runs of extents that means. Pure.

Owns the size classes. It looks at partitions and changes nothing; every extent it sees is durable, since only such ones
are in a partition's list. Objects come in three kinds: data objects of logs, packs and segments.

Large extents (LARGE_EXTENT_BYTES and more) of data objects stay where they are. They read well as it is, and rewriting
would double the bytes written by whoever produces at full speed. Such an extent ends a run of its neighbours and a
stretch of segments to be merged. Its object lives as long as the extent does, with what else was in it: dead bytes, at
most a flush beside 256 KiB. Compaction alone makes them at most as many as are alive, since whatever it leaves behind
has one live copy elsewhere; only when these copies are deleted before the large extent does the rest of its object
outlast its use (16 times as much as is alive at worst, with flushes of 4 MiB).

What is large, and from how much on a partition gets a segment of its own, is another matter in a bucket, where each
request costs money: see `Sizes`.

Classes are powers of FAN_IN, and what is merged comes out at least one class higher, so a byte is rewritten at most
- once from its data object, and that only if its extent is small,
- once per class of packs, 64 KiB to 32 MiB: 4 times, and full packs again while their extents are short: 3 times,
- once per class of segments, 1 MiB to half of the largest: 2 times,
and mostly far less, since a partition that comes to SEGMENT_MIN_BYTES in a job skips the packs. At most FAN_IN - 1
packs of each class lie unmerged, and as many segments of each class per partition; full ones hold 32 MiB, or half of
the largest segment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec

from kafscale.storage.extents import LARGE_EXTENT_BYTES, Extent, extent_at
from kafscale.storage.keys import Keys
from kafscale.storage.partition import PartitionLog
from kafscale.storage.rewriting import Place

FAN_IN = 8
# The memory that one round takes: what it reads, and what it pins of the tail cache.
ROUND_BYTES = 64 << 20
# A partition with so much in a job gets a segment of its own; no segment is larger than a round.
SEGMENT_MIN_BYTES = 1 << 20
# So many extents are looked at in one step: about a millisecond.
STEP_EXTENTS = 2000
# A run has at most so many extents: they are replaced in one step.
RUN_EXTENTS = 8000
PACK_CLASS_BYTES = (64 << 10, 512 << 10, 4 << 20, 32 << 20)
FULL_PACK_EXTENT_BYTES = (4 << 10, 32 << 10, 256 << 10)


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """What compaction takes for large, and from how many bytes on a partition gets a segment; None: as the constants
    say, which suit a disk."""

    large_extent_bytes: int | None = None
    segment_min_bytes: int | None = None

    @property
    def large(self) -> int:
        return LARGE_EXTENT_BYTES if self.large_extent_bytes is None else self.large_extent_bytes

    @property
    def segment_min(self) -> int:
        return SEGMENT_MIN_BYTES if self.segment_min_bytes is None else self.segment_min_bytes


# In a bucket a request costs as much as keeping 200 KB for a month, or sending any number of bytes. A segment is two
# requests, so it must be large to be cheap; and what costs a request each time it is read should not be small.
BUCKET_SIZES = Sizes(large_extent_bytes=1 << 20, segment_min_bytes=32 << 20)


class Run(msgspec.Struct, frozen=True, gc=False):
    """Adjacent extents of one partition that are rewritten together."""

    partition: PartitionLog
    extents: list[Extent]
    bytes: int


class PackUse(msgspec.Struct, gc=False):
    """What this worker's partitions hold in a pack: bytes, and in how many pieces."""

    bytes: int = 0
    pieces: int = 0


class _Piece(msgspec.Struct, gc=False):
    """Adjacent extents of one partition in one object."""

    key: str
    is_segment: bool
    first: int
    last: int
    bytes: int


class Survey:
    """What is to be compacted. `whole`: look at everything, packs and segments too.

    Else only what an earlier survey has not found to be settled is looked at: `settled` says, for each partition, below
    which offset no small extent lies in a data object. So the cost follows what is new, however much stays in place.
    """

    def __init__(
        self,
        keys: Keys,
        whole: bool,
        damaged: Collection[Place],
        settled: Mapping[PartitionLog, int] | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        # Of each data object, the live bytes in small extents.
        self.data: dict[str, int] = {}
        # The same as `settled`, of the partitions that were added: for the next survey.
        self.settled: dict[PartitionLog, int] = {}
        self.packs: dict[str, PackUse] = {}
        self.segment_runs: list[Run] = []
        self._keys = keys
        self._whole = whole
        self._damaged = damaged
        self._settled_before = settled or {}
        sizes = sizes or Sizes()
        self._large = sizes.large
        self._segment_min = sizes.segment_min

    def add(self, partition: PartitionLog) -> Iterator[int]:
        """Take a partition in, step by step: yields how many extents were looked at since the last step."""
        # A copy, up to this offset: others append, and retention deletes, between two steps.
        end = partition.high_watermark
        if self._whole:
            return self._look_at_all(partition, list(partition.extents), end)
        return self._look_at_new(partition, unsettled(partition, self._settled_before), end)

    def _look_at_new(self, partition: PartitionLog, extents: list[Extent], end: int) -> Iterator[int]:
        log_prefix, large = self._keys.log_prefix, self._large
        for number, extent in enumerate(extents, 1):
            if extent.length < large and extent.key.startswith(log_prefix):
                self._add_data(partition, extent)
            if number % STEP_EXTENTS == 0:
                yield STEP_EXTENTS
        self.settled.setdefault(partition, end)
        yield 1 + len(extents) % STEP_EXTENTS

    def _add_data(self, partition: PartitionLog, extent: Extent) -> None:
        """Note a small extent of a data object."""
        if not self._damaged or (extent.key, extent.position) not in self._damaged:
            self.data[extent.key] = self.data.get(extent.key, 0) + extent.length
            self.settled.setdefault(partition, extent.base_offset)

    def _look_at_all(self, partition: PartitionLog, extents: list[Extent], end: int) -> Iterator[int]:
        """Count data objects and packs, and find segments to merge: neighbours that were rewritten before."""
        log_prefix, topics_prefix, pack_prefix = self._keys.log_prefix, self._keys.topics_prefix, self._keys.pack_prefix
        largest, large = largest_segment_bytes(partition, self._segment_min), self._large
        stretch: list[_Piece] = []
        found: list[_Piece] | None = None
        for index, extent in enumerate(extents):
            if index % STEP_EXTENTS == STEP_EXTENTS - 1:
                yield STEP_EXTENTS
            key = extent.key
            if not stretch or stretch[-1].key != key:
                is_segment = key.startswith(topics_prefix)
                if not is_segment and not key.startswith(pack_prefix):
                    if extent.length < large and key.startswith(log_prefix):
                        self._add_data(partition, extent)
                    found = found or _worth_merging(stretch, largest, self._segment_min)
                    stretch = []
                    continue
                stretch.append(_Piece(key, is_segment, index, index, 0))
                if not is_segment:
                    self.packs.setdefault(key, PackUse()).pieces += 1
            if self._damaged and (key, extent.position) in self._damaged:
                stretch.pop()
                found = found or _worth_merging(stretch, largest, self._segment_min)
                stretch = []
                continue
            piece = stretch[-1]
            piece.last = index
            piece.bytes += extent.length
            if not piece.is_segment:
                self.packs[key].bytes += extent.length
        found = found or _worth_merging(stretch, largest, self._segment_min)
        if found:
            members = extents[found[0].first : found[-1].last + 1]
            self.segment_runs.append(Run(partition, members, sum(piece.bytes for piece in found)))
        self.settled.setdefault(partition, end)
        yield 1 + len(extents) % STEP_EXTENTS

    def oldest_data(self) -> set[str]:
        """The data objects of the next round, oldest first within each log, about ROUND_BYTES of them."""
        chosen: set[str] = set()
        total = 0
        for key in sorted(self.data):
            if total and total + self.data[key] > ROUND_BYTES:
                break
            chosen.add(key)
            total += self.data[key]
        return chosen

    def packs_by_class(self) -> list[tuple[bool, list[str]]]:
        """Groups of at least FAN_IN packs of one class, smallest first, each with whether they are full."""
        classes: dict[tuple[int, int], list[str]] = {}
        for key, use in self.packs.items():
            size_class = _class_of(use.bytes, PACK_CLASS_BYTES)
            is_full = size_class == len(PACK_CLASS_BYTES)
            extent_class = _class_of(use.bytes // use.pieces, FULL_PACK_EXTENT_BYTES) if is_full else 0
            # Full packs with long extents read well: they stay as they are.
            if extent_class < len(FULL_PACK_EXTENT_BYTES):
                classes.setdefault((size_class, extent_class), []).append(key)
        return [
            (size_class == len(PACK_CLASS_BYTES), sorted(members))
            for (size_class, _), members in sorted(classes.items())
            if len(members) >= FAN_IN
        ]


def largest_segment_bytes(partition: PartitionLog, segment_min_bytes: int) -> int:
    return max(segment_min_bytes, min(partition.config.segment_bytes, ROUND_BYTES))


def _class_of(size: int, bounds: tuple[int, ...]) -> int:
    for number, bound in enumerate(bounds):
        if size < bound:
            return number
    return len(bounds)


def _worth_merging(stretch: list[_Piece], largest: int, segment_min_bytes: int) -> list[_Piece] | None:
    """The first stretch of neighbouring pieces with FAN_IN segments of one class and no larger one among them."""
    if len(stretch) < FAN_IN:
        return None
    bound = segment_min_bytes
    while bound < largest // 2:
        lowest, bound = bound, min(bound * FAN_IN, largest // 2)
        start = members = 0
        for index, piece in enumerate(stretch):
            if piece.bytes >= bound:
                start, members = index + 1, 0
                continue
            members += piece.is_segment and piece.bytes >= lowest
            is_last_of_run = index + 1 == len(stretch) or stretch[index + 1].bytes >= bound
            if is_last_of_run and members >= FAN_IN:
                return stretch[start : index + 1]
    return None


def unsettled(partition: PartitionLog, settled: Mapping[PartitionLog, int]) -> list[Extent]:
    """The partition's extents from where small ones may lie in data objects (see `Survey`)."""
    return partition.extents[extent_at(partition.extents, settled.get(partition, 0)) :]


def runs_in(
    extents: Sequence[Extent],
    partition: PartitionLog,
    chosen: Collection[str],
    damaged: Collection[Place],
    leave_from: int | None = None,
) -> Iterator[Run | None]:
    """The runs of a partition's `extents` that lie in the chosen objects, but of those that are `leave_from` bytes or
    larger; None after each step's worth of others."""
    members: list[Extent] = []
    size = 0
    for number, extent in enumerate(extents):
        if number % STEP_EXTENTS == STEP_EXTENTS - 1:
            yield None
        if (
            extent.key in chosen
            and (leave_from is None or extent.length < leave_from)
            and not (damaged and (extent.key, extent.position) in damaged)
        ):
            if len(members) == RUN_EXTENTS:
                yield Run(partition, members, size)
                members, size = [], 0
            members.append(extent)
            size += extent.length
        elif members:
            yield Run(partition, members, size)
            members, size = [], 0
    if members:
        yield Run(partition, members, size)


def pieces_in(run: Run) -> int:
    """In how many objects the run lies, counting one again where it comes back."""
    return 1 + sum(before.key != after.key for before, after in pairwise(run.extents))


def rounds_of(runs: Iterable[Run]) -> Iterator[list[Run] | None]:
    """The runs in the order of partitions, in groups of about ROUND_BYTES; longer runs are cut between extents. None
    after each step's worth of work without a group."""
    group: list[Run] = []
    room = ROUND_BYTES
    looked_at = 0
    for run in sorted(runs, key=lambda run: (run.partition.topic_id, run.partition.index, run.extents[0].base_offset)):
        members: list[Extent] = []
        size = 0
        for extent in run.extents:
            if size + extent.length > room and (members or group):
                if members:
                    group.append(Run(run.partition, members, size))
                yield group
                group, members, size, room = [], [], 0, ROUND_BYTES
            members.append(extent)
            size += extent.length
            looked_at += 1
            if looked_at % STEP_EXTENTS == 0:
                yield None
        group.append(Run(run.partition, members, size))
        room -= size
    if group:
        yield group

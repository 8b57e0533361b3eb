"""What is wrong with an object, by its own bytes and by what manifests say lies in it. Pure.

Owns no object and asks no store: bytes in, damages out. It reads with the code that serves (`log_objects`, `packs`,
`segment`, `batches`), and where that stops at the first wrong byte it says which offsets are affected and looks at what
lies behind. What no manifest refers to is checked as well, as far as the object's own table tells what lies there.

What a manifest says of an object is a run of rows, one for each extent, packed so that a bucket's worth of them costs
some 48 bytes each.

Every byte is vouched for by a checksum, by a second place that says the same, or by having to be zero; but for two
fields of KafScale's format that nobody goes by: a segment's time of creation, and the interval that its index names.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec
from crc32c import crc32c

from kafscale.errors import Corrupt, Misplaced
from kafscale.protocol.batches import ATTRIBUTES_AT, HEADER_BYTES, iterate, read_header
from kafscale.storage.keys import sequence_of, writer_of
from kafscale.storage.log_objects import (
    HEADER_BYTES as OBJECT_HEADER_BYTES,
)
from kafscale.storage.log_objects import (
    BatchGroup,
    Kind,
    LogStart,
    decode_checkpoint,
    decode_data_table,
    decode_footer,
    decode_header,
    decode_seal,
    split_object,
)
from kafscale.storage.packs import read_pack
from kafscale.storage.partition import EpochStart
from kafscale.storage.segment import SEGMENT_HEADER_BYTES, encode_index, read_index, read_segment

# topic id, partition, base offset, last offset, position, length
EXPECTED_ROW = struct.Struct(">16siqqQI")
# Topic id and partition -> under which leader epochs its offsets were written.
Epochs = Mapping[tuple[bytes, int], Sequence[EpochStart]]
NO_EPOCHS: Epochs = {}
_SEGMENT_BASE = struct.Struct(">q")
_SEGMENT_BASE_AT = 8


class Wrong(StrEnum):
    """What can be wrong with an object. A leftover is not: nothing names it, and it will be deleted in due course."""

    MISSING = "missing"
    CORRUPT = "corrupt"
    UNREFERENCED = "unreferenced"
    MISPLACED = "misplaced"
    LEFTOVER = "leftover"


def wrong_of(error: Corrupt) -> Wrong:
    """What a reader that failed found wrong."""
    return Wrong.MISPLACED if isinstance(error, Misplaced) else Wrong.CORRUPT


class OffsetRange(msgspec.Struct, frozen=True, order=True):
    """Offsets of a partition, both ends included."""

    topic_id: bytes
    partition: int
    first: int
    last: int


class Damage(msgspec.Struct, frozen=True):
    """Something wrong with an object, and the offsets that it takes along; none: nothing that is served lies there."""

    wrong: Wrong
    problem: str
    affected: list[OffsetRange] = []


def expected_row(topic_id: bytes, partition: int, base: int, last: int, position: int, length: int) -> bytes:
    return EXPECTED_ROW.pack(topic_id, partition, base, last, position, length)


def ranges_of(rows: bytes | bytearray) -> list[OffsetRange]:
    """The offsets that rows speak of, neighbours joined."""
    found = sorted(OffsetRange(row[0], row[1], row[2], row[3]) for row in EXPECTED_ROW.iter_unpack(rows))
    return joined(found)


def joined(ranges: list[OffsetRange]) -> list[OffsetRange]:
    """Sorted ranges with neighbours made one."""
    result: list[OffsetRange] = []
    for entry in ranges:
        before = result[-1] if result else None
        if (
            before is not None
            and (before.topic_id, before.partition) == (entry.topic_id, entry.partition)
            and entry.first <= before.last + 1
        ):
            result[-1] = msgspec.structs.replace(before, last=max(before.last, entry.last))
        else:
            result.append(entry)
    return result


def least_size(rows: bytes | bytearray) -> int:
    """How large an object must be to hold its rows."""
    return max((row[4] + row[5] for row in EXPECTED_ROW.iter_unpack(rows)), default=0)


def check_object(key: str, data: bytes, rows: bytes | bytearray, epochs: Epochs = NO_EPOCHS) -> list[Damage]:
    """Everything wrong with a whole log object, pack or segment of that key."""
    name = key.rpartition("/")[2]
    if name.startswith("segment-"):
        damages = _check_segment(key, data)
    elif "/pack/" in key:
        damages = _check_pack(key, data, rows)
    else:
        damages = _check_log_object(key, data, rows)
    return [*damages, *_check_expected(data, rows, epochs)]


def check_index(key: str, index: bytes, segment: bytes | None) -> list[Damage]:
    """Everything wrong with a segment's index; `segment` is None where it can't be read."""
    try:
        found = read_index(index)
        if encode_index(found.interval, list(zip(found.offsets, found.positions, strict=True))) != index:
            raise Corrupt("bytes that must be zero are not")
        if segment is not None:
            _check_entries(found.offsets, found.positions, segment)
    except Corrupt as error:
        return [Damage(Wrong.CORRUPT, str(error))]
    return []


def _check_entries(offsets: list[int], positions: list[int], segment: bytes) -> None:
    for offset, position in zip(offsets, positions, strict=True):
        found = read_header(segment, position).base_offset
        if found != offset:
            raise Corrupt(f"the entry for offset {offset} leads to a batch at {found}")


# The three kinds of objects


def _check_log_object(key: str, data: bytes, rows: bytes | bytearray) -> list[Damage]:
    try:
        header, table = split_object(data, key)
        damages = _check_place(key, header.log_id, header.sequence)
        match header.kind:
            case Kind.CHECKPOINT:
                decode_checkpoint(table, key)
            case Kind.SEAL:
                decode_seal(table, key)
            case Kind.DATA:
                groups = decode_data_table(table, key)
                damages += [*_check_epochs(data, groups), *_check_unnamed(data, _batches_of(groups), rows)]
                damages += _check_padding(data, groups, decode_footer(data, key).position)
    except Corrupt as error:
        # The extents are looked at by what the manifests say; what nothing names can't be found without the table.
        return [Damage(Wrong.CORRUPT, str(error)), *_misplaced_by_header(key, data)]
    return damages


def _misplaced_by_header(key: str, data: bytes) -> list[Damage]:
    try:
        header = decode_header(data, key)
    except Corrupt:
        return []
    return _check_place(key, header.log_id, header.sequence)


def _check_pack(key: str, data: bytes, rows: bytes | bytearray) -> list[Damage]:
    try:
        header, extents = read_pack(data, key)
    except Corrupt as error:
        return [Damage(Wrong.CORRUPT, str(error))]
    places = (
        (OffsetRange(row.topic_id, row.partition, row.base_offset, row.last_offset), row.position, row.length)
        for row in extents
    )
    return [*_check_place(key, header.log_id, header.number), *_check_unnamed(data, places, rows)]


def _check_segment(key: str, data: bytes) -> list[Damage]:
    """The frame only where it is broken: which batches are, the expected rows tell."""
    damages = []
    base_offset = int(key.rpartition("/segment-")[2].split("-", 1)[0])
    if len(data) >= SEGMENT_HEADER_BYTES:
        (found,) = _SEGMENT_BASE.unpack_from(data, _SEGMENT_BASE_AT)
        if found != base_offset:
            damages.append(Damage(Wrong.MISPLACED, f"holds the segment of offset {found}"))
    try:
        read_segment(data)
    except Corrupt as error:
        damages.append(Damage(Wrong.CORRUPT, str(error)))
    return damages


def _check_place(key: str, log_id: str, number: int) -> list[Damage]:
    """Whether an object is the one that its key says."""
    if writer_of(key) == log_id and sequence_of(key) == number:
        return []
    return [Damage(Wrong.MISPLACED, f"holds number {number} of log {log_id}")]


# Batches

_Place = tuple[OffsetRange, int, int]


def _batches_of(groups: list[BatchGroup | LogStart]) -> Iterator[_Place]:
    for group in groups:
        if isinstance(group, BatchGroup):
            position = group.position
            for base_offset, delta, length, *_ in group.rows:
                yield OffsetRange(group.topic_id, group.partition, base_offset, base_offset + delta), position, length
                position += length


def _check_epochs(data: bytes, groups: list[BatchGroup | LogStart]) -> Iterator[Damage]:
    """The leader epoch is no part of a batch's CRC, but the table knows it."""
    for group in groups:
        if isinstance(group, BatchGroup):
            position = group.position
            for base_offset, delta, length, *_ in group.rows:
                if position + HEADER_BYTES <= len(data):
                    epoch = read_header(data, position).leader_epoch
                    if epoch != group.leader_epoch:
                        where = OffsetRange(group.topic_id, group.partition, base_offset, base_offset + delta)
                        problem = f"the batch at {position} is of leader epoch {epoch}, not {group.leader_epoch}"
                        yield Damage(Wrong.CORRUPT, problem, [where])
                position += length


def _check_padding(data: bytes, groups: list[BatchGroup | LogStart], table_position: int) -> list[Damage]:
    """Between batches, and before the table, there are zeros and nothing else."""
    end = OBJECT_HEADER_BYTES
    places = sorted((position, length) for _, position, length in _batches_of(groups))
    for position, length in [*places, (table_position, 0)]:
        if any(memoryview(data)[end:position]):
            return [Damage(Wrong.CORRUPT, f"bytes {end} to {position - 1}, which nothing refers to, are not all zero")]
        end = max(end, position + length)
    return []


def _check_unnamed(data: bytes, places: Iterator[_Place], rows: bytes | bytearray) -> list[Damage]:
    """Damages in what the object's table names and no manifest does."""
    named = sorted((row[4], row[4] + row[5]) for row in EXPECTED_ROW.iter_unpack(rows))
    damages: list[Damage] = []
    index = 0
    for where, position, length in sorted(places, key=lambda place: place[1]):
        while index < len(named) and named[index][1] <= position:
            index += 1
        if index < len(named) and named[index][0] <= position:
            continue
        for _, problem in _damages_in(data, where, position, length):
            damages.append(Damage(Wrong.CORRUPT, f"{problem} (in bytes that no manifest refers to)"))
    return damages


def _check_expected(data: bytes, rows: bytes | bytearray, epochs: Epochs) -> list[Damage]:
    """Damages in what manifests refer to."""
    damages = []
    for topic_id, partition, base, last, position, length in EXPECTED_ROW.iter_unpack(rows):
        where = OffsetRange(topic_id, partition, base, last)
        for affected, problem in _damages_in(data, where, position, length, epochs.get((topic_id, partition), ())):
            damages.append(Damage(Wrong.CORRUPT, problem, [affected]))
    return damages


def _damages_in(
    data: bytes, where: OffsetRange, position: int, length: int, epochs: Sequence[EpochStart] = ()
) -> Iterator[tuple[OffsetRange, str]]:
    """Which of an extent's offsets can't be served, and why. A batch's leader epoch is no part of its CRC: where the
    partition's `epochs` tell which it should be, they vouch for it."""
    if position + length > len(data):
        yield where, f"ends at {len(data)}, where {length} bytes should lie at {position}"
        return
    view = memoryview(data)[position : position + length]
    due = where.first
    try:
        for start, header in iterate(view):
            last = header.last_offset
            if header.base_offset != due or not due <= last <= where.last:
                found = f"a batch of offsets {header.base_offset} to {last}"
                yield _from(where, due), f"{found} lies at {position + start}, where {due} is due"
                return
            if crc32c(view[start + ATTRIBUTES_AT : start + header.size_bytes]) != header.crc:
                affected = msgspec.structs.replace(where, first=due, last=last)
                yield affected, f"the batch at {position + start} does not match its CRC"
            epoch = _epoch_of(last, epochs)
            if epoch is not None and header.leader_epoch != epoch:
                affected = msgspec.structs.replace(where, first=due, last=last)
                yield affected, f"the batch at {position + start} is of leader epoch {header.leader_epoch}, not {epoch}"
            due = last + 1
    except Corrupt as error:
        yield _from(where, due), f"at {position}: {error}"
        return
    if due != where.last + 1:
        yield _from(where, due), f"the batches at {position} end before offset {due}, {where.last} should be the last"


def _epoch_of(offset: int, epochs: Sequence[EpochStart]) -> int | None:
    found = None
    for entry in epochs:
        if entry.start_offset > offset:
            break
        found = entry.epoch
    return found


def _from(where: OffsetRange, first: int) -> OffsetRange:
    return msgspec.structs.replace(where, first=min(first, where.last))

"""The bytes of a worker log's objects: data, checkpoint and seal. Pure.

    header (64)   magic "KFSL", version u16, kind u16, log id 16, sequence u64, created i64 (Unix ms),
                  newest counting checkpoint's sequence i64 (-1: none yet), 12 reserved, CRC32C u32 of the 60 before
    body          data: record batches, grouped by partition, as served to consumers; else empty
    table         data: groups of rows (below); checkpoint and seal: msgpack
    copy (64)     of the header, so that the last bytes alone tell what the object says; older objects have none
    footer (24)   table position u64, table length u32, CRC32C of the table u32, length of the copy u32, magic "LSFK"

All numbers are big-endian. A group of a data table begins with a kind byte:

    1 batches           topic id 16, partition i32, leader epoch i32, position u64, count u32, then `count` rows:
                        base offset i64, last offset delta i32, length i32, max timestamp i64, producer id i64,
                        producer epoch i16, base sequence i32, attributes i16. The batches lie one after the other.
    2 log start offset  topic id 16, partition i32, leader epoch i32, offset i64

The header's checkpoint number lets whoever takes over find the newest checkpoint from the newest object alone. Body
bytes carry their own CRC32C per batch; the table's is in the footer. Damage raises Corrupt, naming key and place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum

import msgspec
from crc32c import crc32c

from kafscale.errors import Corrupt
from kafscale.storage.store import Buffer

VERSION = 1
HEADER = struct.Struct(">4sHH16sQqq12xI")
FOOTER = struct.Struct(">QIII4s")
HEADER_BYTES = HEADER.size
FOOTER_BYTES = FOOTER.size
MAGIC = b"KFSL"
END_MAGIC = b"LSFK"
# One tail read of this many bytes holds all but the largest tables: some 1,500 partitions.
TAIL_BYTES = 128 * 1024

BATCHES_GROUP = struct.Struct(">B16siiQI")
BATCH_ROW = struct.Struct(">qiiqqhih")
LOG_START_GROUP = struct.Struct(">B16siiq")


class Kind(IntEnum):
    DATA = 1
    CHECKPOINT = 2
    SEAL = 3


class GroupKind(IntEnum):
    BATCHES = 1
    LOG_START_OFFSET = 2


class Header(msgspec.Struct, frozen=True, gc=False):
    """Who wrote the object, as which number of its log."""

    kind: Kind
    log_id: str
    sequence: int
    created_ms: int
    checkpoint_sequence: int


class BatchGroup(msgspec.Struct, frozen=True, gc=False):
    """Rows of one partition: `rows` are `BATCH_ROW` tuples in offset order, their bytes lie from `position` on."""

    topic_id: bytes
    partition: int
    leader_epoch: int
    position: int
    rows: list[tuple[int, int, int, int, int, int, int, int]]


class LogStart(msgspec.Struct, frozen=True, gc=False):
    """The partition's log start offset was raised to `offset`."""

    topic_id: bytes
    partition: int
    leader_epoch: int
    offset: int


class ManifestPlace(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a slot's manifest lies. An empty `key` stands for a slot that never held anything."""

    epoch: int
    key: str
    position: int
    length: int


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where the manifest of every owned slot lies, as of everything below `covered`.

    Replay begins at sequence `covered`. `given_up` names this worker's own objects that no manifest needs any more:
    once this checkpoint counts they may be deleted. `released` (slot → epoch) are the slots that the log has given up
    as assigned at that epoch and before: no object from this one on holds anything of these assignments. The last
    manifest of a released slot, if there is one, stays in `slots` for as long as others may need it.
    """

    covered: int
    slots: dict[int, ManifestPlace]
    given_up: list[str] = []
    released: dict[int, int] = {}


class Seal(msgspec.Struct, frozen=True):
    """The end of a log: who wrote it and why."""

    writer: str
    reason: str


def encode_header(kind: Kind, log_id: str, sequence: int, created_ms: int, checkpoint_sequence: int) -> bytes:
    header = bytearray(
        HEADER.pack(MAGIC, VERSION, kind, bytes.fromhex(log_id), sequence, created_ms, checkpoint_sequence, 0)
    )
    header[-4:] = crc32c(header[:-4]).to_bytes(4, "big")
    return bytes(header)


def decode_header(data: Buffer, key: str) -> Header:
    """Raises Corrupt."""
    if len(data) < HEADER_BYTES:
        raise Corrupt(f"{key}: {len(data)} bytes are too few for a log object's header of {HEADER_BYTES}")
    magic, version, kind, log_id, sequence, created_ms, checkpoint_sequence, crc = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise Corrupt(f"{key}: no log object (magic {magic!r})")
    if crc32c(bytes(data[: HEADER_BYTES - 4])) != crc:
        raise Corrupt(f"{key}: the header's CRC32C does not match")
    if version != VERSION:
        raise Corrupt(f"{key}: log object of format version {version}; this release reads version {VERSION}")
    return Header(Kind(kind), log_id.hex(), sequence, created_ms, checkpoint_sequence)


def encode_footer(table_position: int, table: Buffer, header: bytes = b"") -> bytes:
    """The footer, and before it the copy of the header, for objects that have one."""
    return header + FOOTER.pack(table_position, len(table), crc32c(table), len(header), END_MAGIC)


class Footer(msgspec.Struct, frozen=True, gc=False):
    """Where an object's table lies, its CRC32C, and the copy of the header; empty where there is none."""

    position: int
    length: int
    crc: int
    header: bytes

    def check_size(self, size: int, key: str) -> None:
        """Raise Corrupt where an object of that size can't end so."""
        if self.position + self.length + len(self.header) + FOOTER_BYTES != size:
            raise Corrupt(f"{key}: the footer's table place {self.position}+{self.length} does not fit {size} bytes")

    def check_table(self, table: Buffer, key: str) -> None:
        """Raise Corrupt where these are not the table's bytes."""
        if crc32c(table) != self.crc:
            raise Corrupt(f"{key}: the table's CRC32C does not match")


def decode_footer(tail: Buffer, key: str) -> Footer:
    """From an object's last bytes. Raises Corrupt."""
    if len(tail) < FOOTER_BYTES:
        raise Corrupt(f"{key}: truncated, only {len(tail)} bytes")
    at = len(tail) - FOOTER_BYTES
    position, length, crc, copied, magic = FOOTER.unpack_from(tail, at)
    if magic != END_MAGIC:
        raise Corrupt(f"{key}: no footer at the end (magic {magic!r}): truncated or damaged")
    if copied not in (0, HEADER_BYTES) or copied > at:
        raise Corrupt(f"{key}: the footer tells of {copied} bytes of header before it")
    return Footer(position, length, crc, bytes(tail[at - copied : at]))


def decode_data_table(table: Buffer, key: str) -> list[BatchGroup | LogStart]:
    """The groups of a data object's table, in order. Raises Corrupt."""
    groups: list[BatchGroup | LogStart] = []
    position, end = 0, len(table)
    try:
        while position < end:
            match table[position]:
                case GroupKind.BATCHES:
                    _, topic_id, partition, epoch, start, count = BATCHES_GROUP.unpack_from(table, position)
                    position += BATCHES_GROUP.size
                    if count * BATCH_ROW.size > end - position:
                        raise Corrupt(f"{key}: a table group claims {count} rows, more than the table holds")
                    rows = list(BATCH_ROW.iter_unpack(table[position : position + count * BATCH_ROW.size]))
                    position += count * BATCH_ROW.size
                    groups.append(BatchGroup(topic_id, partition, epoch, start, rows))
                case GroupKind.LOG_START_OFFSET:
                    _, topic_id, partition, epoch, offset = LOG_START_GROUP.unpack_from(table, position)
                    position += LOG_START_GROUP.size
                    groups.append(LogStart(topic_id, partition, epoch, offset))
                case other:
                    raise Corrupt(f"{key}: unknown kind {other} of table group at {position}")
    except struct.error as error:
        raise Corrupt(f"{key}: the table ends inside a group at {position}") from error
    return groups


_encoder = msgspec.msgpack.Encoder()
_checkpoint_decoder = msgspec.msgpack.Decoder(Checkpoint)
_seal_decoder = msgspec.msgpack.Decoder(Seal)


def encode_small(header: bytes, content: Checkpoint | Seal) -> list[Buffer]:
    """The parts of a checkpoint or seal object."""
    table = _encoder.encode(content)
    return [header, table, encode_footer(HEADER_BYTES, table, header)]


def decode_checkpoint(table: Buffer, key: str) -> Checkpoint:
    """Raises Corrupt."""
    try:
        return _checkpoint_decoder.decode(table)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{key}: the checkpoint can't be read: {error}") from error


def decode_seal(table: Buffer, key: str) -> Seal:
    """Raises Corrupt."""
    try:
        return _seal_decoder.decode(table)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{key}: the seal can't be read: {error}") from error


def split_object(data: bytes, key: str) -> tuple[Header, memoryview]:
    """Header and table of a whole object. Raises Corrupt."""
    header = decode_header(data, key)
    footer = decode_footer(data, key)
    footer.check_size(len(data), key)
    table = memoryview(data)[footer.position : footer.position + footer.length]
    footer.check_table(table, key)
    if footer.header and footer.header != data[:HEADER_BYTES]:
        raise Corrupt(f"{key}: the copy of the header differs from it")
    return header, table


def join(parts: Sequence[Buffer]) -> bytes:
    return b"".join(parts)

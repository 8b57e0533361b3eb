"""A slot's manifest: the index of everything the slot holds, as bytes. Pure.

    magic "KFSM", format version u16, reserved u16, CRC32C u32 of what follows, msgpack of `SlotManifest`

Extents are packed in fixed rows that point into the manifest's list of object keys, so that a slot of ten thousand
extents costs some 40 bytes for each and decodes in milliseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec
from crc32c import crc32c

from kafscale.errors import Corrupt
from kafscale.storage.extents import Extent
from kafscale.storage.partition import PartitionLog, PartitionManifest
from kafscale.storage.planted import NO_BUGS, PlantedBugs
from kafscale.storage.store import Buffer

FORMAT_VERSION = 1
_ENVELOPE = struct.Struct(">4sHHI")
_MAGIC = b"KFSM"
# base offset, last offset, max timestamp, index of the object key, position, length
EXTENT_ROW = struct.Struct(">qqqIQI")


class GroupSnapshot(msgspec.Struct, array_like=True):
    """The group state of one partition of `__consumer_offsets`: everything below the partition's high watermark, and
    perhaps some of what was on its way (replaying that again does no harm)."""

    topic_id: bytes
    index: int
    state: bytes


class SlotManifest(msgspec.Struct, kw_only=True):
    """Everything that a slot holds."""

    slot: int
    epoch: int
    objects: list[str]
    partitions: list[PartitionManifest]
    groups: list[GroupSnapshot] = []


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SlotManifest)


def encode_manifest(
    slot: int,
    epoch: int,
    partitions: Iterable[PartitionLog],
    groups: list[GroupSnapshot],
    bugs: PlantedBugs = NO_BUGS,
) -> bytes:
    """The manifest of a slot from what is durable of its partitions."""
    numbers: dict[str, int] = {}
    described = []
    for partition in partitions:
        rows = bytearray()
        for extent in partition.extents:
            number = numbers.setdefault(extent.key, len(numbers))
            rows += EXTENT_ROW.pack(
                extent.base_offset, extent.last_offset, extent.max_timestamp, number, extent.position, extent.length
            )
        described.append(
            PartitionManifest(
                partition.topic_id,
                partition.index,
                partition.log_start_offset,
                partition.high_watermark,
                # An epoch that nothing durable was written under yet is begun anew by whoever loads this.
                [entry for entry in partition.epochs if entry.start_offset <= partition.high_watermark],
                bytes(rows),
                [] if bugs.producer_state_lost else partition.producers.snapshot(partition.high_watermark),
            )
        )
    manifest = SlotManifest(slot=slot, epoch=epoch, objects=list(numbers), partitions=described, groups=groups)
    payload = _encoder.encode(manifest)
    return _ENVELOPE.pack(_MAGIC, FORMAT_VERSION, 0, crc32c(payload)) + payload


def decode_manifest(data: Buffer, place: str) -> SlotManifest:
    """`place` says where the bytes lie, for the message. Raises Corrupt."""
    if len(data) < _ENVELOPE.size:
        raise Corrupt(f"{place}: {len(data)} bytes are too few for a manifest")
    magic, version, _, crc = _ENVELOPE.unpack_from(data)
    payload = memoryview(data)[_ENVELOPE.size :]
    if magic != _MAGIC or crc32c(payload) != crc:
        raise Corrupt(f"{place}: the manifest's magic or CRC32C does not match")
    if version != FORMAT_VERSION:
        raise Corrupt(f"{place}: manifest of format version {version}; this release reads version {FORMAT_VERSION}")
    try:
        return _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{place}: the manifest can't be read: {error}") from error


def restore_partition(partition: PartitionLog, described: PartitionManifest, objects: list[str]) -> None:
    """Put what the manifest says into a fresh `partition`."""
    partition.log_start_offset = described.log_start_offset
    partition.high_watermark = partition.next_offset = described.high_watermark
    partition.epochs = list(described.epochs)
    for base, last, max_timestamp, number, position, length in EXTENT_ROW.iter_unpack(described.extents):
        partition.extents.append(Extent(base, last, max_timestamp, objects[number], position, length))
        partition.size_bytes += length
    partition.producers.restore(described.producers)

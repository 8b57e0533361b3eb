"""The bytes of a pack: batches of many partitions that were rewritten together. Pure.

    header (64)   as a log object's (`log_objects.py`), but magic "KFSP", kind 1, and the pack's number as sequence
    body          record batches, grouped by partition in the order of topic id and partition, offsets ascending
    table         rows of 56 bytes: topic id 16, partition i32, base offset i64, last offset i64, max timestamp i64,
                  position u64, length u32; one for each extent, in the order of the body
    footer (24)   as a log object's

A pack stands on its own: whoever checks a store can walk the batches that a row names, each with its own CRC32C. The
table's CRC32C is in the footer, the header's in the header. Damage raises Corrupt, naming key and place.
"""

from __future__ import annotations

import struct

import msgspec
from crc32c import crc32c

from kafscale.errors import Corrupt
from kafscale.storage.log_objects import FOOTER_BYTES, HEADER, VERSION, decode_footer
from kafscale.storage.store import Buffer

MAGIC = b"KFSP"
PACK_ROW = struct.Struct(">16siqqqQI")
_KIND = 1


class PackHeader(msgspec.Struct, frozen=True, gc=False):
    """Who wrote the pack, as which of its numbers, and when (Unix ms)."""

    log_id: str
    number: int
    created_ms: int


class PackRow(msgspec.Struct, frozen=True, gc=False):
    """One extent in a pack."""

    topic_id: bytes
    partition: int
    base_offset: int
    last_offset: int
    max_timestamp: int
    position: int
    length: int


def encode_pack_header(log_id: str, number: int, created_ms: int) -> bytes:
    header = HEADER.pack(MAGIC, VERSION, _KIND, bytes.fromhex(log_id), number, created_ms, -1, 0)
    return header[:-4] + crc32c(header[:-4]).to_bytes(4, "big")


def read_pack(data: Buffer, key: str) -> tuple[PackHeader, list[PackRow]]:
    """Header and table of a whole pack, both verified; the batches are not looked at. Raises Corrupt."""
    if len(data) < HEADER.size + FOOTER_BYTES:
        raise Corrupt(f"{key}: {len(data)} bytes are too few for a pack")
    magic, version, kind, log_id, number, created_ms, _, crc = HEADER.unpack_from(data)
    if magic != MAGIC or crc32c(bytes(data[: HEADER.size - 4])) != crc:
        raise Corrupt(f"{key}: no pack, or its header's CRC32C does not match")
    if version != VERSION or kind != _KIND:
        raise Corrupt(f"{key}: pack of format version {version}, kind {kind}; this release reads version {VERSION}")
    footer = decode_footer(data, key)
    footer.check_size(len(data), key)
    if footer.header or footer.length % PACK_ROW.size:
        raise Corrupt(f"{key}: the footer is not that of a pack")
    table = memoryview(data)[footer.position : footer.position + footer.length]
    footer.check_table(table, key)
    return PackHeader(log_id.hex(), number, created_ms), [PackRow(*row) for row in PACK_ROW.iter_unpack(table)]

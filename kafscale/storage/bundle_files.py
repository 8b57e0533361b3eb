"""Bundles on disk: preallocated files that hold many small objects one after the other, and what names these.

It owns the layout of `{root}/bundles`, and finding records in it. It must not know who writes, or what objects mean.
Everything here blocks. All numbers are big-endian.

    {name}          a block (4,096 bytes) with the head, then records, each from a block's start on:
      head          magic "KFSBUNDL", generation u64 (random; a new one each time the file is filled anew), size u64,
                    CRC32C u32 of the 24 bytes before
      record        magic "KFBR", CRC32C u32 of all that follows, generation u64, created i64 (Unix ms), key length u16,
                    data length u32, key, data
    {name}.anchor   magic "KFSANCHR", bundle's name 48 (padded with zeros), 4 reserved, CRC32C u32 of the 60 before

An object's key is a hard link to the anchor of the bundle that holds its bytes. So a name costs no inode, the number of
the anchor's links says how many of its bundle's objects are left, and a copy of such a name still says where to look.
"""

from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crc32c import crc32c

FOLDER = "bundles"
ANCHOR_SUFFIX = ".anchor"
BLOCK_BYTES = 4096
ANCHOR_BYTES = 64

_HEAD = struct.Struct(">8sQQI")
_RECORD = struct.Struct(">4sIQqHI")
_RECORD_CRC_FROM = 8
_ANCHOR = struct.Struct(">8s48s4xI")
_HEAD_MAGIC = b"KFSBUNDL"
_RECORD_MAGIC = b"KFBR"
_ANCHOR_MAGIC = b"KFSANCHR"
_KEY_BYTES_MAX = 1024
# What is read to learn of a record: its frame and key.
_PEEK_BYTES = _RECORD.size + _KEY_BYTES_MAX


class Place(NamedTuple):
    """Where an object's bytes lie in its bundle, and when it was put (Unix ms)."""

    position: int
    length: int
    created_ms: int


class Record(NamedTuple):
    """A record found in a bundle: from `start`, the next one begins at `end`."""

    start: int
    end: int
    key: str
    place: Place


def new_generation() -> int:
    return int.from_bytes(secrets.token_bytes(8), "big")


def encode_head(generation: int, size: int) -> bytes:
    head = _HEAD.pack(_HEAD_MAGIC, generation, size, 0)
    return head[:-4] + crc32c(head[:-4]).to_bytes(4, "big")


def generation_of(descriptor: int) -> tuple[int, int] | None:
    """Generation and size of an open bundle; None if it is none, or was never finished."""
    head = os.pread(descriptor, _HEAD.size, 0)
    if len(head) < _HEAD.size:
        return None
    magic, generation, size, crc = _HEAD.unpack(head)
    if magic != _HEAD_MAGIC or crc32c(head[:-4]) != crc:
        return None
    return generation, size


def encode_anchor(name: str) -> bytes:
    anchor = _ANCHOR.pack(_ANCHOR_MAGIC, name.encode("ascii"), 0)
    return anchor[:-4] + crc32c(anchor[:-4]).to_bytes(4, "big")


def bundle_named_by(content: bytes) -> str | None:
    """The bundle that an anchor's content names; None if it is not an anchor's content."""
    if len(content) != ANCHOR_BYTES or not content.startswith(_ANCHOR_MAGIC):
        return None
    _, name, crc = _ANCHOR.unpack(content)
    if crc32c(content[:-4]) != crc:
        return None
    text = str(name.rstrip(b"\0"), "ascii", "replace")
    return None if "/" in text or text.startswith(".") else text


def padded_record_bytes(key: str, length: int) -> int:
    """What a record takes up in a bundle."""
    return -(-(_RECORD.size + len(key) + length) // BLOCK_BYTES) * BLOCK_BYTES


def fill_record(
    scratch: memoryview, generation: int, created_ms: int, key: str, parts: Sequence[bytes | bytearray | memoryview]
) -> int:
    """Write a record to the front of `scratch`; returns its length with the padding, whose bytes mean nothing."""
    body = b"".join((key.encode("ascii"), *parts))
    end = _RECORD.size + len(body)
    _RECORD.pack_into(scratch, 0, _RECORD_MAGIC, 0, generation, created_ms, len(key), len(body) - len(key))
    scratch[_RECORD.size : end] = body
    scratch[4:_RECORD_CRC_FROM] = crc32c(scratch[_RECORD_CRC_FROM:end]).to_bytes(4, "big")
    return -(-end // BLOCK_BYTES) * BLOCK_BYTES


def data_position(start: int, key: str) -> int:
    """Where the data of the record at `start` begins."""
    return start + _RECORD.size + len(key)


def records_in(descriptor: int, generation: int, size: int, start: int = BLOCK_BYTES) -> Iterator[Record]:
    """The records from `start` on, in order, up to the first place where none of this generation lies. Their bytes are
    not looked at."""
    while start + _RECORD.size <= size:
        peeked = os.pread(descriptor, _PEEK_BYTES, start)
        if len(peeked) < _RECORD.size:
            return
        magic, _, found, created_ms, key_length, length = _RECORD.unpack_from(peeked)
        if magic != _RECORD_MAGIC or found != generation or not 0 < key_length <= _KEY_BYTES_MAX:
            return
        key = str(peeked[_RECORD.size : _RECORD.size + key_length], "ascii", "replace")
        end = start + padded_record_bytes(key, length)
        if len(key) != key_length or end > size:
            return
        yield Record(start, end, key, Place(data_position(start, key), length, created_ms))
        start = end


def holds_record(descriptor: int, generation: int, key: str, place: Place) -> bool:
    """Whether the key's record is where it was seen once."""
    frame = os.pread(descriptor, _RECORD.size + len(key), place.position - len(key) - _RECORD.size)
    if len(frame) < _RECORD.size:
        return False
    magic, _, found, created_ms, _, length = _RECORD.unpack_from(frame)
    return (
        magic == _RECORD_MAGIC
        and found == generation
        and frame[_RECORD.size :] == key.encode("ascii")
        and (length, created_ms) == (place.length, place.created_ms)
    )


def is_whole(descriptor: int, record: Record) -> bool:
    """Whether all bytes of the record are what was written."""
    length = record.place.position + record.place.length - record.start
    data = os.pread(descriptor, length, record.start)
    if len(data) != length:
        return False
    with memoryview(data) as view:
        return crc32c(view[_RECORD_CRC_FROM:]) == int.from_bytes(view[4:_RECORD_CRC_FROM], "big")

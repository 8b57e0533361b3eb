"""What an ended log says from its last checkpoint on, in one object: whoever takes its slots over reads it at once.

Whoever ends a log has read everything that counts of it, and of an ended log nothing changes any more: every number
from its last checkpoint's covered sequence up to the seal is taken, until no slot's list names the log. So he writes it
down, beside the log, before its slots get new owners: else each of these would read the same hundreds of objects once
more. It is a help and no more: where it is not there, can't be read or is damaged, the log itself is read. `kafscale
verify` holds it against the log; the sweep deletes it with the log, before anything else.

    magic "KFSE", format version u16, reserved u16, CRC32C u32 of what follows, msgpack of `_Summary`
"""

from __future__ import annotations

import logging
import struct

import msgspec
from crc32c import crc32c

from kafscale.clock import Clock
from kafscale.errors import Corrupt, ObjectMissing, StoreError
from kafscale.storage.keys import Keys
from kafscale.storage.log_objects import decode_header, encode_header
from kafscale.storage.store import ObjectStore, Purpose
from kafscale.storage.takeover import LogEnd, decode_object

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# What is larger is not written down: it would be held in memory by all who read it.
SUMMARY_MAX_BYTES = 64 << 20
_ENVELOPE = struct.Struct(">4sHHI")
_MAGIC = b"KFSE"


class _Summary(msgspec.Struct, array_like=True):
    """`tables`: the header and the table of every object from `replay_from` up to `end`, the checkpoint among them."""

    log_id: str
    end: int
    replay_from: int
    checkpoint_sequence: int
    tables: list[tuple[bytes, bytes]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Summary)


def encode_ended(end: LogEnd) -> bytes:
    """Of an end that was read undecoded. Raises ValueError where the log has not ended."""
    if not end.sealed:
        raise ValueError(f"log {end.log_id} has not ended: what it says may change")
    tables = []
    for entry in end.objects:
        header = entry.header
        encoded = encode_header(
            header.kind, header.log_id, header.sequence, header.created_ms, header.checkpoint_sequence
        )
        tables.append((encoded, entry.table))
    payload = _encoder.encode(_Summary(end.log_id, end.end, end.replay_from, end.checkpoint_sequence, tables))
    return _ENVELOPE.pack(_MAGIC, FORMAT_VERSION, 0, crc32c(payload)) + payload


async def decode_ended(data: bytes, log_id: str, keys: Keys, clock: Clock) -> LogEnd:
    """One object after the other, and others run in between: there may be much of it. Raises Corrupt."""
    key = keys.ended(log_id)
    payload = memoryview(data)[_ENVELOPE.size :]
    if len(data) < _ENVELOPE.size:
        raise Corrupt(f"{key}: {len(data)} bytes are too few")
    magic, version, reserved, crc = _ENVELOPE.unpack_from(data)
    if magic != _MAGIC or reserved or crc32c(payload) != crc:
        raise Corrupt(f"{key}: its magic or CRC32C does not match")
    if version != FORMAT_VERSION:
        raise Corrupt(f"{key}: of format version {version}; this release reads version {FORMAT_VERSION}")
    try:
        summary = _decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"{key}: it can't be read: {error}") from error
    if summary.log_id != log_id or len(summary.tables) != summary.end - summary.replay_from:
        raise Corrupt(f"{key}: speaks of log {summary.log_id}, of {len(summary.tables)} objects up to {summary.end}")
    objects = []
    checkpoint, sequence = None, -1
    for number, (encoded, table) in enumerate(summary.tables, summary.replay_from):
        await clock.sleep(0)
        entry = decode_object(keys.log(log_id, number), decode_header(encoded, key), table)
        if entry.header.sequence != number or entry.header.log_id != log_id:
            raise Corrupt(f"{key}: number {entry.header.sequence} stands where {number} should")
        if number == summary.checkpoint_sequence:
            checkpoint, sequence = entry.checkpoint, number
        objects.append(entry)
    if sequence != summary.checkpoint_sequence or (sequence >= 0 and checkpoint is None):
        raise Corrupt(f"{key}: the checkpoint at {summary.checkpoint_sequence} is not in it")
    return LogEnd(log_id, True, summary.end, summary.replay_from, checkpoint, objects, sequence)


async def write_ended(store: ObjectStore, keys: Keys, end: LogEnd) -> None:
    """Write it down for those who take over. Another may have done so, and where it fails nothing is lost."""
    body = encode_ended(end)
    if len(body) > SUMMARY_MAX_BYTES:
        return
    try:
        await store.put_if_absent(keys.ended(end.log_id), [body], Purpose.RECOVERY)
    except StoreError as error:
        log.debug("what an ended log says was not written down", extra={"log_id": end.log_id, "cause": str(error)})


async def read_ended(store: ObjectStore, keys: Keys, clock: Clock, log_id: str) -> LogEnd | None:
    """How far the log goes, if it has ended and that was written down; None says nothing."""
    try:
        return await decode_ended(await store.get(keys.ended(log_id), Purpose.RECOVERY), log_id, keys, clock)
    except ObjectMissing:
        return None
    except Corrupt as error:
        log.error(
            "what an ended log says was written down, and is damaged: the log is read", extra={"cause": str(error)}
        )
    except StoreError as error:
        log.debug("what an ended log says can't be read", extra={"log_id": log_id, "cause": str(error)})
    return None

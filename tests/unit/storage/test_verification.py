"""Goal: of no kind of object a byte is wrong unseen, but for the two fields that nobody goes by."""

from __future__ import annotations

import pytest

from kafscale.protocol.batches import build_batch
from kafscale.storage.flusher import FlushPolicy
from kafscale.storage.log_objects import (
    HEADER_BYTES,
    Checkpoint,
    Kind,
    Seal,
    encode_footer,
    encode_header,
    encode_small,
    join,
)
from kafscale.storage.packs import PACK_ROW, encode_pack_header
from kafscale.storage.partition import EpochStart, PartitionLog
from kafscale.storage.segment import encode_segment
from kafscale.storage.store import Purpose
from kafscale.storage.verification import NO_EPOCHS, Epochs, check_index, check_object, expected_row
from tests.unit.storage.rig import (
    EPOCH_MS,
    KEYS,
    LoopClock,
    ScriptedStore,
    Writer,
    batch_of,
    log_id,
    make_partition,
    run,
    topic_id,
)

# Of a segment and of its index, in KafScale's format.
CREATED_AT = list(range(20, 28))
INTERVAL_AT = list(range(10, 14))


def flipped(whole: bytes, position: int) -> bytes:
    damaged = bytearray(whole)
    damaged[position] ^= 1 << position % 8
    return bytes(damaged)


def unseen(key: str, whole: bytes, rows: bytes = b"", epochs: Epochs = NO_EPOCHS) -> list[int]:
    """Which bytes of an object can be flipped without a finding; in the whole one there must be none."""
    assert check_object(key, whole, rows, epochs) == []
    return [at for at in range(len(whole)) if not check_object(key, flipped(whole, at), rows, epochs)]


def row_of(partition: PartitionLog, base: int, last: int, position: int, length: int) -> bytes:
    return expected_row(partition.topic_id, partition.index, base, last, position, length)


@pytest.mark.parametrize("is_named", [False, True])
def test_every_byte_of_records_in_a_log(is_named: bool) -> None:
    """Goal: header, batches, the zeros between them, table, copy of the header and footer, whether a manifest names the
    batches or only the object's own table does."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        policy = FlushPolicy(flush_bytes=1 << 20, interval_s=None, large_extent_bytes=300, alignment=512)
        writer = Writer(store, policy=policy)
        partitions = [make_partition(number) for number in range(3)]
        for partition, sizes in zip(partitions, ([20, 20], [400, 10, 300], [5]), strict=True):
            for size in sizes:
                writer.append(partition, batch_of(size, producer_id=7, producer_epoch=1, base_sequence=0))
        await writer.settle()
        (key,) = {extent.key for partition in partitions for extent in partition.extents}
        whole = await store.inner.get(key, Purpose.RECOVERY)
        assert len(whole) % 512 == 0
        extents = [(partition, extent) for partition in partitions for extent in partition.extents]
        rows = [row_of(p, e.base_offset, e.last_offset, e.position, e.length) for p, e in extents]
        assert unseen(key, whole, b"".join(rows) if is_named else b"") == []

    run(main())


@pytest.mark.parametrize("content", [Checkpoint(covered=3, slots={}), Seal("worker", "drained")])
def test_every_byte_of_checkpoints_and_seals(content: Checkpoint | Seal) -> None:
    """Goal: as above."""
    kind = Kind.SEAL if isinstance(content, Seal) else Kind.CHECKPOINT
    whole = join(encode_small(encode_header(kind, log_id(1), 5, EPOCH_MS, 2), content))
    assert unseen(KEYS.log(log_id(1), 5), whole) == []


def test_every_byte_of_packs_and_segments() -> None:
    """Goal: batches of several leader epochs in one extent too, though Kafka's CRC leaves the epoch out: the
    partition's history of epochs vouches for it. A segment's time of creation is nobody's business."""
    batches = [
        build_batch([(b"k", b"v")] * 2, offset, epoch, EPOCH_MS) for offset, epoch in ((10, 1), (12, 1), (14, 3))
    ]
    body = b"".join(batches)
    partition = make_partition(4)
    epochs = {partition.identity: [EpochStart(1, 3), EpochStart(2, 14), EpochStart(3, 14)]}
    row = PACK_ROW.pack(*partition.identity, 10, 15, EPOCH_MS, HEADER_BYTES, len(body))
    pack = join([encode_pack_header(log_id(1), 8, EPOCH_MS), body, row, encode_footer(HEADER_BYTES + len(body), row)])
    assert unseen(KEYS.pack(log_id(1), 8), pack, row_of(partition, 10, 15, HEADER_BYTES, len(body)), epochs) == []

    parts, index = encode_segment(10, batches, EPOCH_MS, 1)
    segment = join(parts)
    key = KEYS.segment("t", topic_id(4), partition.index, 10, log_id(1), 1)
    assert unseen(key, segment, row_of(partition, 10, 15, 32, len(body)), epochs) == CREATED_AT
    assert check_index("index", index, segment) == []
    passed = [at for at in range(len(index)) if not check_index("index", flipped(index, at), segment)]
    assert passed == INTERVAL_AT

"""Goal: a partition's offsets are dense and final, a fetch cuts whole batches, epochs and retention are Kafka's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import Corrupt
from kafscale.protocol.batches import build_batch, iterate, read_header
from kafscale.storage.extents import Extent, cut, extent_at
from kafscale.storage.partition import EpochStart, PartitionLog, PendingExtent, check_dense
from tests.unit.storage.rig import Config, batch_of, make_partition, topic_id

BATCHES = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 60)), min_size=1, max_size=12)


def built(shape: list[tuple[int, int]], base: int = 0) -> list[bytes]:
    batches = []
    for records, size in shape:
        batches.append(bytes(build_batch([(None, b"v" * size)] * records, base, 0, 1)))
        base += records
    return batches


@given(
    shape=BATCHES,
    cuts=st.sets(st.integers(1, 11)),
    offset=st.integers(0, 60),
    room=st.integers(0, 900),
    one=st.booleans(),
)
def test_cut_gives_whole_batches_from_the_offset_on(shape, cuts, offset, room, one):
    """Goal: however the batches are spread over views, the answer is what a plain list of them would give."""
    batches = built(shape)
    views, current = [], b""
    for number, batch in enumerate(batches):
        if number in cuts and current:
            views.append(memoryview(current))
            current = b""
        current += batch
    views.append(memoryview(current))
    wanted: list[bytes] = []
    for batch in batches:
        if read_header(batch).last_offset < offset:
            continue
        if sum(map(len, wanted)) + len(batch) > room and (wanted or not one):
            break
        wanted.append(batch)
    pieces, size = cut(views, offset, room, one)
    assert b"".join(pieces) == b"".join(wanted) and size == sum(map(len, wanted))
    assert len(pieces) <= len(views)


def test_cut_refuses_what_is_no_batch():
    """Goal: a length that leads nowhere or outside is damage, not an endless loop or someone else's bytes."""
    batch = bytearray(batch_of(10))
    for length in (0, -12, -13, len(batch), 1 << 30):
        damaged = bytearray(batch)
        damaged[8:12] = length.to_bytes(4, "big", signed=True)
        with pytest.raises(Corrupt):
            cut([memoryview(damaged)], 0, 1 << 20, True)


@given(lengths=st.lists(st.integers(1, 5), max_size=20), start=st.integers(0, 9), offset=st.integers(-2, 120))
def test_extents_are_found_by_offset(lengths, start, offset):
    """Goal: the extent that holds the offset, or else the first one after it."""
    extents = []
    for length in lengths:
        extents.append(Extent(start, start + length - 1, 0, "k", 0, 1))
        start += length
    wanted = next((i for i, extent in enumerate(extents) if extent.last_offset >= offset), len(extents))
    assert extent_at(extents, offset) == wanted


def extended(partition: PartitionLog, records: int, timestamp: int = 0, size: int = 10) -> Extent:
    """Append and commit one extent."""
    extents: dict[PartitionLog, PendingExtent] = {}
    batch = bytearray(build_batch([(None, b"v")] * records, 0, 0, timestamp))
    base = partition.append(extents, batch, read_header(batch), 500)
    pending = extents[partition]
    assert [header.base_offset for _, header in iterate(batch)] == [base]
    assert read_header(batch).leader_epoch == partition.leader_epoch
    extent = Extent(pending.base_offset, pending.last_offset, pending.max_timestamp, "k", 0, size, pending.views)
    partition.commit(extent)
    return extent


@given(shape=st.lists(st.integers(1, 5), max_size=8))
def test_offsets_are_dense(shape):
    """Goal: appends count on, the high watermark follows only commits, and commits out of order break off."""
    partition = make_partition(epoch=4)
    expected = 0
    for records in shape:
        before = partition.high_watermark
        assert before == expected == partition.next_offset
        extended(partition, records)
        expected += records
    assert partition.high_watermark == partition.next_offset == expected
    check_dense(partition)
    with pytest.raises(AssertionError):
        partition.commit(Extent(expected + 1, expected + 1, 0, "k", 0, 1))


def test_damage_to_density_is_found():
    """Goal: a gap between extents, or at the end, stops a load."""
    for wrong in (0, 1, 2):
        partition = make_partition()
        for _ in range(3):
            extended(partition, 2)
        del partition.extents[wrong]
        if wrong == 0:
            check_dense(partition)  # what lies below may have been deleted
            continue
        with pytest.raises(Corrupt):
            check_dense(partition)


@given(
    epochs=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=6),
    asked=st.integers(-2, 22),
    deleted=st.integers(0, 12),
)
def test_the_end_of_an_epoch_is_kafkas(epochs, asked, deleted):
    """Goal: largest epoch up to the one asked for, and where it ended; unknown later ones are undefined (KIP-320)."""
    partition = PartitionLog("t", topic_id(1), 0, 0, 0, Config())
    epoch = 0
    written: list[int] = []
    for step, records in epochs:
        epoch += step
        partition.lead(epoch)
        if records:
            extended(partition, records)
        written += [epoch] * records
    partition.start_at(min(deleted, len(written)))
    live = written[partition.log_start_offset :]
    found, end = partition.end_of_epoch(asked)
    assert all(
        before.start_offset < after.start_offset
        for before, after in zip(partition.epochs, partition.epochs[1:], strict=False)
    )
    if asked > epoch or asked < 0:
        assert (found, end) == (-1, -1)
    elif asked == epoch:
        assert (found, end) == (epoch, len(written))
    else:
        # Whatever it is called, it ends where the first record of a later epoch lies.
        later = [at for at, of in enumerate(written) if of > asked and at >= partition.log_start_offset]
        assert end == (later[0] if later else len(written))
        assert found <= asked
        if asked in live:
            assert found == asked


@settings(max_examples=200)
@given(
    extents=st.lists(st.tuples(st.integers(1, 3), st.integers(-1, 100), st.integers(1, 50)), max_size=10),
    now=st.integers(0, 700),
    retention_ms=st.integers(-1, 120),
    retention_bytes=st.integers(-1, 200),
)
def test_retention_takes_whole_extents_from_the_front(extents, now, retention_ms, retention_bytes):
    """Goal: what is too old or too much goes, in order, and no more."""
    partition = make_partition(config=Config(retention_ms=retention_ms, retention_bytes=retention_bytes))
    for records, timestamp, size in extents:
        extended(partition, records, timestamp, size)
    start = partition.expired_to(now)
    kept = [extent for extent in partition.extents if extent.last_offset >= start]
    gone = partition.extents[: len(partition.extents) - len(kept)]
    size = partition.size_bytes
    for extent in gone:
        old = retention_ms >= 0 and extent.max_timestamp < now - retention_ms
        size -= extent.length
        assert old or (retention_bytes >= 0 and size >= retention_bytes)
    if kept:
        assert not (retention_ms >= 0 and kept[0].max_timestamp < now - retention_ms)
        assert not (retention_bytes >= 0 and size - kept[0].length >= retention_bytes)
    assert partition.start_at(start) == gone
    assert partition.extents == kept and partition.size_bytes == size == sum(extent.length for extent in kept)
    assert partition.log_start_offset == start == partition.expired_to(now)
    assert partition.start_at(0) == [] and partition.log_start_offset == start
    check_dense(partition)


def test_epochs_follow_the_log_start():
    """Goal: epochs that ended below the log start offset are forgotten, the one it lies in begins there."""
    partition = PartitionLog("t", topic_id(1), 0, 0, 0, Config())
    for epoch in (1, 5, 9):
        partition.lead(epoch)
        extended(partition, 4)
    partition.start_at(6)
    assert partition.epochs == [EpochStart(5, 6), EpochStart(9, 8)]
    partition.start_at(12)
    assert partition.epochs == [EpochStart(9, 12)]


@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=9), data=st.data())
def test_replacing_is_exact_or_nothing(lengths, data):
    """Goal: extents are replaced only where the range covers them exactly."""
    partition = make_partition()
    for length in lengths:
        extended(partition, length)
    before = list(partition.extents)
    first = data.draw(st.integers(0, partition.high_watermark - 1))
    last = data.draw(st.integers(first, partition.high_watermark + 1))
    new = [Extent(first, last, 0, "new", 0, 1)]
    begins = [extent.base_offset for extent in before]
    ends = [extent.last_offset for extent in before]
    fits = first in begins and last in ends
    assert partition.replace(first, last, new) == fits
    if fits:
        wanted = before[: begins.index(first)] + new + before[ends.index(last) + 1 :]
        assert partition.extents == wanted
    else:
        assert partition.extents == before

"""Goal: appended batches become durable in order, many partitions in one object, no sooner and no later than due."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.protocol.batches import check_stored, iterate
from kafscale.storage.extents import LARGE_EXTENT_BYTES
from kafscale.storage.flusher import REQUEST_SECONDS, FlushPolicy
from kafscale.storage.log_objects import BatchGroup, LogStart, decode_data_table, split_object
from kafscale.storage.store import Purpose
from tests.unit.storage.rig import KEYS, LoopClock, Put, ScriptedStore, Writer, batch_of, content, make_partition, run

FEWER = settings(max_examples=50)
SOON = FlushPolicy(flush_bytes=2000, interval_s=None)
STEADY = FlushPolicy(flush_bytes=2000, interval_s=0.25)


@FEWER
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([1, 300, 2500]), st.sampled_from([0, 0, 1, 300])), max_size=40
    ),
    policy=st.sampled_from([SOON, STEADY]),
    seed=st.integers(0, 99),
)
def test_what_was_appended_is_what_is_stored(steps, policy, seed):
    """Goal: whatever the timing, every batch is stored once, in its place, and answered in order once durable."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        chance = random.Random(seed)
        store.put_seconds = lambda key: chance.expovariate(1 / 0.01)
        writer = Writer(store, policy=policy)
        partitions = [make_partition(number) for number in range(3)]
        batches: list[list[bytearray]] = [[], [], []]
        answered: list[int] = []
        for number, (which, size, pause_ms) in enumerate(steps):
            batch = batch_of(size, chance=chance)
            base, flush = writer.append(partitions[which], batch)
            batches[which].append(batch)

            def answer(*_: object, number: int = number, which: int = which, base: int = base) -> None:
                assert partitions[which].high_watermark > base
                answered.append(number)

            flush.answers.append(answer)
            if pause_ms:
                await writer.clock.sleep(pause_ms / 1000)
        await writer.clock.sleep(30)
        assert answered == list(range(len(steps))) and writer.flusher.pending_bytes == 0
        for partition, wanted in zip(partitions, batches, strict=True):
            assert partition.high_watermark == len(wanted)
            assert await content(store, partition) == b"".join(wanted)
            assert [bytes(view) for extent in partition.extents for view in extent.views or ()] or not wanted
        for number in range(writer.log.counted):
            key = KEYS.log(writer.log_id, number)
            data = await store.inner.get(key, Purpose.RECOVERY)
            groups = decode_data_table(split_object(data, key)[1], key)
            order = [(group.topic_id, group.partition) for group in groups if isinstance(group, BatchGroup)]
            assert order == sorted(set(order)) and order
            for group in groups:
                assert isinstance(group, BatchGroup)
                position = group.position
                for base, delta, length, newest, producer, epoch, sequence, attributes in group.rows:
                    ((_, header),) = iterate(data[position : position + length])
                    assert check_stored(data[position : position + length]) == 1
                    assert (header.base_offset, header.last_offset_delta, header.max_timestamp) == (
                        base,
                        delta,
                        newest,
                    )
                    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (
                        producer,
                        epoch,
                        sequence,
                    )
                    assert header.attributes == attributes
                    position += length

    run(main())


def test_without_an_interval_a_flush_goes_when_none_is_in_flight():
    """Goal: the first batch goes at once; what comes meanwhile goes together when it is durable."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        writer = Writer(store, policy=SOON)
        store.puts[KEYS.log(writer.log_id, 0)] = [Put(seconds=1.0)]
        partition = make_partition()
        writer.append(partition, batch_of(1))
        await writer.clock.sleep(0.1)
        assert writer.log.in_flight == 1
        for _ in range(5):
            writer.append(partition, batch_of(1))
        await writer.clock.sleep(0.5)
        assert writer.log.next_sequence == 1
        await writer.clock.sleep(1)
        assert writer.log.counted == 2 and partition.high_watermark == 6

    run(main())


@pytest.mark.parametrize("age", [0.1, 0.24])
def test_with_an_interval_the_oldest_batch_says_when(age):
    """Goal: a flush is written when its oldest batch is as old as the interval, or it is full; never empty."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        writer = Writer(store, policy=STEADY)
        partition = make_partition()
        await writer.clock.sleep(1)
        writer.append(partition, batch_of(1))
        await writer.clock.sleep(age)
        writer.append(partition, batch_of(1))
        assert writer.log.next_sequence == 0 and writer.flusher.oldest_age() == pytest.approx(age)
        await writer.clock.sleep(0.2501 - age)
        assert writer.log.next_sequence == 1
        await writer.clock.sleep(5)
        assert not writer.flusher.oldest_age()
        assert writer.log.next_sequence == 1 and partition.high_watermark == 2
        writer.append(partition, batch_of(2500))
        assert writer.log.next_sequence == 2

    run(main())


def test_flushes_by_age_begin_an_interval_apart():
    """Goal: however often something is appended, there are no more PUTs than intervals; and what comes after a rest
    need not wait the whole interval for the worker's own work."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        interval_s = 0.25
        writer = Writer(store, policy=FlushPolicy(flush_bytes=1 << 20, interval_s=interval_s))
        partition = make_partition()
        await writer.clock.sleep(1)
        began = writer.clock.monotonic()
        while writer.clock.monotonic() < began + 10:
            writer.append(partition, batch_of(1))
            await writer.clock.sleep(0.003)
        assert 39 <= writer.log.next_sequence <= 40
        await writer.clock.sleep(1)
        before = writer.log.next_sequence
        writer.append(partition, batch_of(1))
        await writer.clock.sleep(interval_s - REQUEST_SECONDS / 2)
        assert writer.log.next_sequence == before + 1

    run(main())


def test_no_more_in_flight_than_the_window():
    """Goal: full flushes wait for their turn, and then all of them come."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        store.put_seconds = lambda key: 1.0
        writer = Writer(store, policy=STEADY)
        partition = make_partition()
        for _ in range(12):
            writer.append(partition, batch_of(2500))
        await writer.clock.sleep(0.5)
        assert writer.log.in_flight == 4
        await writer.clock.sleep(10)
        assert partition.high_watermark == 12 and writer.log.counted == 12

    run(main())


def test_log_starts_ride_along():
    """Goal: a raised log start is a row of the same object, takes effect when it is durable, and flushes without
    batches."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        writer = Writer(store, policy=SOON)
        partition = make_partition()
        await writer.flush(partition, batch_of(1), batch_of(1))
        (extent,) = partition.extents
        flush = writer.flusher.raise_log_start(partition, 2)
        writer.flusher.raise_log_start(partition, 1)
        assert partition.log_start_offset == 0
        await writer.settle()
        assert partition.log_start_offset == 2 and flush.dropped == [(partition, extent)] and not partition.extents
        assert partition.last_flush is None
        key = KEYS.log(writer.log_id, 1)
        groups = decode_data_table(split_object(await store.inner.get(key, Purpose.RECOVERY), key)[1], key)
        assert groups == [LogStart(partition.topic_id, partition.index, 1, 2)]

    run(main())


def test_a_fenced_log_answers_nobody():
    """Goal: a flush that meets a seal is neither committed nor answered, nor is anything after it."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        writer = Writer(store, policy=SOON)
        partition = make_partition()
        await store.inner.put_if_absent(KEYS.log(writer.log_id, 0), [b"someone else's" * 10], Purpose.RECOVERY)
        answered: list[int] = []
        for number in range(3):
            _, flush = writer.append(partition, batch_of(1))
            flush.answers.append(lambda *_, number=number: answered.append(number))
            await writer.clock.sleep(1)
        assert writer.fenced and not answered and partition.high_watermark == 0 and not partition.extents

    run(main())


def test_waiters_hear_what_was_added():
    """Goal: a waiter of several partitions is called once for an object, with all the bytes that it brought."""

    async def main() -> None:
        writer = Writer(ScriptedStore(LoopClock()), policy=SOON)
        partitions = [make_partition(number) for number in range(2)]
        heard: list[int] = []
        heard_by = heard.append
        batches = [batch_of(10), batch_of(500)]
        for partition, batch in zip(partitions, batches, strict=True):
            partition.waiters[heard_by] = None
            writer.append(partition, batch)
        await writer.settle()
        assert heard == [sum(map(len, batches))]
        assert asyncio.get_running_loop().time() < 1

    run(main())


def test_a_flush_says_how_much_of_it_is_to_be_compacted():
    """Goal: what lies in small extents is counted and can be checked as one; a large extent is neither."""

    async def main() -> None:
        writer = Writer(ScriptedStore(LoopClock()))
        small, large, together = (make_partition(number) for number in range(3))
        writer.append(small, batch_of(1000))
        writer.append(small, batch_of(2000))
        writer.append(large, batch_of(LARGE_EXTENT_BYTES))
        for _ in range(2):
            writer.append(together, batch_of(150_000))
        await writer.settle()
        (flush,) = writer.flushed
        assert flush.small_bytes == small.size_bytes
        assert [partition.extents[0].batches for partition in (small, large, together)] == [2, 0, 0]

    run(main())


@FEWER
@given(sizes=st.lists(st.lists(st.sampled_from([1, 300, 5_000, 20_000]), min_size=1, max_size=5), max_size=3))
def test_large_batches_lie_where_a_disk_takes_them_uncopied(sizes):
    """Goal: with an alignment, whatever the mix of sizes, every extent that begins with a large batch begins at a
    multiple of it, no large partition leaves a small extent, and all is found again: in memory, and by the table."""
    large = 10_000

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        policy = FlushPolicy(flush_bytes=1 << 20, interval_s=None, large_extent_bytes=large, alignment=4096)
        writer = Writer(store, policy=policy)
        partitions = [make_partition(number) for number in range(len(sizes))]
        wanted = []
        for partition, batches in zip(partitions, sizes, strict=True):
            made = [batch_of(size) for size in batches]
            for batch in made:
                writer.append(partition, batch)
            wanted.append(b"".join(made))
        await writer.clock.sleep(1)
        for partition, data in zip(partitions, wanted, strict=True):
            assert b"".join(bytes(view) for extent in partition.extents for view in extent.views or ()) == data
            assert await content(store, partition) == data
            if len(data) >= large:
                assert all(extent.length >= large for extent in partition.extents)
            for extent in partition.extents:
                assert extent.views is not None
                assert len(extent.views[0]) < large or extent.position % 4096 == 0
        if sizes:
            (key,) = {extent.key for partition in partitions for extent in partition.extents}
            whole = await store.inner.get(key, Purpose.RECOVERY)
            assert len(whole) % 4096 == 0 or sum(map(len, wanted)) < large
            _, table = split_object(whole, key)
            groups = [group for group in decode_data_table(table, key) if isinstance(group, BatchGroup)]
            found = [(group.partition, group.position, sum(row[2] for row in group.rows)) for group in groups]
            assert found == [(p.index, e.position, e.length) for p in partitions for e in p.extents]

    run(main())


def test_flushes_that_follow_each_other_keep_their_distance():
    """Goal: a client that sends as soon as it is answered is answered at once first, then once in the least interval;
    after a pause it is answered at once again."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        store.put_seconds = lambda key: 0.0002
        writer = Writer(store, policy=FlushPolicy(flush_bytes=1 << 20, interval_s=None, least_interval_s=0.001))
        partition = make_partition(0)

        async def took() -> float:
            began = writer.clock.monotonic()
            await writer.flush(partition, batch_of(1))
            return writer.clock.monotonic() - began

        await writer.clock.sleep(1)
        assert [round(await took(), 5) for _ in range(5)] == [0.0002, 0.0002, 0.001, 0.001, 0.001]
        await writer.clock.sleep(0.01)
        assert round(await took(), 5) == 0.0002

    run(main())

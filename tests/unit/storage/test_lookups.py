"""Goal: a record is found by its time, or as the newest, exactly where a naive reading of the log finds it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import ObjectMissing
from kafscale.protocol.batches import build_batch, stamp_log_append_time
from kafscale.protocol.compression import GZIP, ZSTD
from kafscale.storage import lookups
from kafscale.storage.lookups import batches_from, newest_record, offset_for_timestamp
from kafscale.storage.partition import PartitionLog
from kafscale.storage.reads import ColdReader
from tests.unit.storage.rig import LoopClock, ScriptedStore, Writer, make_partition, run

# Times of the records, batch by batch; how they are stamped; and whether the flush ends here.
BATCH = st.tuples(
    st.lists(st.integers(100, 112), min_size=1, max_size=4),
    st.sampled_from(["plain", "plain", GZIP, ZSTD, "append time"]),
    st.booleans(),
)


async def write(writer: Writer, partition: PartitionLog, batches: list) -> list[tuple[int, int]]:
    """Offset and time of every record of the log."""
    records: list[tuple[int, int]] = []
    for times, how, is_end in batches:
        batch = build_batch(
            [(None, b"v")] * len(times), timestamps=times, codec=how if isinstance(how, int) and how else 0
        )
        if how == "append time":
            stamp_log_append_time(batch, max(times))
            times = [max(times)] * len(times)
        base, _ = writer.append(partition, batch)
        records += [(base + index, time) for index, time in enumerate(times)]
        if is_end:
            await writer.settle()
    await writer.settle()
    return records


@settings(max_examples=150)
@given(
    batches=st.lists(BATCH, max_size=10),
    start=st.integers(0, 40),
    evicted=st.sets(st.integers(0, 9)),
    wanted=st.lists(st.integers(98, 114), min_size=1, max_size=5),
    at_once=st.sampled_from([1, 2, lookups.RECORDS_AT_ONCE]),
)
def test_lookups_find_what_reading_finds(batches, start, evicted, wanted, at_once):
    """Goal: whatever is compressed, stamped by the broker, evicted, or below the log start in the midst of a batch, and
    however many records are opened in one go."""

    async def main() -> None:
        clock = LoopClock()
        store = ScriptedStore(clock)
        writer = Writer(store)
        partition = make_partition()
        records = await write(writer, partition, batches)
        start_at = min(start, partition.high_watermark)
        writer.flusher.raise_log_start(partition, start_at)
        await writer.settle()
        for number in evicted & set(range(len(partition.extents))):
            partition.extents[number].views = None
        reader = ColdReader(store, clock, 1 << 20)
        records = [record for record in records if record[0] >= start_at]
        for timestamp in wanted:
            expected = next((record for record in records if record[1] >= timestamp), None)
            assert await offset_for_timestamp(partition, reader, timestamp) == expected
        newest = max(records, key=lambda record: (record[1], -record[0]), default=None)
        assert await newest_record(partition, reader) == newest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookups, "RECORDS_AT_ONCE", at_once)
        run(main())


def test_others_have_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: who sends a batch of many small records holds up nobody who is served by the same loop."""
    monkeypatch.setattr(lookups, "RECORDS_AT_ONCE", 10)

    async def main() -> None:
        writer = Writer(ScriptedStore(LoopClock()))
        partition = make_partition()
        await write(writer, partition, [(list(range(100, 200)), ZSTD, True)])
        reader = ColdReader(writer.store, LoopClock(), 1 << 20)
        for lookup in (offset_for_timestamp(partition, reader, 199), newest_record(partition, reader)):
            turns = 0
            looking = asyncio.ensure_future(lookup)
            while not looking.done():
                turns += 1
                await asyncio.sleep(0)
            assert looking.result() == (99, 199) and turns > 9

    run(main())


def test_records_without_timestamps():
    """Goal: they are found by no time, and none of them is the newest."""

    async def main() -> None:
        clock = LoopClock()
        writer = Writer(ScriptedStore(clock))
        partition = make_partition()
        await write(writer, partition, [([-1, -1], "plain", True)])
        reader = ColdReader(writer.store, clock, 1 << 20)
        assert await offset_for_timestamp(partition, reader, 5) is None
        assert await newest_record(partition, reader) is None

    run(main())


def test_a_lookup_opens_only_what_it_must():
    """Goal: extents whose largest timestamp is too small are not read."""

    async def main() -> None:
        clock = LoopClock()
        store = ScriptedStore(clock)
        writer = Writer(store)
        partition = make_partition()
        await write(writer, partition, [([time], "plain", True) for time in range(100, 120)])
        for extent in partition.extents:
            extent.views = None
        reader = ColdReader(store, clock, 1)  # reads nothing ahead
        store.asked.clear()
        assert await offset_for_timestamp(partition, reader, 110) == (10, 110)
        assert await newest_record(partition, reader) == (19, 119)
        assert {key for how, key in store.asked if how == "get_range"} == {
            partition.extents[number].key for number in (10, 19)
        }

    run(main())


@pytest.mark.parametrize("is_gone_for_good", [True, False])
def test_a_missing_object_is_looked_for_again(is_gone_for_good):
    """Goal: where compaction has put another in its place it is read; else that is an error, not the end."""

    async def main() -> None:
        clock = LoopClock()
        store = ScriptedStore(clock)
        writer = Writer(store)
        partition = make_partition()
        await write(writer, partition, [([time], "plain", True) for time in range(100, 103)])
        extent = partition.extents[1]
        for each in partition.extents:
            each.views = None
        reader = ColdReader(store, clock, 1)
        place = extent.key
        extent.key = "ns/pack/" + "0" * 32 + "/" + "0" * 20
        if is_gone_for_good:
            with pytest.raises(ObjectMissing):
                _ = [header async for header, _ in batches_from(partition, reader, 0)]
            return

        read = store.inner.get_range

        async def get_range(key, *arguments):
            try:
                return await read(key, *arguments)
            except ObjectMissing:
                extent.key = place  # the next look finds it
                raise

        store.inner.get_range = get_range
        found = [header.base_offset async for header, _ in batches_from(partition, reader, 0)]
        assert found == [0, 1, 2]

    run(main())

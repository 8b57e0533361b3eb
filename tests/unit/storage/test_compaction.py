"""Goal: compaction changes where bytes lie and nothing else, leaves few objects, and never spreads damage."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import StoreUnavailable, StoreUnclear
from kafscale.protocol.batches import check_stored
from kafscale.storage import compaction_plan
from kafscale.storage.compaction import WRITE_TRIES, CompactionPolicy, Compactor
from kafscale.storage.compaction_plan import FAN_IN, PACK_CLASS_BYTES, ROUND_BYTES, SEGMENT_MIN_BYTES, rounds_of
from kafscale.storage.extents import LARGE_EXTENT_BYTES, Extent, cut
from kafscale.storage.keys import index_of
from kafscale.storage.manifest import decode_manifest, encode_manifest, restore_partition
from kafscale.storage.packs import read_pack
from kafscale.storage.partition import PartitionLog, check_dense
from kafscale.storage.rewriting import CHUNK_BATCHES, CHUNK_BYTES
from kafscale.storage.segment import read_index, read_segment
from kafscale.storage.store import Purpose
from tests.unit.storage.rig import KEYS, Config, Put, ScriptedStore, Writer, batch_of, content, make_partition, run
from tests.unit.storage.rig import LoopClock as Clock

FEWER = settings(max_examples=25)
EAGER = CompactionPolicy(objects=2, bytes=1 << 40, idle_s=1.0)


class Turns(Clock):
    """Counts how often others get their turn."""

    given = 0

    async def sleep(self, seconds: float) -> None:
        self.given += seconds == 0
        await super().sleep(seconds)


class Site:
    """A writer, some partitions, and a compactor over them."""

    def __init__(self, partitions: int = 3, policy: CompactionPolicy = EAGER, **writer: int) -> None:
        self.store = ScriptedStore(Clock())
        self.partitions = [make_partition(number) for number in range(partitions)]
        self.changed: list[PartitionLog] = []
        self.gone: set[PartitionLog] = set()
        self.use(Writer(self.store, **writer), policy)

    def use(self, writer: Writer, policy: CompactionPolicy = EAGER) -> None:
        """Go on as this writer: every partition is its own now."""
        self.writer = writer
        self.compactor = Compactor(
            self.store,
            KEYS,
            writer.log_id,
            writer.clock,
            writer.random,
            writer.references,
            writer.tail,
            lambda partition: partition not in self.gone,
            self.changed.append,
            policy,
        )

    async def flush(self, sizes: dict[int, list[int]], chance: random.Random | None = None) -> None:
        """One data object with batches of these sizes, by number of partition."""
        for number, batches in sizes.items():
            for size in batches:
                self.writer.append(self.partitions[number], batch_of(size, chance=chance))
        await self.settle()

    async def settle(self) -> None:
        """Make what was appended durable, and say so to the compactor."""
        before = len(self.writer.flushed)
        await self.writer.settle()
        for flush in self.writer.flushed[before:]:
            self.compactor.flushed(flush.small_bytes)

    async def compact(self) -> None:
        """Until nothing is left to do."""
        await self.writer.clock.sleep(2.0)  # nothing was flushed for longer than `idle_s`
        for _ in range(500):
            if not self.compactor.due():
                return
            await self.compactor.run_once(self.partitions)
        raise AssertionError("compaction does not come to an end")

    async def contents(self) -> list[bytes]:
        return [await content(self.store, partition) for partition in self.partitions]

    def data(self) -> list[tuple[PartitionLog, Extent]]:
        return [(p, e) for p in self.partitions for e in p.extents if e.key.startswith(KEYS.log_prefix)]

    def large_data(self) -> list[tuple[PartitionLog, Extent]]:
        return [(partition, extent) for partition, extent in self.data() if extent.length >= LARGE_EXTENT_BYTES]

    def small_data(self) -> list[tuple[PartitionLog, Extent]]:
        return [(partition, extent) for partition, extent in self.data() if extent.length < LARGE_EXTENT_BYTES]

    def live_objects(self) -> set[str]:
        return {extent.key for partition in self.partitions for extent in partition.extents}

    def check(self) -> None:
        """What must hold at any time: dense offsets, true sizes, and a count for each reference."""
        counts: dict[str, int] = {}
        for partition in self.partitions:
            check_dense(partition)
            assert partition.size_bytes == sum(extent.length for extent in partition.extents)
            for extent in partition.extents:
                counts[extent.key] = counts.get(extent.key, 0) + 1
                if extent.views is not None:
                    assert sum(map(len, extent.views)) == extent.length
        assert counts == self.writer.references.counts
        held = sum(e.length for p in self.partitions for e in p.extents if e.views is not None)
        assert held <= self.writer.tail.bytes <= self.writer.tail.max_bytes
        if not any(partition.log_start_offset for partition in self.partitions):
            assert held == self.writer.tail.bytes


flushes = st.lists(
    st.dictionaries(
        st.integers(0, 2), st.lists(st.sampled_from([1, 50, 3000, 40_000, 700_000]), min_size=1, max_size=3), min_size=1
    ),
    min_size=1,
    max_size=12,
)


@FEWER
@given(history=st.lists(flushes, min_size=1, max_size=3), tail_bytes=st.sampled_from([0, 100_000, 1 << 30]))
def test_what_is_read_stays_the_same(history, tail_bytes):
    """Goal: after any history, from memory or not, every byte reads as before, in fewer objects."""

    async def main() -> None:
        site = Site(tail_bytes=tail_bytes)
        chance = random.Random(len(history))
        for part in history:
            for sizes in part:
                await site.flush(sizes, chance)
            before = await site.contents()
            large = site.large_data()
            await site.compact()
            assert await site.contents() == before
            assert site.large_data() == large
            site.check()
            for partition in site.partitions:
                for extent in partition.extents:
                    assert extent.views is None or b"".join(extent.views) == await site.store.get_range(
                        extent.key, extent.position, extent.length, Purpose.COLD_READ
                    )
        small = site.small_data()
        assert len({extent.key for _, extent in small}) <= 1
        untouched = {partition for partition, _ in [*small, *site.large_data()]}
        assert {partition for partition in site.partitions if partition.extents} <= set(site.changed) | untouched

    run(main())


@FEWER
@given(history=flushes, steps=st.integers(0, 400), seed=st.integers(0, 99))
def test_a_crash_between_any_two_steps_loses_nothing(history, steps, seed):
    """Goal: wherever compaction is cut off, both the last manifest and the state in memory read back whole, and what
    was given up was needed by neither the manifest nor the extents."""

    async def main() -> None:
        site = Site()
        for sizes in history:
            await site.flush(sizes, random.Random(seed))
        before = await site.contents()
        manifest = encode_manifest(0, 1, site.partitions, [])
        task = asyncio.ensure_future(site.compact())
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await site.contents() == before
        site.check()
        assert not set(site.writer.references.unreferenced) & site.live_objects()
        for data in (manifest, encode_manifest(0, 1, site.partitions, [])):
            decoded = decode_manifest(data, "here")
            for partition, described, wanted in zip(site.partitions, decoded.partitions, before, strict=True):
                loaded = PartitionLog(partition.topic, partition.topic_id, partition.index, 0, 2, Config())
                restore_partition(loaded, described, decoded.objects)
                check_dense(loaded)
                assert await content(site.store, loaded) == wanted

    run(main())


def test_large_partitions_get_segments_and_small_ones_share_a_pack():
    """Goal: what comes out is in KafScale's format and in ours, with extents that read in small ranges."""

    async def main() -> None:
        site = Site()
        for _ in range(30):
            await site.flush({0: [100_000, 100_000], 1: [100] * 5, 2: [5000]}, random.Random(1))
        await site.compact()
        (segment,) = {extent.key for extent in site.partitions[0].extents}
        decoded = read_segment(await site.store.get(segment, Purpose.COLD_READ))
        assert (decoded.base_offset, decoded.last_offset, decoded.record_count) == (0, 59, 60)
        index = read_index(await site.store.get(index_of(segment), Purpose.COLD_READ))
        extents = site.partitions[0].extents
        assert index.offsets == [extent.base_offset for extent in extents]
        assert index.positions == [extent.position for extent in extents]
        assert len(extents) > 4 and all(extent.length <= CHUNK_BYTES for extent in extents)
        (pack,) = {extent.key for number in (1, 2) for extent in site.partitions[number].extents}
        data = await site.store.get(pack, Purpose.COLD_READ)
        header, rows = read_pack(data, pack)
        assert header.log_id == site.writer.log_id
        assert [(row.topic_id, row.base_offset, row.last_offset) for row in rows] == [
            (site.partitions[1].topic_id, 0, 149),
            (site.partitions[2].topic_id, 0, 29),
        ]
        assert [check_stored(data[row.position : row.position + row.length]) for row in rows] == [150, 30]

    run(main())


def test_large_extents_stay_where_they_are():
    """Goal: what reads well is not rewritten, whatever lies around it in its object and in its partition, and what is
    small on both sides of it is."""

    async def main() -> None:
        site = Site()
        for number in range(12):
            await site.flush({0: [400_000 if number == 6 else 200_000], 1: [100], 2: [150_000, 150_000]})
        large = site.large_data()
        assert len(large) == 1 + 12
        given_up = {extent.key for _, extent in site.small_data()} - {extent.key for _, extent in large}
        before = await site.contents()
        await site.compact()
        assert await site.contents() == before
        assert site.large_data() == large and site.small_data() == []
        assert [KEYS.log_prefix in extent.key for extent in site.partitions[0].extents] == [False, False, True, False]
        assert len(site.partitions[1].extents) == 1
        assert site.partitions[2] not in site.changed
        # An object lives as long as one large extent of it does.
        assert not {extent.key for _, extent in large} & set(site.writer.references.unreferenced)
        assert given_up <= set(site.writer.references.unreferenced)
        site.check()

    run(main())


def test_segments_are_not_merged_across_large_extents():
    """Goal: a large extent that stayed ends a stretch of segments; those on one side of it are merged all the same."""

    async def main() -> None:
        site = Site(1)
        for number in range(FAN_IN + 2):
            if number == 2:
                await site.flush({0: [300_000]})
            for _ in range(6):
                await site.flush({0: [200_000]})
            await site.compact()
        (stayed,) = site.large_data()
        keys = [extent.key for extent in site.partitions[0].extents]
        at = keys.index(stayed[1].key)
        assert len(set(keys[:at])) == 2 and len(set(keys[at + 1 :])) == 1
        site.check()

    run(main())


class Counted(list):
    """A list that counts what is taken out of it in slices."""

    taken = 0

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if isinstance(index, slice):
            self.taken += len(found)
        return found


def test_surveys_do_not_look_again_at_what_stays():
    """Goal: the cost of rounds follows what is new, not how much was left in place before."""

    async def main() -> None:
        site = Site(1, CompactionPolicy(objects=2, bytes=1 << 40, idle_s=1e9))
        extents = site.partitions[0].extents = Counted()
        flushes = 0
        for _ in range(30):
            for sizes in ([300_000], [300_000], [10], [300_000], [10]):
                await site.flush({0: sizes})
                flushes += 1
            while site.compactor.due():
                await site.compactor.run_once(site.partitions)
        assert len(site.large_data()) == 90 and not site.small_data()
        # A look when surveyed and one when chosen, and again at what has taken the place of what was compacted.
        assert extents.taken <= 4 * flushes

    run(main())


@given(
    parts=st.lists(
        st.lists(st.sampled_from(["small", "large", "damaged", "segment", "pack"]), max_size=12), min_size=1, max_size=6
    ),
    dropped=st.integers(0, 20),
)
def test_later_surveys_find_the_same_as_whole_ones(parts, dropped):
    """Goal: a survey that leaves out what was settled before finds all data that a look at everything finds."""
    partition = make_partition()
    settled: dict[PartitionLog, int] = {}
    damaged = set()
    for part in parts:
        for kind in part:
            at = partition.high_watermark
            key = {
                "segment": KEYS.segment("topic0", partition.topic_id, 0, at, "a" * 32, at),
                "pack": KEYS.pack("a" * 32, at),
            }.get(kind, KEYS.log("a" * 32, at // 3))
            if kind == "damaged":
                damaged.add((key, at))
            length = LARGE_EXTENT_BYTES - (kind != "large")
            partition.commit(Extent(at, at, 0, key, at, length))
        whole = compaction_plan.Survey(KEYS, True, damaged)
        later = compaction_plan.Survey(KEYS, False, damaged, settled)
        for survey in (whole, later):
            assert sum(survey.add(partition)) <= len(partition.extents) + 1
        again = compaction_plan.Survey(KEYS, False, damaged, whole.settled)
        looked_at = sum(again.add(partition))
        assert later.data == again.data == whole.data
        assert later.settled == again.settled == whole.settled
        # Nothing is looked at twice for the sake of what is settled.
        first = next((n for n, e in enumerate(partition.extents) if e.key in whole.data and _is_open(e, damaged)), None)
        assert looked_at == 1 + (0 if first is None else len(partition.extents) - first)
        settled = later.settled
        partition.start_at(min(dropped, partition.high_watermark))


def _is_open(extent: Extent, damaged: set[tuple[str, int]]) -> bool:
    return extent.length < LARGE_EXTENT_BYTES and (extent.key, extent.position) not in damaged


def test_extents_of_tiny_batches_stay_short():
    """Goal: walking through one extent looks at a bounded number of batches."""

    async def main() -> None:
        site = Site(1)
        for _ in range(3):
            await site.flush({0: [10] * 1500})
        await site.compact()
        extents = site.partitions[0].extents
        assert [extent.last_offset + 1 - extent.base_offset for extent in extents] == [CHUNK_BATCHES] * 4 + [500]
        # One piece from each flush, not one for each batch.
        assert all(extent.views is not None and len(extent.views) <= 2 for extent in extents)

    run(main())


def test_timestamps_of_cut_extents_are_their_own():
    """Goal: retention and look-ups by time see the newest timestamp of each new extent; a batch without one keeps the
    time of its extent."""

    async def main() -> None:
        site = Site(2)
        partition = site.partitions[0]
        for stamp in (1000, 3000, 2000):
            for _ in range(CHUNK_BATCHES):
                site.writer.append(partition, batch_of(1, timestamp_ms=stamp))
        site.writer.append(partition, batch_of(1, timestamp_ms=-1))
        await site.settle()
        (whole,) = partition.extents
        await site.flush({1: [1]})
        await site.compact()
        assert [extent.max_timestamp for extent in partition.extents[:3]] == [1000, 3000, 2000]
        assert partition.extents[3].max_timestamp == whole.max_timestamp > 3000

    run(main())


def test_the_number_of_objects_stays_small_over_a_long_life():
    """Goal: thousands of flushes of many small partitions and a large one leave a bounded number of objects, and no
    byte is rewritten more often than the classes allow."""

    async def main() -> None:
        site = Site(40, CompactionPolicy(objects=16, bytes=1 << 40, idle_s=1e9), tail_bytes=1 << 20)
        chance = random.Random(7)
        appended = written = 0
        for number in range(2500):
            sizes = {chance.randrange(1, 40): [chance.randrange(400)] for _ in range(5)}
            if number % 10 == 0:
                sizes[0] = [250_000]
            await site.flush(sizes)
            appended += sum(map(sum, sizes.values()))
            while site.compactor.due():
                written += (await site.compactor.run_once(site.partitions)).bytes_written
                if number % 500 == 0:
                    site.check()
        kinds = [key.split("/")[1] for key in site.live_objects()]
        # The first partition holds 62 MB: full segments of 32 to 64 MiB, and fewer than FAN_IN of each smaller class.
        assert kinds.count("log") <= 32
        assert kinds.count("pack") <= (FAN_IN - 1) * len(PACK_CLASS_BYTES) + 2 * FAN_IN
        assert kinds.count("topics") <= 2 + 3 * FAN_IN
        batches = sum(partition.high_watermark for partition in site.partitions)
        assert written <= 5 * (appended + 75 * batches)
        # What is given up, and only that, is no longer needed.
        assert not set(site.writer.references.unreferenced) & site.live_objects()

    run(main())


def test_data_of_ended_logs_is_compacted_too():
    """Goal: a new owner tidies up what the old one left, without calling it its own garbage."""

    async def main() -> None:
        site = Site()
        for _ in range(10):
            await site.flush({0: [100], 1: [2000], 2: [200_000]})
        before = await site.contents()
        heir = Writer(site.store, 2)
        for partition in site.partitions:
            for extent in partition.extents:
                extent.views = None
                heir.references.add(extent.key)
        site.use(heir)
        await site.compact()
        assert await site.contents() == before
        assert {key.rsplit("/", 1)[0] for key in site.live_objects() if "pack" in key} == {f"ns/pack/{heir.log_id}"}
        assert not any(key.startswith(KEYS.log_prefix) for key in site.live_objects())
        assert heir.references.unreferenced == []
        site.check()

    run(main())


@pytest.mark.parametrize("where", [20, 70, 700])
def test_damage_is_left_where_it_is(where):
    """Goal: a flipped bit in the store is neither copied nor does it stop the others; the damaged extent stays."""

    async def main() -> None:
        site = Site(tail_bytes=0)
        for _ in range(6):
            await site.flush({0: [1000], 1: [1000], 2: [1000]})
        hurt = site.partitions[1].extents[3]
        await site.store.damage(hurt.key, hurt.position + where)
        before = await site.contents()
        await site.compact()
        assert await site.contents() == before
        assert hurt in site.partitions[1].extents
        assert [extent.key for extent in site.partitions[0].extents] == [
            extent.key for extent in site.partitions[2].extents
        ]
        assert len(site.partitions[0].extents) == 1 and len(site.partitions[1].extents) == 3
        site.check()
        assert not site.compactor.due()

    run(main())


@pytest.mark.parametrize("where", [7, 11, 16, 500])
@pytest.mark.parametrize("batches", [[200_000], [10] * (CHUNK_BATCHES + 1)], ids=["whole", "by batch"])
def test_damage_in_memory_is_not_made_durable(where, batches):
    """Goal: bytes that changed in memory never take the place of good ones in the store, be they checked as one or
    batch by batch."""

    async def main() -> None:
        site = Site(1)
        for _ in range(4):
            await site.flush({0: batches})
        hurt = site.partitions[0].extents[1]
        good = await site.contents()
        assert hurt.views is not None
        hurt.views = [bytearray(b"".join(hurt.views))]
        hurt.views[0][where] ^= 1
        await site.compact()
        assert await site.contents() == good
        assert hurt in site.partitions[0].extents

    run(main())


def test_a_missing_object_is_damage():
    """Goal: an object that should be there and is not is reported, and nothing stands in for it."""

    async def main() -> None:
        site = Site(1, tail_bytes=0)
        for _ in range(3):
            await site.flush({0: [1000]})
        lost = site.partitions[0].extents[0]
        await site.store.inner.delete([lost.key], Purpose.SWEEP)
        await site.writer.clock.sleep(2.0)
        assert (await site.compactor.run_once(site.partitions)).damaged == 1
        assert site.partitions[0].extents[0] is lost
        await site.compact()
        assert site.partitions[0].extents[0] is lost and len(site.partitions[0].extents) == 2

    run(main())


def test_retention_may_be_quicker():
    """Goal: extents that go while they are being rewritten don't come back, and the new object is given up."""

    async def main() -> None:
        site = Site(1)
        for _ in range(10):
            await site.flush({0: [200_000]})
        await site.writer.clock.sleep(2.0)
        task = asyncio.ensure_future(site.compactor.run_once(site.partitions))
        await site.store.wait_for("put", ".kfs")
        site.writer.references.drop(site.partitions[0].start_at(3))
        result = await task
        assert result.outrun == 1 and result.segments == 1
        segments = [key for key in await site.store.keys() if "segment" in key]
        assert len(segments) == 2 and set(segments) <= set(site.writer.references.unreferenced)
        assert site.partitions[0].extents[0].base_offset == 3
        site.check()

    run(main())


def test_partitions_that_are_gone_are_not_touched():
    """Goal: a partition that was deleted or given away during the round keeps what it has, and so does the count."""

    async def main() -> None:
        site = Site()
        for _ in range(5):
            await site.flush({0: [100], 1: [100]})
        before = [list(partition.extents) for partition in site.partitions]
        await site.writer.clock.sleep(2.0)
        task = asyncio.ensure_future(site.compactor.run_once(site.partitions))
        await site.store.wait_for("put", "pack")
        site.gone.add(site.partitions[0])
        result = await task
        assert result.outrun == 1
        assert site.partitions[0].extents == before[0] and len(site.partitions[1].extents) == 1
        assert site.changed == [site.partitions[1]]
        site.check()

    run(main())


@pytest.mark.parametrize("kind", ["before", "after", "unclear-later"])
def test_unclear_and_refused_writes_are_tried_again(kind):
    """Goal: a lost answer costs a repetition, under the same key, and nothing else."""

    async def main() -> None:
        site = Site(1)
        for _ in range(5):
            await site.flush({0: [100]})
        before = await site.contents()
        key = KEYS.pack(site.writer.log_id, 1)
        site.store.puts[key] = {
            "before": [Put(before=StoreUnavailable("no")), Put(before=StoreUnclear("who knows"))],
            "after": [Put(after=StoreUnclear("who knows"))],
            "unclear-later": [Put(before=StoreUnclear("?")), Put(after=StoreUnclear("?"))],
        }[kind]
        await site.compact()
        assert await site.contents() == before
        assert site.live_objects() == {key}

    run(main())


def test_a_store_that_stays_silent_ends_the_round():
    """Goal: the round fails, what may have been written is given up, the next round succeeds under new keys."""

    async def main() -> None:
        site = Site(1)
        for _ in range(6):
            await site.flush({0: [200_000]})
        before = await site.contents()
        segment = KEYS.segment("topic0", site.partitions[0].topic_id, 0, 0, site.writer.log_id, 1)
        site.store.puts[segment] = [Put(before=StoreUnclear("?")) for _ in range(WRITE_TRIES)]
        await site.writer.clock.sleep(2.0)
        with pytest.raises(StoreUnavailable):
            await site.compactor.run_once(site.partitions)
        assert {segment, index_of(segment)} <= set(site.writer.references.unreferenced)
        assert await site.contents() == before
        await site.compact()
        assert await site.contents() == before and segment not in site.live_objects()
        site.check()

    run(main())


@pytest.mark.parametrize("size", [50_000, 700_000])
@pytest.mark.parametrize("seconds", [0.0005, 0.0015, 0.0025, 0.0035])
def test_a_round_that_is_broken_off_leaves_nothing_behind(size, seconds):
    """Goal: cancelled at any moment, as by a drain, every object that was written is referred to or given up."""

    async def main() -> None:
        site = Site(2)
        for _ in range(4):
            await site.flush({0: [size], 1: [size]})
        await site.writer.clock.sleep(2.0)
        running = asyncio.ensure_future(site.compactor.run_once(site.partitions))
        await site.writer.clock.sleep(seconds)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await site.writer.clock.sleep(1.0)
        written = {key for key in await site.store.keys() if "/log/" not in key}
        named = site.live_objects() | {index_of(key) for key in site.live_objects()}
        assert written <= named | set(site.writer.references.unreferenced)
        site.check()

    run(main())


def test_due_follows_the_policy():
    """Goal: due by objects, by bytes, or when idle with more than one; never for nothing."""

    async def main() -> None:
        site = Site(1, CompactionPolicy(objects=4, bytes=5000, idle_s=10.0))
        await site.compactor.run_once(site.partitions)
        assert not site.compactor.due()
        await site.flush({0: [10]})
        await site.writer.clock.sleep(11)
        assert not site.compactor.due()
        await site.flush({0: [10]})
        assert not site.compactor.due()
        await site.writer.clock.sleep(11)
        assert site.compactor.due()
        await site.compactor.run_once(site.partitions)
        assert len(site.live_objects()) == 1
        # There is time to look at what was compacted before.
        assert site.compactor.due()
        await site.compactor.run_once(site.partitions)
        assert not site.compactor.due()
        for _ in range(4):
            assert not site.compactor.due()
            await site.flush({0: [10]})
        assert site.compactor.due()
        await site.compactor.run_once(site.partitions)
        assert not site.compactor.due()
        await site.flush({0: [6000]})
        assert site.compactor.due()
        while site.compactor.due():
            await site.compactor.run_once(site.partitions)
        # What is to stay where it is makes nothing due, now or later.
        for _ in range(8):
            await site.flush({0: [300_000]})
        await site.writer.clock.sleep(11)
        assert not site.compactor.due()

    run(main())


def test_no_step_holds_the_loop_for_long():
    """Goal: others get their turn while many batches are rewritten: at least once in every so many."""

    async def main() -> None:
        site = Site(2)
        for _ in range(6):
            await site.flush({0: [10] * 3000, 1: [10] * 3000})
        await site.writer.clock.sleep(2.0)
        clock = site.writer.clock = Turns()
        site.use(site.writer)
        result = await site.compactor.run_once(site.partitions)
        assert result.extents_before == 12
        assert clock.given >= 36_000 // 1000

    run(main())


def test_readers_find_hot_bytes_as_before():
    """Goal: what was in memory stays there, in pieces that hold whole batches, and within the tail cache's bound."""

    async def main() -> None:
        site = Site(1, tail_bytes=3_000_000)
        for _ in range(30):
            await site.flush({0: [100_000, 50, 50]}, random.Random(3))
        cold_before = sum(extent.views is None for extent in site.partitions[0].extents)
        assert cold_before
        everything = (await site.contents())[0]
        await site.compact()
        hot = [extent for extent in site.partitions[0].extents if extent.views is not None]
        assert sum(extent.length for extent in hot) >= 1_500_000
        for extent in hot:
            pieces, size = cut(extent.views or [], extent.base_offset, 1 << 30, True)
            assert size == extent.length and b"".join(pieces) in everything
        site.check()

    run(main())


def test_segments_keep_to_the_topics_size():
    """Goal: a segment is never larger than segment.bytes, unless one batch is."""

    async def main() -> None:
        site = Site(1)
        site.partitions[0].config = Config(segment_bytes=2 << 20)
        for _ in range(40):
            await site.flush({0: [250_000]})
        await site.compact()
        sizes: dict[str, int] = {}
        for extent in site.partitions[0].extents:
            sizes[extent.key] = sizes.get(extent.key, 0) + extent.length
        assert max(sizes.values()) <= 2 << 20 and len(sizes) == 5

    run(main())


def test_many_small_segments_become_few():
    """Goal: neighbours of one class are merged, packs between them included."""

    async def main() -> None:
        site = Site(2)
        for number in range(FAN_IN):
            for _ in range(6):
                await site.flush({0: [200_000], 1: [10]})
            await site.compact()
            if number == 3:
                await site.flush({0: [10]})
                await site.flush({0: [10]})
                await site.compact()
        assert len({extent.key for extent in site.partitions[0].extents}) == 1
        assert (
            read_segment(await site.store.get(site.partitions[0].extents[0].key, Purpose.COLD_READ)).record_count == 50
        )
        site.check()

    run(main())


@given(st.lists(st.lists(st.integers(1, ROUND_BYTES // 3), min_size=1, max_size=9), max_size=9))
def test_rounds_are_bounded(sizes):
    """Goal: no round takes more memory than the bound, and every extent is in exactly one."""
    runs = []
    for number, lengths in enumerate(sizes):
        extents = [Extent(at, at, 0, "key", 0, length) for at, length in enumerate(lengths)]
        runs.append(compaction_plan.Run(make_partition(number), extents, sum(lengths)))
    groups = [group for group in rounds_of(runs) if group is not None]
    assert all(sum(entry.bytes for entry in group) <= ROUND_BYTES for group in groups)
    assert all(entry.bytes == sum(e.length for e in entry.extents) for group in groups for entry in group)
    flat = [(entry.partition, extent.base_offset) for group in groups for entry in group for extent in entry.extents]
    wanted = [(entry.partition, extent.base_offset) for entry in runs for extent in entry.extents]
    assert flat == wanted
    # No round is cut shorter than need be.
    for group, following in pairwise(groups):
        assert sum(entry.bytes for entry in group) + following[0].extents[0].length > ROUND_BYTES


def test_the_classes_fit_together():
    """Goal: merging FAN_IN of a class gives a higher one; the figures that the bound on rewriting rests on."""
    assert all(after == before * FAN_IN for before, after in pairwise(PACK_CLASS_BYTES))
    assert PACK_CLASS_BYTES[-1] * 2 == ROUND_BYTES and PACK_CLASS_BYTES[-1] > SEGMENT_MIN_BYTES

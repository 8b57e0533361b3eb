"""Goal: the sweep deletes what nothing can name any more, in the end all of it, and never anything else."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import ObjectExists, StoreUnavailable
from kafscale.storage.compaction import CompactionPolicy, Compactor
from kafscale.storage.earlier_logs import Earlier
from kafscale.storage.keys import writer_of
from kafscale.storage.log_objects import Kind, Seal, decode_header, encode_header, encode_small
from kafscale.storage.manifest import restore_partition
from kafscale.storage.partition import PartitionLog, check_dense
from kafscale.storage.recovery import apply_replay
from kafscale.storage.store import Purpose
from kafscale.storage.sweep import LogsInUse, SweepResult, sweep
from kafscale.storage.takeover import SEALS_AT_ONCE, LogReader, find_end, seal_log
from tests.unit.storage.rig import (
    EPOCH_MS,
    KEYS,
    Config,
    LoopClock,
    ScriptedStore,
    Writer,
    batch_of,
    content,
    load_ready,
    log_id,
    make_partition,
    run,
    write_checkpoint,
)

FEWER = settings(max_examples=25)
SLOTS = 2
GRACE_MS = 60_000


def slot_of(topic: bytes, index: int) -> int:
    return int.from_bytes(topic, "big") % SLOTS


class Cluster:
    """Two slots with two partitions each, and a line of workers that own them all, one after the other."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = LoopClock()
        self.store = ScriptedStore(self.clock)
        self.random = random.Random(seed)
        self.reader = LogReader(self.store, KEYS, self.clock, self.random)
        self.written: dict[bytes, bytes] = {}
        self.lists: list[list[Earlier]] = [[] for _ in range(SLOTS)]
        self.known_seals: set[str] = set()
        self.epoch = 0
        self.incarnation = 0
        self.writer: Writer | None = None
        self.partitions: list[PartitionLog] = []

    async def move(self, shorten: bool = True) -> None:
        """A new worker takes over."""
        if self.writer is not None:
            old = self.writer.log_id
            await seal_log(self.store, KEYS, old, self.clock, self.random, "test", "moved")
        self.epoch += 1
        self.incarnation += 1
        writer = Writer(self.store, self.incarnation)
        earlier = {slot: list(assignments) for slot, assignments in enumerate(self.lists)}
        for assignments in self.lists:
            assignments.append(Earlier(self.epoch, writer.log_id))
        self.partitions = await self.load(earlier, self.epoch)
        for partition in self.partitions:
            for extent in partition.extents:
                writer.references.add(extent.key)
        self.writer = writer
        self.given_up: list[str] = []
        self.compactor = Compactor(
            self.store,
            KEYS,
            writer.log_id,
            self.clock,
            self.random,
            writer.references,
            writer.tail,
            lambda partition: True,
            lambda partition: None,
            CompactionPolicy(objects=2, bytes=1 << 40, idle_s=1.0),
        )
        await self.checkpoint()
        if shorten:
            self.lists = [assignments[-1:] for assignments in self.lists]

    async def load(self, earlier: dict[int, list[Earlier]], epoch: int) -> list[PartitionLog]:
        loaded = await load_ready(self.store, self.clock, earlier, slot_of)
        partitions = []
        for number in range(2 * SLOTS):
            fresh = make_partition(number, slot=number % SLOTS, config=Config())
            partition = PartitionLog(fresh.topic, fresh.topic_id, fresh.index, fresh.slot, epoch, Config())
            found = loaded[fresh.slot]
            for described in found.manifest.partitions if found.manifest is not None else ():
                if described.topic_id == partition.topic_id:
                    assert found.manifest is not None
                    restore_partition(partition, described, found.manifest.objects)
            apply_replay(partition, [entry for entry in found.replay if entry.group.topic_id == partition.topic_id])
            check_dense(partition)
            partition.lead(epoch)
            partitions.append(partition)
        return partitions

    async def checkpoint(self) -> None:
        assert self.writer is not None
        by_slot = {
            slot: (self.epoch, [partition for partition in self.partitions if partition.slot == slot])
            for slot in range(SLOTS)
        }
        covered = self.writer.log.counted
        unreferenced, self.writer.references.unreferenced = self.writer.references.unreferenced, []
        late = [k for k in unreferenced if k.startswith(KEYS.log_prefix) and int(k[-20:]) >= covered]
        self.writer.references.unreferenced += late
        await write_checkpoint(self.writer, by_slot)
        await self.store.delete(self.given_up, Purpose.SWEEP)
        self.given_up = [key for key in unreferenced if key not in late]

    async def flush(self) -> None:
        assert self.writer is not None
        for partition in self.random.sample(self.partitions, 2):
            size = self.random.choice([10, 1000, 200_000, 300_000])
            self.writer.append(partition, batch_of(size, chance=self.random))
        await self.writer.settle()
        for partition in self.partitions:
            self.written[partition.topic_id] = await content(self.store, partition)
        self.compactor.flushed(1)

    def in_use(self) -> LogsInUse:
        assert self.writer is not None
        return LogsInUse(
            live={self.writer.log_id},
            listed={entry.log_id for assignments in self.lists for entry in assignments},
            owners={slot: (entries[-1].epoch, entries[-1].log_id) for slot, entries in enumerate(self.lists)},
        )

    async def sweep(self, grace_ms: int = GRACE_MS) -> SweepResult:
        async def read() -> LogsInUse:
            return self.in_use()

        return await sweep(self.store, KEYS, self.clock, self.random, read, grace_ms, self.known_seals)

    async def check(self) -> None:
        """Whoever would take over now reads everything that was ever written."""
        assert self.writer is not None
        await seal_log(self.store, KEYS, self.writer.log_id, self.clock, self.random, "test", "checked")
        for partition in await self.load({slot: list(entries) for slot, entries in enumerate(self.lists)}, 99):
            assert await content(self.store, partition) == self.written.get(partition.topic_id, b"")


STEPS = st.sampled_from(["flush", "flush", "flush", "compact", "checkpoint", "move", "move-listed", "sweep", "hour"])


@FEWER
@given(steps=st.lists(STEPS, max_size=25), seed=st.integers(0, 9))
def test_nothing_that_is_named_is_deleted(steps, seed):
    """Goal: through any history of flushes, compactions, checkpoints and moves, with sweeps at any time, a new owner
    finds every byte; and when all is quiet, all that is left of ended logs is named, or a seal."""

    async def main() -> None:
        cluster = Cluster(seed)
        await cluster.move()
        sweeping: list[asyncio.Task[SweepResult]] = []
        for step in [*steps, "flush"]:
            match step:
                case "flush":
                    await cluster.flush()
                case "compact":
                    await cluster.compactor.run_once(cluster.partitions)
                case "checkpoint":
                    await cluster.checkpoint()
                case "move" | "move-listed":
                    await cluster.move(shorten=step == "move")
                case "sweep":
                    # It goes on beside the steps that follow.
                    sweeping.append(asyncio.ensure_future(cluster.sweep(grace_ms=0)))
                case "hour":
                    await cluster.clock.sleep(3600)
        await asyncio.gather(*sweeping)
        await cluster.move()
        await cluster.clock.sleep(3600)
        await cluster.flush()
        assert (await cluster.sweep()).refused is None
        named = {extent.key for partition in cluster.partitions for extent in partition.extents}
        for key in await cluster.store.keys():
            if writer_of(key) != cluster.writer.log_id and key.removesuffix(".index") + ".kfs" not in named | {
                key + ".kfs"
            }:
                is_seal = (
                    "/log/" in key
                    and decode_header(await cluster.store.inner.get(key, Purpose.SWEEP), key).kind == Kind.SEAL
                )
                assert is_seal or key in named, key
        before = await cluster.store.keys()
        assert (await cluster.sweep()).deleted == 0
        assert await cluster.store.keys() == before
        for number in range(1, cluster.incarnation):
            reader = LogReader(cluster.store, KEYS, cluster.clock, cluster.random)
            objects = [await reader.read(log_id(number), at) for at in await reader.sequences(log_id(number))]
            assert sum(entry is not None and entry.seal is not None for entry in objects) >= SEALS_AT_ONCE
        await cluster.check()

    run(main())


async def aged(moves: int = 2) -> Cluster:
    """A cluster with an ended, unlisted log full of garbage that is old enough to go."""
    cluster = Cluster()
    await cluster.move()
    for _ in range(moves):
        for _ in range(4):
            await cluster.flush()
        await cluster.clock.sleep(2)
        await cluster.compactor.run_once(cluster.partitions)
        await cluster.checkpoint()
        await cluster.move()
    await cluster.clock.sleep(3600)
    await cluster.flush()
    await cluster.checkpoint()
    return cluster


def test_a_manifest_that_cannot_be_read_stops_everything():
    """Goal: if one current manifest is damaged or gone, or the store is silent, not one object is deleted."""

    async def main() -> None:
        cluster = await aged()
        before = await cluster.store.keys()
        manifest = [key for key in before if key.startswith(f"ns/manifest/{cluster.writer.log_id}")][-1]
        await cluster.store.damage(manifest, 40)
        assert "CRC32C" in str((await cluster.sweep()).refused)
        assert await cluster.store.keys() == before
        await cluster.store.damage(manifest, 40)
        cluster.store.read_errors[manifest] = [StoreUnavailable("no") for _ in range(20)]
        assert "no answer" in str((await cluster.sweep()).refused)
        cluster.store.read_errors.clear()
        body = await cluster.store.inner.get(manifest, Purpose.SWEEP)
        await cluster.store.inner.delete([manifest], Purpose.SWEEP)
        assert "missing" in str((await cluster.sweep()).refused)
        await cluster.store.inner.put_if_absent(manifest, [body], Purpose.SWEEP)
        assert await cluster.store.keys() == before
        result = await cluster.sweep()
        assert result.refused is None and result.deleted > 0 and result.deleted_bytes > 0
        await cluster.check()

    run(main())


def test_an_owner_without_a_checkpoint_stops_everything():
    """Goal: as long as a slot's newest owner has not said what it holds, nothing is deleted."""

    async def main() -> None:
        cluster = await aged()
        before = await cluster.store.keys()
        cluster.lists[1].append(Earlier(77, log_id(77)))
        assert "slot 1 has no manifest of epoch 77" in str((await cluster.sweep()).refused)
        assert await cluster.store.keys() == before

    run(main())


def test_listed_live_and_unended_logs_are_left_alone():
    """Goal: nothing of a log that is live, listed or not ended is touched, named or not."""

    async def main() -> None:
        cluster = await aged()
        listed, live, unended = (Writer(cluster.store, number) for number in (50, 51, 52))
        for writer in (listed, live, unended):
            await writer.flush(make_partition(9), batch_of(10))
            await cluster.store.put_if_absent(KEYS.pack(writer.log_id, 1), [b"pack"], Purpose.COMPACTION)
        for number in (50, 51):
            await seal_log(cluster.store, KEYS, log_id(number), cluster.clock, cluster.random, "test", "ended")
        await cluster.clock.sleep(3600)
        await cluster.flush()
        cluster.lists[0].insert(0, Earlier(0, listed.log_id))

        async def read() -> LogsInUse:
            in_use = cluster.in_use()
            return LogsInUse(live={*in_use.live, live.log_id}, listed=in_use.listed, owners=in_use.owners)

        result = await sweep(cluster.store, KEYS, cluster.clock, cluster.random, read, GRACE_MS)
        assert result.refused is None and result.deleted > 0
        assert result.unended == [unended.log_id]
        for writer in (listed, live, unended):
            assert not [key for key in cluster.store.deleted if writer.log_id in key]

    run(main())


def test_an_assignment_that_comes_during_the_sweep_counts():
    """Goal: a log that is listed only after the objects were listed keeps its objects."""

    async def main() -> None:
        cluster = await aged()
        late = Writer(cluster.store, 60)
        await late.flush(make_partition(9), batch_of(10))
        await seal_log(cluster.store, KEYS, late.log_id, cluster.clock, cluster.random, "test", "ended")
        await cluster.clock.sleep(3600)
        await cluster.flush()
        calls = 0

        async def read() -> LogsInUse:
            nonlocal calls
            calls += 1
            in_use = cluster.in_use()
            listed = {*in_use.listed, late.log_id} if calls == 2 else in_use.listed
            return LogsInUse(live=in_use.live, listed=listed, owners=in_use.owners)

        result = await sweep(cluster.store, KEYS, cluster.clock, cluster.random, read, GRACE_MS)
        assert result.refused is None and not [key for key in cluster.store.deleted if late.log_id in key]

    run(main())


def test_young_objects_are_spared_by_the_stores_clock():
    """Goal: the grace period is measured between objects, so a clock of ours that runs ahead deletes nothing early."""

    async def main() -> None:
        cluster = await aged()
        cluster.clock.wall_ms = lambda: EPOCH_MS + 10**12  # type: ignore[method-assign]
        result = await cluster.sweep(grace_ms=7200_000)
        assert result.refused is None and result.deleted == 0 and result.young > 0
        assert (await cluster.sweep(grace_ms=1000_000)).deleted > 0

    run(main())


@pytest.mark.parametrize("deletes", range(4))
def test_a_sweep_that_breaks_off_is_finished_by_the_next(deletes):
    """Goal: wherever a sweep ends early, the next one still knows that the log had ended."""

    async def main() -> None:
        cluster = await aged(1)
        victim = next(entry for entry in [log_id(1)])
        real = cluster.store.delete
        calls = 0

        async def one_by_one(keys: list[str], purpose: Purpose) -> None:
            nonlocal calls
            for key in keys:
                if calls == deletes:
                    raise StoreUnavailable("cut off")
                calls += 1
                await real([key], purpose)

        cluster.store.delete = one_by_one  # type: ignore[method-assign, assignment]
        first = await cluster.sweep()
        assert first.refused is not None or deletes > calls
        # Whoever asks about the log, however late, hears that it has ended: its own supervisor does, for instance.
        assert (await find_end(cluster.reader, victim)).sealed
        cluster.store.delete = real  # type: ignore[method-assign]
        result = await cluster.sweep()
        assert result.refused is None and result.unended == []
        assert (await find_end(cluster.reader, victim)).sealed
        left = [key for key in await cluster.store.keys() if victim in key]
        named = {extent.key for partition in cluster.partitions for extent in partition.extents}
        for key in left:
            seal = "/log/" in key and decode_header(await cluster.store.inner.get(key, Purpose.SWEEP), key).kind == 3
            assert seal or key in named or key.replace(".index", ".kfs") in named
        await cluster.check()

    run(main())


@pytest.mark.parametrize("wakes", ("before", "meanwhile"))
def test_a_sealer_that_slept_all_the_while_keeps_nothing_from_being_swept(wakes):
    """Goal: whoever found a log empty and comes to seal it when it was written, ended and half swept, is in nobody's
    way, whenever he comes."""

    async def main() -> None:
        cluster = Cluster()
        await cluster.move()
        for _ in range(4):
            await cluster.flush()
            await cluster.checkpoint()
        victim, real = log_id(1), cluster.store.delete
        await cluster.move()
        await cluster.clock.sleep(3600)
        await cluster.flush()
        if wakes == "before":
            await real([KEYS.log(victim, 0)], Purpose.SWEEP)

        async def wake_up() -> None:
            for number in range(SEALS_AT_ONCE):
                with suppress(ObjectExists):
                    header = encode_header(Kind.SEAL, victim, number, EPOCH_MS, -1)
                    parts = encode_small(header, Seal("test", "it has slept"))
                    await cluster.store.put_if_absent(KEYS.log(victim, number), parts, Purpose.RECOVERY)

        async def one_of_them(keys: list[str], purpose: Purpose) -> None:
            await real(keys[:1], purpose)
            await wake_up()
            raise StoreUnavailable("cut off")

        if wakes == "before":
            await wake_up()
        else:
            cluster.store.delete = one_of_them  # type: ignore[method-assign, assignment]
            assert (await cluster.sweep()).refused is not None
            cluster.store.delete = real  # type: ignore[method-assign]
        result = await cluster.sweep()
        assert result.refused is None and result.deleted > 0 and not result.unended
        named = {extent.key for partition in cluster.partitions for extent in partition.extents}
        left = await cluster.store.keys(KEYS.log_objects(victim))
        assert KEYS.log(victim, 0) in left
        for key in left:
            head = await cluster.store.inner.get(key, Purpose.SWEEP)
            assert key in named or decode_header(head, key).kind == Kind.SEAL
        assert (await find_end(cluster.reader, victim)).sealed
        await cluster.check()

    run(main())


def test_what_a_zombie_writes_later_is_swept_too():
    """Goal: garbage that arrives after the sweep goes with a later one, though the log's objects are gone."""

    async def main() -> None:
        cluster = await aged()
        await cluster.sweep()
        await cluster.store.put_if_absent(KEYS.pack(log_id(1), 999), [b"late"], Purpose.COMPACTION)
        left = await cluster.store.keys(KEYS.log_objects(log_id(1)))
        gone = next(key for number in range(99) if (key := KEYS.log(log_id(1), number)) not in left)
        assert gone in cluster.store.deleted
        await cluster.store.put_if_absent(gone, [b"x" * 100], Purpose.FLUSH)
        await cluster.store.inner.delete([gone], Purpose.SWEEP)
        await cluster.clock.sleep(3600)
        await cluster.flush()
        result = await cluster.sweep()
        assert result.refused is None and KEYS.pack(log_id(1), 999) in cluster.store.deleted

    run(main())


def test_other_prefixes_are_never_touched():
    """Goal: cluster log, producer id blocks and keys of unknown form stay, whatever their age."""

    async def main() -> None:
        cluster = await aged()
        strange = [KEYS.cluster(1), KEYS.producer_ids(3), "ns/topics/readme", "ns/other/" + "0" * 32 + "/1"]
        for key in strange:
            await cluster.store.put_if_absent(key, [b"x"], Purpose.CLUSTER)
        await cluster.clock.sleep(7200)
        await cluster.flush()
        assert (await cluster.sweep()).deleted > 0
        assert set(strange) <= set(await cluster.store.keys())

    run(main())

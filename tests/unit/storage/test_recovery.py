"""Goal: whoever loads a slot knows what its last owner knew, from the store alone, and never takes loss for empty."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import Corrupt, StoreUnavailable
from kafscale.storage.earlier_logs import Earlier
from kafscale.storage.manifest import restore_partition
from kafscale.storage.partition import PartitionLog, check_dense
from kafscale.storage.recovery import apply_replay
from kafscale.storage.store import Purpose
from kafscale.storage.takeover import seal_log
from tests.unit.storage.rig import (
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

FEWER = settings(max_examples=40)


def slot_of(topic: bytes, index: int) -> int:
    return int.from_bytes(topic, "big") % 2


class Line:
    """Owners of two slots, one after the other, over one store."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.store = ScriptedStore(self.clock)
        self.random = random.Random(3)
        self.partitions = [make_partition(number, slot=number % 2) for number in range(4)]
        self.lists: dict[int, list[Earlier]] = {0: [], 1: []}
        self.begin(1)

    def begin(self, epoch: int) -> None:
        self.epoch = epoch
        self.writer = Writer(self.store, epoch)
        for partition in self.partitions:
            for extent in partition.extents:
                self.writer.references.add(extent.key)
        for assignments in self.lists.values():
            assignments.append(Earlier(epoch, self.writer.log_id))

    async def checkpoint(self) -> None:
        await write_checkpoint(
            self.writer,
            {slot: (self.epoch, [p for p in self.partitions if p.slot == slot]) for slot in (0, 1)},
        )

    async def end(self) -> None:
        await seal_log(self.store, KEYS, self.writer.log_id, self.clock, self.random, "test", "test")

    async def load(self, epoch: int) -> list[PartitionLog]:
        loaded = await load_ready(self.store, self.clock, self.lists, slot_of)
        partitions = []
        for old in self.partitions:
            found = loaded[old.slot]
            partition = PartitionLog(old.topic, old.topic_id, old.index, old.slot, epoch, Config())
            for described in found.manifest.partitions if found.manifest is not None else ():
                if described.topic_id == old.topic_id and found.manifest is not None:
                    restore_partition(partition, described, found.manifest.objects)
            apply_replay(partition, [entry for entry in found.replay if entry.group.topic_id == old.topic_id])
            check_dense(partition)
            partitions.append(partition)
        return partitions


STEP = st.one_of(
    st.tuples(st.just("append"), st.integers(0, 3), st.integers(1, 3)),
    st.tuples(st.just("produce"), st.integers(0, 3), st.integers(1, 2)),
    st.tuples(st.just("flush"), st.just(0), st.just(0)),
    st.tuples(st.just("start"), st.integers(0, 3), st.integers(0, 5)),
    st.tuples(st.just("checkpoint"), st.just(0), st.just(0)),
    st.tuples(st.just("move"), st.just(0), st.integers(0, 1)),
)


@FEWER
@given(steps=st.lists(STEP, max_size=40))
def test_a_load_equals_the_state_that_was_lived(steps):
    """Goal: after any history of appends, deletions, checkpoints and moves, what is loaded is what the owner had."""

    async def main() -> None:
        line = Line()
        await line.checkpoint()  # every owner writes one before it acknowledges anything
        sequences: dict[tuple[int, int], int] = {}
        for what, which, count in [*steps, ("move", 0, 1)]:
            partition = line.partitions[which]
            match what:
                case "append":
                    line.writer.append(partition, batch_of(10 * count, count, line.random))
                case "produce":
                    sequence = sequences.get((which, count), 0)
                    sequences[which, count] = sequence + 1
                    batch = batch_of(5, producer_id=count, producer_epoch=0, base_sequence=sequence)
                    line.writer.append(partition, batch)
                case "flush":
                    await line.writer.settle()
                case "start":
                    line.writer.flusher.raise_log_start(partition, min(count, partition.high_watermark))
                case "checkpoint":
                    await line.checkpoint()
                case "move":
                    await line.writer.settle()
                    await line.end()
                    lived = line.partitions
                    line.partitions = await line.load(line.epoch + 1)
                    for old, new in zip(lived, line.partitions, strict=True):
                        assert (new.log_start_offset, new.high_watermark, new.next_offset) == (
                            old.log_start_offset,
                            old.high_watermark,
                            old.high_watermark,
                        )
                        assert await content(line.store, new) == await content(line.store, old)
                        assert new.size_bytes == old.size_bytes
                        assert [e.max_timestamp for e in new.extents] == [e.max_timestamp for e in old.extents]
                        live = [entry for entry in old.epochs if entry.start_offset < old.high_watermark]
                        assert [entry for entry in new.epochs if entry.start_offset < new.high_watermark] == live
                        lived_producers = {p.producer_id: p.batches for p in old.producers.snapshot(1 << 40)}
                        assert {p.producer_id: p.batches for p in new.producers.snapshot(1 << 40)} == lived_producers
                    line.begin(line.epoch + 1)
                    for new in line.partitions:
                        new.lead(line.epoch)
                    await line.checkpoint()

    run(main())


async def with_data() -> Line:
    line = Line()
    for number in range(4):
        await line.writer.flush(line.partitions[number], batch_of(10))
    await line.checkpoint()
    await line.writer.flush(line.partitions[0], batch_of(10))
    return line


def test_a_load_waits_for_the_end_of_earlier_logs():
    """Goal: a slot is not loaded from a log whose owner may still write."""

    async def main() -> None:
        line = await with_data()
        loading = asyncio.ensure_future(line.load(2))
        await line.clock.sleep(5)
        assert not loading.done()
        await line.writer.flush(line.partitions[1], batch_of(10))
        await line.end()
        assert [partition.high_watermark for partition in await loading] == [2, 2, 1, 1]

    run(main())


def test_no_manifest_is_an_error_but_for_a_new_slot():
    """Goal: a list that does not reach back to the first epoch and names no manifest is never served as empty."""

    async def main() -> None:
        line = Line()
        await line.end()
        assert [partition.high_watermark for partition in await line.load(2)] == [0] * 4
        line.lists = {0: [Earlier(2, log_id(1))]}
        line.partitions = [partition for partition in line.partitions if partition.slot == 0]
        with pytest.raises(Corrupt, match="refusing to serve it as empty"):
            await line.load(3)

    run(main())


def test_the_highest_epoch_that_named_the_slot_counts():
    """Goal: an owner that never wrote a checkpoint for the slot is passed over; an older one's manifest counts."""

    async def main() -> None:
        line = await with_data()
        await line.end()
        line.begin(2)  # it never got to load anything
        await line.end()
        assert [partition.high_watermark for partition in await line.load(3)] == [2, 1, 1, 1]

    run(main())


@pytest.mark.parametrize("what", ["manifest", "log"])
def test_damage_stops_the_load(what):
    """Goal: a flipped bit in manifest or log is an error, and so is a missing manifest."""

    async def main() -> None:
        line = await with_data()
        await line.end()
        key = (await line.store.keys(f"ns/{what}/"))[-10 if what == "log" else 0]
        await line.store.damage(key, 20)
        with pytest.raises(Corrupt):
            await line.load(2)

    run(main())


def test_replaying_what_the_manifest_knows_does_no_harm():
    """Goal: a manifest that was made after what its checkpoint covers is not counted twice."""

    async def main() -> None:
        line = await with_data()
        slots = {slot: (1, [p for p in line.partitions if p.slot == slot]) for slot in (0, 1)}
        await write_checkpoint(line.writer, slots, covered=2)
        await line.end()
        loaded = await line.load(2)
        assert [partition.high_watermark for partition in loaded] == [2, 1, 1, 1]
        assert [len(partition.extents) for partition in loaded] == [2, 1, 1, 1]

    run(main())


def test_a_gap_in_the_replay_is_damage():
    """Goal: rows that do not follow the manifest's high watermark are never applied."""

    async def main() -> None:
        line = await with_data()
        await line.end()
        loaded = await load_ready(line.store, line.clock, line.lists, slot_of)
        partition = PartitionLog("topic0", line.partitions[0].topic_id, 0, 0, 2, Config())
        with pytest.raises(Corrupt, match="comes next"):
            apply_replay(partition, loaded[0].replay)

    run(main())


def test_a_store_that_is_away_for_a_while_is_waited_for():
    """Goal: refusals on the way delay a load and change nothing."""

    async def main() -> None:
        line = await with_data()
        await line.end()
        for key in await line.store.keys():
            line.store.read_errors[key] = [StoreUnavailable("no")] * 2
        assert [partition.high_watermark for partition in await line.load(2)] == [2, 1, 1, 1]
        assert await line.store.inner.exists(KEYS.log(line.writer.log_id, 0), Purpose.RECOVERY)

    run(main())


def test_a_store_that_is_away_for_long_is_asked_ever_less_often():
    """Goal: whoever takes over does not add to the load of a store that says "slow down"."""

    async def main() -> None:
        line = await with_data()
        await line.end()
        manifests = await line.store.keys(KEYS.manifest_prefix)
        for key in manifests:
            line.store.read_errors[key] = [StoreUnavailable("slow down")] * 12
        began = line.clock.monotonic()
        await line.load(2)
        assert manifests and line.clock.monotonic() - began > 5

    run(main())

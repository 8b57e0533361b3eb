"""Goal: whoever reads a living owner's log finds the newest checkpoint that counts, never one that doesn't and never an
older one than the owner has told others of, whatever the owner writes and deletes meanwhile."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import Corrupt, ObjectMissing
from kafscale.storage.earlier_logs import Earlier
from kafscale.storage.published import LOOK_SECONDS, PublishedSlot, PublishedSlots, newest_counting_checkpoint
from kafscale.storage.store import Purpose
from kafscale.storage.takeover import LogReader
from tests.unit.storage.rig import KEYS, LoopClock, Put, ScriptedStore, Writer, batch_of, make_partition, run
from tests.unit.storage.rig import write_checkpoint as write
from tests.unit.storage.test_takeover import Owner

FEWER = settings(max_examples=40)


class Slots:
    """Slot 0 of two owners, one after the other, and a reader of what they publish."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.store = ScriptedStore(self.clock)
        self.writers = [Writer(self.store, number) for number in (1, 2)]
        self.partition = make_partition()
        self.list = [Earlier(1, self.writers[0].log_id)]
        self.published = PublishedSlots(self.store, KEYS, self.clock, random.Random(1))

    async def add(self, owner: int = 0, epoch: int = 1) -> None:
        """A record, and a checkpoint that describes it."""
        writer = self.writers[owner]
        await writer.flush(self.partition, batch_of(10))
        await write(writer, {0: (epoch, [self.partition])})

    async def read(self, known: PublishedSlot | None = None, *, anew: bool = False) -> PublishedSlot | None:
        return await self.published.read(0, self.list, known, anew=anew)


def end_of(found: PublishedSlot | None) -> int:
    assert found is not None
    return found.manifest.partitions[0].high_watermark


@FEWER
@given(seed=st.integers(0, 10_000), waits=st.lists(st.floats(0, 0.3), min_size=1, max_size=5), sealed=st.booleans())
def test_the_newest_checkpoint_that_counts_is_found(seed: int, waits: list[float], sealed: bool) -> None:
    """Of an owner that writes, checkpoints and deletes all the time, and of one whose log was ended under its hands;
    from the beginning and from the checkpoint that was known before."""

    async def main() -> None:
        owner = Owner(seed)
        log_id = owner.writer.log_id
        work = asyncio.ensure_future(owner.work(30))
        known = -1
        for wait in waits:
            await owner.clock.sleep(wait)
            told = owner.writer.log.checkpoint_sequence
            found = await newest_counting_checkpoint(owner.reader, log_id, known)
            assert (found[0] if found is not None else known) >= told
            if found is not None:
                known, checkpoint = found
                assert known <= owner.writer.log.counted and checkpoint.covered <= known
        if sealed:
            end = await owner.seal()
            # What was in flight may have been written above the seal.
            await owner.clock.sleep(10)
            found = await newest_counting_checkpoint(owner.reader, log_id, -1)
            assert (found is None) == (end.checkpoint is None)
            assert found is None or (found[0] < end.end and found[1] == end.checkpoint)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    run(main())


def test_a_checkpoint_above_a_gap_does_not_count_yet() -> None:
    """The owner has one on its way beside an object that is not there yet: nobody was told of it."""

    async def main() -> None:
        slots = Slots()
        await slots.add()
        writer = slots.writers[0]
        before = await slots.read()
        slots.store.puts[KEYS.log(writer.log_id, writer.log.next_sequence)] = [Put(seconds=30)]
        writer.append(slots.partition, batch_of(10))
        await slots.clock.sleep(0.01)
        task = asyncio.ensure_future(write(writer, {0: (1, [slots.partition])}, covered=1))
        await slots.clock.sleep(5)
        assert len(await slots.store.keys("ns/log/")) == 3
        assert await slots.read(before, anew=True) is before
        await task
        found = await slots.read(before, anew=True)
        assert found is not before

    run(main())


def test_the_newest_owner_that_describes_the_slot_is_believed() -> None:
    """Until the new owner has published the slot the old one's manifest is as good; what only the list names is not
    waited for."""

    async def main() -> None:
        slots = Slots()
        assert await slots.read() is None
        await slots.add()
        await slots.clock.sleep(LOOK_SECONDS)
        first = await slots.read()
        assert end_of(first) == 1
        slots.list.append(Earlier(2, slots.writers[1].log_id))
        await slots.clock.sleep(LOOK_SECONDS)
        assert await slots.read(first) is first
        slots.partition.lead(2)
        await slots.add(owner=1, epoch=2)
        await slots.clock.sleep(LOOK_SECONDS)
        assert end_of(await slots.read(first)) == 2
        # A log that had the slot before, at another epoch, says nothing of this one.
        slots.list[-1] = Earlier(3, slots.writers[1].log_id)
        assert await slots.read(first) is first

    run(main())


def test_a_log_is_asked_once_for_all_who_ask() -> None:
    """And again after a second, or where something is gone."""

    async def main() -> None:
        slots = Slots()
        await slots.add()

        def listings() -> int:
            return sum(how == "list" for how, _ in slots.store.asked)

        await asyncio.gather(*(slots.read() for _ in range(5)))
        assert listings() == 1
        found = await slots.read()
        assert listings() == 1
        await slots.read(found, anew=True)
        assert listings() == 2
        await slots.clock.sleep(LOOK_SECONDS + 0.1)
        await slots.read(found)
        assert listings() == 3

    run(main())


def test_a_manifest_that_was_replaced_while_it_was_looked_up_is_looked_up_again() -> None:
    """The checkpoint that was read names an object that is gone: a newer one names another."""

    async def main() -> None:
        slots = Slots()
        await slots.add()
        await slots.read()
        old = await slots.store.keys("ns/manifest/")
        await slots.add()
        await slots.store.delete(old, Purpose.SWEEP)
        # Looked at just now, so the old checkpoint is still what is known.
        assert end_of(await slots.read()) == 2

    run(main())


@pytest.mark.parametrize("damage", ["manifest", "checkpoint"])
def test_damage_is_said_to_be_damage(damage: str) -> None:
    """A manifest or checkpoint whose bytes are wrong, or that belongs to another slot."""

    async def main() -> None:
        slots = Slots()
        await slots.add()
        if damage == "manifest":
            (key,) = await slots.store.keys("ns/manifest/")
        else:
            key = (await slots.store.keys("ns/log/"))[-1]
        await slots.store.damage(key, 70)
        with pytest.raises(Corrupt):
            await slots.read()

    run(main())


def test_a_manifest_that_is_gone_for_good_is_an_error() -> None:
    """Not an empty slot."""

    async def main() -> None:
        slots = Slots()
        await slots.add()
        await slots.store.delete(await slots.store.keys("ns/manifest/"), Purpose.SWEEP)
        with pytest.raises(ObjectMissing):
            await slots.read()

    run(main())


def test_looking_costs_little_in_a_long_log() -> None:
    """A few headers, one checkpoint and one manifest, however many objects there are."""

    async def main() -> None:
        slots = Slots()
        await slots.add()
        for _ in range(60):
            await slots.writers[0].flush(slots.partition, batch_of(10))
        reader: Any = LogReader(slots.store, KEYS, slots.clock, random.Random(1))
        slots.store.asked.clear()
        await newest_counting_checkpoint(reader, slots.writers[0].log_id, -1)
        assert len(slots.store.asked) < 25
        slots.store.asked.clear()
        assert await newest_counting_checkpoint(reader, slots.writers[0].log_id, 60) is None

    run(main())

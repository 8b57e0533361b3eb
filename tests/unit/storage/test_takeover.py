"""Goal: a log's end is found and made right whatever its owner does meanwhile, and never where it is not."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import Corrupt, StoreUnavailable
from kafscale.storage.log_objects import BatchGroup, Kind, Seal, encode_header, encode_small
from kafscale.storage.manifest import decode_manifest
from kafscale.storage.store import Purpose
from kafscale.storage.takeover import READS_AT_ONCE, SEALS_AT_ONCE, LogEnd, LogReader, find_end, seal_log
from kafscale.storage.worker_log import MAX_IN_FLIGHT
from tests.unit.storage.rig import (
    KEYS,
    LoopClock,
    Put,
    ScriptedStore,
    Writer,
    batch_of,
    make_partition,
    run,
    write_checkpoint,
)

FEWER = settings(max_examples=40)


class Owner:
    """A log's owner that keeps writing, and the reader of its log."""

    def __init__(self, seed: int = 0) -> None:
        self.clock = LoopClock()
        self.store = ScriptedStore(self.clock)
        self.random = random.Random(seed)
        self.store.put_seconds = lambda key: self.random.expovariate(1 / 0.004)
        self.writer = Writer(self.store, seed=seed)
        self.partition = make_partition()
        self.acknowledged = 0
        self.given_up: list[str] = []
        self.reader = LogReader(self.store, KEYS, self.clock, self.random)

    def append(self) -> None:
        _, flush = self.writer.append(self.partition, batch_of(20))
        last = self.partition.next_offset
        flush.answers.append(lambda *_: setattr(self, "acknowledged", last))

    async def work(self, seconds: float) -> None:
        """Append all the time, with several objects in flight; write checkpoints, and delete what they replace."""
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end and not self.writer.fenced:
            self.append()
            if self.random.random() < 0.1:
                covered = self.writer.log.counted
                task = asyncio.ensure_future(self.checkpoint())
                while not task.done() and not self.writer.fenced:
                    self.append()
                    await self.clock.sleep(0.001)
                if not task.done():
                    task.cancel()
                    return
                await self.store.delete(self.given_up, Purpose.SWEEP)
                self.given_up = [KEYS.log(self.writer.log_id, number) for number in range(covered)]
            await self.clock.sleep(self.random.random() * 0.004)

    async def checkpoint(self) -> None:
        await write_checkpoint(self.writer, {0: (1, [self.partition])})

    async def known_to(self, end: LogEnd) -> int:
        """The high watermark in the manifest that the last counting checkpoint names."""
        if end.checkpoint is None:
            return 0
        place = end.checkpoint.slots[0]
        data = await self.store.inner.get_range(place.key, place.position, place.length, Purpose.RECOVERY)
        return decode_manifest(data, place.key).partitions[0].high_watermark

    async def seal(self) -> LogEnd:
        sealed = await seal_log(self.store, KEYS, self.writer.log_id, self.clock, self.random, "sealer", "test")
        end = await self.end()
        assert (sealed.sealed, sealed.end, sealed.replay_from) == (end.sealed, end.end, end.replay_from)
        return end

    async def end(self) -> LogEnd:
        return await find_end(self.reader, self.writer.log_id)


def offsets(end: LogEnd) -> list[int]:
    return [
        row[0]
        for entry in end.objects
        for group in entry.groups or ()
        if isinstance(group, BatchGroup)
        for row in group.rows
    ]


@FEWER
@given(seed=st.integers(0, 10_000), wait=st.floats(0, 0.5))
def test_a_busy_owner_is_sealed_and_loses_nothing(seed, wait):
    """Goal: an owner that writes, checkpoints and deletes all the time is ended in bounded time; everything it
    acknowledged lies below the end, and afterwards everyone finds the same end."""

    async def main() -> None:
        owner = Owner(seed)
        work = asyncio.ensure_future(owner.work(30))
        await owner.clock.sleep(wait)
        end = await owner.seal()
        await owner.clock.sleep(10)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert end.sealed and owner.writer.log.counted <= end.end and owner.writer.fenced
        known = await owner.known_to(end)
        replayed = [offset for offset in offsets(end) if offset >= known]
        assert replayed == list(range(known, known + len(replayed)))
        assert owner.acknowledged <= known + len(replayed)
        again = await owner.end()
        assert (again.sealed, again.end) == (True, end.end)
        assert await owner.seal() == again

    run(main())


def test_a_gap_is_not_the_end():
    """Goal: in a log without a seal the lowest free number means nothing, and what lies above it does not count yet."""

    async def main() -> None:
        owner = Owner()
        owner.store.puts[KEYS.log(owner.writer.log_id, 1)] = [Put(seconds=30)]
        await owner.writer.flush(owner.partition, batch_of(1))
        owner.writer.flusher._flush_bytes = 1
        for _ in range(3):
            owner.append()
        await owner.clock.sleep(0.1)
        assert await owner.store.inner.exists(KEYS.log(owner.writer.log_id, 2), Purpose.RECOVERY)
        end = await owner.end()
        assert not end.sealed and end.end == 1 and offsets(end) == [0]
        sealed = await owner.seal()
        assert sealed.sealed and sealed.end == 1
        await owner.clock.sleep(60)
        assert owner.acknowledged == 0 and owner.writer.fenced

    run(main())


def test_seals_below_what_is_covered_count_for_nothing():
    """Goal: a seal that comes after its number was deleted ends nothing."""

    async def main() -> None:
        owner = Owner()
        for _ in range(3):
            await owner.writer.flush(owner.partition, batch_of(1))
        await owner.checkpoint()
        await owner.checkpoint()
        log_id = owner.writer.log_id
        await owner.store.delete([KEYS.log(log_id, number) for number in range(3)], Purpose.SWEEP)
        header = encode_header(Kind.SEAL, log_id, 1, 0, -1)
        await owner.store.inner.put_if_absent(
            KEYS.log(log_id, 1), encode_small(header, Seal("w", "r")), Purpose.RECOVERY
        )
        assert not (await owner.end()).sealed
        await owner.writer.flush(owner.partition, batch_of(1))
        end = await owner.seal()
        assert end.sealed and end.end == owner.writer.log.counted and offsets(end) == [3]

    run(main())


@pytest.mark.parametrize("written", [0, 1, 17, 40])
def test_the_end_of_a_quiet_log(written):
    """Goal: without a checkpoint the log is walked from 0, over any number of windows."""

    async def main() -> None:
        owner = Owner()
        for _ in range(written):
            await owner.writer.flush(owner.partition, batch_of(1))
        end = await owner.seal()
        assert (end.sealed, end.end, end.replay_from, end.checkpoint) == (True, written, 0, None)
        assert offsets(end) == list(range(written))
        keys = await owner.store.keys(KEYS.log_objects(owner.writer.log_id))
        assert len(keys) == written + SEALS_AT_ONCE

    run(main())


def test_the_newest_checkpoint_is_found_by_pointer_or_by_walking():
    """Goal: a checkpoint counts as soon as it is there, before any object points to it."""

    async def main() -> None:
        owner = Owner()
        for _ in range(2):
            await owner.writer.flush(owner.partition, batch_of(1))
        await owner.checkpoint()
        end = await owner.end()
        assert end.checkpoint is not None and end.checkpoint.covered == end.replay_from == 2 and end.end == 3
        await owner.writer.flush(owner.partition, batch_of(1))
        await owner.checkpoint()
        end = await owner.end()
        assert end.checkpoint is not None and end.checkpoint.covered == 4 and offsets(end) == []
        await owner.writer.flush(owner.partition, batch_of(1))
        assert offsets(await owner.end()) == [3]

    run(main())


def test_a_checkpoint_above_a_seal_never_existed():
    """Goal: what an owner wrote above a seal that it had not met yet does not count."""

    async def main() -> None:
        owner = Owner()
        await owner.writer.flush(owner.partition, batch_of(1))
        log_id = owner.writer.log_id
        header = encode_header(Kind.SEAL, log_id, 1, 0, -1)
        owner.store.puts[KEYS.log(log_id, 1)] = [Put(seconds=5)]
        owner.append()
        await owner.store.wait_for("put", KEYS.log(log_id, 1))
        # It overtakes: a checkpoint that covers only what was confirmed, at number 2.
        task = asyncio.ensure_future(owner.checkpoint())
        await owner.clock.sleep(1)
        assert await owner.store.inner.exists(KEYS.log(log_id, 2), Purpose.RECOVERY)
        await owner.store.inner.put_if_absent(
            KEYS.log(log_id, 1), encode_small(header, Seal("w", "r")), Purpose.RECOVERY
        )
        end = await owner.end()
        assert end.sealed and end.end == 1 and end.checkpoint is None and offsets(end) == [0]
        await owner.clock.sleep(30)
        assert owner.writer.fenced and not task.done()
        task.cancel()
        assert await owner.end() == end

    run(main())


def test_an_owner_that_writes_on_while_one_looks_is_no_damage():
    """Goal: a checkpoint that was replaced and deleted between two reads makes the reader look again."""

    async def main() -> None:
        owner = Owner()
        await owner.writer.flush(owner.partition, batch_of(1))
        await owner.checkpoint()
        await owner.writer.flush(owner.partition, batch_of(1))
        log_id = owner.writer.log_id
        first = KEYS.log(log_id, 1)
        looking = asyncio.ensure_future(owner.reader.newest_checkpoint(log_id))
        await owner.store.wait_for("get_tail", KEYS.log(log_id, 2))
        owner.store.put_seconds = lambda key: 0.0
        await owner.store.inner.delete([first], Purpose.SWEEP)
        await owner.checkpoint()
        await owner.writer.flush(owner.partition, batch_of(1))
        found = await looking
        assert found.sequence == 3

    run(main())


@pytest.mark.parametrize("late_seal", [False, True])
def test_an_owner_that_outruns_every_look_is_no_damage(late_seal):
    """Goal: also where all that a listing shows above an old object is deleted before it is read, and where a seal came
    late to the number of the checkpoint that it names."""

    async def main() -> None:
        owner = Owner()
        owner.store.put_seconds = lambda key: 0.0
        log_id = owner.writer.log_id
        await owner.writer.flush(owner.partition, batch_of(1))
        await owner.checkpoint()
        await owner.writer.flush(owner.partition, batch_of(1))
        listing = owner.store.list
        looks = 0

        async def listed_and_outrun(*arguments):
            nonlocal looks
            found = await listing(*arguments)
            looks += 1
            if looks <= 2:
                await owner.checkpoint()
                await owner.writer.flush(owner.partition, batch_of(1))
                gone = [KEYS.log(log_id, number) for number in ((1,), (3, 4))[looks - 1]]
                await owner.store.inner.delete(gone, Purpose.SWEEP)
            if looks == 1 and late_seal:
                seal = encode_small(encode_header(Kind.SEAL, log_id, 1, 0, -1), Seal("late", "r"))
                await owner.store.inner.put_if_absent(KEYS.log(log_id, 1), seal, Purpose.RECOVERY)
            return found

        owner.store.list = listed_and_outrun
        found = await owner.reader.newest_checkpoint(log_id)
        assert (found.sequence, looks) == (5, 3)

    run(main())


def test_a_seal_that_comes_late_is_not_the_end():
    """Goal: a number that was free when somebody began to seal, and is deleted when the seal arrives, while another
    walks: the checkpoint that covers it counts, and the seal does not."""

    async def main() -> None:
        owner = Owner()
        log_id = owner.writer.log_id
        for _ in range(3):
            await owner.writer.flush(owner.partition, batch_of(1))
        looking = asyncio.ensure_future(owner.end())
        await owner.store.wait_for("get_tail", KEYS.log(log_id, 0))
        owner.store.put_seconds = lambda key: 0.0
        await owner.checkpoint()
        await owner.writer.flush(owner.partition, batch_of(1))
        header = encode_header(Kind.SEAL, log_id, 2, 0, -1)
        await owner.store.inner.delete([KEYS.log(log_id, 2)], Purpose.SWEEP)
        await owner.store.inner.put_if_absent(
            KEYS.log(log_id, 2), encode_small(header, Seal("late", "r")), Purpose.RECOVERY
        )
        found = await looking
        assert (found.sealed, found.end, found.checkpoint_sequence, found.replay_from) == (False, 5, 3, 3)
        end = await owner.seal()
        assert (end.end, offsets(end)) == (5, [3])

    run(main())


def test_a_checkpoint_that_is_gone_for_good_is_damage():
    """Goal: an object that names a checkpoint nobody has is Corrupt, not an empty log."""

    async def main() -> None:
        owner = Owner()
        await owner.writer.flush(owner.partition, batch_of(1))
        await owner.checkpoint()
        await owner.writer.flush(owner.partition, batch_of(1))
        await owner.store.inner.delete([KEYS.log(owner.writer.log_id, 1)], Purpose.SWEEP)
        with pytest.raises(Corrupt):
            await owner.end()

    run(main())


def test_a_damaged_object_is_not_the_end():
    """Goal: a flipped bit in what counts is an error for whoever takes over."""

    async def main() -> None:
        owner = Owner()
        for _ in range(3):
            await owner.writer.flush(owner.partition, batch_of(1))
        await owner.store.damage(KEYS.log(owner.writer.log_id, 1), 10)
        with pytest.raises(Corrupt):
            await owner.seal()

    run(main())


def test_sealing_outlasts_a_silent_store():
    """Goal: a store that refuses for a while delays the seal and changes nothing."""

    async def main() -> None:
        owner = Owner()
        await owner.writer.flush(owner.partition, batch_of(1))
        for number in range(1, 9):
            owner.store.puts[KEYS.log(owner.writer.log_id, number)] = [Put(before=StoreUnavailable("no"))] * 3
        owner.store.read_errors[KEYS.log_objects(owner.writer.log_id)] = [StoreUnavailable("no")] * 2
        end = await owner.seal()
        assert end.sealed and end.end == 1

    run(main())


def test_more_seals_are_tried_than_an_owner_has_in_flight():
    """Goal: the figures that keep a busy owner from outrunning its end."""
    assert SEALS_AT_ONCE >= 2 * MAX_IN_FLIGHT


@FEWER
@given(seed=st.integers(0, 10_000), looks=st.lists(st.floats(0, 0.2), min_size=1, max_size=4), is_sealed=st.booleans())
def test_what_was_found_so_far_is_gone_on_from(seed, looks, is_sealed):
    """Goal: going on from an earlier look comes to what a fresh look comes to, though the owner has deleted meanwhile
    what that look began with; and it reads less."""

    async def main() -> None:
        owner = Owner(seed)
        work = asyncio.ensure_future(owner.work(30))
        log_id = owner.writer.log_id
        so_far: LogEnd | None = None
        for wait in looks:
            await owner.clock.sleep(wait)
            so_far = await find_end(owner.reader, log_id, so_far)
        if is_sealed:
            await owner.seal()
        work.cancel()
        await owner.clock.sleep(10)
        for expected in [await owner.end()] * 2:
            owner.store.asked.clear()
            so_far = await find_end(owner.reader, log_id, so_far)
            assert (so_far.sealed, so_far.end, so_far.replay_from, so_far.checkpoint) == (
                expected.sealed,
                expected.end,
                expected.replay_from,
                expected.checkpoint,
            )
            assert [entry.key for entry in so_far.objects] == [entry.key for entry in expected.objects]
        assert len([key for how, key in owner.store.asked if how == "get_tail"]) <= 2 + READS_AT_ONCE

    run(main())


@pytest.mark.parametrize("lost", [-1, -2, -3, -7])
@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_missing_object_is_damage_and_not_the_end(lost: int, is_sealed: bool) -> None:
    """Goal: a number that must have been taken, for all that lies above it, is never taken for a gap, and no seal is
    put there. Only the last few of a log that nobody has ended yet can't be told from what never arrived."""

    async def main() -> None:
        owner = Owner()
        for _ in range(12):
            await owner.writer.flush(owner.partition, batch_of(20))
        if is_sealed:
            await owner.seal()
        key = KEYS.log(owner.writer.log_id, owner.writer.log.counted + lost)
        body = await owner.store.inner.get(key, Purpose.RECOVERY)
        await owner.store.inner.delete([key], Purpose.SWEEP)
        if not is_sealed and lost >= -MAX_IN_FLIGHT:
            assert not (await owner.end()).sealed
            return
        for asked in (owner.end(), owner.seal()):
            with pytest.raises(Corrupt, match=key):
                await asked
        assert not await owner.store.exists(key, Purpose.RECOVERY)
        await owner.store.inner.put_if_absent(key, [body], Purpose.FLUSH)
        assert offsets(await owner.seal()) == list(range(12))

    run(main())


def test_a_missing_object_below_a_checkpoint_is_damage() -> None:
    """Goal: a checkpoint that later objects name shows that everything below it was taken, whatever lies above."""

    async def main() -> None:
        owner = Owner()
        await owner.writer.flush(owner.partition, batch_of(20))
        covered = owner.writer.log.counted
        await owner.writer.flush(owner.partition, batch_of(20))
        await write_checkpoint(owner.writer, {0: (1, [owner.partition])}, covered=covered)
        await owner.writer.flush(owner.partition, batch_of(20))
        key = KEYS.log(owner.writer.log_id, covered)
        await owner.store.inner.delete([key], Purpose.SWEEP)
        with pytest.raises(Corrupt, match=key):
            await owner.seal()
        assert not await owner.store.exists(key, Purpose.RECOVERY)

    run(main())

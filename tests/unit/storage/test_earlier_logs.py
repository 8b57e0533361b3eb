"""Goal: a slot is taken for ready only when every earlier owner has ended or released it, however the news comes."""

from __future__ import annotations

import asyncio

import pytest

from kafscale.storage.earlier_logs import LONGEST_LOOK_SECONDS, Earlier
from kafscale.storage.store import Purpose
from kafscale.storage.takeover import seal_log
from tests.unit.storage.rig import (
    KEYS,
    LoopClock,
    ScriptedStore,
    Writer,
    batch_of,
    earlier_logs,
    log_id,
    make_partition,
    run,
    write_checkpoint,
)


async def owner(store: ScriptedStore, number: int = 1) -> Writer:
    """A living log with a checkpoint that names slots 0 and 1 at epoch `number`."""
    writer = Writer(store, number)
    await write_checkpoint(writer, {slot: (number, [make_partition(slot, slot=slot)]) for slot in (0, 1)})
    await writer.flush(make_partition(0, slot=0), batch_of(1))
    return writer


def test_only_what_is_released_or_ended_is_ready():
    """Goal: of a living log's slots those that it released, at that epoch or before; of an ended log all."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        writer = await owner(store)
        logs = earlier_logs(store, writer.clock)
        lists = {slot: [Earlier(1, writer.log_id)] for slot in (0, 1)}
        assert (await logs.ready(lambda: lists, is_waiting=False))[0] == {}
        await write_checkpoint(writer, {0: (1, [make_partition(0)])}, released={1: 1})
        found, ends, _ = await logs.ready(lambda: lists, is_waiting=True)
        assert found.keys() == {1} and not ends[writer.log_id].sealed
        # Given to it once more, at a later epoch.
        again = {1: [Earlier(1, writer.log_id), Earlier(2, log_id(2)), Earlier(3, writer.log_id)]}
        other = await owner(store, 2)
        await write_checkpoint(other, {}, released={1: 2})
        assert (await logs.ready(lambda: again, is_waiting=False))[0] == {}
        await seal_log(store, KEYS, writer.log_id, writer.clock, writer.random, "test", "test")
        assert (await logs.ready(lambda: again, is_waiting=True))[0] == again
        assert (await logs.ready(lambda: lists, is_waiting=True))[0] == lists

    run(main())


def test_a_slot_that_never_had_an_owner_is_ready_at_once():
    async def main() -> None:
        clock = LoopClock()
        logs = earlier_logs(ScriptedStore(clock), clock)
        assert await logs.ready(lambda: {5: []}, is_waiting=True) == ({5: []}, {}, {})
        assert await logs.ready(dict, is_waiting=True) == ({}, {}, {})

    run(main())


def test_a_hint_spares_the_wait_and_proves_nothing():
    """Goal: told where a log released a slot, a loader looks there at once; what is not there is not believed."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        writer = await owner(store)
        logs = earlier_logs(store, writer.clock)
        lists = {0: [Earlier(1, writer.log_id)]}
        waiting = asyncio.ensure_future(logs.ready(lambda: lists, is_waiting=True))
        await writer.clock.sleep(LONGEST_LOOK_SECONDS * 4.1)
        for wrong in (0, 1, 2, 77):
            logs.heard(writer.log_id, wrong)
            await writer.clock.sleep(0.01)
            assert not waiting.done()
        await write_checkpoint(writer, {0: (1, [make_partition(0)])}, released={0: 1})
        sequence = writer.log.checkpoint_sequence
        before = writer.clock.monotonic()
        store.asked.clear()
        logs.heard(log_id(9), sequence)
        logs.heard(writer.log_id, sequence)
        found, ends, _ = await waiting
        assert found == lists and writer.clock.monotonic() - before < 0.01
        assert ends[writer.log_id].checkpoint.released == {0: 1}
        assert not any(how == "list" for how, _ in store.asked)

    run(main())


@pytest.mark.parametrize("claimed", ["nothing there", "an old checkpoint"])
def test_a_flood_of_wrong_hints_holds_nothing_up(claimed: str):
    """Goal: whoever knows a log's id may say what he likes of it, and as often as he likes: its release is found."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        store.read_seconds = 0.01
        writer = await owner(store)
        clock, old = writer.clock, writer.log.checkpoint_sequence
        logs = earlier_logs(store, clock, patience_seconds=1000.0)
        lists = {0: [Earlier(1, writer.log_id)]}
        waiting = asyncio.ensure_future(logs.ready(lambda: lists, is_waiting=True))

        async def flood() -> None:
            number = 10**6
            while True:
                number += 1
                logs.heard(writer.log_id, number if claimed == "nothing there" else old)
                await clock.sleep(0.001)

        flooding = asyncio.ensure_future(flood())
        await clock.sleep(2 * LONGEST_LOOK_SECONDS)
        await write_checkpoint(writer, {0: (1, [make_partition(0)])}, released={0: 1})
        async with asyncio.timeout(2 * LONGEST_LOOK_SECONDS):
            assert (await waiting)[0] == lists
        flooding.cancel()

    run(main())


@pytest.mark.parametrize("above", [1, 2, 3])
def test_a_release_above_a_gap_is_none(above: int):
    """Goal: a checkpoint with a free number below it, or a seal, does not count: its owner may yet be fenced there."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        writer = await owner(store)
        covered = writer.log.counted
        # As if what was submitted in between had not arrived.
        writer.log.next_sequence = writer.log.counted = covered + above
        await write_checkpoint(writer, {0: (1, [make_partition(0)])}, released={0: 1}, covered=covered)
        sequence = writer.log.checkpoint_sequence
        logs = earlier_logs(store, writer.clock)
        lists = {0: [Earlier(1, writer.log_id)]}
        assert (await logs.ready(lambda: lists, is_waiting=False))[0] == {}
        logs.heard(writer.log_id, sequence)
        assert (await logs.ready(lambda: lists, is_waiting=False))[0] == {}
        await seal_log(store, KEYS, writer.log_id, writer.clock, writer.random, "test", "test")
        logs.heard(writer.log_id, sequence)
        found, ends, _ = await logs.ready(lambda: lists, is_waiting=True)
        assert found == lists and ends[writer.log_id].sealed and not ends[writer.log_id].checkpoint.released

    run(main())


def test_a_log_that_keeps_a_slot_is_ended():
    """Goal: an owner that does not let go is fenced after the patience, and not before."""

    async def main() -> None:
        store = ScriptedStore(LoopClock())
        writer = await owner(store)
        logs = earlier_logs(store, writer.clock, patience_seconds=7.0)
        lists = {0: [Earlier(1, writer.log_id)]}
        waiting = asyncio.ensure_future(logs.ready(lambda: lists, is_waiting=True))
        await writer.clock.sleep(6.9)
        assert not waiting.done()
        assert not await store.exists(KEYS.log(writer.log_id, writer.log.next_sequence), Purpose.RECOVERY)
        await writer.clock.sleep(1.5)
        assert waiting.result()[1][writer.log_id].sealed
        assert not await writer.log.check_not_fenced()

    run(main())


def test_what_is_wanted_no_more_is_not_waited_for():
    async def main() -> None:
        store = ScriptedStore(LoopClock())
        writer = await owner(store)
        logs = earlier_logs(store, writer.clock)
        lists = {0: [Earlier(1, writer.log_id)]}
        waiting = asyncio.ensure_future(logs.ready(lambda: lists, is_waiting=True))
        await writer.clock.sleep(0.01)
        lists.clear()
        logs.wake()
        await writer.clock.sleep(0)
        assert await waiting == ({}, {}, {})

    run(main())

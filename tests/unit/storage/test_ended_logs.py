"""Goal: what is written down of an ended log is what the log says, or it is not believed."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import Corrupt, StoreUnavailable
from kafscale.storage.earlier_logs import Earlier
from kafscale.storage.ended_logs import decode_ended, encode_ended, read_ended, write_ended
from kafscale.storage.store import Purpose
from kafscale.storage.takeover import LogEnd, LogReader, find_end, seal_log
from tests.unit.storage.rig import KEYS, LoopClock, ScriptedStore, batch_of, earlier_logs, run
from tests.unit.storage.test_takeover import Owner

FEWER = settings(max_examples=25)


async def ended(owner: Owner) -> LogEnd:
    """As whoever ends it reads it."""
    return await seal_log(owner.store, KEYS, owner.writer.log_id, owner.clock, owner.random, "sealer", "test")


async def small() -> tuple[Owner, LogEnd]:
    owner = Owner()
    for _ in range(2):
        await owner.writer.flush(owner.partition, batch_of(5))
    await owner.checkpoint()
    await owner.writer.flush(owner.partition, batch_of(5))
    return owner, await ended(owner)


@FEWER
@given(seed=st.integers(0, 10_000), wait=st.floats(0, 0.5))
def test_it_is_what_the_log_says_whatever_its_owner_did(seed: int, wait: float) -> None:
    """Goal: of an owner that writes, checkpoints and deletes until it is ended, and goes on with what it had under way:
    what was written down is to the last row what anybody reads from the log, then and later."""

    async def main() -> None:
        owner = Owner(seed)
        work = asyncio.ensure_future(owner.work(30))
        await owner.clock.sleep(wait)
        await write_ended(owner.store, KEYS, await ended(owner))
        written_down = await read_ended(owner.store, KEYS, owner.clock, owner.writer.log_id)
        assert written_down is not None
        assert written_down == await owner.end()
        await owner.clock.sleep(10)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert written_down == await owner.end()
        # Another who ends it comes to the same.
        assert encode_ended(await ended(owner)) == await owner.store.get(KEYS.ended(owner.writer.log_id), Purpose.SWEEP)

    run(main())


def test_no_damage_passes() -> None:
    """Goal: each flipped byte, each truncation and another log's are Corrupt."""

    async def main() -> None:
        owner, end = await small()
        log_id = owner.writer.log_id
        whole = encode_ended(end)
        assert await decode_ended(whole, log_id, KEYS, owner.clock) == await owner.end()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            with pytest.raises(Corrupt):
                await decode_ended(bytes(damaged), log_id, KEYS, owner.clock)
            with pytest.raises(Corrupt):
                await decode_ended(whole[:position], log_id, KEYS, owner.clock)
        with pytest.raises(Corrupt):
            await decode_ended(whole, "f" * 32, KEYS, owner.clock)

    run(main())


def test_a_log_in_use_is_not_written_down() -> None:
    """Goal: of what may still change nothing is said."""

    async def main() -> None:
        owner = Owner()
        await owner.writer.flush(owner.partition, batch_of(5))
        reader = LogReader(owner.store, KEYS, owner.clock, random.Random(1), undecoded=True)
        with pytest.raises(ValueError, match="has not ended"):
            await write_ended(owner.store, KEYS, await find_end(reader, owner.writer.log_id))

    run(main())


@pytest.mark.parametrize("trouble", ["none", "damaged", "missing", "silent"])
def test_without_it_the_log_is_read(trouble: str) -> None:
    """Goal: whoever waits for a log hears the same, whether what was written down is there, damaged, missing, or can't
    be had; and reads one object where it can."""

    async def main() -> None:
        owner, end = await small()
        store: ScriptedStore = owner.store
        key = KEYS.ended(owner.writer.log_id)
        await write_ended(store, KEYS, end)
        if trouble == "damaged":
            await store.damage(key, 40)
        elif trouble == "missing":
            await store.inner.delete([key], Purpose.SWEEP)
        elif trouble == "silent":
            store.read_errors[key] = [StoreUnavailable("no")]
        store.asked.clear()
        lists = {0: [Earlier(1, owner.writer.log_id)]}
        found, ends, _ = await earlier_logs(store, LoopClock()).ready(lambda: lists, is_waiting=True)
        assert found == lists
        assert (len(store.asked) == 1) == (trouble == "none")
        assert ends[owner.writer.log_id] == await owner.end()

    run(main())


def test_others_run_while_much_is_read() -> None:
    """Goal: a worker that takes over from a busy one goes on with everything else, object by object."""

    async def main() -> None:
        owner = Owner()
        for _ in range(60):
            await owner.writer.flush(owner.partition, batch_of(5))
        end = await ended(owner)
        await write_ended(owner.store, KEYS, end)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await owner.clock.sleep(0)

        task = asyncio.ensure_future(other())
        await read_ended(owner.store.inner, KEYS, owner.clock, owner.writer.log_id)
        task.cancel()
        assert turns >= len(end.objects) == 60

    run(main())

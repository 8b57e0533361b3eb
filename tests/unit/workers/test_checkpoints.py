"""Goal: whoever takes over finds all that was acknowledged, wherever its predecessor stopped; and what is deleted is
what nobody will ever need.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import StoreUnavailable, StoreUnclear
from kafscale.storage.keys import sequence_of, writer_of
from kafscale.storage.log_objects import Checkpoint
from kafscale.storage.store import Purpose
from kafscale.storage.sweep import LogsInUse, sweep
from kafscale.storage.takeover import LogReader, seal_log
from kafscale.storage.worker_log import MAX_IN_FLIGHT
from tests.unit.storage.rig import Put
from tests.unit.workers.whole_worker import HeldStore, WholeWorker, batch_of, run
from tests.unit.workers.worker_life import QUICK, STEP, Life
from workers import checkpoints as checkpoints_module


@settings(max_examples=40)
@given(
    lives=st.lists(st.lists(STEP, max_size=25), min_size=1, max_size=3), seed=st.integers(0, 1 << 30), ends=st.data()
)
def test_a_successor_finds_what_was_acknowledged(lives: list, seed: int, ends: st.DataObject) -> None:
    """Whatever was appended, deleted, compacted and given up, and wherever in that the worker crashed or drained."""

    async def main() -> None:
        life = Life(seed)
        await life.start()
        for steps in lives:
            for step in steps:
                await life.step(*step)
            await life.check()
            if ends.draw(st.booleans()):
                await life.node.clock.sleep(ends.draw(st.sampled_from([0.0, 0.001, 0.004, 0.02])))
                await life.crash()
            else:
                await life.drain()
            await life.check()
        await life.node.clock.sleep(40)
        await life.check()
        life.node.stop()

    run(main())


async def checkpoints(node: WholeWorker) -> dict[int, Checkpoint]:
    """Those in the worker's log, by sequence."""
    reader = LogReader(node.store, node.keys, node.clock, node.worker._upkeep._checkpointer._random)
    found = {}
    for sequence in await reader.sequences(node.log_id):
        entry = await reader.read(node.log_id, sequence)
        if entry is not None and entry.checkpoint is not None:
            found[sequence] = entry.checkpoint
    return found


def test_what_is_given_up_is_deleted_one_checkpoint_later() -> None:
    """A checkpoint lists what no manifest needs; the next one that counts is the leave to delete it. Of the log only
    what lies below the covered sequence is given up."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        write = node.checkpoint
        given_up: list[str] = []
        for round_number in range(6):
            await node.produce("t", batch_of(b"v%d" % round_number), batch_of(b"w"))
            await node.worker.ownership.delete_records(node.partition("t"), -1)
            deleted = set(node.store.deleted)
            await write()
            sequence, newest = max((await checkpoints(node)).items())
            assert set(node.store.deleted) - deleted == set(given_up)
            given_up = newest.given_up
            for key in given_up:
                assert key in node.store.bodies() and writer_of(key) == node.log_id
                assert "/log/" not in key or sequence_of(key) < newest.covered <= sequence
                assert all(place.key != key for place in newest.slots.values())
            if round_number:
                assert len(given_up) >= 3
        # Hardly anything is left of all that.
        assert len(node.store.bodies()) < 12

    run(main())


def test_what_a_takeovers_checkpoint_dooms_is_deleted_though_none_follows() -> None:
    """Checkpoints of takeovers and releases are leave to delete like any other: in a worker that is idle from then on
    nothing is left behind."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        await node.produce("t", batch_of(b"v"))
        await node.worker.checkpointer.write()
        await node.worker.checkpointer.write()
        doomed = max((await checkpoints(node)).items())[1].given_up
        await node.worker.checkpointer.write()
        assert doomed and not set(doomed) & set(node.store.deleted)
        await node.clock.sleep(1)
        assert set(doomed) <= set(node.store.deleted)
        node.stop()

    run(main())


def test_what_could_not_be_deleted_is_given_up_again() -> None:
    """A store that refuses to delete costs time, and leaves nothing behind."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        write = node.checkpoint
        refused: set[str] = set()
        for round_number in range(6):
            await node.produce("t", batch_of(b"v%d" % round_number))
            await node.worker.ownership.delete_records(node.partition("t"), -1)
            if round_number == 3:
                refused = set(max((await checkpoints(node)).items())[1].given_up)
                node.store.delete_errors = [StoreUnavailable("not now")]
            await write()
            if round_number == 4:
                assert refused <= set(max((await checkpoints(node)).items())[1].given_up)
                assert not refused & set(node.store.deleted)
        assert refused and refused <= set(node.store.deleted)
        node.stop()

    run(main())


def test_a_store_that_never_deletes_makes_no_checkpoint_longer_and_longer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is refused is named again up to a bound, and a warning says what to do. The rest is the sweep's, which finds
    all of it once the log has ended."""
    monkeypatch.setattr(checkpoints_module, "REFUSED_KEPT_MAX", 40)

    class NeverDeletes(HeldStore):
        refuses = True

        async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
            if self.refuses:
                raise StoreUnavailable("1 of 1 objects could not be deleted: AccessDenied")
            await super().delete(keys, purpose)

    async def main() -> None:
        store = NeverDeletes()
        node = await WholeWorker(store=store).start()
        named = []
        for round_number in range(30):
            unneeded = [node.keys.manifest(node.log_id, 1000 + 10 * round_number + number) for number in range(10)]
            for key in unneeded:
                await store.inner.put_if_absent(key, [b"x"], Purpose.CHECKPOINT)
            node.worker.ownership.references.unreferenced += unneeded
            await node.checkpoint()
            named.append(len((await checkpoints(node))[node.worker.log.checkpoint_sequence].given_up))
        assert 40 <= max(named[10:20]) == max(named[20:]) < 60
        (warning,) = [record for record in caplog.records if record.name == "workers.checkpoints"]
        assert "s3:DeleteObject" in warning.getMessage() and "AccessDenied" in warning.cause  # type: ignore[attr-defined]
        node.stop()
        store.refuses = False
        await seal_log(store, node.keys, node.log_id, node.clock, random.Random(1), "test", "test")

        async def nothing_in_use() -> LogsInUse:
            return LogsInUse(live=(), listed=(), owners={})

        swept = await sweep(store, node.keys, node.clock, random.Random(1), nothing_in_use, 0)
        assert swept.refused is None and not await store.keys(node.keys.manifest_prefix)

    run(main())


def test_what_lies_above_the_covered_sequence_is_not_given_up_yet() -> None:
    """An object without batches that became durable while the manifests were written: whoever takes over walks over it,
    and what it says is in no manifest. The next checkpoint gives it up."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        await node.produce("t", *[batch_of() for _ in range(3)])
        node.store.held = "/manifest/"
        node.store.gate.clear()
        writing = asyncio.ensure_future(node.checkpoint())
        await node.store.wait_for("held", "/manifest/")
        late = node.keys.log(node.log_id, node.worker.log.next_sequence)
        await node.worker.ownership.delete_records(node.partition("t"), 2)
        node.store.gate.set()
        await writing
        for is_given_up in (False, True):
            newest = (await checkpoints(node))[node.worker.log.checkpoint_sequence]
            assert (late in newest.given_up) == is_given_up
            assert late in node.store.bodies() and (sequence_of(late) < newest.covered) == is_given_up
            await node.checkpoint()

    run(main())


@pytest.mark.parametrize("before_it", (0, MAX_IN_FLIGHT))
def test_one_that_is_broken_off_stands_in_nobodys_way(before_it: int) -> None:
    """As when a drain begins while the store is silent: on its way already, or behind as many objects as may be."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        await node.produce("t", batch_of(b"durable"))
        node.store.held = "/log/"
        node.store.gate.clear()
        producing = []
        for number in range(before_it):
            producing.append(asyncio.ensure_future(node.produce("t", batch_of(b"v%d" % number))))
            await node.clock.sleep(0.001)
            node.worker.flusher.hasten()
        writing = asyncio.ensure_future(node.checkpoint())
        await node.clock.sleep(1)
        assert node.worker.log.in_flight == max(before_it, 1) and not writing.done()
        writing.cancel()
        await asyncio.wait({writing})
        again = asyncio.ensure_future(node.checkpoint())
        await node.clock.sleep(1)
        node.store.gate.set()
        await asyncio.gather(again, *producing)
        newest = (await checkpoints(node))[node.worker.log.checkpoint_sequence]
        assert newest.slots
        node.stop()

    run(main())


def test_nothing_is_written_when_nothing_changed() -> None:
    async def main() -> None:
        node = await WholeWorker(QUICK).start()
        node.create("t", 2)
        await node.clock.sleep(10)
        before = set(node.store.bodies())
        await node.clock.sleep(100)
        assert set(node.store.bodies()) == before
        await node.produce("t", batch_of())
        await node.clock.sleep(10)
        count = node.worker.log.counted
        await node.clock.sleep(25)
        assert node.worker.log.counted == count and len(await checkpoints(node)) == 2

    run(main())


def test_a_manifest_is_written_again_under_another_number() -> None:
    """An unclear put is abandoned with its number, and never named: what lies there may be an old state."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        await node.produce("t", batch_of())
        keys = [node.keys.manifest(node.log_id, number) for number in range(3)]
        node.store.puts[keys[0]] = [Put(after=StoreUnclear("perhaps"))]
        node.store.puts[keys[1]] = [Put(before=StoreUnavailable("no"))]
        await node.checkpoint()
        newest = (await checkpoints(node))[node.worker.log.checkpoint_sequence]
        assert {place.key for place in newest.slots.values() if place.key} == {keys[2]}

    run(main())


@pytest.mark.parametrize("where", ["/manifest/", "/log/"])
def test_a_drain_that_breaks_a_checkpoint_off_writes_it_anew(where: str) -> None:
    """A checkpoint is under way when the worker is told to drain. Its manifests came to nothing, and what came before
    them must not be taken for current: the successor has every record."""

    async def main() -> None:
        life = Life(1)
        await life.start()
        node = life.node
        a, b = (
            node.partition("a"),
            node.partition("b", 2 if node.partition("a").slot == node.partition("b").slot else 0),
        )
        life.append(a, 3)
        await node.clock.sleep(0.2)
        await node.checkpoint()
        life.append(a, 2)
        await node.clock.sleep(0.2)
        life.store.held = where
        life.store.gate.clear()
        await life.store.wait_for("held", where)  # the periodic one
        if where == "/manifest/":
            life.append(b, 1)  # so that there is something to write at the end
            await node.clock.sleep(0.2)
        drained = asyncio.ensure_future(node.worker.drain())
        await node.clock.sleep(0.2)
        life.store.gate.set()
        await drained
        await life.take_over("was drained")
        await life.check()
        assert life.node.partition("a").high_watermark == 5

    run(main())


def test_the_manifest_of_a_slot_that_is_empty_again_is_given_up() -> None:
    """Its topic was deleted: the manifest goes with the rest."""

    async def main() -> None:
        node = await WholeWorker().start()
        node.create("t", 2)
        await node.produce("t", batch_of())
        await node.checkpoint()
        manifest = node.keys.manifest(node.log_id, 0)
        assert manifest in node.store.bodies()
        node.delete("t")
        for number in range(4, 10, 2):
            node.create(f"u{number}", number)
            await node.checkpoint()
        assert manifest not in node.store.bodies()

    run(main())

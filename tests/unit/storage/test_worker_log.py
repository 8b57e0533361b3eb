"""Goal: objects of a log count in order, once durable, under the number they were first tried with, until a seal."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import Fenced, ObjectExists, StoreFailed, StoreUnavailable, StoreUnclear
from kafscale.storage.log_objects import Kind, Seal, encode_footer, encode_header, encode_small
from kafscale.storage.store import Purpose
from kafscale.storage.worker_log import MAX_IN_FLIGHT, WorkerLog
from tests.unit.storage.rig import KEYS, LoopClock, Put, ScriptedStore, log_id, run

FEWER = settings(max_examples=60)
ID = log_id(1)


class Bench:
    """A log over a scripted store, and what it said."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.store = ScriptedStore(self.clock)
        self.fenced: list[str] = []
        self.durable: list[int] = []
        self.bytes: dict[int, bytes] = {}
        self.log = WorkerLog(self.store, KEYS, ID, self.clock, random.Random(1), self.fenced.append)

    def submit(self, body: bytes) -> int:
        sequence = self.log.next_sequence

        def build(header: bytes) -> list[bytes]:
            parts = [header, body, encode_footer(len(header) + len(body), b"")]
            self.bytes[sequence] = b"".join(parts)
            return parts

        return self.log.submit(Kind.DATA, build, lambda: self.durable.append(sequence), Purpose.FLUSH)

    async def idle(self) -> None:
        """Until nothing more can happen soon."""
        await self.clock.sleep(60)

    async def seal(self, number: int) -> None:
        header = encode_header(Kind.SEAL, ID, number, 0, -1)
        await self.store.inner.put_if_absent(
            KEYS.log(ID, number), encode_small(header, Seal("w", "r")), Purpose.RECOVERY
        )

    async def puts_of(self, number: int) -> int:
        return self.store.asked.count(("put", KEYS.log(ID, number)))


FATES = st.sampled_from(
    ["fine", "slow", "refused", "lost-applied", "lost-not-applied", "exists-after-own", "unclear-twice", "read-fails"]
)


def script(store: ScriptedStore, key: str, fate: str) -> None:
    puts = {
        "fine": [],
        "slow": [Put(seconds=3.0)],
        "refused": [Put(before=StoreUnavailable("no"), seconds=0.2), Put(before=StoreUnavailable("no"))],
        "lost-applied": [Put(after=StoreUnclear("lost"), seconds=0.1)],
        "lost-not-applied": [Put(before=StoreUnclear("lost"), seconds=0.1)],
        "exists-after-own": [Put(after=ObjectExists("412"))],
        "unclear-twice": [Put(before=StoreUnclear("lost")), Put(after=StoreUnclear("lost"))],
        "read-fails": [Put(after=StoreUnclear("lost"))],
    }[fate]
    if puts:
        store.puts[key] = puts
    if fate == "read-fails":
        store.read_errors[key] = [StoreUnavailable("no"), StoreUnclear("?")]


@FEWER
@given(fates=st.lists(FATES, min_size=1, max_size=16))
def test_objects_count_in_order_whatever_the_store_answers(fates):
    """Goal: every object becomes durable under its own number with its own bytes, and they count in sequence."""

    async def main() -> None:
        bench = Bench()
        for number, fate in enumerate(fates):
            script(bench.store, KEYS.log(ID, number), fate)
            while bench.log.in_flight == MAX_IN_FLIGHT:
                await bench.clock.sleep(0.01)
            assert bench.submit(b"%d" % number) == number
            assert bench.durable == list(range(bench.log.counted))
        await bench.idle()
        assert bench.durable == list(range(len(fates))) and not bench.fenced and bench.log.in_flight == 0
        for number in range(len(fates)):
            assert await bench.store.inner.get(KEYS.log(ID, number), Purpose.RECOVERY) == bench.bytes[number]

    run(main())


@FEWER
@given(fates=st.lists(FATES, min_size=1, max_size=10), at=st.integers(0, 10), wait=st.floats(0, 1))
def test_nothing_at_or_above_a_seal_ever_counts(fates, at, wait):
    """Goal: with a seal set at some number at any time, either the number was ours already or the log ends there."""

    async def main() -> None:
        bench = Bench()

        async def sealer() -> None:
            await asyncio.sleep(wait)
            try:
                await bench.seal(at)
            except ObjectExists:
                return
            sealed.append(at)

        sealed: list[int] = []
        task = asyncio.ensure_future(sealer())
        for number, fate in enumerate(fates):
            script(bench.store, KEYS.log(ID, number), fate)
            while bench.log.in_flight == MAX_IN_FLIGHT and not bench.fenced:
                await bench.clock.sleep(0.01)
            if bench.fenced:
                with pytest.raises(Fenced):
                    bench.submit(b"x")
                break
            bench.submit(b"%d" % number)
        await bench.idle()
        await task
        assert bench.durable == list(range(len(bench.durable)))
        if sealed and at < bench.log.next_sequence:
            assert len(bench.fenced) == 1 and len(bench.durable) <= at
        else:
            assert not bench.fenced and len(bench.durable) == len(fates)

    run(main())


def test_a_later_object_waits_for_an_earlier_one():
    """Goal: what is durable out of order is not acknowledged out of order."""

    async def main() -> None:
        bench = Bench()
        bench.store.puts[KEYS.log(ID, 0)] = [Put(seconds=5.0)]
        for body in (b"a", b"b", b"c"):
            bench.submit(body)
        await bench.clock.sleep(4)
        assert await bench.store.inner.exists(KEYS.log(ID, 2), Purpose.RECOVERY)
        assert bench.durable == [] and bench.log.counted == 0 and bench.log.in_flight == 3
        await bench.clock.sleep(2)
        assert bench.durable == [0, 1, 2]

    run(main())


def test_an_unclear_number_is_written_again_and_not_skipped():
    """Goal: nothing there after an unclear answer means the same bytes under the same number once more."""

    async def main() -> None:
        bench = Bench()
        bench.store.puts[KEYS.log(ID, 0)] = [Put(before=StoreUnclear("lost"))]
        bench.submit(b"a")
        await bench.idle()
        assert bench.durable == [0] and await bench.puts_of(0) == 2 and await bench.puts_of(1) == 0

    run(main())


def test_a_failed_store_ends_the_log():
    """Goal: after a failed fsync nothing is acknowledged any more, and the owner hears of it once."""

    async def main() -> None:
        bench = Bench()
        bench.store.puts[KEYS.log(ID, 0)] = [Put(before=StoreFailed("fsync"))]
        bench.submit(b"a")
        bench.submit(b"b")
        await bench.idle()
        assert bench.durable == [] and len(bench.fenced) == 1 and "fsync" in bench.fenced[0]
        with pytest.raises(Fenced):
            bench.submit(b"c")

    run(main())


def test_an_owner_can_ask_whether_it_was_replaced():
    """Goal: a free next number means not replaced; a taken one fences."""

    async def main() -> None:
        bench = Bench()
        bench.submit(b"a")
        await bench.idle()
        before = bench.log.confirmed_at
        assert await bench.log.check_not_fenced()
        assert bench.log.confirmed_at > before
        await bench.seal(1)
        assert not await bench.log.check_not_fenced()
        assert bench.fenced and not await bench.log.check_not_fenced()

    run(main())


def test_an_answer_that_comes_late_is_no_fresh_proof():
    """Goal: a confirmed PUT proves that the log had not ended when the PUT began, however late we hear of it."""

    async def main() -> None:
        bench = Bench()
        bench.store.puts[KEYS.log(ID, 0)] = [Put(seconds=30.0)]
        await bench.clock.sleep(1)
        began = bench.clock.monotonic()
        bench.submit(b"a")
        await bench.idle()
        assert bench.durable == [0]
        assert began <= bench.log.confirmed_at < began + 1

    run(main())


def test_asking_while_writing_does_not_fence_oneself():
    """Goal: a number that we take ourselves between question and answer is no one else's."""

    async def main() -> None:
        bench = Bench()
        bench.store.put_seconds = lambda key: 0.0005
        asked = asyncio.ensure_future(bench.log.check_not_fenced())
        await bench.store.wait_for("exists", KEYS.log(ID, 0))
        bench.submit(b"a")
        assert await asked and not bench.fenced

    run(main())


def test_stopping_acknowledges_nothing():
    """Goal: what is in flight when the log is stopped is never acknowledged."""

    async def main() -> None:
        bench = Bench()
        bench.store.puts[KEYS.log(ID, 0)] = [Put(seconds=1.0)]
        bench.submit(b"a")
        bench.submit(b"b")
        await bench.clock.sleep(0.5)
        bench.log.stop()
        await bench.idle()
        assert bench.durable == []

    run(main())

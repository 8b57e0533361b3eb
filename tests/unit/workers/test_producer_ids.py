"""Goal: a producer id is handed out once, by whichever worker, whatever the store answers."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import Retry, StoreFailed, StoreUnavailable, StoreUnclear
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.keys import Keys
from kafscale.storage.store import Buffer, Purpose
from tests.unit.storage.rig import LoopClock, ScriptedStore, run
from workers import producer_ids
from workers.producer_ids import IDS_PER_BLOCK, TRIES, ProducerIds

KEYS = Keys("ns")


class MoodyStore(ScriptedStore):
    """Puts go as the moods say, one after the other; then well."""

    def __init__(self, moods: list[str]) -> None:
        super().__init__(LoopClock())
        self.moods = list(moods)

    async def put_if_absent(self, key: str, parts: list[Buffer], purpose: Purpose) -> None:  # type: ignore[override]
        mood = self.moods.pop(0) if self.moods else "well"
        if mood == "refused":
            raise StoreUnavailable("no")
        if mood == "failed":
            raise StoreFailed("broken")
        if mood != "lost":
            await super().put_if_absent(key, parts, purpose)
        if mood in ("lost", "unclear"):
            raise StoreUnclear("perhaps")


def ids_of(store: ScriptedStore, number: int) -> ProducerIds:
    return ProducerIds(store, KEYS, LoopClock(), random.Random(number), f"worker {number}")


@settings(max_examples=30)
@given(
    moods=st.lists(st.sampled_from(["well", "refused", "unclear", "lost"]), max_size=8),
    asked=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 700)), min_size=1, max_size=6),
    blocks=st.integers(12, 40),
)
def test_no_id_twice(moods: list[str], asked: list[tuple[int, int]], blocks: int) -> None:
    """Of few blocks, so that workers meet; an unclear claim is abandoned, and its ids go to nobody."""

    async def main() -> None:
        store = MoodyStore(moods)
        workers = [ids_of(store, number) for number in range(3)]
        results = await asyncio.gather(
            *(workers[which].next() for which, count in asked for _ in range(count)), return_exceptions=True
        )
        given_out = [result for result in results if isinstance(result, int)]
        assert len(given_out) == len(set(given_out)) and all(0 <= each < 1 << 62 for each in given_out)
        for result in results:
            assert isinstance(result, int | Retry), result
        claims = {key: await store.inner.get(key, Purpose.CLUSTER) for key in await store.keys("ns/pids/")}
        for which, worker in enumerate(workers):
            if worker._end:
                key = KEYS.producer_ids((worker._end - 1) // IDS_PER_BLOCK)
                assert claims[key] == f"worker {which}".encode()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(producer_ids, "BLOCKS", blocks)
        run(main())


def test_a_block_is_claimed_once_for_many() -> None:
    """A thousand at once cost one request to the store; one more costs another."""

    async def main() -> None:
        store = MoodyStore([])
        ids = ids_of(store, 1)
        found = await asyncio.gather(*(ids.next() for _ in range(IDS_PER_BLOCK)))
        assert sorted(found) == list(range(min(found), min(found) + IDS_PER_BLOCK))
        assert len(store.asked) == 1
        assert await ids.next() not in found and len(store.asked) == 2

    run(main())


@pytest.mark.parametrize("mood", ["refused", "unclear", "lost", "failed"])
def test_a_silent_store_is_told_to_clients_as_a_reason_to_come_back(mood: str) -> None:
    """After a few tries with pauses; and once it answers there are ids again."""

    async def main() -> None:
        store = MoodyStore([mood] * TRIES)
        ids = ids_of(store, 1)
        with pytest.raises(Retry) as raised:
            await ids.next()
        assert raised.value.code == ErrorCode.COORDINATOR_NOT_AVAILABLE
        store.moods.clear()
        assert await ids.next() >= 0

    run(main())

"""Goal: a version of the cluster log has one winner and is read as it was written; doubt is settled by reading back."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import Corrupt, StartError, StoreUnavailable, StoreUnclear
from kafscale.storage.cluster_log import ClusterLog, open_envelope, seal_envelope
from kafscale.storage.keys import Keys
from kafscale.storage.memory import MemoryStore
from kafscale.storage.store import ObjectInfo, Purpose
from tests.unit.storage.rig import QuickClock

KEYS = Keys("ns")


class MoodyStore(MemoryStore):
    """Does what `moods` says with each put, in order, then behaves; of what is read so many requests fail first as
    `deaf` says, for each kind of request."""

    def __init__(self, moods: list[str] | None = None, deaf: int = 0) -> None:
        super().__init__(QuickClock())
        self.moods = moods or []
        self.deaf = dict.fromkeys(("get", "exists", "list"), deaf)
        self.calls = 0

    async def put_if_absent(self, key, parts, purpose) -> None:
        match self.moods.pop(0) if self.moods else "well":
            case "lost answer":
                await super().put_if_absent(key, parts, purpose)
                raise StoreUnclear("timeout")
            case "lost request":
                raise StoreUnclear("timeout")
            case "refused":
                raise StoreUnavailable("slow down")
            case "rival":
                await super().put_if_absent(key, [seal_envelope(int(key[-20:]), b"theirs")], purpose)
        await super().put_if_absent(key, parts, purpose)

    async def get(self, key, purpose) -> bytes:
        self._answer_or_fail("get")
        return await super().get(key, purpose)

    async def exists(self, key, purpose) -> bool:
        self.calls += 1
        self._answer_or_fail("exists")
        return await super().exists(key, purpose)

    async def list(self, prefix, purpose, start_after="") -> list[ObjectInfo]:
        self._answer_or_fail("list")
        return await super().list(prefix, purpose, start_after)

    def _answer_or_fail(self, how: str) -> None:
        if self.deaf[how]:
            self.deaf[how] -= 1
            raise StoreUnavailable("slow down")


def cluster_log(store: MemoryStore) -> ClusterLog:
    return ClusterLog(store, KEYS, QuickClock(), random.Random(1))


@given(st.integers(1, 2**63 - 1), st.binary(max_size=200))
def test_a_payload_survives_its_envelope(version, payload) -> None:
    assert open_envelope(version, seal_envelope(version, payload), "k") == payload


@settings(max_examples=200)
@given(st.binary(min_size=1, max_size=50), st.data())
def test_no_flipped_bit_and_no_cut_goes_unseen(payload, data) -> None:
    whole = seal_envelope(5, payload)
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    # A higher format number can't be told from a newer format: that too refuses to read on.
    for bad in (bytes(damaged), whole[: data.draw(st.integers(0, len(whole) - 1))], whole + b"x"):
        with pytest.raises((Corrupt, StartError)):
            open_envelope(5, bad, "k")


def test_an_object_under_another_number_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        open_envelope(6, seal_envelope(5, b"x"), "k")


def test_a_newer_format_is_said_to_be_newer() -> None:
    newer = seal_envelope(1, b"x")
    with pytest.raises(StartError, match="newer"):
        open_envelope(1, newer[:4] + b"\x00\x02" + newer[6:], "k")


@given(st.lists(st.sampled_from(["lost answer", "lost request", "refused", "rival"]), max_size=5), st.integers(0, 3))
def test_append_tells_ours_from_theirs_whatever_the_store_does(moods, deaf) -> None:
    """True exactly when the object holds our bytes."""

    async def scenario() -> None:
        store = MoodyStore(list(moods), deaf)
        log = cluster_log(store)
        ours = await log.append(1, b"ours")
        assert await log.read(1) == (b"ours" if ours else b"theirs")

    asyncio.run(scenario())


def test_of_two_writers_one_wins() -> None:
    async def scenario() -> None:
        store = MoodyStore()
        outcomes = await asyncio.gather(*(cluster_log(store).append(1, b"writer %d" % n) for n in range(8)))
        assert outcomes.count(True) == 1
        assert await cluster_log(store).read(1) == b"writer %d" % outcomes.index(True)

    asyncio.run(scenario())


def test_a_store_that_stays_silent_is_said_to_be_so() -> None:
    """StoreUnavailable if nothing can have been applied, else StoreUnclear; never a guess."""

    async def scenario() -> None:
        with pytest.raises(StoreUnavailable):
            await cluster_log(MoodyStore(["refused"] * 1000)).append(1, b"x")
        with pytest.raises(StoreUnclear):
            await cluster_log(MoodyStore(["lost request"] + ["refused"] * 1000)).append(1, b"x")
        store = MoodyStore(deaf=10**6)
        await store.put_if_absent(KEYS.cluster(1), [b"x"], Purpose.CLUSTER)
        with pytest.raises(StoreUnclear):
            await cluster_log(store).append(1, b"x")
        with pytest.raises(StoreUnavailable):
            await cluster_log(store).read(1)

    asyncio.run(scenario())


@settings(max_examples=60)
@given(st.integers(0, 700) | st.sampled_from([1, 16, 17, 4095, 4096, 4097]))
def test_the_newest_version_is_found_in_few_rounds(count) -> None:
    async def scenario() -> None:
        store = MoodyStore()
        for number in range(1, count + 1):
            await store.put_if_absent(KEYS.cluster(number), [b"x"], Purpose.CLUSTER)
        assert await cluster_log(store).newest() == count
        assert store.calls <= 16 * 6

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["exists", "list"])
def test_the_newest_version_is_found_though_the_store_refuses_at_first(how) -> None:
    """Goal: one 503 does not end a start; a store that goes on refusing is given up in the end."""

    async def scenario() -> None:
        store = MoodyStore()
        await cluster_log(store).append(1, b"x")
        store.deaf[how] = 5
        assert await cluster_log(store).newest() == 1
        assert store.deaf[how] == 0
        store.deaf[how] = 10**6
        with pytest.raises(StoreUnavailable):
            await cluster_log(store).newest()

    asyncio.run(scenario())


@pytest.mark.parametrize("deleted", [[1], [1, 2, 3], [5], [40], list(range(1, 30))])
def test_versions_that_were_deleted_are_missed(deleted) -> None:
    """Else a cluster whose first versions someone deleted would be founded anew."""

    async def scenario() -> None:
        store = MoodyStore()
        for number in range(1, 60):
            await store.put_if_absent(KEYS.cluster(number), [b"x"], Purpose.CLUSTER)
        await store.delete([KEYS.cluster(number) for number in deleted], Purpose.CLUSTER)
        try:
            newest = await cluster_log(store).newest()
        except Corrupt:
            return
        assert newest == 59 and 1 not in deleted

    asyncio.run(scenario())


def test_what_does_not_exist_reads_as_none() -> None:
    assert asyncio.run(cluster_log(MoodyStore()).read(3)) is None

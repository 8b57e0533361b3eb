"""Goal: cold bytes come verified, shared among readers, read ahead in long ranges, within a bound of memory."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import Corrupt, ObjectMissing, StoreUnavailable
from kafscale.storage.extents import Extent
from kafscale.storage.read_cache import UNWANTED_SECONDS
from kafscale.storage.reads import ColdReader
from kafscale.storage.store import Purpose
from tests.unit.storage.rig import LoopClock, ScriptedStore, batch_of, run


async def objects(sizes: list[list[int]]) -> tuple[ScriptedStore, list[Extent], list[bytes]]:
    """An object per list, of one batch per size; each batch an extent."""
    store = ScriptedStore(LoopClock())
    chance = random.Random(1)
    extents: list[Extent] = []
    bodies: list[bytes] = []
    for number, batches in enumerate(sizes):
        position = 64
        parts = [b"x" * position]
        for size in batches:
            body = bytes(batch_of(size, chance=chance, base_offset=len(extents)))
            extents.append(Extent(len(extents), len(extents), 0, f"object{number}", position, len(body)))
            bodies.append(body)
            parts.append(body)
            position += len(body)
        await store.put_if_absent(f"object{number}", parts, Purpose.FLUSH)
    return store, extents, bodies


def gets(store: ScriptedStore) -> int:
    return sum(how == "get_range" for how, _ in store.asked)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=5), min_size=1, max_size=5),
    order=st.lists(st.integers(0, 24), max_size=20),
    room=st.sampled_from([1, 2000, 1 << 20]),
    together=st.booleans(),
)
def test_every_read_gives_the_extents_bytes(sizes, order, room, together):
    """Goal: in any order, alone or at once, with any bound of memory, each read is right."""

    async def main() -> None:
        store, extents, bodies = await objects(sizes)
        reader = ColdReader(store, LoopClock(), room)
        wanted = [index % len(extents) for index in order]
        if together:
            found = await asyncio.gather(*(reader.read(extents, index) for index in wanted))
        else:
            found = [await reader.read(extents, index) for index in wanted]
        assert [bytes(view) for view in found] == [bodies[index] for index in wanted]
        await reader.close()

    run(main())


def test_readers_of_the_same_range_share_one_get():
    """Goal: a hundred readers at the same place cost as many GETs as one."""

    async def main() -> None:
        store, extents, bodies = await objects([[1000] * 5])
        reader = ColdReader(store, LoopClock(), 1 << 20)
        found = await asyncio.gather(*(reader.read(extents, index % 5) for index in range(100)))
        assert [bytes(view) for view in found] == [bodies[index % 5] for index in range(100)]
        assert gets(store) == 1

    run(main())


def test_what_follows_is_read_ahead():
    """Goal: reading in order finds the next objects already there, and reads none of them twice."""

    async def main() -> None:
        store, extents, bodies = await objects([[1000] * 4 for _ in range(10)])
        reader = ColdReader(store, LoopClock(), 1 << 20)
        await reader.read(extents, 0)
        await asyncio.sleep(1)
        assert gets(store) == 10
        for index, body in enumerate(bodies):
            assert bytes(await reader.read(extents, index)) == body
        assert gets(store) == 10

    run(main())


def test_memory_is_bounded_and_the_least_used_goes_first():
    """Goal: the cache never holds more than its bound, but for one extent; what was read lately stays."""

    async def main() -> None:
        store, extents, _ = await objects([[1000] for _ in range(20)])
        reader = ColdReader(store, LoopClock(), 5 * extents[0].length)
        for index in (0, 10, 0, 15):
            await reader.read(extents[index : index + 1], 0)
        await asyncio.sleep(1)
        before = gets(store)
        await reader.read(extents[:1], 0)
        assert gets(store) == before
        for index in range(20):
            await reader.read(extents[index : index + 1], 0)
            assert reader._cache.bytes <= 5 * extents[0].length
        before = gets(store)
        await reader.read(extents[:1], 0)
        assert gets(store) == before + 1

    run(main())


@pytest.mark.parametrize("where", [5, 16, 20, 40, 500])
def test_damage_is_surfaced_and_never_served(where):
    """Goal: a flipped bit is Corrupt for who reads that extent, each time; its neighbours are served."""

    async def main() -> None:
        store, extents, bodies = await objects([[1000] * 3])
        await store.damage("object0", extents[1].position + where)
        reader = ColdReader(store, LoopClock(), 1 << 20)
        if where not in range(8):  # the base offset is not covered by the batch's CRC
            for _ in range(2):
                with pytest.raises(Corrupt, match="object0"):
                    await reader.read(extents, 1)
        assert bytes(await reader.read(extents[:1], 0)) == bodies[0]
        assert bytes(await reader.read(extents[2:], 0)) == bodies[2]

    run(main())


def test_missing_and_short_objects_are_errors():
    """Goal: what should be there and is not is never an empty answer, and a later read asks again."""

    async def main() -> None:
        store, extents, bodies = await objects([[1000], [1000]])
        reader = ColdReader(store, LoopClock(), 1 << 20)
        body = await store.inner.get("object0", Purpose.FLUSH)
        await store.inner.delete(["object0"], Purpose.SWEEP)
        with pytest.raises(ObjectMissing):
            await reader.read(extents, 0)
        await store.inner.put_if_absent("object0", [body[:-1]], Purpose.FLUSH)
        with pytest.raises(Corrupt, match="wanted"):
            await reader.read(extents, 0)
        await store.inner.delete(["object0"], Purpose.SWEEP)
        await store.inner.put_if_absent("object0", [body], Purpose.FLUSH)
        store.read_errors["object0"] = [StoreUnavailable("no")]
        with pytest.raises(StoreUnavailable):
            await reader.read(extents[:1], 0)
        assert bytes(await reader.read(extents, 0)) == bodies[0]

    run(main())


class Turns(LoopClock):
    """Counts how often others get their turn."""

    given = 0

    async def sleep(self, seconds: float) -> None:
        self.given += seconds == 0
        await super().sleep(seconds)


def one_extent(bodies: list[bytes]) -> Extent:
    return Extent(0, len(bodies) - 1, 0, "large", 0, sum(map(len, bodies)))


def test_checking_much_lets_others_have_their_turn():
    """Goal: a long range of tiny batches holds nobody up: there are turns in between, within one extent too, and who
    wants one small extent meanwhile does not wait for all of the large one."""

    async def main() -> None:
        store, extents, bodies = await objects([[1000]])
        many = [bytes(batch_of(1, base_offset=number)) for number in range(20_000)]
        await store.put_if_absent("large", many, Purpose.FLUSH)
        clock = Turns()
        reader = ColdReader(store, clock, 1 << 24)
        order: list[str] = []

        async def read(label: str, extent: Extent) -> bytes:
            found = bytes(await reader.read([extent], 0))
            order.append(label)
            return found

        large = asyncio.ensure_future(read("large", one_extent(many)))
        await store.wait_for("get_range", "large")
        assert await read("small", extents[0]) == bodies[0]
        assert await large == b"".join(many)
        assert order == ["small", "large"]
        assert clock.given >= len(many) // 1000

    run(main())


def test_damage_at_the_end_of_a_long_extent_is_found():
    """Goal: checking in steps leaves nothing out."""

    async def main() -> None:
        store, _, _ = await objects([[1]])
        many = [bytes(batch_of(1, base_offset=number)) for number in range(3000)]
        extent = one_extent(many)
        await store.put_if_absent("large", many, Purpose.FLUSH)
        await store.damage("large", extent.length - 1)
        with pytest.raises(Corrupt, match="large at 0"):
            await ColdReader(store, LoopClock(), 1 << 24).read([extent], 0)

    run(main())


def test_hot_extents_are_not_fetched():
    """Goal: read-ahead stops where memory begins."""

    async def main() -> None:
        store, extents, bodies = await objects([[1000], [1000], [1000]])
        extents[1].views = [bodies[1]]
        reader = ColdReader(store, LoopClock(), 1 << 20)
        await reader.read(extents, 0)
        await asyncio.sleep(1)
        assert gets(store) == 1

    run(main())


@pytest.mark.parametrize("partitions", [1, 8, 30])
@pytest.mark.parametrize("groups", [1, 3])
def test_nothing_is_read_twice_by_readers_that_go_on_together(partitions: int, groups: int) -> None:
    """Goal: however many partitions share the memory, what is read ahead is still there when it is wanted, and groups
    that go on together cost no more than one; extents are read in several steps."""

    async def main() -> None:
        size, count = 10_000, 40
        store, extents, bodies = await objects([[size] * 2 for _ in range(partitions * count // 2)])
        lists = [extents[number * count : (number + 1) * count] for number in range(partitions)]
        reader = ColdReader(store, LoopClock(), 3 * partitions * size + 20 * size)

        async def drain(behind: int) -> None:
            await asyncio.sleep(behind * 0.0001)
            for step in range(2 * count):
                for number, of_partition in enumerate(lists):
                    found = await reader.read(of_partition, step // 2)
                    assert bytes(found) == bodies[number * count + step // 2]

        await asyncio.gather(*map(drain, range(groups)))
        assert sum(length for _, length in store.ranges) == sum(extent.length for extent in extents)

    run(main())


def test_what_nobody_came_for_makes_room() -> None:
    """Goal: readers that go away leave no claim on the read-ahead for long."""

    async def main() -> None:
        store, extents, _ = await objects([[10_000] for _ in range(60)])
        lists = [extents[number : number + 20] for number in (0, 20, 40)]
        reader = ColdReader(store, LoopClock(), 400_000)
        for of_partition in lists[:2]:
            await reader.read(of_partition, 0)
        await asyncio.sleep(UNWANTED_SECONDS + 1)
        before = gets(store)
        await reader.read(lists[2], 0)
        await asyncio.sleep(1)
        assert gets(store) - before >= 10

    run(main())


def test_the_bound_may_fall() -> None:
    """Goal: when others need the memory, what was read back is given up at the next look."""

    async def main() -> None:
        store, extents, _ = await objects([[1000] for _ in range(20)])
        limit = 1 << 20
        reader = ColdReader(store, LoopClock(), lambda: limit)
        for index in range(20):
            await reader.read(extents, index)
        limit = 3000
        reader.trim()
        assert reader._cache.bytes <= 3000
        assert bytes(await reader.read(extents, 19))

    run(main())

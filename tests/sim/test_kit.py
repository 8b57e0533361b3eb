"""Goal: the simulated world itself is right: time, pauses, crashes, and a store that is only as bad as it may be."""

from __future__ import annotations

import asyncio

import pytest

from kafscale.errors import ObjectExists, ObjectMissing, StoreUnavailable, StoreUnclear
from kafscale.storage.store import Purpose
from tests.sim.loop import Deadlock, OutOfTime, SimLoop, run
from tests.sim.store import Bucket, StoreFaults
from tests.sim.world import SimClock, World

FLUSH, READ = Purpose.FLUSH, Purpose.RECOVERY


def test_time_jumps_and_timers_come_in_order() -> None:
    """Goal: hours pass at once, and each timer sees exactly its own time."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        seen: list[float] = []

        async def sleeper(seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append(loop.time())

        await asyncio.gather(*(sleeper(seconds) for seconds in (7200.1, 0.1, 3600.3, 0.1)))
        return seen

    assert run(main()) == [0.1, 0.1, 3600.3, 7200.1]


def test_waiting_for_nothing_is_a_deadlock() -> None:
    """Goal: where nothing can ever happen again the simulation ends with an error instead of hanging."""

    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run(main())


def test_spinning_without_end_is_stopped() -> None:
    """Goal: a task that runs for ever, with or without time passing, ends the simulation."""

    async def ticking() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(1)

    with pytest.raises(OutOfTime):
        run(ticking(), SimLoop(end_of_time=100))


def test_threads_are_refused() -> None:
    """Goal: what could differ between two runs of one seed can't be used."""

    async def main() -> None:
        await asyncio.to_thread(print)

    with pytest.raises(RuntimeError):
        run(main())


def test_a_paused_process_gets_everything_later_and_in_order() -> None:
    """Goal: timers and answers that came during a pause are delivered on resumption, in order, before later ones."""
    loop = SimLoop()

    async def main() -> None:
        world = World(loop, 1)
        process = world.process("w")
        clock = SimClock(world, process)
        seen: list[tuple[str, float]] = []

        def note(name: str) -> None:
            seen.append((name, loop.time()))

        for seconds in (1, 2, 3, 10):
            process.run(clock.call_later, seconds, note, str(seconds))
        loop.call_at(1.5, process.pause)
        loop.call_at(5, process.resume)
        await asyncio.sleep(20)
        assert seen == [("1", 1), ("2", 5), ("3", 5), ("10", 10)]
        assert world.complaints == []

    run(main(), loop)


def test_a_timer_cancelled_while_held_does_not_run() -> None:
    """Goal: a paused process that cancels a timer on waking never sees it, though its time has passed."""
    loop = SimLoop()

    async def main() -> None:
        world = World(loop, 1)
        process = world.process("w")
        clock = SimClock(world, process)
        seen: list[str] = []
        second = process.run(clock.call_later, 2, lambda: seen.append("second"))
        process.run(clock.call_later, 1, second.cancel)
        process.pause()
        loop.call_at(5, process.resume)
        await asyncio.sleep(10)
        assert seen == []

    run(main(), loop)


def test_pausing_again_while_it_catches_up_holds_the_rest() -> None:
    """Goal: a second pause stops the catching up; nothing is lost or reordered."""
    loop = SimLoop()

    async def main() -> None:
        world = World(loop, 1)
        process = world.process("w")
        clock = SimClock(world, process)
        seen: list[int] = []

        def note(number: int) -> None:
            seen.append(number)
            if number == 2:
                process.pause()

        process.pause()
        for number in range(5):
            process.run(clock.call_later, number, note, number)
        loop.call_at(6, process.resume)
        await asyncio.sleep(7)
        assert seen == [0, 1, 2]
        process.resume()
        await asyncio.sleep(1)
        assert seen == [0, 1, 2, 3, 4]

    run(main(), loop)


def test_a_crash_ends_every_task_and_lets_nothing_out() -> None:
    """Goal: after a crash no task, child task or clean-up of the process reaches the store."""
    loop = SimLoop()

    async def main() -> None:
        world = World(loop, 3)
        bucket = Bucket(world)
        process = world.process("w")
        store, clock = bucket.handle(process), SimClock(world, process)
        ended: list[str] = []

        async def child() -> None:
            try:
                await clock.sleep(1000)
            finally:
                ended.append("child")
                await store.put_if_absent("ns/from-the-grave", [b"x"], FLUSH)

        async def parent() -> None:
            task = asyncio.ensure_future(child())
            await task

        process.spawn(parent())
        await asyncio.sleep(1)
        assert len(process.tasks) == 2
        process.crash()
        await asyncio.sleep(2000)
        assert ended == ["child"]
        assert not bucket.applied
        assert world.complaints == []

    run(main(), loop)


def test_surprises_in_a_process_are_complained_about_and_in_a_dead_one_not() -> None:
    """Goal: an exception that nobody caught fails the simulation, unless its process had crashed."""
    loop = SimLoop()

    async def main() -> None:
        world = World(loop, 3)

        def surprise() -> None:
            raise KeyError("surprise")

        for name in ("alive", "dead"):
            process = world.process(name)
            process.run(SimClock(world, process).call_later, 1, surprise)
            process.run(loop.call_later, 2, surprise)
            if name == "dead":
                process.crash()
        await asyncio.sleep(5)
        assert len(world.complaints) == 2
        assert all("surprise" in complaint for complaint in world.complaints)

    run(main(), loop)


BAD = StoreFaults(
    answer_lost_applied=0.1,
    answer_lost_not_applied=0.1,
    answer_lost_applied_later=0.1,
    own_put_refused=0.1,
    unavailable=0.1,
    slow=0.2,
)


@pytest.mark.parametrize("seed", range(5))
def test_the_bad_store_keeps_the_promises_of_a_store(seed: int) -> None:
    """Goal: one winner per key; a put that returned is there and listed; a refusal that was clear applied nothing."""
    loop = SimLoop()
    outcomes: set[str] = set()

    async def main() -> None:
        world = World(loop, seed)
        bucket = Bucket(world, BAD)
        handles = [bucket.handle(world.process(f"w{number}")) for number in range(3)]
        won: dict[str, list[bytes]] = {}
        refused: set[bytes] = set()

        async def put(handle: int, key: str) -> None:
            body = f"{handle} {key}".encode()
            try:
                await handles[handle].put_if_absent(key, [body], FLUSH)
            except (ObjectExists, StoreUnavailable, StoreUnclear) as error:
                outcomes.add(type(error).__name__)
                if isinstance(error, StoreUnavailable):
                    refused.add(body)
            else:
                won.setdefault(key, []).append(body)
                assert bucket.bodies[key] == body
                assert key in [info.key for info in await listing(handles[handle])]

        async def listing(handle: object) -> list:
            while True:
                try:
                    return await handle.list("ns/", READ)  # type: ignore[attr-defined]
                except StoreUnavailable:
                    pass

        await asyncio.gather(*(put(handle, f"ns/{key}") for key in range(60) for handle in range(3)))
        await asyncio.sleep(1000)
        assert all(len(winners) == 1 for winners in won.values())
        assert all(bucket.bodies[key] == winners[0] for key, winners in won.items())
        assert not refused & set(bucket.bodies.values())
        assert world.complaints == []

    run(main(), loop)
    assert outcomes == {"ObjectExists", "StoreUnavailable", "StoreUnclear"}


def test_a_put_on_its_way_outlives_its_process_or_not_by_the_seed() -> None:
    """Goal: of puts whose process crashed some are never applied, some at once, some late; none is ever answered."""
    loop = SimLoop()

    async def main() -> None:
        world = World(loop, 5)
        bucket = Bucket(world, StoreFaults(slow=0))
        for number in range(100):
            process = world.process(f"w{number}")
            process.spawn(bucket.handle(process).put_if_absent(f"ns/{number}", [b"x"], FLUSH))
            await asyncio.sleep(0)
            process.crash()
        crashed_at = loop.time()
        await asyncio.sleep(0.2)
        soon = len(bucket.applied)
        await asyncio.sleep(1000)
        late = len(bucket.applied) - soon
        assert crashed_at == 0
        assert 10 < soon < 60
        assert 10 < late < 60
        assert soon + late < 80

    run(main(), loop)


def test_a_buffer_that_changes_while_it_is_put_is_complained_about() -> None:
    """Goal: memory recycled too early is found, whatever it does to the bytes."""
    loop = SimLoop()

    async def main() -> None:
        world = World(loop, 5)
        process = world.process("w")
        store = Bucket(world).handle(process)
        buffer = bytearray(b"before")
        put = process.spawn(store.put_if_absent("ns/x", [buffer], FLUSH))
        await asyncio.sleep(0)
        buffer[:] = b"change"
        await put
        assert "changed" in world.complaints[0]

    run(main(), loop)


def test_a_refusing_store_comes_back_and_a_cut_off_process_is_alone() -> None:
    """Goal: outages hit all, partitions one, and both end."""
    loop = SimLoop()

    async def main() -> None:
        world = World(loop, 5)
        bucket = Bucket(world, StoreFaults(slow=0))
        one, two = (bucket.handle(world.process(name)) for name in ("one", "two"))
        bucket.cut_off.add("one")
        with pytest.raises(StoreUnavailable):
            await one.get("ns/x", READ)
        with pytest.raises(ObjectMissing):
            await two.get("ns/x", READ)
        bucket.cut_off.clear()
        bucket.fail_for(10)
        for handle in (one, two):
            with pytest.raises(StoreUnavailable):
                await handle.exists("ns/x", READ)
        await asyncio.sleep(10)
        assert not await one.exists("ns/x", READ)

    run(main(), loop)

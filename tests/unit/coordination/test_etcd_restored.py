"""Goal: whoever slept while etcd was restored from a backup goes by what etcd knows now, not by what it knew before."""

from __future__ import annotations

import asyncio
import random

from kafscale.coordination.etcd import EtcdCoordination
from kafscale.coordination.etcd_client import EtcdServers
from kafscale.coordination.store import ClusterIdentity, Member
from tests.sim.etcd import EtcdFaults, SimEtcd
from tests.sim.loop import SimLoop, run
from tests.sim.threads import Threads
from tests.sim.world import Process, SimClock, World

TTL_SECONDS = 3.0
IDENTITY = ClusterIdentity("c", 8, 1)
CALM = EtcdFaults(event_lost=0, event_twice=0, event_late=0)


def test_a_sleeper_takes_in_an_older_state() -> None:
    """Its own lease is in the backup and can be renewed; what it saw last is newer than all that etcd says from now on.
    It would have believed for minutes that it leads, and known nobody who came since."""
    loop = SimLoop(end_of_time=200)
    world = World(loop, 1)
    threads = Threads(world)
    etcd = SimEtcd(world, CALM)

    async def begin(broker_id: int, process: Process) -> EtcdCoordination:
        clock = SimClock(world, process)

        async def start() -> EtcdCoordination:
            made = EtcdCoordination(
                EtcdServers(endpoints=(("sim", 0),)),
                "ns",
                TTL_SECONDS,
                clock,
                random.Random(broker_id),
                lambda *_: etcd.client(process),
            )
            await made.open(IDENTITY)
            await made.join(Member(broker_id, ()))
            await made.campaign()
            return made

        return await process.spawn(start())

    async def scenario() -> None:
        sleeper, other = world.process("supervisor-0"), world.process("supervisor-1")
        first = await begin(0, sleeper)
        await asyncio.sleep(2)
        backup = etcd.backup()
        for number in range(50):
            etcd.write([etcd.client(other).transactions.put("/elsewhere", str(number))])
        await asyncio.sleep(2)
        assert first.is_leader
        sleeper.pause()
        etcd.restore(backup, 0.5)
        await asyncio.sleep(1)
        second = await begin(1, other)
        await asyncio.sleep(1)
        sleeper.resume()
        await asyncio.sleep(4 * TTL_SECONDS)
        assert [member.broker_id for member in first.members()] == [0, 1]
        assert [member.broker_id for member in second.members()] == [0, 1]
        assert first.is_leader != second.is_leader

    try:
        run(scenario(), loop)
    finally:
        threads.close()

"""Goal: where one broker of three is hurt for good, whatever hurts it, the others own every slot in a few lease times,
and clients, which need only ask again, write to every partition. One that is cut off from etcd alone may serve on."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable

import pytest

from kafscale.config import Settings
from kafscale.coordination.assignment import broker_of
from kafscale.protocol.api import ApiKey
from kafscale.protocol.messages.create_topics import CreatableTopic, CreateTopicsRequest
from kafscale.storage.planted import NO_BUGS
from tests.sim.audit import disorder
from tests.sim.broker import SimBroker
from tests.sim.client import Client, Recorder
from tests.sim.cluster import SimCluster, predictable
from tests.sim.etcd import SimEtcd
from tests.sim.loop import SimLoop, run
from tests.sim.network import Network, NetworkFaults
from tests.sim.producer import Producer
from tests.sim.store import Bucket, StoreFaults
from tests.sim.threads import Threads
from tests.sim.world import World

LEASE_SECONDS = 3
LEASES_MOST = 8
# A client that asks a broker which gives no answers waits for its own time-out, perhaps several times.
CLIENTS_SECONDS = 120
PARTITIONS = 12
SETTINGS = Settings(
    slots=12,
    offsets_topic_partitions=1,
    flush_interval_ms=20,
    worker_hang_timeout_ms=1500,
    etcd_lease_ttl_ms=LEASE_SECONDS * 1000,
    auto_create_topics=False,
)

Hurt = Callable[[SimCluster, SimBroker], object]


def _off_store(cluster: SimCluster, broker: SimBroker) -> None:
    cluster.bucket.cut(broker.machine.name)


def _off_etcd(cluster: SimCluster, broker: SimBroker) -> None:
    assert cluster.etcd is not None
    cluster.etcd.cut_off.add(broker.machine.name)


def _off_both(cluster: SimCluster, broker: SimBroker) -> None:
    _off_store(cluster, broker)
    _off_etcd(cluster, broker)


FAULTS: dict[str, Hurt] = {
    "killed": lambda cluster, broker: broker.kill(),
    "paused": lambda cluster, broker: broker.pause(),
    "off the store": _off_store,
    "off etcd": _off_etcd,
    "off both": _off_both,
}


class Trial:
    """Three brokers at peace, one of them hurt; producers that begin then, one for each partition."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.recorder = Recorder()
        self.network = Network(world, NetworkFaults(broken=0))
        self.cluster = SimCluster(world, self.network, Bucket(world, StoreFaults()), SimEtcd(world), SETTINGS, NO_BUGS)
        chance = world.stream("trial")
        for _ in range(3):
            self.cluster.add_broker(workers=chance.choice((1, 2)))
        self.victim = self.cluster.brokers[seed % 3]

    async def run(self, hurt: Hurt) -> float:
        """Seconds from the blow until the others own everything. Every partition has taken a record in the end."""
        for broker in self.cluster.brokers:
            # In no process's name.
            self.world.loop.call_soon(broker.start, context=contextvars.Context())
        admin = Client(self.world, self.network, self.recorder, "admin")
        async with asyncio.timeout(60):
            await admin.until(lambda: self._create(admin))
            while disorder(self.cluster) is not None:  # noqa: ASYNC110 - in virtual time
                await asyncio.sleep(0.5)
        # Long enough for the store's answers to be believed in.
        await asyncio.sleep(20)
        assert disorder(self.cluster) is None
        hurt(self.cluster, self.victim)
        began = self.world.loop.time()
        producers = [
            Producer(self.world, self.network, self.recorder, f"p{index}", [("t", index)], 1, pace_seconds=0.1)
            for index in range(PARTITIONS)
        ]
        writing = [producer.process.spawn(producer.run()) for producer in producers]
        if hurt is not _off_etcd:
            async with asyncio.timeout(LEASES_MOST * LEASE_SECONDS):
                while self._owns_any():  # noqa: ASYNC110 - in virtual time
                    await asyncio.sleep(0.1)
        seconds = self.world.loop.time() - began
        async with asyncio.timeout(LEASES_MOST * LEASE_SECONDS if hurt is _off_etcd else CLIENTS_SECONDS):
            await asyncio.gather(*writing)
        return seconds

    def _owns_any(self) -> bool:
        state = self.cluster.state
        assert state is not None
        return any(broker_of(entries[-1].node_id) == self.victim.broker_id for entries in state.slots)

    async def _create(self, admin: Client) -> bool | None:
        topic = CreatableTopic(name="t", num_partitions=PARTITIONS, replication_factor=-1)
        answer = await admin.ask_any(ApiKey.CREATE_TOPICS, 5, CreateTopicsRequest(topics=[topic], timeout_ms=5000))
        return True if answer.topics[0].error_code == 0 else None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fault", FAULTS)
def test_the_others_serve_everything(fault: str, seed: int) -> None:
    loop = SimLoop(end_of_time=300)
    world = World(loop, seed)
    threads = Threads(world)
    try:
        with predictable(random.Random(f"{seed}/predictable")):
            seconds = run(Trial(world, seed).run(FAULTS[fault]), loop)
    finally:
        threads.close()
    print(f"seed {seed}, {fault}: {seconds:.1f} s")
    assert world.complaints == []

"""Goal: a consumer that states its zone reads there what the leader has to read back itself, every record once and in
order, and all else from the leader; it is never told of an end or a beginning that is none, and never sent in circles.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.config import Settings
from kafscale.control import NodeAddress, Nodes
from kafscale.coordination.cluster import Assign, Assignment, CreateTopic, DeleteTopic, Topic
from kafscale.errors import StoreUnavailable
from kafscale.metrics import STORE_BYTES, STORE_OPERATIONS, ZONE_BYTES, ZONE_REFERRALS
from kafscale.protocol.api import ApiKey
from kafscale.protocol.batches import check_stored, iterate
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.delete_records import (
    DeleteRecordsPartition,
    DeleteRecordsRequest,
    DeleteRecordsTopic,
)
from kafscale.protocol.messages.describe_cluster import DescribeClusterRequest
from kafscale.protocol.messages.metadata import MetadataRequest
from kafscale.storage.read_cache import ReadCache
from kafscale.storage.takeover import seal_log
from tests.unit.storage.rig import log_id
from tests.unit.workers.guarded_worker import snapshot_of
from tests.unit.workers.whole_worker import (
    EPOCH,
    Client,
    HeldStore,
    WholeWorker,
    batch_of,
    fetch_request,
    first_state,
    id_of,
    run,
)
from workers.zones import KEPT_SECONDS, SentAway, Zones

LEADER, READER = 0, 1
ALL = 1 << 40
ZONES = {LEADER: "a", READER: "b"}


class TwoZones:
    """Node 0 in zone a, which leads topic `t`, and node 1 in zone b, over one store. Use inside `run`."""

    def __init__(self, **changes: Any) -> None:
        self.store = HeldStore()
        self.nodes = [NodeAddress(node, f"host{node}", 19092 + node, zone) for node, zone in ZONES.items()]
        self.workers = {
            node: WholeWorker(
                Settings(**({"cluster_namespace": "ns", "rack": zone} | changes)),
                self.store,
                log_number=1 if node == LEADER else 99,
                state=first_state(),
                node_id=node,
                nodes=self.nodes,
            )
            for node, zone in ZONES.items()
        }
        self.leader, self.reader = self.workers[LEADER], self.workers[READER]

    async def start(self) -> TwoZones:
        for worker in self.workers.values():
            await worker.start()
        self.decide(CreateTopic(Topic("t", id_of(2), 4)))
        return self

    def decide(self, *changes: Any) -> None:
        for worker in self.workers.values():
            worker.decide(*changes)

    def forget(self, node: WholeWorker | None = None) -> None:
        """Have the leader remember nothing that is durable."""
        (node or self.leader).worker.flusher._tail.evict(ALL)

    async def fill(self, *sizes: int, index: int = 0) -> None:
        """A flush for each size; what went before is no longer in memory."""
        for size in sizes:
            await self.leader.produce("t", batch_of(b"x" * size), index=index)

    async def publish(self) -> None:
        """A checkpoint, and nothing is left in memory."""
        await self.leader.checkpoint()
        self.forget()

    async def fetch(
        self,
        node: int,
        offset: int,
        zone: str = "b",
        version: int = 12,
        client: Client | None = None,
        index: int = 0,
        topic: Any = "t",
        **options: Any,
    ) -> Any:
        request = fetch_request((topic, index, offset), **options)
        request = msgspec.structs.replace(request, rack_id=zone)
        answer = await self.workers[node].call(ApiKey.FETCH, version, request, client)
        return answer.responses[0].partitions[0]

    def cell(self, node: int, index: int) -> int:
        return self.workers[node].metrics.cells[index]


class Consumer:
    """Reads a partition as clients do that state their zone: where it is told to, and from the leader otherwise."""

    def __init__(self, cluster: TwoZones, zone: str = "b", index: int = 0, **options: Any) -> None:
        self._cluster = cluster
        self._zone = zone
        self._index = index
        self._options = options
        self._clients: dict[int, Client] = {}
        self.node = LEADER
        self.offset = 0
        self.records: list[bytes] = []
        self.bytes_from = {LEADER: 0, READER: 0}
        self.high_watermarks = {LEADER: 0, READER: 0}
        self.trips = 0

    async def poll(self) -> int:
        """Fetch once; returns the error code. Every batch comes whole, sound and at its place."""
        cluster, node = self._cluster, self.node
        client = self._clients.get(node)
        if client is None or client.is_closing:
            client = self._clients[node] = cluster.workers[node].connect()
        found = await cluster.fetch(node, self.offset, self._zone, client=client, index=self._index, **self._options)
        if found.error_code:
            self.node = LEADER
            return int(found.error_code)
        assert found.high_watermark < 0 or found.high_watermark >= self.high_watermarks[node]
        self.high_watermarks[node] = max(found.high_watermark, self.high_watermarks[node])
        data = bytes(found.records or b"")
        if found.preferred_read_replica >= 0:
            assert not data and found.preferred_read_replica != node
            self.node = found.preferred_read_replica
            self.trips += 1
            return 0
        self.bytes_from[node] += len(data)
        assert check_stored(data) >= 0
        for _, header in iterate(memoryview(data)):
            assert header.base_offset == self.offset
            self.offset += header.last_offset_delta + 1
            assert self.offset <= found.high_watermark
        return 0

    async def drain(self, end: int) -> None:
        for _ in range(20 * (end + 10)):
            if self.offset >= end:
                return
            assert await self.poll() == 0
        raise AssertionError(f"it goes round in circles at {self.offset}")


def test_old_data_comes_from_the_clients_zone_and_the_rest_from_the_leader() -> None:
    """What is published and not in memory any more is read in zone b; from its end on the leader goes on."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(*[1000] * 20)
        await cluster.publish()
        await cluster.fill(*[1000] * 5)
        consumer = Consumer(cluster, partition_max_bytes=3000)
        await consumer.drain(25)
        assert consumer.bytes_from[READER] > 4 * consumer.bytes_from[LEADER] - 5000 > 0
        assert consumer.trips == 2
        assert cluster.cell(READER, ZONE_BYTES) == consumer.bytes_from[READER]
        assert cluster.cell(READER, STORE_BYTES.at("get", "cold_read")) >= consumer.bytes_from[READER]
        assert cluster.cell(READER, STORE_OPERATIONS.at("get", "manifest")) > 0
        assert cluster.cell(LEADER, STORE_OPERATIONS.at("get", "cold_read")) == 0
        assert cluster.cell(LEADER, ZONE_REFERRALS.at("zone")) == 1
        assert cluster.cell(READER, ZONE_REFERRALS.at("leader")) == 1

    run(main())


def test_at_the_tail_a_client_stays_with_the_leader() -> None:
    """What is in memory is served from there, published or not, and a long poll waits there."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(100, 100)
        await cluster.leader.checkpoint()
        for offset in (0, 1):
            found = await cluster.fetch(LEADER, offset)
            assert found.records and found.preferred_read_replica == -1
        consumer = Consumer(cluster, max_wait_ms=5000)
        await consumer.drain(2)
        polled = asyncio.ensure_future(consumer.drain(3))
        await asyncio.sleep(1)
        await cluster.fill(100)
        await polled
        assert consumer.trips == 0 and consumer.bytes_from[READER] == 0

    run(main())


@pytest.mark.parametrize(("zone", "version"), [("", 12), ("a", 12), ("c", 12), ("b", 10)])
def test_who_is_not_sent_away(zone: str, version: int) -> None:
    """No zone, the leader's own, one without a broker, and a version that can't say it: served by the leader, and by
    nobody else."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(100)
        await cluster.publish()
        found = await cluster.fetch(LEADER, 0, zone, version)
        assert found.records and found.preferred_read_replica in (-1, None)
        elsewhere = await cluster.fetch(READER, 0, zone, version)
        assert elsewhere.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER and not elsewhere.records

    run(main())


def test_what_is_not_published_is_read_back_by_the_leader() -> None:
    """Out of memory before a checkpoint describes it: nobody else can know of it yet."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(100, 100)
        cluster.forget()
        consumer = Consumer(cluster)
        await consumer.drain(2)
        assert consumer.trips == 0 and cluster.cell(LEADER, STORE_OPERATIONS.at("get", "cold_read")) > 0

    run(main())


def test_every_version_can_be_sent_away_by_name_and_by_id() -> None:
    """From v11 on, at the leader and back at the reader, with the high watermarks that each knows."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(100, 100)
        await cluster.publish()
        await cluster.fill(100)
        for version in range(11, 19):
            topic: Any = "t" if version < 13 else id_of(2)
            began = asyncio.get_running_loop().time()
            there = await cluster.fetch(LEADER, 0, version=version, topic=topic, max_wait_ms=9000, min_bytes=1 << 20)
            assert asyncio.get_running_loop().time() - began < 1
            assert (there.error_code, there.preferred_read_replica, there.records or b"") == (0, READER, b"")
            assert there.high_watermark == 3
            found = await cluster.fetch(READER, 0, version=version, topic=topic)
            assert found.records and found.preferred_read_replica == -1 and found.high_watermark == 2
            back = await cluster.fetch(READER, 2, version=version, topic=topic)
            assert (back.error_code, back.preferred_read_replica, back.records or b"") == (0, LEADER, b"")

    run(main())


def test_a_client_that_comes_back_for_the_same_record_is_served() -> None:
    """Where it was sent nobody is, or one who knows less: the leader serves it for a while, and no other client."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(100, 100)
        await cluster.publish()
        client, other = cluster.leader.connect(), cluster.leader.connect()
        assert (await cluster.fetch(LEADER, 0, client=client)).preferred_read_replica == READER
        for offset in (0, 1, 0):
            found = await cluster.fetch(LEADER, offset, client=client)
            assert found.records and found.preferred_read_replica == -1
        assert (await cluster.fetch(LEADER, 0, client=other)).preferred_read_replica == READER
        await asyncio.sleep(KEPT_SECONDS + 1)
        assert (await cluster.fetch(LEADER, 0, client=client)).preferred_read_replica == READER

    run(main())


def test_nobody_is_sent_to_a_node_that_is_away() -> None:
    """Not to one that is gone, and never behind a shared address."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(100)
        await cluster.publish()
        cluster.leader.worker.receive(Nodes(cluster.nodes[:1]))
        assert (await cluster.fetch(LEADER, 0)).records
        cluster.reader.worker.receive(Nodes(cluster.nodes[1:]))
        # The reader's leader is gone: what is described is served, for the rest there is nobody to ask.
        assert (await cluster.fetch(READER, 0)).records
        assert (await cluster.fetch(READER, 1)).error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER

    run(main())


def test_the_readers_knowledge_follows_the_leaders() -> None:
    """A client that comes to the end is not sent back if more has been published meanwhile."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(100)
        await cluster.publish()
        assert (await cluster.fetch(READER, 0)).high_watermark == 1
        await asyncio.sleep(2)
        await cluster.fill(100)
        await cluster.publish()
        found = await cluster.fetch(READER, 1)
        assert found.records and found.high_watermark == 2

    run(main())


def test_a_reader_asks_the_bucket_seldom() -> None:
    """However many clients come and wait at the end: a look a second, and one manifest for all partitions of a slot."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(100)
        await cluster.publish()
        asked = STORE_OPERATIONS.at("list", "manifest")
        await asyncio.gather(*(cluster.fetch(READER, offset) for offset in (0, 1, 0, 1, 0)))
        assert cluster.cell(READER, asked) == 1
        for _ in range(40):
            await cluster.fetch(READER, 1)
            await asyncio.sleep(0.1)
        assert cluster.cell(READER, asked) <= 6

    run(main())


def test_three_groups_cost_no_more_reads_than_one() -> None:
    """They share what is read back in their zone."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(*[1000] * 30)
        await cluster.publish()
        reads = STORE_OPERATIONS.at("get", "cold_read")
        await Consumer(cluster).drain(30)
        once = cluster.cell(READER, reads)
        await asyncio.gather(*(Consumer(cluster, partition_max_bytes=2000).drain(30) for _ in range(3)))
        assert cluster.cell(READER, reads) == once

    run(main())


def test_objects_that_are_gone_are_looked_for_anew() -> None:
    """Compaction puts others in their place, and deletes them: nothing is missing, nothing is skipped."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(*[500] * 40)
        await cluster.publish()
        first = await cluster.fetch(READER, 0, partition_max_bytes=600)
        assert first.records
        before = {extent.key for extent in cluster.leader.partition("t").extents}
        # Compaction, and the checkpoints that let the old objects go.
        await asyncio.sleep(200)
        for _ in range(3):
            await cluster.fill(1, index=2)
            await cluster.leader.checkpoint()
        assert before & set(cluster.store.deleted), "nothing was compacted"
        cluster.forget()
        (known,) = cluster.reader.worker._read_replicas._slots.values()
        known.looked_at = cluster.reader.clock.monotonic()
        cluster.reader.reader._cache = ReadCache(lambda: 1 << 20)
        consumer = Consumer(cluster, partition_max_bytes=5000)
        await consumer.drain(40)
        assert consumer.bytes_from[LEADER] == 0

    run(main())


def test_damage_is_an_error_and_nothing_is_skipped() -> None:
    """A damaged or missing object of records is said to be so; a damaged manifest sends clients to the leader, who
    serves them."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(1000)
        await cluster.fill(1000, index=2)
        await cluster.publish()
        damaged, missing = (cluster.leader.partition("t", index).extents[0] for index in (0, 2))
        await cluster.store.damage(damaged.key, damaged.position + 200)
        await cluster.store.inner.delete([missing.key], "sweep")  # type: ignore[arg-type]
        found = await cluster.fetch(READER, 0)
        assert found.error_code == ErrorCode.CORRUPT_MESSAGE and not found.records
        found = await cluster.fetch(READER, 0, index=2)
        assert found.error_code == ErrorCode.KAFKA_STORAGE_ERROR and not found.records

    run(main())


def test_a_manifest_that_cannot_be_read_is_no_empty_partition(caplog: pytest.LogCaptureFixture) -> None:
    """Clients are sent to the leader, which serves them, and the log says why."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(1000)
        await cluster.publish()
        for key in await cluster.store.keys("ns/manifest/"):
            await cluster.store.damage(key, 40)
        found = await cluster.fetch(READER, 0)
        assert (found.error_code, found.preferred_read_replica, found.high_watermark) == (0, LEADER, -1)
        consumer = Consumer(cluster)
        await consumer.drain(1)
        assert consumer.bytes_from[LEADER] > 0

    run(main())
    assert any("clients of this zone" in record.message for record in caplog.records)


def test_a_silent_store_sends_clients_to_the_leader() -> None:
    """The reader can't be sure of anything then; it waits a few seconds, no longer, and leaves nothing behind."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(1000)
        await cluster.publish()
        listed = f"ns/log/{cluster.leader.log_id}/"
        cluster.store.read_errors[listed] = [StoreUnavailable("silence")] * 1000
        began = asyncio.get_running_loop().time()
        found = await cluster.fetch(READER, 0)
        assert found.preferred_read_replica == LEADER
        assert asyncio.get_running_loop().time() - began < 10
        cluster.store.read_errors.clear()
        await asyncio.sleep(2)
        assert (await cluster.fetch(READER, 0)).records

    run(main())


def test_epochs_are_the_clusters() -> None:
    """Who knows an older leader hears of the new one, who knows a newer one is told that this one doesn't yet."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(100)
        await cluster.publish()
        for epoch, code in (
            (EPOCH - 1, ErrorCode.FENCED_LEADER_EPOCH),
            (EPOCH, 0),
            (EPOCH + 1, ErrorCode.UNKNOWN_LEADER_EPOCH),
        ):
            found = await cluster.fetch(READER, 0, current_leader_epoch=epoch)
            assert found.error_code == code and bool(found.records) == (code == 0)
        nothing = await cluster.fetch(READER, 0, topic="nothing")
        assert nothing.error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert (await cluster.fetch(READER, 0, index=9)).error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION

    run(main())


def test_the_reader_asks_for_the_clients_rights() -> None:
    """Older data is nobody's who may not read the topic."""

    async def main() -> None:
        cluster = await TwoZones(acl_enabled=True, super_users="User:admin").start()
        cluster.reader.worker.authority.replace(snapshot_of(["allow describe topic t"]))
        cluster.leader.worker.authority.replace(snapshot_of(["allow describe topic t"]))
        partition = cluster.leader.partition("t")
        cluster.leader.worker.flusher.append(partition, batch := batch_of(b"secret"), _header(batch), 0)
        await asyncio.sleep(1)
        await cluster.publish()
        for allowed in (False, True):
            if allowed:
                cluster.reader.worker.authority.replace(snapshot_of(["allow read topic t"], generation=2))
            client = cluster.reader.connect()
            client.protocol.principal = "User:alice"
            found = await cluster.fetch(READER, 0, client=client)
            assert bool(found.records) == allowed
            assert found.error_code == (0 if allowed else ErrorCode.TOPIC_AUTHORIZATION_FAILED)

    run(main())


def _header(batch: bytearray) -> Any:
    from kafscale.protocol.batches import read_header

    return read_header(batch)


def test_deleted_records_and_topics_are_served_no_longer_than_a_while() -> None:
    """Below the new log start the leader is asked; a topic created anew is another one."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(100, 100, 100)
        await cluster.publish()
        assert (await cluster.fetch(READER, 0)).records
        partitions = [DeleteRecordsPartition(partition_index=0, offset=2)]
        request = DeleteRecordsRequest(topics=[DeleteRecordsTopic(name="t", partitions=partitions)], timeout_ms=10_000)
        await cluster.leader.call(ApiKey.DELETE_RECORDS, 2, request)
        await cluster.publish()
        await asyncio.sleep(60)
        assert (await cluster.fetch(READER, 0)).preferred_read_replica == LEADER
        assert (await cluster.fetch(LEADER, 0)).error_code == ErrorCode.OFFSET_OUT_OF_RANGE
        assert (await cluster.fetch(READER, 2)).log_start_offset == 2
        cluster.decide(DeleteTopic("t", id_of(2)))
        cluster.decide(CreateTopic(Topic("t", id_of(6), 4)))
        assert (await cluster.fetch(READER, 2)).preferred_read_replica == LEADER

    run(main())


def test_a_reader_that_becomes_the_leader_goes_on() -> None:
    """The leader dies while a client drains in zone b: until the slot is loaded there it is served what is described,
    then everything."""

    async def main() -> None:
        cluster = await TwoZones().start()
        await cluster.fill(*[100] * 6)
        await cluster.publish()
        await cluster.fill(*[100] * 3)
        consumer = Consumer(cluster, partition_max_bytes=200)
        while consumer.offset < 3:
            assert await consumer.poll() == 0
        assert consumer.node == READER
        cluster.leader.stop()
        for _ in range(2):
            assert await consumer.poll() == 0
        assert consumer.offset > 3
        old = cluster.leader
        await seal_log(cluster.store, old.keys, old.log_id, old.clock, random.Random(1), "supervisor", "dead")
        moved = {
            slot: [Assignment(EPOCH, LEADER, log_id(1)), Assignment(EPOCH + 1, READER, log_id(99))]
            for slot in range(0, 4, 2)
        }
        cluster.reader.decide(Assign(moved))
        while cluster.reader.worker.ownership.partition("t", 0) is None:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.1)
        consumer.node = READER
        while consumer.offset < 9:
            assert await consumer.poll() == 0
            assert consumer.node == READER

    run(main())


@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 30))
def test_whatever_the_leader_does_every_record_comes_once_and_in_order(seed: int) -> None:
    """Consumers of both zones follow while batches of any size are written, checkpoints, compaction and forgetting go
    on; nobody meets an error or a gap, nothing is served twice, and in the end everything was."""

    async def main() -> None:
        chance = random.Random(seed)
        cluster = await TwoZones(checkpoint_interval_ms=700).start()
        cluster.store.put_seconds = lambda key: chance.expovariate(1 / 0.01)
        consumers = [
            Consumer(cluster, zone, index, max_wait_ms=50, partition_max_bytes=chance.choice([1, 3000, 1 << 20]))
            for zone in ("a", "b", "b")
            for index in (0, 2)
        ]
        ends = {0: 0, 2: 0}

        async def write() -> None:
            for _ in range(40):
                index = chance.choice([0, 2])
                count = chance.randint(1, 4)
                await cluster.leader.produce("t", batch_of(*[b"v" * chance.randint(1, 2000)] * count), index=index)
                ends[index] += count
                what = chance.random()
                if what < 0.2:
                    cluster.forget()
                elif what < 0.3:
                    await cluster.leader.checkpoint()
                elif what < 0.4:
                    await asyncio.sleep(chance.choice([0.5, 3, 40]))

        async def read(consumer: Consumer) -> None:
            while True:
                assert await consumer.poll() == 0
                await asyncio.sleep(chance.choice([0, 0.01, 0.5, 5]))

        reading = [asyncio.ensure_future(read(consumer)) for consumer in consumers]
        await write()
        async with asyncio.timeout(3000):
            while any(consumer.offset < ends[consumer._index] for consumer in consumers):
                await asyncio.sleep(1)
                assert not any(task.done() for task in reading), [task for task in reading if task.done()]
        for task in reading:
            task.cancel()
        assert all(consumer.offset == ends[consumer._index] for consumer in consumers)
        assert not cluster.leader.stopped and not cluster.reader.stopped

    run(main())


def test_memory_for_manifests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slots that were asked for the longest ago are forgotten, and read again when they are asked for."""

    async def main() -> None:
        monkeypatch.setattr("workers.read_replicas.MEMORY_BYTES_MAX", 1)
        cluster = await TwoZones().start()
        for index in (0, 2):
            await cluster.fill(100, index=index)
        await cluster.publish()
        for index in (0, 2, 0):
            assert (await cluster.fetch(READER, 0, index=index)).records
            assert len(cluster.reader.worker._read_replicas._slots) == 1

    run(main())


def test_metadata_names_zones_and_readers() -> None:
    """Every node with its zone; the leader and a node of each other zone as replicas, all of them in sync."""

    async def main() -> None:
        cluster = await TwoZones().start()
        for node in cluster.workers.values():
            answer = await node.call(ApiKey.METADATA, 12, MetadataRequest(topics=None))
            assert {broker.node_id: broker.rack for broker in answer.brokers} == ZONES
            for partition in answer.topics[0].partitions:
                leader = partition.partition_index % 2
                assert (partition.error_code, partition.leader_id) == (0, leader)
                assert list(partition.replica_nodes) == list(partition.isr_nodes) == [leader, 1 - leader]
                assert not partition.offline_replicas
            described = await node.call(ApiKey.DESCRIBE_CLUSTER, 1, DescribeClusterRequest())
            assert {broker.broker_id: broker.rack for broker in described.brokers} == ZONES
        cluster.reader.worker.receive(Nodes(cluster.nodes[1:]))
        answer = await cluster.reader.call(ApiKey.METADATA, 12, MetadataRequest(topics=None))
        gone = answer.topics[0].partitions[0]
        assert gone.error_code == ErrorCode.LEADER_NOT_AVAILABLE
        assert (list(gone.replica_nodes), list(gone.isr_nodes), list(gone.offline_replicas)) == ([0, 1], [1], [0])

    run(main())


@given(
    zones=st.dictionaries(st.integers(0, 500), st.sampled_from([None, "a", "b", "c"]), max_size=12),
    slot=st.integers(0, 300),
)
def test_a_zone_reads_a_slot_through_one_node(zones: dict[int, str | None], slot: int) -> None:
    """The same for everyone who knows the same nodes, in whatever order; of the zone asked for; one for each zone but
    the leader's."""
    nodes = [NodeAddress(node, "host", 1, zone) for node, zone in zones.items()]
    found, again = Zones(nodes), Zones(reversed(nodes))
    for zone in ("a", "b", "c"):
        reader = found.reader(slot, zone)
        assert reader == again.reader(slot, zone)
        assert (reader is None) == (zone not in zones.values())
        assert reader is None or zones[reader] == zone
    for leader in zones:
        readers = found.readers(slot, leader)
        assert sorted(str(zones[node]) for node in readers) == sorted(
            {str(zone) for zone in zones.values() if zone is not None and zone != zones[leader]}
        )


def test_zones_share_the_slots() -> None:
    """Each node of a zone reads its part of the slots."""
    found = Zones([NodeAddress(node, "host", 1, "a") for node in range(3)])
    assert {node: [found.reader(s, "a") for s in range(30)].count(node) for node in range(3)} == {0: 10, 1: 10, 2: 10}


def test_who_was_sent_away_is_remembered_in_bounds() -> None:
    """Partitions beyond the bound are forgotten, the oldest first."""
    sent = SentAway()
    for number in range(30_000):
        assert sent.may_go((b"t" * 16, number), 5, 0.0)
    assert len(sent._partitions) == 10_000
    assert not sent.may_go((b"t" * 16, 29_999), 5, 1.0)
    assert sent.may_go((b"t" * 16, 1), 5, 1.0)

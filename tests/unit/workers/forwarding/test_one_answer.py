"""Goal: behind one address every request of every version gets the answer that one owner of everything would give.

Two clusters hold the same: in one a single worker owns all, in the other three share it and the first is asked. Each
request goes to both, and the answers are compared byte for byte, but for what must differ: random ids, and the order of
listings that have none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kafscale.coordination.cluster import Topic
from kafscale.metrics import PASSED_PARTS, PASSED_WHOLE
from kafscale.protocol.api import APIS, ApiKey, decode_response
from kafscale.protocol.messages import (
    delete_groups,
    delete_records,
    describe_configs,
    describe_groups,
    describe_log_dirs,
    list_groups,
    list_offsets,
    offset_commit,
    offset_delete,
    offset_fetch,
    offset_for_leader_epoch,
)
from kafscale.protocol.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from kafscale.protocol.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from kafscale.protocol.schema import Message
from tests.unit.workers.forwarding.many_workers import NODE_IDS, SLOTS, Cluster
from tests.unit.workers.guarded_worker import snapshot_of
from tests.unit.workers.whole_worker import EPOCH, batch_of, produce_request, run
from workers.apis import handlers
from workers.forwarding.routes import ROUTES, Route
from workers.handlers.alter_configs import ConfigResourceType

PARTITIONS = 7
BEGAN_MS = 1_700_000_000_000
TOPICS = ("spread", "other", "missing")
GROUPS = tuple(f"group-{number}" for number in range(9))
# What alice may do where ACLs are on: one topic wholly, of the other to see it, and some groups.
RULES = [
    *("allow all topic spread", "allow describe topic other"),
    *(f"allow all group {group}" for group in GROUPS[::2]),
    *("allow describe group group-1", "deny read group group-2"),
]
# Ids of topics, by name; one of a topic that does not exist.
IDS: dict[str, bytes] = {}


class Twins:
    """The two clusters, filled alike. `is_guarded`: afterwards the client may do some things and not others."""

    def __init__(self, *, is_guarded: bool = False) -> None:
        self.one, self.many = Cluster((0,)), Cluster()
        self._is_guarded = is_guarded
        self._connect()

    def _connect(self) -> None:
        self.clients = (self.one.connect(), self.many.connect())
        for client in self.clients:
            client.protocol.principal = "User:alice"

    async def start(self) -> Twins:
        for cluster in (self.one, self.many):
            await cluster.start()
            cluster.create_offsets_topic()
            topics: list[Topic] = [
                cluster.create("spread", SLOTS, PARTITIONS),
                cluster.create("other", 2 * SLOTS + 1, 3),
            ]
            IDS.update({topic.name: topic.topic_id for topic in topics}, missing=b"\x0f" * 16)
            for topic in topics:
                for index in range(topic.partitions):
                    batches = [
                        batch_of(b"%d" % n * (index + 1), timestamp_ms=1_700_000_000_000 + n) for n in range(index)
                    ]
                    await cluster.front.produce(topic.name, *batches, index=index)
            for number, group in enumerate(GROUPS[:-2]):
                partitions = [
                    offset_commit.OffsetCommitRequestPartition(
                        partition_index=i, committed_offset=number, committed_metadata="m"
                    )
                    for i in range(3)
                ]
                topic_of = offset_commit.OffsetCommitRequestTopic(name="spread", partitions=partitions)
                request = offset_commit.OffsetCommitRequest(group_id=group, topics=[topic_of])
                answer = await cluster.call(ApiKey.OFFSET_COMMIT, 2, request)
                assert {p.error_code for t in answer.topics for p in t.partitions} == {0}
        if self._is_guarded:
            for cluster in (self.one, self.many):
                for worker in cluster.workers.values():
                    worker.worker.authority.is_on = True
                    worker.worker.authority.replace(snapshot_of(RULES))
        return self

    async def frames(self, key: ApiKey, version: int, message: Message) -> tuple[bytes | None, bytes | None]:
        """What comes back from the one and from the many; None for a closed connection."""
        found: list[bytes | None] = []
        for cluster, client in zip((self.one, self.many), self.clients, strict=True):
            cluster.front._correlation_ids = iter([4711])
            cluster.send(client, key, version, message)
            found.append(await client.frame())
        if None in found:
            self._connect()
        return found[0], found[1]

    async def same(self, key: ApiKey, version: int, message: Message) -> bytes | None:
        expected, found = await self.frames(key, version, message)
        assert found == expected, (key.name, version, message, read(key, version, expected), read(key, version, found))
        return found

    def stop(self) -> None:
        self.one.stop()
        self.many.stop()


def read(key: ApiKey, version: int, frame: bytes | None) -> Any:
    return None if frame is None else decode_response(APIS[key], version, frame, 4, len(frame))[1]


def versions(key: ApiKey) -> range:
    (handler,) = (handler for handler in handlers() if handler.api == key)
    return range(handler.min_version, handler.max_version + 1)


def compare(key: ApiKey, requests: Callable[[int], Iterator[Message]]) -> None:
    """Every request that `requests` makes of each version, one after the other."""

    async def main() -> None:
        for is_guarded in (False, True):
            twins = await Twins(is_guarded=is_guarded).start()
            for version in versions(key):
                for message in requests(version):
                    await twins.same(key, version, message)
            twins.stop()

    run(main())


def test_every_api_says_whom_it_concerns() -> None:
    """A new API needs a row in the table of routes, or it would be served by whoever happens to receive it."""
    assert {handler.api for handler in handlers()} <= ROUTES.keys()


# Partitions: any of any topic, known or not, once or twice, in any order.
PLACES = st.lists(st.tuples(st.sampled_from(TOPICS), st.integers(-1, PARTITIONS + 1)), max_size=12)
OFTEN = settings(max_examples=8, suppress_health_check=list(HealthCheck))


def by_topic(places: list[tuple[str, int]]) -> list[tuple[str, list[int]]]:
    """Neighbours of one topic share an entry, others of the same topic get another."""
    topics: list[tuple[str, list[int]]] = []
    for name, index in places:
        if not topics or topics[-1][0] != name:
            topics.append((name, []))
        topics[-1][1].append(index)
    return topics


@OFTEN
@given(
    places=PLACES,
    timestamp=st.sampled_from([-1, -2, -3, -4, -5, -6, 1_700_000_000_001]),
    epoch=st.integers(-1, EPOCH + 1),
)
def test_list_offsets(places: list[tuple[str, int]], timestamp: int, epoch: int) -> None:
    """By name, by special timestamps and by time, with and without a leader epoch, twice named partitions refused."""

    def requests(version: int) -> Iterator[Message]:
        yield list_offsets.ListOffsetsRequest(
            replica_id=-1,
            topics=[
                list_offsets.ListOffsetsTopic(
                    name=name,
                    partitions=[
                        list_offsets.ListOffsetsPartition(
                            partition_index=index, timestamp=timestamp, current_leader_epoch=epoch
                        )
                        for index in indexes
                    ],
                )
                for name, indexes in [*by_topic(places), ("spread", [])]
            ],
        )

    compare(ApiKey.LIST_OFFSETS, requests)


@OFTEN
@given(places=PLACES, epoch=st.integers(-1, EPOCH + 1), current=st.sampled_from([-1, EPOCH, EPOCH + 1]))
def test_offset_for_leader_epoch(places: list[tuple[str, int]], epoch: int, current: int) -> None:
    """Ends of epochs, known and unknown."""

    def requests(version: int) -> Iterator[Message]:
        yield offset_for_leader_epoch.OffsetForLeaderEpochRequest(
            topics=[
                offset_for_leader_epoch.OffsetForLeaderTopic(
                    topic=name,
                    partitions=[
                        offset_for_leader_epoch.OffsetForLeaderPartition(
                            partition=index, leader_epoch=epoch, current_leader_epoch=current
                        )
                        for index in indexes
                    ],
                )
                for name, indexes in by_topic(places)
            ]
        )

    compare(ApiKey.OFFSET_FOR_LEADER_EPOCH, requests)


@OFTEN
@given(places=PLACES, offset=st.integers(-2, 9))
def test_delete_records(places: list[tuple[str, int]], offset: int) -> None:
    """Low watermarks rise alike, and what can't be is refused alike."""

    def requests(version: int) -> Iterator[Message]:
        yield delete_records.DeleteRecordsRequest(
            topics=[
                delete_records.DeleteRecordsTopic(
                    name=name,
                    partitions=[
                        delete_records.DeleteRecordsPartition(partition_index=index, offset=offset) for index in indexes
                    ],
                )
                for name, indexes in [*by_topic(places), ("__consumer_offsets", [0, 1])]
            ],
            timeout_ms=1000,
        )

    compare(ApiKey.DELETE_RECORDS, requests)


@OFTEN
@given(
    places=PLACES,
    offset=st.integers(0, 3),
    epoch=st.sampled_from([-1, EPOCH, EPOCH + 1]),
    partition_max_bytes=st.sampled_from([100, 200, 1 << 20]),
)
def test_fetch(places: list[tuple[str, int]], offset: int, epoch: int, partition_max_bytes: int) -> None:
    """Records and errors, by name and by id: every byte of the answer, whoever holds which part of it."""

    def requests(version: int) -> Iterator[Message]:
        topics = []
        for name, indexes in by_topic(places):
            partitions = [
                FetchPartition(
                    partition=index,
                    fetch_offset=offset,
                    current_leader_epoch=epoch,
                    partition_max_bytes=partition_max_bytes,
                )
                for index in indexes
            ]
            named = {"topic_id": IDS[name]} if version >= 13 else {"topic": name}
            topics.append(FetchTopic(partitions=partitions, **named))
        yield FetchRequest(max_wait_ms=0, min_bytes=1, max_bytes=50 << 20, topics=topics)

    compare(ApiKey.FETCH, requests)


@OFTEN
@given(places=PLACES, acks=st.sampled_from([-1, 1, 2]), damaged=st.integers(-1, 12))
def test_produce(places: list[tuple[str, int]], acks: int, damaged: int) -> None:
    """Offsets and errors stand where one owner puts them, also where topics take turns and a batch is broken."""

    def requests(version: int) -> Iterator[Message]:
        data: list[tuple[str | bytes, int, bytes | None]] = []
        for number, (name, index) in enumerate(places):
            batch = batch_of(b"%d" % number)
            if number == damaged:
                batch[-1] ^= 1
            data.append((IDS[name] if version >= 13 else name, index, bytes(batch)))
        yield produce_request(*data, acks=acks)

    compare(ApiKey.PRODUCE, requests)


@pytest.mark.parametrize("version", versions(ApiKey.PRODUCE))
def test_produce_without_answers(version: int) -> None:
    """acks=0 over several owners: nothing comes back and everything is stored; an error anywhere closes."""

    async def main() -> None:
        twins = await Twins().start()
        names = {name: IDS[name] if version >= 13 else name for name in TOPICS}
        good = produce_request(*((names["spread"], index, batch_of(b"quiet")) for index in range(PARTITIONS)), acks=0)
        for cluster, client in zip((twins.one, twins.many), twins.clients, strict=True):
            cluster.send(client, ApiKey.PRODUCE, version, good)
        # The answer to what follows is the next thing that comes.
        wanted = list_offsets.ListOffsetsRequest(
            topics=[
                list_offsets.ListOffsetsTopic(
                    name="spread",
                    partitions=[
                        list_offsets.ListOffsetsPartition(partition_index=index, timestamp=-1)
                        for index in range(PARTITIONS)
                    ],
                )
            ]
        )
        await asyncio.sleep(1)
        frame = await twins.same(ApiKey.LIST_OFFSETS, 1, wanted)
        ends = [p.offset for t in read(ApiKey.LIST_OFFSETS, 1, frame).topics for p in t.partitions]
        assert ends == [index + 1 for index in range(PARTITIONS)]
        bad = produce_request((names["spread"], 1, batch_of()), (names["missing"], 0, batch_of()), acks=0)
        assert await twins.same(ApiKey.PRODUCE, version, bad) is None
        twins.stop()

    run(main())


def test_no_records_and_no_topics() -> None:
    """Null records, no partitions at all."""

    def requests(version: int) -> Iterator[Message]:
        name: dict[str, Any] = {"topic_id": IDS["spread"]} if version >= 13 else {"name": "spread"}
        nothing = [PartitionProduceData(index=index, records=None) for index in range(3)]
        for topics in ([], [TopicProduceData(**name)], [TopicProduceData(partition_data=nothing, **name)]):
            yield ProduceRequest(acks=-1, timeout_ms=1000, topic_data=topics)

    compare(ApiKey.PRODUCE, requests)


def test_offset_commit_and_delete() -> None:
    """By name and by id, for groups of every coordinator."""

    def commits(version: int) -> Iterator[Message]:
        for group in GROUPS:
            yield offset_commit.OffsetCommitRequest(
                group_id=group,
                topics=[
                    offset_commit.OffsetCommitRequestTopic(
                        name=name,
                        topic_id=IDS[name],
                        partitions=[
                            offset_commit.OffsetCommitRequestPartition(partition_index=index, committed_offset=5)
                            for index in (0, 2, 99)
                        ],
                    )
                    for name in TOPICS
                ],
            )

    compare(ApiKey.OFFSET_COMMIT, commits)

    def deletions(version: int) -> Iterator[Message]:
        for group in (*GROUPS, "nobody"):
            partitions = [offset_delete.OffsetDeleteRequestPartition(partition_index=index) for index in (0, 99)]
            topics = [offset_delete.OffsetDeleteRequestTopic(name=name, partitions=partitions) for name in TOPICS]
            yield offset_delete.OffsetDeleteRequest(group_id=group, topics=topics)

    compare(ApiKey.OFFSET_DELETE, deletions)


@OFTEN
@given(groups=st.lists(st.sampled_from([*GROUPS, "nobody"]), max_size=12))
def test_offset_fetch(groups: list[str]) -> None:
    """One group, several, all that they committed, and a group that is named twice."""

    def requests(version: int) -> Iterator[Message]:
        if version < 8:
            for group in groups:
                topic = offset_fetch.OffsetFetchRequestTopic(name="spread", partition_indexes=[0, 5])
                yield offset_fetch.OffsetFetchRequest(group_id=group, topics=[topic])
                if version >= 2:
                    yield offset_fetch.OffsetFetchRequest(group_id=group, topics=None)
            return
        for topics in (
            None,
            [
                offset_fetch.OffsetFetchRequestTopics(name=name, topic_id=IDS[name], partition_indexes=[0, 5])
                for name in TOPICS
            ],
        ):
            wanted = [offset_fetch.OffsetFetchRequestGroup(group_id=group, topics=topics) for group in groups]
            yield offset_fetch.OffsetFetchRequest(groups=wanted)

    compare(ApiKey.OFFSET_FETCH, requests)


@OFTEN
@given(groups=st.lists(st.sampled_from([*GROUPS, "nobody"]), max_size=12))
def test_describe_and_delete_groups(groups: list[str]) -> None:
    """Each group once, where it is named first, whoever coordinates it."""

    def descriptions(version: int) -> Iterator[Message]:
        yield describe_groups.DescribeGroupsRequest(groups=groups, include_authorized_operations=True)

    compare(ApiKey.DESCRIBE_GROUPS, descriptions)

    def deletions(version: int) -> Iterator[Message]:
        yield delete_groups.DeleteGroupsRequest(groups_names=groups)

    compare(ApiKey.DELETE_GROUPS, deletions)


def test_list_groups() -> None:
    """All groups of all coordinators, once each."""

    async def main() -> None:
        twins = await Twins().start()
        for version in versions(ApiKey.LIST_GROUPS):
            filters: list[dict[str, Any]] = [{}]
            if version >= 4:
                filters += [{"states_filter": ["Empty"]}, {"states_filter": ["Stable"]}]
            for wanted in filters:
                frames = await twins.frames(ApiKey.LIST_GROUPS, version, list_groups.ListGroupsRequest(**wanted))
                one, many = (read(ApiKey.LIST_GROUPS, version, frame) for frame in frames)
                assert sorted(map(str, one.groups)) == sorted(map(str, many.groups))
                assert (one.error_code, many.error_code) == (0, 0)
                if not wanted:
                    assert {group.group_id for group in many.groups} == set(GROUPS[:-2])
        twins.stop()

    run(main())


@pytest.mark.parametrize("version", versions(ApiKey.DESCRIBE_LOG_DIRS))
def test_describe_log_dirs(version: int) -> None:
    """One directory with every partition once, for all topics and for some."""

    async def main() -> None:
        twins = await Twins().start()
        some = [describe_log_dirs.DescribableLogDirTopic(topic=name, partitions=[2, 0, 9]) for name in TOPICS]
        for topics in (None, some, []):
            request = describe_log_dirs.DescribeLogDirsRequest(topics=topics)
            frames = await twins.frames(ApiKey.DESCRIBE_LOG_DIRS, version, request)
            one, many = (_sorted(read(ApiKey.DESCRIBE_LOG_DIRS, version, frame)) for frame in frames)
            assert one == many
            if topics is None:
                sizes = {(t.name, p.partition_index) for r in many.results for t in r.topics for p in t.partitions}
                assert {(name, index) for name, index in sizes if name == "spread"} == {
                    ("spread", index) for index in range(PARTITIONS)
                }
        twins.stop()

    run(main())


def _sorted(answer: Any) -> Any:
    return msgspec.structs.replace(
        answer,
        results=[
            msgspec.structs.replace(result, topics=sorted(result.topics, key=lambda topic: topic.name))
            for result in answer.results
        ],
    )


def test_describe_configs() -> None:
    """Topics', and those of the one node that clients know, as everyone tells them."""

    def requests(version: int) -> Iterator[Message]:
        topic, broker = ConfigResourceType.TOPIC, ConfigResourceType.BROKER
        yield describe_configs.DescribeConfigsRequest(
            resources=[
                describe_configs.DescribeConfigsResource(
                    resource_type=kind, resource_name=name, configuration_keys=None
                )
                for kind, name in [
                    (topic, "spread"),
                    (broker, "0"),
                    (topic, "missing"),
                    (topic, "spread"),
                    (broker, ""),
                ]
            ],
            include_synonyms=True,
        )

    compare(ApiKey.DESCRIBE_CONFIGS, requests)


def test_every_route_is_compared() -> None:
    """An API whose requests are passed on has a test here, by its name."""
    tested = {name for name in globals() if name.startswith("test_")}
    whole = {ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP, ApiKey.HEARTBEAT, ApiKey.LEAVE_GROUP}  # test_passing.py
    for key, route in ROUTES.items():
        if isinstance(route, Route) and key not in whole:
            name = key.name.lower()
            assert any(all(word in test for word in name.split("_")) for test in tested), f"{name} is not compared"


def test_the_cluster_is_really_shared() -> None:
    """In the many, every worker has something of each topic and coordinates some of the groups."""

    async def main() -> None:
        twins = await Twins().start()
        groups = twins.many.front.worker.groups
        coordinators = {coordinator.node_id for group in GROUPS if (coordinator := groups.coordinator(group))}
        assert coordinators == set(NODE_IDS)
        for node, worker in twins.many.workers.items():
            assert any(worker.worker.ownership.partition("spread", index) for index in range(PARTITIONS)), node
        cells = twins.many.front.metrics.cells
        assert cells[PASSED_WHOLE] > 0
        before = cells[PASSED_PARTS]
        await twins.same(
            ApiKey.PRODUCE, 9, produce_request(*(("spread", index, batch_of()) for index in range(PARTITIONS)))
        )
        assert cells[PASSED_PARTS] == before + len(NODE_IDS) - 1
        assert not any(twins.one.front.metrics.cells[cell] for cell in (PASSED_WHOLE, PASSED_PARTS))
        twins.stop()

    run(main())

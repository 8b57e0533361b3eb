"""kafka-python on its default settings (its producer is idempotent by default): produce, groups, admin."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import ConfigResource, OffsetSpec
from kafka.codec import has_gzip, has_lz4, has_snappy, has_zstd
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.errors import (
    InvalidPartitionsError,
    MessageSizeTooLargeError,
    NonEmptyGroupError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)

PATIENCE_S = 60.0
RECENT_MS = int(time.time() * 1000) - 600_000  # Anything much older would fall to retention.
CODECS = {"gzip": has_gzip(), "snappy": has_snappy(), "lz4": has_lz4(), "zstd": has_zstd(), None: True}


def produce(bootstrap: str, topic: str, records: list[dict[str, Any]], **settings: Any) -> list[int]:
    """Send records (arguments of `KafkaProducer.send`) and return their offsets."""
    with closing(KafkaProducer(bootstrap_servers=bootstrap, **settings)) as producer:
        sent = [producer.send(topic, **record) for record in records]
        return [future.get(timeout=PATIENCE_S).offset for future in sent]


def consumer(bootstrap: str, group: str | None, *topics: str, **settings: Any) -> KafkaConsumer:
    return KafkaConsumer(*topics, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", **settings)


def poll_records(reader: KafkaConsumer, count: int) -> list[Any]:
    """Read until `count` records have come."""
    got: list[Any] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(got) < count:
        assert time.monotonic() < deadline, f"{len(got)} of {count} records within {PATIENCE_S} s"
        for records in reader.poll(timeout_ms=200, max_records=count - len(got)).values():
            got.extend(records)
    return got


@pytest.fixture
def admin(bootstrap: str) -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as client:
        yield client


def create(admin: KafkaAdminClient, topic: str, partitions: int, **configs: str) -> None:
    named = {name.replace("_", "."): value for name, value in configs.items()}
    wanted = {"num_partitions": partitions, "replication_factor": 1, "configs": named}
    admin.create_topics({topic: wanted}, wait_for_metadata=True)


def test_round_trip_keeps_everything_a_record_has(bootstrap: str, topic: str, group: str) -> None:
    """Keys, values, headers, nulls and timestamps come back as sent, to a topic made on first use."""
    headers = [("a", b"1"), ("a", b"2"), ("empty", b"")]
    records = [
        {"key": b"k", "value": b"v", "headers": headers, "timestamp_ms": RECENT_MS},
        {"key": None, "value": b"no key"},
        {"key": b"tombstone", "value": None},
    ]
    offsets = produce(bootstrap, topic, [record | {"partition": 0} for record in records])
    assert offsets == [0, 1, 2]
    with closing(consumer(bootstrap, group, topic)) as reader:
        got = poll_records(reader, 3)
    assert [(r.key, r.value) for r in got] == [(r["key"], r["value"]) for r in records]
    assert [tuple(header) for header in got[0].headers] == headers
    assert got[0].timestamp == RECENT_MS


@pytest.mark.parametrize("codec", list(CODECS))
def test_every_codec(bootstrap: str, topic: str, group: str, codec: str | None) -> None:
    """A batch in each codec that the client has is stored and read back."""
    if not CODECS[codec]:
        pytest.skip(f"kafka-python has no {codec} here")
    values = [f"{i} ".encode() * 50 for i in range(200)]
    produce(bootstrap, topic, [{"value": value} for value in values], compression_type=codec)
    with closing(consumer(bootstrap, group, topic)) as reader:
        assert sorted(r.value for r in poll_records(reader, 200)) == sorted(values)


def test_order_and_offsets_of_the_default_producer(bootstrap: str, topic: str, group: str) -> None:
    """The default (idempotent) producer's records of one partition are dense and in order."""
    values = [str(i).encode() for i in range(2_000)]
    offsets = produce(bootstrap, topic, [{"value": value, "partition": 0} for value in values])
    assert offsets == list(range(2_000))
    with closing(consumer(bootstrap, group, topic)) as reader:
        assert [r.value for r in poll_records(reader, 2_000)] == values


def test_large_records(bootstrap: str, topic: str, group: str) -> None:
    """Nearly a megabyte goes through with default settings; more than the topic allows is refused."""
    produce(bootstrap, topic, [{"value": b"x" * 1_000_000}])
    with closing(consumer(bootstrap, group, topic)) as reader:
        assert len(poll_records(reader, 1)[0].value) == 1_000_000
    with pytest.raises(MessageSizeTooLargeError):
        produce(bootstrap, topic, [{"value": b"x" * 1_500_000}], max_request_size=3_000_000)


def test_group_resumes_at_its_commit(bootstrap: str, topic: str, group: str, admin: KafkaAdminClient) -> None:
    """A commit made by hand, with metadata, is where the group's next reader goes on."""
    create(admin, topic, 1)
    produce(bootstrap, topic, [{"value": str(i).encode()} for i in range(100)])
    at = TopicPartition(topic, 0)
    with closing(consumer(bootstrap, group, topic, enable_auto_commit=False)) as reader:
        assert len(poll_records(reader, 40)) == 40
        reader.commit({at: OffsetAndMetadata(40, "so far", -1)})
    with closing(consumer(bootstrap, group, topic)) as reader:
        assert poll_records(reader, 60)[0].offset == 40
    found = admin.list_group_offsets({group: None})[group][at]
    assert found.offset >= 40


@contextmanager
def members(bootstrap: str, topic: str, group: str, count: int, **settings: Any) -> Iterator[list[KafkaConsumer]]:
    readers = [consumer(bootstrap, group, topic, **settings) for _ in range(count)]
    try:
        for reader in readers:
            # kafka-python 3.0 can wait for ever in a rebalance during which it first hears of the topic.
            reader.partitions_for_topic(topic)
        yield readers
    finally:
        for reader in readers:
            reader.close()


def settle(readers: list[KafkaConsumer], partitions: int) -> None:
    """Poll all members until every partition is assigned once and every member has a share."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for reader in readers:
            reader.poll(timeout_ms=50)
        shares = [reader.assignment() for reader in readers]
        if all(shares) and sum(map(len, shares)) == len(set().union(*shares)) == partitions:
            return
        assert time.monotonic() < deadline, f"no complete assignment: {shares}"


@pytest.mark.parametrize("assignor", [RangePartitionAssignor, RoundRobinPartitionAssignor, CooperativeStickyAssignor])
def test_assignors_share_out_a_topic(
    bootstrap: str, topic: str, group: str, admin: KafkaAdminClient, assignor: Any
) -> None:
    """Two members share the partitions, and the one that stays gets all, with each assignor."""
    create(admin, topic, 6)
    with members(bootstrap, topic, group, 2, partition_assignment_strategy=[assignor]) as readers:
        settle(readers, 6)
        readers.pop().close()
        settle(readers, 6)


def test_static_member_gets_its_partitions_back(
    bootstrap: str, topic: str, group: str, admin: KafkaAdminClient
) -> None:
    """A static member that restarts has the partitions it had."""
    create(admin, topic, 4)
    first = consumer(bootstrap, group, topic, group_instance_id="one")
    second = consumer(bootstrap, group, topic, group_instance_id="two")
    try:
        first.partitions_for_topic(topic)  # As in `members`.
        settle([first, second], 4)
        owned = second.assignment()
        second.close()
        second = consumer(bootstrap, group, topic, group_instance_id="two")
        settle([first, second], 4)
        assert second.assignment() == owned
    finally:
        first.close()
        second.close()


def test_admin_topics_and_configs(admin: KafkaAdminClient, topic: str) -> None:
    """Create, describe, configure, grow and delete a topic."""
    create(admin, topic, 3, retention_ms="3600000")
    with pytest.raises(TopicAlreadyExistsError):
        admin.create_topics({topic: {"num_partitions": 3, "replication_factor": 1}})
    assert topic in admin.list_topics()
    assert len(admin.describe_topics([topic])[0]["partitions"]) == 3

    def retention() -> str:
        described = admin.describe_configs([ConfigResource("topic", topic)], config_filter="all")
        return str(described["topic"][topic]["retention.ms"]["value"])

    assert retention() == "3600000"
    admin.alter_configs([ConfigResource("topic", topic, {"retention.ms": "7200000"})])
    assert retention() == "7200000"
    admin.create_partitions({topic: 5})
    assert len(admin.describe_topics([topic])[0]["partitions"]) == 5
    with pytest.raises(InvalidPartitionsError):
        admin.create_partitions({topic: 4})
    admin.delete_topics([topic])
    assert topic not in admin.list_topics()
    with pytest.raises(UnknownTopicOrPartitionError):
        admin.delete_topics([topic])


def test_admin_cluster_and_disks(bootstrap: str, admin: KafkaAdminClient, topic: str) -> None:
    """The cluster and its log directories are described, a topic's size among them."""
    create(admin, topic, 1)
    produce(bootstrap, topic, [{"value": b"x" * 10_000}])
    cluster = admin.describe_cluster()
    assert cluster["cluster_id"]
    assert {broker["broker_id"] for broker in cluster["brokers"]} >= {cluster["controller_id"]}
    sizes = [
        partition["partition_size"]
        for described in admin.describe_log_dirs([topic])
        for folder in described["log_dirs"]
        for found in folder["topics"]
        for partition in found["partitions"]
        if found["name"] == topic
    ]
    assert max(sizes) >= 10_000


def test_admin_offsets_and_records(bootstrap: str, admin: KafkaAdminClient, topic: str) -> None:
    """Offsets are listed, and records before an offset deleted."""
    create(admin, topic, 1)
    produce(bootstrap, topic, [{"value": str(i).encode()} for i in range(10)])
    at = TopicPartition(topic, 0)
    assert admin.list_partition_offsets({at: OffsetSpec.LATEST})[at].offset == 10
    admin.delete_records({at: 4})
    assert admin.list_partition_offsets({at: OffsetSpec.EARLIEST})[at].offset == 4


def test_admin_groups(bootstrap: str, admin: KafkaAdminClient, topic: str, group: str) -> None:
    """A group is listed and described with its member; it can be deleted once it is empty, not before."""
    create(admin, topic, 1)
    with members(bootstrap, topic, group, 1, client_id="the-member") as readers:
        settle(readers, 1)
        assert group in {found["group_id"] for found in admin.list_groups()}
        described = admin.describe_groups([group])[group]
        assert described["group_state"] == "Stable"
        assert [member["client_id"] for member in described["members"]] == ["the-member"]
        assert admin.delete_groups([group]) == {group: NonEmptyGroupError.__name__}
    assert admin.delete_groups([group]) == {group: "OK"}
    assert group not in {found["group_id"] for found in admin.list_groups()}

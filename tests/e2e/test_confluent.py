"""confluent-kafka (librdkafka) on its default settings: produce, consume, groups, admin."""

from __future__ import annotations

import time
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from tests.e2e.confluent_clients import (
    PATIENCE_S,
    Deliveries,
    consume,
    consumer,
    create_topic,
    poll_records,
    produce,
    producer,
)

RECENT_MS = int(time.time() * 1000) - 600_000  # Anything much older would fall to retention.


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"key": f"k{i % 7}".encode(), "value": f"value {i}".encode()} for i in range(count)]


def test_round_trip_keeps_everything_a_record_has(bootstrap: str, topic: str, group: str) -> None:
    """Keys, values, headers (also null and empty) and timestamps come back as sent, to a topic made on first use."""
    headers = [("a", b"1"), ("a", b"2"), ("empty", b""), ("none", None), ("ünïcode", b"\x00\xff")]
    records = [
        {"key": b"k", "value": b"v", "headers": headers, "timestamp": RECENT_MS},
        {"key": None, "value": b"no key", "headers": []},
        {"key": b"tombstone", "value": None},
        {"key": b"", "value": b""},
    ]
    produce(bootstrap, topic, [record | {"partition": 0} for record in records])
    got = consume(bootstrap, group, [topic], len(records))
    assert [(m.key(), m.value()) for m in got] == [(r["key"], r["value"]) for r in records]
    assert got[0].headers() == headers
    assert got[0].timestamp()[1] == RECENT_MS
    assert [m.offset() for m in got] == [0, 1, 2, 3]


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_codec(bootstrap: str, topic: str, group: str, codec: str) -> None:
    """A batch in each codec is stored and read back by a group."""
    records = [{"value": f"{i} ".encode() * 50} for i in range(500)]
    produce(bootstrap, topic, records, compression_type=codec)
    got = consume(bootstrap, group, [topic], len(records))
    assert sorted(m.value() for m in got) == sorted(r["value"] for r in records)


@pytest.mark.parametrize("acks", ["0", "1", "all"])
def test_every_acks(bootstrap: str, topic: str, group: str, acks: str) -> None:
    """Each level of acknowledgement works; only acks=0 leaves offsets unknown."""
    create_topic(bootstrap, topic, 1)
    acknowledged = produce(bootstrap, topic, numbered(100), acks=acks)
    if acks != "0":
        assert [m.offset() for m in acknowledged] == list(range(100))
    assert len(consume(bootstrap, group, [topic], 100)) == 100


def test_idempotent_producer(bootstrap: str, topic: str, group: str) -> None:
    """enable.idempotence works and delivers in order, once."""
    create_topic(bootstrap, topic, 1)
    produce(bootstrap, topic, numbered(5_000), enable_idempotence=True)
    got = consume(bootstrap, group, [topic], 5_000)
    assert [m.value() for m in got] == [r["value"] for r in numbered(5_000)]


def test_records_of_up_to_a_megabyte(bootstrap: str, topic: str, group: str) -> None:
    """The largest record that default clients send is taken, a larger one refused by the broker."""
    create_topic(bootstrap, topic, 1)
    sizes = [1, 64 * 1024, 500_000, 999_000]
    produce(bootstrap, topic, [{"value": bytes([65 + i]) * size} for i, size in enumerate(sizes)])
    assert [len(m.value() or b"") for m in consume(bootstrap, group, [topic], len(sizes))] == sizes
    with pytest.raises(KafkaException) as refused:
        produce(bootstrap, topic, [{"value": b"x" * 1_500_000}], message_max_bytes=3_000_000)
    assert refused.value.args[0].name() == "MSG_SIZE_TOO_LARGE"


def test_group_resumes_at_its_commit(bootstrap: str, topic: str, group: str) -> None:
    """A second member of the group goes on after the first one's commit, and the commit can be asked for."""
    create_topic(bootstrap, topic, 1)
    produce(bootstrap, topic, numbered(100))
    first = consume(bootstrap, group, [topic], 40, enable_auto_commit=False)
    reader = consumer(bootstrap, group)
    try:
        committed = reader.committed([TopicPartition(topic, 0)], timeout=PATIENCE_S)
        assert committed[0].offset == 40
        reader.subscribe([topic])
        second = poll_records(reader, 60)
    finally:
        reader.close()
    assert [m.offset() for m in first + second] == list(range(100))


def test_uncommitted_group_starts_over(bootstrap: str, topic: str, group: str) -> None:
    """Where nothing was committed the next reader starts at the beginning."""
    create_topic(bootstrap, topic, 1)
    produce(bootstrap, topic, numbered(10))
    for _ in range(2):
        reader = consumer(bootstrap, group, enable_auto_commit=False)
        try:
            reader.subscribe([topic])
            assert poll_records(reader, 10)[0].offset() == 0
            unset = reader.committed([TopicPartition(topic, 0)], timeout=PATIENCE_S)
            assert unset[0].offset < 0
        finally:
            reader.close()


def members_settled(readers: list[Consumer], partitions: int, timeout_s: float = PATIENCE_S) -> None:
    """Poll all members until every partition is assigned and every member has a share."""
    deadline = time.monotonic() + timeout_s
    while True:
        for reader in readers:
            message = reader.poll(0.05)
            assert message is None or not message.error(), message.error() if message else None
        shares = [reader.assignment() for reader in readers]
        owned = [(p.topic, p.partition) for share in shares for p in share]
        if len(owned) == len(set(owned)) == partitions and all(shares):
            return
        assert time.monotonic() < deadline, f"no complete assignment: {shares}"


@pytest.mark.parametrize("assignor", ["range", "roundrobin", "cooperative-sticky"])
def test_assignors_share_out_a_topic(bootstrap: str, topic: str, group: str, assignor: str) -> None:
    """Two members share the partitions; when one leaves, the other gets all, with each assignor."""
    create_topic(bootstrap, topic, 6)
    settings = {"partition_assignment_strategy": assignor, "enable_auto_commit": False}
    readers = [consumer(bootstrap, group, **settings) for _ in range(2)]
    try:
        for reader in readers:
            reader.subscribe([topic])
        members_settled(readers, 6)
        readers.pop().close()
        members_settled(readers, 6)
    finally:
        for reader in readers:
            reader.close()


def test_static_member_comes_back_without_a_rebalance(bootstrap: str, topic: str, group: str) -> None:
    """A static member that restarts gets its partitions back, and the other member hears nothing of it."""
    create_topic(bootstrap, topic, 4)
    rebalances: list[str] = []

    def member(name: str) -> Consumer:
        reader = consumer(bootstrap, group, group_instance_id=name, enable_auto_commit=False)
        reader.subscribe([topic], on_assign=lambda _c, _p: rebalances.append(name))
        return reader

    readers = [member("one"), member("two")]
    try:
        members_settled(readers, 4)
        owned = sorted(p.partition for p in readers[1].assignment())
        readers.pop().close()
        rebalances.clear()
        readers.append(member("two"))
        members_settled(readers, 4)
        assert sorted(p.partition for p in readers[1].assignment()) == owned
        assert rebalances == ["two"]
    finally:
        for reader in readers:
            reader.close()


def test_reading_by_time_and_position(bootstrap: str, topic: str) -> None:
    """Offsets by timestamp, watermarks, seek and a plain assignment work without a group's help."""
    create_topic(bootstrap, topic, 1)
    for i in range(5):
        produce(bootstrap, topic, [{"value": str(i).encode(), "timestamp": RECENT_MS + 1_000 * i}])
    reader = consumer(bootstrap, "unused", enable_auto_commit=False)
    try:
        assert reader.get_watermark_offsets(TopicPartition(topic, 0), timeout=PATIENCE_S) == (0, 5)
        asked = [TopicPartition(topic, 0, RECENT_MS + 1_500), TopicPartition(topic, 0, RECENT_MS + 999_000)]
        assert reader.offsets_for_times(asked[:1], timeout=PATIENCE_S)[0].offset == 2
        assert reader.offsets_for_times(asked[1:], timeout=PATIENCE_S)[0].offset == -1
        reader.assign([TopicPartition(topic, 0, 3)])
        assert [m.value() for m in poll_records(reader, 2)] == [b"3", b"4"]
        reader.seek(TopicPartition(topic, 0, OFFSET_BEGINNING))
        assert [m.offset() for m in poll_records(reader, 5)] == [0, 1, 2, 3, 4]
    finally:
        reader.close()


def test_unknown_topic_is_said_to_be_unknown(bootstrap: str, topic: str, group: str) -> None:
    """A consumer, which does not create topics, is told that the topic is unknown, and finds it once it is made."""
    reader = consumer(bootstrap, group, topic_metadata_refresh_interval_ms=500)
    try:
        reader.subscribe([topic])
        with pytest.raises(KafkaException) as unknown:
            poll_records(reader, 1)
        assert unknown.value.args[0].name() == "UNKNOWN_TOPIC_OR_PART"
        create_topic(bootstrap, topic, 1)
        produce(bootstrap, topic, numbered(1))
        deadline = time.monotonic() + PATIENCE_S
        while (message := reader.poll(0.2)) is None or message.error():
            assert time.monotonic() < deadline, "the new topic was never found"
        assert message.offset() == 0
    finally:
        reader.close()


def test_producing_to_a_missing_partition_is_refused(bootstrap: str, topic: str) -> None:
    """A partition that the topic does not have is refused, not made."""
    create_topic(bootstrap, topic, 2)
    deliveries = Deliveries()
    sender = producer(bootstrap, message_timeout_ms=5_000)
    try:
        sender.produce(topic, b"x", partition=5, on_delivery=deliveries.note)
    except KafkaException as refused:
        deliveries.refused.append(refused.args[0])
    sender.flush(PATIENCE_S)
    assert [error.name() for error in deliveries.refused] == ["_UNKNOWN_PARTITION"]
    assert not deliveries.acknowledged


def test_admin_topics(bootstrap: str, topic: str) -> None:
    """Create, list, grow and delete topics, with the errors Kafka gives for doing it twice."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    create_topic(bootstrap, topic, 3)
    assert sorted(admin.list_topics(topic, timeout=PATIENCE_S).topics[topic].partitions) == [0, 1, 2]
    with pytest.raises(KafkaException) as again:
        create_topic(bootstrap, topic, 3)
    assert again.value.args[0].name() == "TOPIC_ALREADY_EXISTS"
    admin.create_partitions([NewPartitions(topic, 5)])[topic].result(PATIENCE_S)
    with pytest.raises(KafkaException) as fewer:
        admin.create_partitions([NewPartitions(topic, 2)])[topic].result(PATIENCE_S)
    assert fewer.value.args[0].name() == "INVALID_PARTITIONS"
    assert len(AdminClient({"bootstrap.servers": bootstrap}).list_topics(topic).topics[topic].partitions) == 5
    admin.delete_topics([topic])[topic].result(PATIENCE_S)
    assert topic not in AdminClient({"bootstrap.servers": bootstrap}).list_topics(timeout=PATIENCE_S).topics
    with pytest.raises(KafkaException) as gone:
        admin.delete_topics([topic])[topic].result(PATIENCE_S)
    assert gone.value.args[0].name() == "UNKNOWN_TOPIC_OR_PART"


def test_admin_validate_only_and_bad_requests(bootstrap: str, topic: str) -> None:
    """validate_only makes nothing; bad names, counts and settings are refused with Kafka's errors."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    good = NewTopic(topic, num_partitions=1, replication_factor=1)
    admin.create_topics([good], validate_only=True)[topic].result(PATIENCE_S)
    assert topic not in admin.list_topics(timeout=PATIENCE_S).topics
    bad = {
        "TOPIC_EXCEPTION": NewTopic("bad/name", num_partitions=1, replication_factor=1),
        "INVALID_PARTITIONS": NewTopic(topic, num_partitions=0, replication_factor=1),
        "INVALID_REPLICATION_FACTOR": NewTopic(topic, num_partitions=1, replication_factor=0),
        "INVALID_CONFIG": NewTopic(topic, num_partitions=1, replication_factor=1, config={"retention.ms": "soon"}),
    }
    for expected, new in bad.items():
        with pytest.raises(KafkaException) as refused:
            admin.create_topics([new])[new.topic].result(PATIENCE_S)
        assert refused.value.args[0].name() == expected


def test_any_replication_factor_will_do(bootstrap: str, topic: str) -> None:
    """Scripts that ask for three replicas work: an acknowledged record is durable whatever they ask."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=3)])[topic].result(PATIENCE_S)
    produce(bootstrap, topic, numbered(1))


def test_admin_configs(bootstrap: str, topic: str) -> None:
    """A topic's settings can be read, changed and set back."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    create_topic(bootstrap, topic, 1, {"retention.ms": "3600000"})
    resource = ConfigResource(ResourceType.TOPIC, topic)

    def described() -> dict[str, ConfigEntry]:
        return dict(admin.describe_configs([resource])[resource].result(PATIENCE_S))

    before = described()
    assert before["retention.ms"].value == "3600000"
    assert not before["retention.ms"].is_default
    assert before["segment.bytes"].is_default
    change = ConfigEntry("retention.ms", "7200000", incremental_operation=AlterConfigOpType.SET)
    asked = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[change])
    admin.incremental_alter_configs([asked])[asked].result(PATIENCE_S)
    assert described()["retention.ms"].value == "7200000"
    undo = ConfigEntry("retention.ms", None, incremental_operation=AlterConfigOpType.DELETE)
    asked = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[undo])
    admin.incremental_alter_configs([asked])[asked].result(PATIENCE_S)
    assert described()["retention.ms"].is_default


def test_admin_cluster(bootstrap: str) -> None:
    """The cluster is described with its id, a controller and its nodes."""
    admin = AdminClient({"bootstrap.servers": bootstrap})  # Kept: its futures end with it.
    cluster = admin.describe_cluster().result(PATIENCE_S)
    assert cluster.cluster_id
    assert cluster.controller.id in {node.id for node in cluster.nodes}


def test_admin_offsets_and_records(bootstrap: str, topic: str) -> None:
    """Offsets can be listed, and records before an offset deleted."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    create_topic(bootstrap, topic, 1)
    produce(bootstrap, topic, numbered(10))
    at = TopicPartition(topic, 0)

    def listed(spec: OffsetSpec) -> int:
        return int(admin.list_offsets({at: spec})[at].result(PATIENCE_S).offset)

    assert (listed(OffsetSpec.earliest()), listed(OffsetSpec.latest())) == (0, 10)
    deleted = admin.delete_records([TopicPartition(topic, 0, 4)])
    assert next(iter(deleted.values())).result(PATIENCE_S).low_watermark == 4
    assert (listed(OffsetSpec.earliest()), listed(OffsetSpec.latest())) == (4, 10)
    assert [m.offset() for m in consume(bootstrap, f"g-{topic}", [topic], 6)] == list(range(4, 10))


def test_admin_groups(bootstrap: str, topic: str, group: str) -> None:
    """Groups are listed, described with their members, their offsets read and changed, and deleted when empty."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    create_topic(bootstrap, topic, 2)
    produce(bootstrap, topic, numbered(20))
    reader = consumer(bootstrap, group, client_id="the-member", enable_auto_commit=False)
    try:
        reader.subscribe([topic])
        poll_records(reader, 20)
        reader.commit(asynchronous=False)
        described = admin.describe_consumer_groups([group])[group].result(PATIENCE_S)
        assert described.state.name == "STABLE"
        assert [member.client_id for member in described.members] == ["the-member"]
        assert {p.partition for p in described.members[0].assignment.topic_partitions} == {0, 1}
        with pytest.raises(KafkaException) as busy:
            admin.delete_consumer_groups([group])[group].result(PATIENCE_S)
        assert busy.value.args[0].name() == "NON_EMPTY_GROUP"
    finally:
        reader.close()
    listed = admin.list_consumer_groups().result(PATIENCE_S)
    assert group in {found.group_id for found in listed.valid}
    asked = ConsumerGroupTopicPartitions(group)
    offsets = admin.list_consumer_group_offsets([asked])[group].result(PATIENCE_S).topic_partitions
    assert sum(p.offset for p in offsets) == 20
    back = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0, 0), TopicPartition(topic, 1, 0)])
    admin.alter_consumer_group_offsets([back])[group].result(PATIENCE_S)
    assert len(consume(bootstrap, group, [topic], 20)) == 20
    admin.delete_consumer_groups([group])[group].result(PATIENCE_S)
    with pytest.raises(KafkaException) as gone:
        admin.delete_consumer_groups([group])[group].result(PATIENCE_S)
    assert gone.value.args[0].name() == "GROUP_ID_NOT_FOUND"

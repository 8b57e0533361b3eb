"""Behind one address: real clients reach every partition and group of all workers through a port that leads to any.

The workers have no other port, so nothing here can work by accident. The clients' own suites run against such a broker
too: those imported below with this module's broker.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from kafka import KafkaConsumer, KafkaProducer
from kafka import TopicPartition as OldTopicPartition

from loadtest import wire
from loadtest.broker_process import wait_for
from tests.e2e.broker import Broker
from tests.e2e.confluent_clients import create_topic
from tests.e2e.conftest import EXTERNAL, MakeBroker
from tests.e2e.load import GroupReader, IdempotentLoad, check_records
from tests.e2e.test_java import CHECKS as JAVA_CHECKS
from tests.e2e.test_java import outcomes as outcomes
from tests.e2e.test_java import pytestmark as java_marks
from tests.e2e.test_kcat import kcat
from tests.e2e.test_kcat import pytestmark as kcat_marks

WORKERS = 3
PARTITIONS = 12
PATIENCE_S = 60.0

pytestmark = pytest.mark.skipif(bool(EXTERNAL), reason="needs a broker of its own")


@pytest.fixture(scope="module")
def broker(make_module_broker: MakeBroker) -> Broker:
    """One broker of three workers that all are advertised at the port that leads to any of them."""
    environment = {"KAFSCALE_SHARED_ADDRESS": "true", "KAFSCALE_GROUP_INITIAL_REBALANCE_DELAY_MS": "100"}
    return make_module_broker(workers=WORKERS, environment=environment)


def counter(broker: Broker, name: str) -> int:
    found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)", broker.http_body("/metrics"), re.M)
    return sum(int(float(value)) for value in found)


def test_a_worker_is_killed_under_load(make_broker: MakeBroker, topic: str, group: str) -> None:
    """Each worker in turn: whoever a client is connected to, nothing acknowledged is lost, doubled or out of order, and
    the group goes on from its commits."""
    broker = make_broker(workers=WORKERS, environment={"KAFSCALE_SHARED_ADDRESS": "true"})
    create_topic(broker.bootstrap, topic, PARTITIONS)
    with (
        IdempotentLoad(broker.bootstrap, topic, PARTITIONS) as load,
        GroupReader(broker.bootstrap, topic, group) as reader,
    ):
        load.wait_progress()
        reader.wait_progress()
        for index in range(WORKERS):
            pid = broker.kill_worker(index)
            load.wait_progress()
            reader.wait_progress()
            broker.wait_worker_replaced(index, pid)
        load.wait_progress()
        reader.wait_progress()
        load.finish()
        reader.finish()
    check_records(broker.bootstrap, load)
    assert counter(broker, "kafscale_passed_requests_total") > 0
    assert counter(broker, "kafscale_peers_refused_total") == counter(
        broker, 'kafscale_peers_refused_total{reason="unreachable"}'
    )
    assert broker.stop() == 0
    assert "Traceback" not in broker.log()


def test_workers_have_one_address_and_no_port(broker: Broker, topic: str) -> None:
    """Metadata names one node at the bootstrap address for every partition, and nothing but that port is open."""
    create_topic(broker.bootstrap, topic, PARTITIONS)
    with wire.Connection(broker.port) as connection:
        assert wire.leaders(connection, topic) == dict.fromkeys(range(PARTITIONS), broker.port)
    for port in (broker.port + 10_000, broker.port + 20_000):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_admin_sees_the_cluster_as_one(broker: Broker, topic: str) -> None:
    """What clients ask of every node comes once and whole: groups, offsets, the cluster."""
    create_topic(broker.bootstrap, topic, PARTITIONS)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    groups = {f"{topic}-{number}" for number in range(12)}
    for name in groups:
        consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": name})
        consumer.commit(offsets=[TopicPartition(topic, 0, 5)], asynchronous=False)
        consumer.close()
    listed = admin.list_consumer_groups().result(30)
    assert not listed.errors
    ids = [found.group_id for found in listed.valid if found.group_id in groups]
    assert sorted(ids) == sorted(groups)
    described = admin.describe_consumer_groups(sorted(groups))
    assert {name for name, found in described.items() if found.result(30).state.name == "EMPTY"} == groups
    latest = {TopicPartition(topic, index): OffsetSpec.latest() for index in range(PARTITIONS)}
    assert {found.result(30).offset for found in admin.list_offsets(latest).values()} == {0}
    assert len(admin.describe_cluster().result(30).nodes) == 1
    for name, deleted in admin.delete_consumer_groups(sorted(groups)).items():
        assert deleted.result(30) is None, name


def test_aiokafka(broker: Broker, topic: str, group: str) -> None:
    """Produce idempotently to every partition, read it all in a group of two."""

    async def main() -> None:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, enable_idempotence=True) as producer:
            for number in range(600):
                await producer.send(topic, str(number).encode(), partition=number % PARTITIONS)
            await producer.flush()
        consumers = [
            AIOKafkaConsumer(topic, bootstrap_servers=broker.bootstrap, group_id=group, auto_offset_reset="earliest")
            for _ in range(2)
        ]
        found: list[bytes] = []
        for consumer in consumers:
            await consumer.start()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while len(set(found)) < 600:
                    for consumer in consumers:
                        for batch in (await consumer.getmany(timeout_ms=100)).values():
                            found += [record.value for record in batch]
            await consumers[0].commit()
        finally:
            for consumer in consumers:
                await consumer.stop()
        assert sorted(set(found)) == sorted(str(number).encode() for number in range(600))

    create_topic(broker.bootstrap, topic, PARTITIONS)
    asyncio.run(main())


def test_kafka_python(broker: Broker, topic: str, group: str) -> None:
    """Its idempotent producer, and a consumer that assigns itself all partitions."""
    create_topic(broker.bootstrap, topic, PARTITIONS)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    for number in range(600):
        producer.send(topic, str(number).encode(), partition=number % PARTITIONS)
    producer.flush(timeout=PATIENCE_S)
    producer.close()
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=group, auto_offset_reset="earliest")
    consumer.assign([OldTopicPartition(topic, index) for index in range(PARTITIONS)])
    found: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < 600 and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=500).values():
            found += [record.value for record in records]
    consumer.commit()
    consumer.close()
    assert sorted(found) == sorted(str(number).encode() for number in range(600))


@pytest.mark.kcat
@kcat_marks[1]
def test_kcat(broker: Broker, topic: str, group: str) -> None:
    """An old librdkafka, which takes several nodes of one address for one: every partition is written, all is read."""
    create_topic(broker.bootstrap, topic, PARTITIONS)
    for index in range(PARTITIONS):
        kcat(broker.bootstrap, "-P", "-t", topic, "-p", str(index), stdin=b"a%d\nb%d\n" % (index, index))
    settings = ("-X", "auto.offset.reset=earliest", "-e", "-q", "-G", group, topic)
    assert len(set(kcat(broker.bootstrap, *settings).split())) == 2 * PARTITIONS
    listed = json.loads(kcat(broker.bootstrap, "-L", "-J", "-t", topic))
    assert {found["name"] for found in listed["brokers"]} == {broker.bootstrap}


@pytest.mark.java
@java_marks[1]
def test_java(outcomes: dict[str, str]) -> None:
    """The Java client's checks, all of them: produce, order, codecs, groups with each assignor, admin."""
    assert outcomes == dict.fromkeys(JAVA_CHECKS, "ok")


def test_a_client_that_goes_away_frees_what_waits_for_it(broker: Broker, topic: str) -> None:
    """Long polls at other workers end with the connection; links stay few, whoever has come."""
    create_topic(broker.bootstrap, topic, PARTITIONS)
    consumers = [
        Consumer({"bootstrap.servers": broker.bootstrap, "group.id": f"{topic}-{n}", "fetch.wait.max.ms": 60_000})
        for n in range(5)
    ]
    for consumer in consumers:
        consumer.assign([TopicPartition(topic, index, 0) for index in range(PARTITIONS)])
        consumer.poll(0.5)
    for consumer in consumers:
        consumer.close()
    wait_for(lambda: counter(broker, "kafscale_connections") == 0, PATIENCE_S, "all connections closed")
    assert counter(broker, "kafscale_peer_links") <= 2 * WORKERS * (WORKERS - 1)

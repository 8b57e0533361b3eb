"""Goal: real clients of a broker with two workers get what their quota allows, are told when they are throttled, and
whoever has no quota notices nothing."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from loadtest import wire
from loadtest.broker_process import wait_for
from tests.e2e.broker import Broker
from tests.e2e.conftest import MakeBroker
from tests.e2e.test_java import NEEDS_JAVA, run_java

QUOTA_CHECK = Path(__file__).parent / "java" / "QuotaCheck.java"
DESCRIBE, ALTER = 48, 49
RATE = 500_000
VALUE = bytes(20_000)
RECORDS = 75
PARTITIONS = 2
# The first second's worth comes at once.
SECONDS = RECORDS * len(VALUE) / RATE - 1


def _call(port: int, key: int, version: int, **body: Any) -> Any:
    """The answer, by a codec that is not the broker's."""
    with wire.Connection(port) as connection:
        return connection.call(key, version, **body)


def _set_quota(broker: Broker, version: int, client_id: str | None, **rates: float) -> None:
    from kio.schema.alter_client_quotas import v0, v1

    schema = (v0, v1)[version].request
    entity = schema.EntityData(entity_type="client-id", entity_name=client_id)
    ops = tuple(schema.OpData(key=key, value=float(rate), remove=not rate) for key, rate in rates.items())
    entry = schema.EntryData(entity=(entity,), ops=ops)
    answer = _call(broker.worker_ports()[0], ALTER, version, entries=(entry,), validate_only=False)
    assert [(one.error_code, one.error_message) for one in answer.entries] == [(0, None)]


def _quotas_at(port: int, version: int) -> dict[str | None, dict[str, float]]:
    answer = _call(port, DESCRIBE, version, components=(), strict=False)
    assert answer.error_code == 0
    return {one.entity[0].entity_name: {v.key: v.value for v in one.values} for one in answer.entries}


@pytest.fixture
def limited(make_broker: MakeBroker, topic: str) -> Broker:
    """Two workers, each of which leads a partition of the topic; `app` has a quota, set at one and known at both."""
    broker = make_broker(workers=2)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    rates = {"producer_byte_rate": RATE, "consumer_byte_rate": RATE}
    for version in (0, 1):
        _set_quota(broker, version, "app", **rates)
        for port in broker.worker_ports():
            wait_for(lambda port=port, version=version: _quotas_at(port, version) == {"app": rates}, 10, "the quota")
    return broker


def test_clients_keep_to_their_quota(limited: Broker, topic: str) -> None:
    """Over both workers together; the library tells its user; metrics and another client tell of nothing else."""
    throttled: list[float] = []
    settings = {"bootstrap.servers": limited.bootstrap, "client.id": "app", "throttle_cb": throttled.append}
    seconds: dict[str, float] = {}
    for client_id in ("free", "app"):
        producer = Producer({**settings, "client.id": client_id, "batch.size": 2 * len(VALUE), "linger.ms": 1})
        began = time.monotonic()
        for number in range(RECORDS):
            producer.produce(topic, VALUE, partition=number % PARTITIONS)
        assert producer.flush(60) == 0
        producer.poll(0)
        seconds[client_id] = time.monotonic() - began
        assert bool(throttled) == (client_id == "app")
    assert SECONDS * 0.8 < seconds["app"] < SECONDS + 5 and seconds["free"] < SECONDS * 0.8
    throttled.clear()
    consumer = Consumer({**settings, "group.id": "g", "fetch.wait.max.ms": 100})
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    began, count = time.monotonic(), 0
    while count < RECORDS and time.monotonic() - began < 60:
        count += len(consumer.consume(RECORDS, 0.5))
    assert time.monotonic() - began > SECONDS * 0.8 and count >= RECORDS
    consumer.close()
    assert throttled
    metrics = limited.http_body("/metrics")
    for kind, is_used in (("produce", True), ("fetch", True), ("request", False)):
        (count,) = re.findall(rf'^kafscale_throttled_requests_total{{quota="{kind}"}} (\d+)', metrics, re.MULTILINE)
        assert (int(count) > 0) == is_used
    # Kept over a restart.
    limited.stop()
    limited.start()
    assert list(_quotas_at(limited.worker_ports()[1], 1)) == ["app"]


@pytest.mark.clients
@pytest.mark.java
@NEEDS_JAVA
def test_the_java_client(make_broker: MakeBroker, topic: str, tmp_path: Path) -> None:
    """`java/QuotaCheck.java`: set, told of, kept to, taken away."""
    broker = make_broker(workers=2)
    assert run_java(QUOTA_CHECK, tmp_path, broker.bootstrap, topic) == "ok\n"

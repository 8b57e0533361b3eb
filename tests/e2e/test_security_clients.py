"""Real clients through every kind of listener, with every mechanism: what is written by one way is read by another.

`make test` has each library take each listener and each mechanism once; `make test-clients` every one by every way.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.abc import AbstractTokenProvider
from confluent_kafka import Consumer, Producer
from kafka import KafkaConsumer, KafkaProducer
from kafka.net.sasl.oauth import AbstractTokenProvider as KafkaPythonTokenProvider

from tests.e2e.conftest import MakeBroker
from tests.e2e.secure_broker import PASSWORD, USER, WAYS, SecureBroker, token


@pytest.fixture(scope="module")
def secure(make_module_broker: MakeBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    yield SecureBroker(make_module_broker, tmp_path_factory.mktemp("security"))


# For each library each listener and each mechanism, and each pair of those with one library or another.
USUAL = {
    "librdkafka": {("tls", ""), ("sasl", "SCRAM-SHA-512"), ("sasl_tls", "PLAIN"), ("sasl_tls", "SCRAM-SHA-256")},
    "aiokafka": {("mutual", ""), ("sasl", "PLAIN"), ("sasl", "SCRAM-SHA-256"), ("sasl_tls", "OAUTHBEARER")},
    "kafka-python": {("mutual", ""), ("sasl", "OAUTHBEARER"), ("sasl_tls", "SCRAM-SHA-512")},
}


def ways(library: str) -> list[Any]:
    return [pytest.param(*way, marks=[] if way in USUAL[library] else pytest.mark.clients) for way in WAYS]


@pytest.fixture
def values() -> list[bytes]:
    return [uuid.uuid4().bytes for _ in range(20)]


def read_plainly(secure: SecureBroker, topic: str, count: int) -> list[bytes]:
    """What is in the topic, read through the listener without any protection."""
    consumer = Consumer(secure.confluent("plain") | {"group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    found: list[bytes] = []
    try:
        while len(found) < count:
            message = consumer.poll(30)
            assert message is not None and message.error() is None, "nothing came"
            found.append(message.value())
    finally:
        consumer.close()
    return found


@pytest.mark.parametrize(("listener", "mechanism"), ways("librdkafka"))
def test_librdkafka(secure: SecureBroker, topic: str, values: list[bytes], listener: str, mechanism: str) -> None:
    """confluent-kafka produces, and consumes in a group, and is told of the nodes at that listener's addresses."""
    settings = secure.confluent(listener, mechanism)
    problems: list[Any] = []
    producer = Producer(settings | {"enable.idempotence": True})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: error and problems.append(error))
    assert producer.flush(30) == 0
    assert problems == []
    consumer = Consumer(settings | {"group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    found: list[bytes] = []
    while len(found) < len(values):
        message = consumer.poll(30)
        assert message is not None and message.error() is None, f"{message and message.error()}"
        found.append(message.value())
    consumer.close()
    assert sorted(found) == sorted(values) == sorted(read_plainly(secure, topic, len(values)))
    listed = producer.list_topics(timeout=30).brokers.values()
    entry = next(one for one in secure.broker.info()["listeners"] if one["name"] == listener)
    assert sorted(node.port for node in listed) == sorted(entry["ports"])
    assert {node.host for node in listed} == {secure.bootstrap(listener).partition(":")[0]}


class AioToken(AbstractTokenProvider):
    async def token(self) -> str:
        return token()


@pytest.mark.parametrize(("listener", "mechanism"), ways("aiokafka"))
def test_aiokafka(secure: SecureBroker, topic: str, values: list[bytes], listener: str, mechanism: str) -> None:
    """aiokafka produces and consumes."""

    async def run() -> list[bytes]:
        settings: dict[str, Any] = {
            "bootstrap_servers": secure.bootstrap(listener),
            "security_protocol": secure.protocol(listener),
            "ssl_context": secure.client_context(listener),
        }
        if mechanism == "OAUTHBEARER":
            settings |= {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": AioToken()}
        elif mechanism:
            settings |= {
                "sasl_mechanism": mechanism,
                "sasl_plain_username": USER,
                "sasl_plain_password": PASSWORD,
            }
        async with AIOKafkaProducer(**settings) as producer:
            for value in values:
                await producer.send_and_wait(topic, value)
        async with AIOKafkaConsumer(topic, **settings, auto_offset_reset="earliest") as consumer:
            return [(await asyncio.wait_for(consumer.getone(), 30)).value for _ in values]

    assert asyncio.run(run()) == values


class KafkaPythonToken(KafkaPythonTokenProvider):
    def token(self) -> str:
        return token()


@pytest.mark.parametrize(("listener", "mechanism"), ways("kafka-python"))
def test_kafka_python(secure: SecureBroker, topic: str, values: list[bytes], listener: str, mechanism: str) -> None:
    """kafka-python produces and consumes."""
    settings: dict[str, Any] = {
        "bootstrap_servers": secure.bootstrap(listener),
        "security_protocol": secure.protocol(listener),
        "ssl_context": secure.client_context(listener),
    }
    if mechanism == "OAUTHBEARER":
        settings |= {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": KafkaPythonToken()}
    elif mechanism:
        settings |= {"sasl_mechanism": mechanism, "sasl_plain_username": USER, "sasl_plain_password": PASSWORD}
    producer = KafkaProducer(**settings)
    for value in values:
        producer.send(topic, value)
    producer.flush(30)
    producer.close()
    consumer = KafkaConsumer(topic, **settings, auto_offset_reset="earliest", consumer_timeout_ms=30_000)
    found: list[bytes] = []
    for message in consumer:
        found.append(message.value)
        if len(found) == len(values):
            break
    consumer.close()
    assert found == values

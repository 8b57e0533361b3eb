"""Short ways to produce, consume and administer with confluent-kafka on its default settings, used by many tests."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

PATIENCE_S = 60.0


@dataclass
class Deliveries:
    """What became of the records handed to a producer."""

    acknowledged: list[Message] = field(default_factory=list)
    refused: list[KafkaError] = field(default_factory=list)

    def note(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.acknowledged.append(message)
        else:
            self.refused.append(error)


def producer(bootstrap: str, **settings: Any) -> Producer:
    return Producer({"bootstrap.servers": bootstrap} | {name.replace("_", "."): v for name, v in settings.items()})


def consumer(bootstrap: str, group: str, **settings: Any) -> Consumer:
    """A group consumer that starts at the beginning where nothing is committed."""
    base = {"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest"}
    return Consumer(base | {name.replace("_", "."): value for name, value in settings.items()})


def create_topic(bootstrap: str, topic: str, partitions: int, config: dict[str, str] | None = None) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=config or {})
    admin.create_topics([new])[topic].result(PATIENCE_S)


def produce(bootstrap: str, topic: str, records: Iterable[dict[str, Any]], **settings: Any) -> list[Message]:
    """Send records (arguments of `Producer.produce`) and return the acknowledgements, in the order they came.

    Raises:
        KafkaException: one was refused or not answered.
    """
    deliveries = Deliveries()
    sender = producer(bootstrap, **settings)
    for record in records:
        while True:
            try:
                sender.produce(topic, **record, on_delivery=deliveries.note)
                break
            except BufferError:
                sender.poll(0.05)
        sender.poll(0)
    unanswered = sender.flush(PATIENCE_S)
    if deliveries.refused:
        raise KafkaException(deliveries.refused[0])
    assert unanswered == 0, f"{unanswered} records without an answer"
    return deliveries.acknowledged


def poll_records(reader: Consumer, count: int, timeout_s: float = PATIENCE_S) -> list[Message]:
    """Read until `count` records have come.

    Raises:
        KafkaException: the consumer met an error that it does not get over by itself.
        TimeoutError: they did not all come.
    """
    got: list[Message] = []
    deadline = time.monotonic() + timeout_s
    while len(got) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(got)} of {count} records within {timeout_s:g} s")
        for message in reader.consume(min(count - len(got), 1_000), timeout=0.2):
            if message.error():
                raise KafkaException(message.error())
            got.append(message)
    return got


def consume(bootstrap: str, group: str, topics: Sequence[str], count: int, **settings: Any) -> list[Message]:
    """Read `count` records as the only member of a group, commit, and leave."""
    reader = consumer(bootstrap, group, **settings)
    try:
        reader.subscribe(list(topics))
        got = poll_records(reader, count)
        if got:
            reader.commit(asynchronous=False)
        return got
    finally:
        reader.close()

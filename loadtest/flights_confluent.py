"""Sends the flights with confluent-kafka and reads them back by a group of which one member leaves half-way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from loadtest.flights import Flight, Gathering, Processed

PATIENCE_S = 120.0
Progress = Callable[[int], None]


def create_topic(bootstrap: str, topic: str, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(PATIENCE_S)


def produce(bootstrap: str, topic: str, flights: Sequence[Flight], progress: Progress = lambda _n: None) -> None:
    """Send all flights, in order, and wait until all are acknowledged.

    Raises:
        KafkaException: a record was refused.
    """
    refused: list[KafkaError] = []
    acknowledged = 0

    def delivered(error: KafkaError | None, _message: Message) -> None:
        nonlocal acknowledged
        if error is not None:
            refused.append(error)
        acknowledged += 1

    # Without idempotence librdkafka does not keep the order when it has to send a batch again.
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "on_delivery": delivered})
    for number, flight in enumerate(flights):
        while True:
            try:
                producer.produce(topic, flight.value, flight.key)
                break
            except BufferError:
                producer.poll(0.05)
        if number % 1_000 == 0:
            producer.poll(0)
            progress(acknowledged)
    producer.flush(PATIENCE_S)
    progress(acknowledged)
    if refused:
        raise KafkaException(refused[0])
    if acknowledged != len(flights):
        raise TimeoutError(f"{acknowledged} of {len(flights)} records acknowledged")


class _Reading:
    """A group's reading of a topic: what its members, one thread each, have processed so far."""

    def __init__(self, bootstrap: str, topic: str, group: str, members: int) -> None:
        self.topic = topic
        self.together = Gathering(members)
        self.processed: list[Processed] = []  # Appending is atomic, so the list has the order of processing.
        self.failures: list[BaseException] = []
        self.stop = threading.Event()
        self._settings = {"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest"}

    def member(self, index: int, leave_at: int) -> None:
        """Process records until all are done, or until the group has done `leave_at`; commit and leave."""
        consumer = Consumer(self._settings)
        try:
            consumer.subscribe([self.topic], on_revoke=_commit)
            # A record counts as processed the moment it is handed over, so the offset stored for it is right, and a
            # commit at every handover makes the processing exactly once.
            while len(self.processed) < leave_at and not self.stop.is_set():
                if not self.together and not self.stop.wait(Gathering.SIP_EVERY_S) and consumer.assignment():
                    self.together.has_share(index)
                message = consumer.poll(0.1)
                if message is None:
                    continue
                if message.error():
                    raise KafkaException(message.error())
                self.processed.append(
                    Processed(index, message.partition(), message.offset(), message.key(), message.value() or b"")
                )
            _commit(consumer, [])
        except BaseException as problem:  # noqa: BLE001 - told to the thread that waits
            self.failures.append(problem)
        finally:
            consumer.close()


def _commit(consumer: Consumer, _partitions: list[TopicPartition]) -> None:
    try:
        consumer.commit(asynchronous=False)
    except KafkaException as nothing:
        if nothing.args[0].code() != KafkaError._NO_OFFSET:
            raise


def consume(
    bootstrap: str, topic: str, group: str, count: int, members: int = 3, progress: Progress = lambda _n: None
) -> list[Processed]:
    """Read `count` records by a group of which the first member leaves half-way; returns them as processed.

    Raises:
        TimeoutError: they did not all come.
    """
    reading = _Reading(bootstrap, topic, group, members)
    threads = [
        threading.Thread(target=reading.member, args=(index, count // 2 if index == 0 else count), daemon=True)
        for index in range(members)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(0.05)
        progress(len(reading.processed))
        if reading.failures or time.monotonic() > deadline:
            reading.stop.set()
    if reading.failures:
        raise reading.failures[0]
    if len(reading.processed) < count:
        raise TimeoutError(f"{len(reading.processed)} of {count} records read")
    return reading.processed

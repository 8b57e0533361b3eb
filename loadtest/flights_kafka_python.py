"""Sends the flights with kafka-python and reads them back by a group of which one member leaves half-way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from kafka import KafkaConsumer, KafkaProducer

from loadtest.flights import Flight, Gathering, Processed

PATIENCE_S = 120.0
Progress = Callable[[int], None]


def produce(bootstrap: str, topic: str, flights: Sequence[Flight], progress: Progress = lambda _n: None) -> None:
    """Send all flights on default settings and wait until all are acknowledged."""
    with closing(KafkaProducer(bootstrap_servers=bootstrap)) as producer:
        sent = [producer.send(topic, key=flight.key, value=flight.value) for flight in flights]
        for number, future in enumerate(sent):
            future.get(timeout=PATIENCE_S)
            if number % 500 == 0:
                progress(number)
        progress(len(sent))


def consume(
    bootstrap: str, topic: str, group: str, count: int, members: int = 3, progress: Progress = lambda _n: None
) -> list[Processed]:
    """Read `count` records by a group of which the first member leaves half-way; returns them as processed.

    Raises:
        TimeoutError: they did not all come.
    """
    processed: list[Processed] = []
    failures: list[BaseException] = []
    stop = threading.Event()
    together = Gathering(members)

    def member(index: int, leave_at: int) -> None:
        try:
            consumer = KafkaConsumer(bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest")
            with closing(consumer):
                # kafka-python 3.0 can wait for ever in a rebalance during which it first hears of the topic.
                consumer.partitions_for_topic(topic)
                # Its own commits before every rebalance and on closing make the handover exact.
                consumer.subscribe([topic])
                while len(processed) < leave_at and not stop.is_set():
                    if not together and not stop.wait(Gathering.SIP_EVERY_S) and consumer.assignment():
                        together.has_share(index)
                    for records in consumer.poll(timeout_ms=100, max_records=500 if together else 1).values():
                        processed.extend(Processed(index, r.partition, r.offset, r.key, r.value) for r in records)
        except BaseException as problem:  # noqa: BLE001 - told to the thread that waits
            failures.append(problem)

    threads = [
        threading.Thread(target=member, args=(index, count // 2 if index == 0 else count), daemon=True)
        for index in range(members)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while any(thread.is_alive() for thread in threads):
        for thread in threads:
            thread.join(0.05)
        progress(len(processed))
        if failures or time.monotonic() > deadline:
            stop.set()
    if failures:
        raise failures[0]
    if len(processed) < count:
        raise TimeoutError(f"{len(processed)} of {count} records read")
    return processed

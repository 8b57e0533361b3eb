"""Sends the flights with aiokafka and reads them back by a group of which one member leaves half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener

from loadtest.flights import Flight, Gathering, Processed

PATIENCE_S = 120.0
Progress = Callable[[int], None]


def produce(bootstrap: str, topic: str, flights: Sequence[Flight], progress: Progress = lambda _n: None) -> None:
    """Send all flights on default settings and wait until all are acknowledged."""

    async def send_all() -> None:
        async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
            sent = []
            for number, flight in enumerate(flights):
                sent.append(await producer.send(topic, flight.value, key=flight.key))
                if number % 500 == 0:
                    progress(number)
            for future in sent:
                await future
            progress(len(sent))

    asyncio.run(asyncio.wait_for(send_all(), PATIENCE_S))


class _CommitOnHandover(ConsumerRebalanceListener):
    """Commits what was processed before partitions go to another member."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Any) -> None:
        if revoked:
            await self._consumer.commit()

    async def on_partitions_assigned(self, assigned: Any) -> None:
        pass


def consume(
    bootstrap: str, topic: str, group: str, count: int, members: int = 3, progress: Progress = lambda _n: None
) -> list[Processed]:
    """Read `count` records by a group of which the first member leaves half-way; returns them as processed.

    Raises:
        TimeoutError: they did not all come.
    """
    processed: list[Processed] = []
    together = Gathering(members)

    async def member(index: int, leave_at: int) -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest")
        consumer.subscribe([topic], listener=_CommitOnHandover(consumer))
        await consumer.start()
        try:
            while len(processed) < leave_at:
                if not together:
                    await asyncio.sleep(Gathering.SIP_EVERY_S)
                    if consumer.assignment():
                        together.has_share(index)
                batches = await consumer.getmany(timeout_ms=100, max_records=None if together else 1)
                for records in batches.values():
                    processed.extend(Processed(index, r.partition, r.offset, r.key, r.value) for r in records)
                progress(len(processed))
            await consumer.commit()
        finally:
            await consumer.stop()

    async def read_all() -> None:
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group_of_members:
            for index in range(members):
                group_of_members.create_task(member(index, count // 2 if index == 0 else count))

    try:
        asyncio.run(read_all())
    except* TimeoutError:
        raise TimeoutError(f"{len(processed)} of {count} records read") from None
    return processed

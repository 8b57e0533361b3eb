"""Clients that state their zone and read a topic from its beginning: partition and offset of every record.

Each is a generator that reads no further than it is asked to, and has no policy for an offset that is out of range:
such an answer is an error, not a new beginning. It goes on until it is closed, and gives None when nothing came for a
while.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as AioTopicPartition
from confluent_kafka import Consumer, KafkaException, TopicPartition
from kafka import KafkaConsumer
from kafka import TopicPartition as OldTopicPartition

from tests.e2e.test_java import class_path
from tests.e2e.test_kcat import KCAT

Places = Iterator[tuple[int, int] | None]
WAIT_S = 0.5
SOURCE = Path(__file__).parent / "java" / "ZoneReader.java"


def confluent(bootstrap: str, topic: str, partitions: int, zone: str) -> Places:
    settings = {"bootstrap.servers": bootstrap, "group.id": uuid.uuid4().hex, "auto.offset.reset": "error"}
    consumer = Consumer(settings | {"client.rack": zone, "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, index, 0) for index in range(partitions)])
        while True:
            for message in consumer.consume(200, timeout=WAIT_S):
                if message.error():
                    raise KafkaException(message.error())
                yield message.partition(), message.offset()
            yield None
    finally:
        consumer.close()


def kafka_python(bootstrap: str, topic: str, partitions: int, zone: str) -> Places:
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, client_rack=zone, auto_offset_reset="none", group_id=None, max_poll_records=200
    )
    try:
        wanted = [OldTopicPartition(topic, index) for index in range(partitions)]
        consumer.assign(wanted)
        for partition in wanted:
            consumer.seek(partition, 0)
        while True:
            for records in consumer.poll(timeout_ms=int(WAIT_S * 1000)).values():
                for record in records:
                    yield record.partition, record.offset
            yield None
    finally:
        consumer.close()


def aiokafka(bootstrap: str, topic: str, partitions: int, zone: str) -> Places:
    with contextlib.closing(asyncio.new_event_loop()) as loop:

        async def start() -> AIOKafkaConsumer:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=bootstrap, client_rack=zone, auto_offset_reset="none", group_id=None
            )
            await consumer.start()
            wanted = [AioTopicPartition(topic, index) for index in range(partitions)]
            consumer.assign(wanted)
            for partition in wanted:
                consumer.seek(partition, 0)
            return consumer

        consumer = loop.run_until_complete(start())
        try:
            while True:
                wait = consumer.getmany(timeout_ms=int(WAIT_S * 1000), max_records=200)
                for records in loop.run_until_complete(wait).values():
                    for record in records:
                        yield record.partition, record.offset
                yield None
        finally:
            loop.run_until_complete(consumer.stop())


def kcat(bootstrap: str, topic: str, partitions: int, zone: str) -> Places:
    """librdkafka 2.0."""
    command = [str(KCAT), "-C", "-q", "-b", bootstrap, "-t", topic, "-o", "beginning", "-f", "%p %o\n", "-u"]
    return _printed([*command, "-X", f"client.rack={zone}", "-X", "auto.offset.reset=error"])


def java(bootstrap: str, topic: str, partitions: int, zone: str, classes: Path) -> Places:
    """`classes` is where the program is compiled to, unless it was."""
    path = os.pathsep.join(class_path())
    if not list(classes.glob("*.class")):
        subprocess.run(["javac", "-Werror", "-cp", path, "-d", str(classes), str(SOURCE)], check=True, timeout=120)
    run = ["java", "-Xmx256m", "-cp", os.pathsep.join([str(classes), path]), "ZoneReader"]
    return _printed([*run, bootstrap, topic, str(partitions), zone])


def _printed(command: list[str]) -> Places:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        rest = b""
        while True:
            if not select.select([process.stdout], [], [], WAIT_S)[0]:
                yield None
                continue
            data = os.read(process.stdout.fileno(), 4096)
            if not data:
                raise RuntimeError(f"{command[0]} ended with {process.wait()}")
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                partition, offset = line.split()
                yield int(partition), int(offset)
    finally:
        process.kill()
        process.communicate()

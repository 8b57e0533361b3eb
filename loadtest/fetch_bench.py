"""Fetch from the tail at full speed: worker CPU seconds per GB.

A topic of 8 partitions is filled with as much as stays in the worker's memory, then confluent-kafka, in a process of
its own, reads it from the beginning again and again. librdkafka would hold itself back once its queue is full
(fetch.queue.backoff.ms, a second by default), so that is set to a millisecond; all else is default.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from loadtest import full_speed_producer
from loadtest.measure import GB, MB, report
from loadtest.target import Target, add_arguments, target

FILL_BYTES = 150 * MB
PARTITIONS = 8


def read(bootstrap: str, topic: str, seconds: float) -> dict[str, Any]:
    """Read the topic from the beginning, over and over, for so long; returns records, bytes and seconds."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "fetch-bench",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 1,
        }
    )
    ends = {
        partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=30)[1]
        for partition in range(PARTITIONS)
    }
    total = sum(ends.values())
    records = size = 0
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        left = total
        while left > 0:
            messages = consumer.consume(min(10_000, left), timeout=1.0)
            for message in messages:
                if message.error():
                    raise KafkaException(message.error())
            left -= len(messages)
            records += len(messages)
            size += sum(len(message) for message in messages)
    elapsed = time.monotonic() - began
    consumer.close()
    return {"records": records, "bytes": size, "seconds": elapsed}


def measure(broker: Target, seconds: float, record_bytes: int = 1_000) -> list[dict[str, Any]]:
    """One row: records a second, MB/s and worker CPU seconds per GB."""
    topic = broker.create_topic(PARTITIONS)
    filled = 0
    while filled < FILL_BYTES:
        filled += full_speed_producer.run(broker.bootstrap, topic, 0.05, record_bytes)["bytes"]
    command = [sys.executable, "-m", "loadtest.fetch_bench", "--read", topic, "--bootstrap", broker.bootstrap]
    before = broker.worker_cpu_seconds()
    done = subprocess.run([*command, "--seconds", str(seconds)], stdout=subprocess.PIPE, check=True, timeout=600)
    cpu = broker.worker_cpu_seconds() - before
    got = json.loads(done.stdout)
    return [
        {
            "records/s": int(got["records"] / got["seconds"]),
            "MB/s": got["bytes"] / got["seconds"] / MB,
            "MB in the topic": filled / MB,
            "CPU-s": cpu,
            "CPU-s/GB": cpu / (got["bytes"] / GB),
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, seconds=10)
    parser.add_argument("--record-bytes", type=int, default=1_000)
    parser.add_argument("--read", metavar="TOPIC", help="only read this topic and print a JSON line")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(options.bootstrap, options.read, options.seconds)))
        return
    with target(options) as broker:
        rows = measure(broker, options.seconds, options.record_bytes)
    report("fetch from the tail", rows)


if __name__ == "__main__":
    main()

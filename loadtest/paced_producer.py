"""Producers that spread records over all partitions of a topic at a set rate, in a process of its own.

Values are noise, so that neither side can compress them. It prints one JSON line when its standard input closes:
records, bytes, seconds, and how many of the bytes that were due it could not send in time.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import sys
import time
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from loadtest.beside import Beside

TICK_S = 0.02


def produce(bootstrap: str, topic: str, partitions: int, bytes_per_second: float, record_bytes: int) -> dict[str, Any]:
    failures: list[str] = []

    def failed(error: KafkaError | None, _message: Message) -> None:
        failures.append(str(error))

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "linger.ms": 50,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 512 * 1024,
            "delivery.report.only.error": True,
            "on_delivery": failed,
        }
    )
    noise = random.Random(7).randbytes(record_bytes * 64)
    values = [noise[i * record_bytes : (i + 1) * record_bytes] for i in range(64)]
    producer.list_topics(topic, timeout=30)
    sent, partition = 0, 0
    began = time.monotonic()
    while not select.select([sys.stdin], [], [], TICK_S)[0]:
        producer.poll(0)
        due = int((time.monotonic() - began) * bytes_per_second / record_bytes)
        while sent < due:
            try:
                producer.produce(topic, values[sent % 64], partition=partition)
            except BufferError:
                producer.poll(0.01)
                if select.select([sys.stdin], [], [], 0)[0]:
                    break
                continue
            sent += 1
            partition = (partition + 1) % partitions
    elapsed = time.monotonic() - began
    unsent = producer.flush(120)
    if failures or unsent:
        raise RuntimeError(f"{len(failures)} records refused ({failures[:1]}), {unsent} without an answer")
    return {"records": sent, "bytes": sent * record_bytes, "seconds": elapsed}


class PacedProducer(Beside):
    """Runs for as long as the `with` block does; `result` afterwards says what was sent."""

    def __init__(
        self, bootstrap: str, topic: str, partitions: int, bytes_per_second: float, record_bytes: int = 1_000
    ) -> None:
        super().__init__(
            [
                *(sys.executable, "-m", "loadtest.paced_producer"),
                *("--bootstrap", bootstrap, "--topic", topic, "--partitions", str(partitions)),
                *("--rate", str(bytes_per_second), "--record-bytes", str(record_bytes)),
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="bytes a second")
    parser.add_argument("--record-bytes", type=int, default=1_000)
    options = parser.parse_args()
    print(json.dumps(produce(options.bootstrap, options.topic, options.partitions, options.rate, options.record_bytes)))


if __name__ == "__main__":
    main()

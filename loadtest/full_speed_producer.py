"""A confluent-kafka producer that sends as fast as it can for a while, in a process of its own.

Default client batching; 1 KB values without keys, acks=all. It prints one JSON line: records, bytes and seconds until
the last one was acknowledged. With `--until-stdin-closes` it goes on until told, as a noisy neighbour for other tests.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from loadtest.beside import Beside


def produce(
    bootstrap: str,
    topic: str,
    seconds: float,
    record_bytes: int,
    until_stdin_closes: bool = False,
    settings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Send for `seconds`, wait for all acknowledgements, and return what was sent. `settings` are more of librdkafka's.

    Raises:
        RuntimeError: a record was refused.
    """
    failures: list[str] = []

    def failed(error: KafkaError | None, _message: Message) -> None:
        failures.append(str(error))

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            # The callback only for failures: it would otherwise cost the client more than sending does.
            "delivery.report.only.error": True,
            "on_delivery": failed,
            **(settings or {}),
        }
    )
    # Not compressible and not all the same, but made once: the client must not be the bottleneck.
    noise = random.Random(7).randbytes(record_bytes * 64)
    values = [noise[i * record_bytes : (i + 1) * record_bytes] for i in range(64)]
    producer.list_topics(topic, timeout=30)
    sent = 0
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if until_stdin_closes and select.select([sys.stdin], [], [], 0)[0]:
            break
        try:
            for value in values:
                producer.produce(topic, value)
                sent += 1
        except BufferError:
            producer.poll(0.01)
        producer.poll(0)
    unsent = producer.flush(120)
    elapsed = time.monotonic() - began
    if failures or unsent:
        raise RuntimeError(f"{len(failures)} records refused ({failures[:1]}), {unsent} without an answer")
    return {"records": sent, "bytes": sent * record_bytes, "seconds": elapsed, "cpu_seconds": time.process_time()}


def run(
    bootstrap: str,
    topic: str,
    seconds: float,
    record_bytes: int = 1_000,
    settings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`produce` in a process of its own, so that its CPU time is not mixed with the caller's."""
    command = _command(bootstrap, topic, seconds, record_bytes)
    for name, value in (settings or {}).items():
        command += ["--set", f"{name}={value}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 180)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _command(bootstrap: str, topic: str, seconds: float, record_bytes: int) -> list[str]:
    return [
        *(sys.executable, "-m", "loadtest.full_speed_producer"),
        *("--bootstrap", bootstrap, "--topic", topic),
        *("--seconds", str(seconds), "--record-bytes", str(record_bytes)),
    ]


class Neighbour(Beside):
    """A full-speed producer that runs for as long as the `with` block does; `result` afterwards says what it sent."""

    def __init__(self, bootstrap: str, topic: str, record_bytes: int = 1_000) -> None:
        super().__init__([*_command(bootstrap, topic, 600, record_bytes), "--until-stdin-closes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", default="bench")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--record-bytes", type=int, default=1_000)
    parser.add_argument("--until-stdin-closes", action="store_true")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="another setting of librdkafka"
    )
    options = parser.parse_args()
    result = produce(
        options.bootstrap,
        options.topic,
        options.seconds,
        options.record_bytes,
        options.until_stdin_closes,
        dict(one.split("=", 1) for one in options.set),
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()

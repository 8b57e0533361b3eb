"""A consumer group of one that reads a topic from its beginning to its end, in a process of its own.

It prints one JSON line: records, bytes of their values, and seconds from the first record to the last, and from the
start to the last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from confluent_kafka import Consumer, KafkaError

QUIET_S = 60.0


def drain(bootstrap: str, topic: str, group: str, records: int) -> dict[str, Any]:
    """Read `records` records.

    Raises:
        RuntimeError: nothing came for a minute, or the consumer failed.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": False,
        }
    )
    began = time.monotonic()
    first = 0.0
    read = size = 0
    try:
        consumer.subscribe([topic])
        while read < records:
            # Not more than there are: it would wait for the rest.
            messages = consumer.consume(min(10_000, records - read), QUIET_S)
            if not messages:
                raise RuntimeError(f"{group}: nothing came for {QUIET_S:g} s, {read} of {records} records read")
            first = first or time.monotonic()
            for message in messages:
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        continue
                    raise RuntimeError(f"{group}: {error}")
                size += len(message.value())
            read += len(messages)
        ended = time.monotonic()
    finally:
        consumer.close()
    return {"records": read, "bytes": size, "seconds": ended - first, "seconds from start": ended - began}


def start(bootstrap: str, topic: str, group: str, records: int) -> subprocess.Popen[bytes]:
    """`drain` in a process of its own; its output is the result as JSON."""
    command = [
        *(sys.executable, "-m", "loadtest.draining_consumer"),
        *("--bootstrap", bootstrap, "--topic", topic, "--group", group, "--records", str(records)),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def result_of(process: subprocess.Popen[bytes], timeout_s: float = 600) -> dict[str, Any]:
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        raise RuntimeError(f"a consumer ended with {process.returncode}")
    result: dict[str, Any] = json.loads(output)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--records", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(drain(options.bootstrap, options.topic, options.group, options.records)))


if __name__ == "__main__":
    main()

"""How much CPU librdkafka's mock broker needs for a gigabyte of 1 KB records: the yardstick for `produce_bench`.

acks=all, 8 partitions, default client batching. Only the mock's own thread counts; the client runs in another process.
"""

from __future__ import annotations

import argparse
from typing import Any

from loadtest import full_speed_producer
from loadtest.measure import GB, MB, report
from loadtest.mock_broker import MockBroker

WARM_UP_S = 1.0


def measure(seconds: float, record_bytes: int = 1_000, partitions: int = 8) -> dict[str, Any]:
    """One row: records a second, MB/s, CPU seconds per GB and MB per CPU second of the mock."""
    with MockBroker(partitions=partitions) as mock:
        full_speed_producer.run(mock.bootstrap, mock.topic, WARM_UP_S, record_bytes)
        before = mock.cpu_seconds()
        sent = full_speed_producer.run(mock.bootstrap, mock.topic, seconds, record_bytes)
        cpu = mock.cpu_seconds() - before
    return row("librdkafka mock", sent, cpu)


def row(broker: str, sent: dict[str, Any], cpu_seconds: float) -> dict[str, Any]:
    """What was sent and what it cost, in the units that brokers are compared by."""
    return {
        "broker": broker,
        "records/s": int(sent["records"] / sent["seconds"]),
        "MB/s": sent["bytes"] / sent["seconds"] / MB,
        "CPU-s": cpu_seconds,
        "CPU-s/GB": cpu_seconds / (sent["bytes"] / GB),
        "MB/CPU-s": sent["bytes"] / MB / cpu_seconds if cpu_seconds else float("inf"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--record-bytes", type=int, default=1_000)
    options = parser.parse_args()
    report("mock baseline", [measure(options.seconds, options.record_bytes)])


if __name__ == "__main__":
    main()

"""Produce at full speed: MB per broker CPU second, beside librdkafka's mock broker in the same run.

1 KB records, acks=all, 8 partitions, confluent-kafka on default batching, one worker on the local store. The mock is
measured before and after, as machines drift. Beside it stands what a bare script needs to write, fsync and link the
same bytes in objects of the same size.
"""

from __future__ import annotations

import argparse
from typing import Any

from loadtest import bare_write, full_speed_producer, mock_baseline
from loadtest.measure import GB, MB, report
from loadtest.target import Target, add_arguments, target

BARE_BYTES_MAX = 2 * GB


def measure(broker: Target, seconds: float, record_bytes: int = 1_000) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows for the mock (twice) and the broker, and the ratios between them."""
    topic = broker.create_topic(8)
    first = mock_baseline.measure(seconds, record_bytes)
    full_speed_producer.run(broker.bootstrap, topic, mock_baseline.WARM_UP_S, record_bytes)
    known = broker.objects()
    before = broker.worker_cpu_seconds(), broker.loop_cpu_seconds(), broker.supervisor_cpu_seconds()
    sent = full_speed_producer.run(broker.bootstrap, topic, seconds, record_bytes)
    after = broker.worker_cpu_seconds(), broker.loop_cpu_seconds(), broker.supervisor_cpu_seconds()
    cpu, loop_cpu, supervisor_cpu = (last - first for first, last in zip(before, after, strict=True))
    written = [size for name, size in broker.objects().items() if name not in known]
    rows = [first, mock_baseline.row("kafscale, one worker", sent, cpu), mock_baseline.measure(seconds, record_bytes)]
    mock_per_gb = (rows[0]["CPU-s/GB"] + rows[2]["CPU-s/GB"]) / 2
    worker_per_gb = rows[1]["CPU-s/GB"]
    if not cpu or not written or not broker.data_dir:
        return rows, {}
    size = sum(written) // len(written)
    total = min(sum(written), BARE_BYTES_MAX)
    bare = {
        way: bare_write.cpu_seconds(broker.data_dir.parent, size, total, direct=way == "O_DIRECT") / (total / GB)
        for way in ("page cache", "O_DIRECT")
    }
    rest = worker_per_gb - min(bare.values())
    summary = {
        "MB per CPU-s against the mock's": mock_per_gb / worker_per_gb,
        "event loop CPU-s/GB": loop_cpu / (sent["bytes"] / GB),
        "supervisor CPU-s/GB": supervisor_cpu / (sent["bytes"] / GB),
        "objects": len(written),
        "MB an object": size / MB,
        "bare write, fsync, link through the page cache, CPU-s/GB": bare["page cache"],
        "the same with O_DIRECT, CPU-s/GB": bare["O_DIRECT"],
        "without the cheaper of the two: worker CPU-s/GB": rest,
        "and against the mock's": mock_per_gb / rest if rest > 0 else None,
    }
    return rows, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, seconds=10)
    parser.add_argument("--record-bytes", type=int, default=1_000)
    options = parser.parse_args()
    with target(options) as broker:
        rows, summary = measure(broker, options.seconds, options.record_bytes)
    report("produce at full speed", rows, summary)


if __name__ == "__main__":
    main()

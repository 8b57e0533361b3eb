"""What one address in front of all workers costs: the same load on a broker of two workers, with and without it.

Without, clients send each request to the worker that it concerns. With, half of them reach the other one, which passes
them on (docs/adr/0014-one-address.md). Measured is the CPU time of both workers together.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loadtest import fetch_bench, full_speed_producer, mock_baseline, small_requests
from loadtest.measure import report
from loadtest.target import Target, started

WORKERS = 2


def measure(data_parent: Path | None, seconds: float) -> list[dict[str, Any]]:
    """A row for each way to reach the workers."""
    rows = []
    for name, shared in (("each worker's own", "false"), ("one for all", "true")):
        with started(data_parent, WORKERS, {"KAFSCALE_SHARED_ADDRESS": shared}) as broker:
            rows.append({"address": name} | _costs(broker, seconds))
    return rows


def _costs(broker: Target, seconds: float) -> dict[str, Any]:
    topic = broker.create_topic(8)
    full_speed_producer.run(broker.bootstrap, topic, mock_baseline.WARM_UP_S, 1_000)
    before = broker.worker_cpu_seconds()
    sent = full_speed_producer.run(broker.bootstrap, topic, seconds, 1_000)
    produced = mock_baseline.row("", sent, broker.worker_cpu_seconds() - before)
    (fetched,) = fetch_bench.measure(broker, seconds)
    one, eight = small_requests.measure(broker, seconds)
    return {
        "produce CPU-s/GB": produced["CPU-s/GB"],
        "fetch CPU-s/GB": fetched["CPU-s/GB"],
        "µs of CPU a one-record request": one["worker µs/request"],
        "with eight in flight": eight["worker µs/request"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5, help="how long to measure each case")
    parser.add_argument("--data-parent", type=Path, help="where the brokers put their data")
    options = parser.parse_args()
    report("behind one address", measure(options.data_parent, options.seconds))


if __name__ == "__main__":
    main()

"""What S3 is asked for: PUTs per worker and second, dollars per gibibyte, and nothing at all when nobody writes.

Three brokers of two workers, one topic of 1,000 partitions that all get records, flushes by the default interval of
250 ms. PUTs of flushes are counted by the numbers that each worker's log reaches, so checkpoints are among them; money
by the brokers' own gauge, and by what the proxy before the store saw, from the first record until compaction rests.
A run with one worker stands beside it: on few cores six workers together take no more than one does, and a PUT per
interval costs each of them the same.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections import defaultdict
from typing import Any

from loadtest import wire
from loadtest.broker_process import wait_for
from loadtest.cluster import Cluster, total_of
from loadtest.full_speed_producer import Neighbour
from loadtest.measure import MB, report
from loadtest.paced_producer import PacedProducer

PARTITIONS = 1_000
MIB = 1 << 20
RATES_MIB = (1, 12)
PUT_DOLLARS, GET_DOLLARS = 5e-6, 4e-7
LIMIT_PUTS, LIMIT_DOLLARS = 4.0, 0.0015
# What follows the last record (compaction, what it gives up, a checkpoint of that) is over when nothing was put for so
# long: more than a checkpoint's interval.
QUIET_S = 65.0
IDLE_S = 20.0


class Meter:
    """What the cluster has asked of the store since it was built."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._began = time.monotonic()
        self._sequences = sequences(cluster)
        self._counts = cluster.s3_counts()
        self._metrics = cluster.metrics()

    def puts_per_worker(self) -> list[float]:
        """Objects a second of each log, the busiest first."""
        seconds = time.monotonic() - self._began
        return sorted(
            ((after - self._sequences.get(log, -1)) / seconds for log, after in sequences(self._cluster).items()),
            reverse=True,
        )

    def asked(self, method: str) -> int:
        return self._cluster.s3_counts()[method] - self._counts[method]

    def grown(self, name: str, **labels: str) -> float:
        return total_of(self._cluster.metrics(), name, **labels) - total_of(self._metrics, name, **labels)


def sequences(cluster: Cluster) -> dict[str, int]:
    """The highest number of each worker's log."""
    highest: dict[str, int] = defaultdict(lambda: -1)
    for key in cluster.s3.objects("kafscale/log/"):
        _, _, log, number = key.split("/")
        highest[log] = max(highest[log], int(number))
    return dict(highest)


def rest(cluster: Cluster) -> None:
    """Wait until nothing has been put for a while."""
    last = [-1, 0.0]

    def quiet() -> bool:
        puts = cluster.s3_counts()["PUT"]
        if puts != last[0]:
            last[:] = puts, time.monotonic()
        return time.monotonic() - last[1] > QUIET_S

    wait_for(quiet, 900, "nothing is put any more", pause_s=1)


def paced(cluster: Cluster, rate_mib: float, seconds: float) -> dict[str, Any]:
    with PacedProducer(cluster.bootstrap, "flushes", PARTITIONS, rate_mib * MIB) as producer:
        wait_for(lambda: total_of(cluster.metrics(), "kafscale_produced_bytes_total") > 0, 60, "records arrive")
        _pause(5)
        meter = Meter(cluster)
        _pause(seconds)
        puts = meter.puts_per_worker()
        taken = meter.grown("kafscale_produced_bytes_total") / seconds / MIB
    assert producer.result, "the producer failed"
    return {
        "load": f"{rate_mib:g} MiB/s",
        "taken MiB/s": taken,
        "PUTs/s of the busiest worker": puts[0],
        "PUTs/s of all": sum(puts),
        "aim a worker": LIMIT_PUTS,
    }


def idle(cluster: Cluster) -> dict[str, Any]:
    meter = Meter(cluster)
    _pause(IDLE_S)
    return {
        "load": "none, after the last record",
        "taken MiB/s": 0.0,
        "PUTs/s of the busiest worker": meter.puts_per_worker()[0],
        "PUTs/s of all": meter.asked("PUT") / IDLE_S,
        "aim a worker": 0.0,
    }


def saturated(cluster: Cluster, producers: int, seconds: float) -> dict[str, Any]:
    """All that a gibibyte costs at full speed, compaction included."""
    meter = Meter(cluster)
    with contextlib.ExitStack() as running:
        for _ in range(producers):
            running.enter_context(Neighbour(cluster.bootstrap, "flushes"))
        _pause(seconds)
        rate = meter.grown("kafscale_produced_bytes_total") / seconds / MB
    rest(cluster)
    gib = meter.grown("kafscale_produced_bytes_total") / 2**30
    puts = meter.asked("PUT") + meter.asked("LIST")
    return {
        "workers": len(sequences(cluster)),
        "MB/s": rate,
        "GiB": gib,
        "flush PUTs/GiB": meter.grown("kafscale_store_operations_total", operation="put", purpose="flush") / gib,
        "all PUTs/GiB": puts / gib,
        "GETs/GiB": meter.asked("GET") / gib,
        "$/GiB by the gauge": meter.grown("kafscale_store_cost_dollars_total") / gib,
        "$/GiB by the proxy": (puts * PUT_DOLLARS + meter.asked("GET") * GET_DOLLARS) / gib,
        "aim": LIMIT_DOLLARS,
    }


def measure(seconds: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of PUTs, and rows of money."""
    puts, money = [], []
    with Cluster(3, 2) as cluster:
        cluster.wait_even()
        _create(cluster)
        puts += [_shown(paced(cluster, rate, seconds)) for rate in RATES_MIB]
        money.append(_shown(saturated(cluster, 2, seconds)))
        puts.append(_shown(idle(cluster)))
    with Cluster(1, 1, with_etcd=False) as cluster:
        _create(cluster)
        money.append(_shown(saturated(cluster, 2, seconds)))
    return puts, money


def _create(cluster: Cluster) -> None:
    with wire.Connection(cluster.brokers[0].port) as connection:
        if code := wire.create_topic(connection, "flushes", PARTITIONS):
            raise RuntimeError(f"error {code}")
        wait_for(lambda: len(wire.leaders(connection, "flushes")) == PARTITIONS, 60, "all partitions have leaders")


def _pause(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > until, 2 * seconds + 1, "time passes", pause_s=0.5)


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="how long to load each case")
    puts, money = measure(parser.parse_args().seconds)
    report("PUTs", puts)
    report("money", money)


if __name__ == "__main__":
    main()

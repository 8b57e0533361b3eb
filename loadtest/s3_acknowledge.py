"""Time to acknowledge on S3: how much longer than the flush interval a flush's oldest record waits, counted in PUTs.

A broker with one worker writes through a proxy that delays the store. Each round sends one record to each of so many
partitions in one request, some time after the last was answered: it opens a flush, so its wait is that of the flush's
oldest record. Between rounds a bare HTTP client PUTs an object of the same size through a proxy with the same delay.
The interval is taken off, and what is left divided by the median of the bare PUTs.
"""

from __future__ import annotations

import argparse
import http.client
import random
import statistics
import threading
import time
from typing import Any

from loadtest import wire
from loadtest.cluster import Cluster
from loadtest.measure import percentile, report
from loadtest.partitions import CASES, check_answer, request_for

DELAYS_MS = (20, 100)
INTERVAL_MS = 250
LIMIT_P50, LIMIT_P99 = 1.2, 2.0
# What an object has around a partition's batch: a row of the table, and its group.
OVERHEAD_BYTES = 90


class BarePuts:
    """A client that does nothing but PUT, over one connection that it keeps."""

    def __init__(self, cluster: Cluster) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", cluster.proxy.ports["s3-client"])
        self._bucket = cluster.s3.bucket
        self._number = 0

    def seconds(self, size: int) -> float:
        self._number += 1
        body = bytes(size)
        began = time.perf_counter()
        self._connection.request("PUT", f"/{self._bucket}/bare/{self._number}", body, {"If-None-Match": "*"})
        answer = self._connection.getresponse()
        answer.read()
        took = time.perf_counter() - began
        if answer.status != 200:
            raise RuntimeError(f"the store answered {answer.status}")
        return took


def measure(rounds: int) -> list[dict[str, Any]]:
    settings = {"KAFSCALE_FLUSH_INTERVAL_MS": str(INTERVAL_MS)}
    rows = []
    pause = threading.Event()
    with Cluster(1, 1, settings, with_etcd=False) as cluster:
        port = cluster.brokers[0].port
        with wire.Connection(port) as connection:
            if code := wire.create_topic(connection, "ack", max(CASES)):
                raise RuntimeError(f"error {code}")
            leaders = wire.leaders(connection, "ack")
        bare = BarePuts(cluster)
        for delay_ms in DELAYS_MS:
            cluster.set_s3(delay_s=delay_ms / 1000)
            for partitions in CASES:
                request = request_for("ack", partitions)
                waits, puts = [], []
                with wire.Connection(leaders[0]) as connection:
                    for _ in range(rounds + 3):
                        began = time.perf_counter()
                        connection.send(request)
                        payload = connection.receive_frame()
                        waits.append(time.perf_counter() - began - INTERVAL_MS / 1000)
                        check_answer(payload, partitions)
                        puts.append(bare.seconds(len(request) + OVERHEAD_BYTES * partitions))
                        pause.wait(random.random() * 0.05)
                put_s = statistics.median(puts[3:])
                ratios = sorted(wait / put_s for wait in waits[3:])
                rows.append(
                    {
                        "store delayed by ms": delay_ms,
                        "partitions": partitions,
                        "one PUT ms": put_s * 1000,
                        "p50 wait beyond the interval ms": statistics.median(waits[3:]) * 1000,
                        "p50 in PUTs": percentile(ratios, 0.5),
                        "p99 in PUTs": percentile(ratios, 0.99),
                        "worst": ratios[-1],
                    }
                )
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    report("time to acknowledge on S3", measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()

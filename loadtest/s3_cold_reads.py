"""Draining older data from S3: the share of a bare client's rate, and what three groups cost that drain together.

A broker with one worker is filled and started anew, so that nothing is in its memory, behind a proxy that caps the
store at 100 MB/s. The bare client GETs the same objects whole, four at a time, through a proxy with the same cap.
"""

from __future__ import annotations

import argparse
import http.client
import threading
import time
import uuid
from collections import Counter
from typing import Any

from loadtest import draining_consumer, full_speed_producer, wire
from loadtest.broker_process import wait_for
from loadtest.cluster import Cluster, samples, total_of
from loadtest.measure import MB, report

CAP_BYTES_PER_SECOND = 100 * MB
PARTITIONS = 8
READERS = 4
AIM = 0.8


def bare_rate(cluster: Cluster) -> float:
    """MB a second at which a bare client reads every object with records in it."""
    keys = iter(record_keys(cluster))
    lock = threading.Lock()
    total = [0]

    def read() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", cluster.proxy.ports["s3-client"])
        while True:
            with lock:
                key = next(keys, None)
            if key is None:
                return
            connection.request("GET", f"/{cluster.s3.bucket}/{key}")
            answer = connection.getresponse()
            size = 0
            while piece := answer.read(1 << 20):
                size += len(piece)
            with lock:
                total[0] += size

    threads = [threading.Thread(target=read) for _ in range(READERS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return total[0] / MB / (time.monotonic() - began)


def record_keys(cluster: Cluster) -> list[str]:
    """Data objects, packs and segments: what is larger than any checkpoint or manifest here."""
    return [key for key, size in cluster.s3.objects().items() if size > 200_000 and "/manifest/" not in key]


def drained(cluster: Cluster, topic: str, records: int, groups: int) -> tuple[list[dict[str, Any]], Counter[str]]:
    """`groups` groups drain the topic together; their results and what the broker asked of the store meanwhile."""
    broker = cluster.brokers[0]
    broker.stop()
    broker.start()
    before = cluster.s3_counts()
    processes = [
        draining_consumer.start(broker.bootstrap, topic, f"g-{uuid.uuid4().hex[:8]}", records) for _ in range(groups)
    ]
    results = [draining_consumer.result_of(process) for process in processes]
    asked = cluster.s3_counts()
    asked.subtract(before)
    return results, asked


def measure(gib: float) -> list[dict[str, Any]]:
    settings = {"KAFSCALE_GROUP_INITIAL_REBALANCE_DELAY_MS": "1000"}
    with Cluster(1, 1, settings, with_etcd=False) as cluster:
        broker = cluster.brokers[0]
        with wire.Connection(broker.port) as connection:
            if code := wire.create_topic(connection, "old", PARTITIONS):
                raise RuntimeError(f"error {code}")
        records = 0
        while records * 1000 < gib * 2**30:
            records += full_speed_producer.run(broker.bootstrap, "old", 5)["records"]
        rest(cluster)
        cluster.set_s3(bytes_per_second=CAP_BYTES_PER_SECOND)
        bare = bare_rate(cluster)
        rows = []
        alone = 0
        for groups in (1, 3):
            results, asked = drained(cluster, "old", records, groups)
            slowest = max(result["seconds"] for result in results)
            rate = records * 1000 / MB / slowest
            alone = alone or asked["GET"]
            rows.append(
                {
                    "groups": groups,
                    "GB": records * 1000 / 1e9,
                    "bare client MB/s": bare,
                    "each group MB/s": rate,
                    "of the bare client's": rate / bare,
                    "GETs": asked["GET"],
                    "times one group's GETs": asked["GET"] / alone,
                    "GB read of the store": asked["down_bytes"] / 1e9,
                }
            )
            print(rows[-1], flush=True)
        return rows


def rest(cluster: Cluster) -> None:
    """Wait until compaction has nothing left to do."""
    last = [(-1.0, 0.0)]

    def quiet() -> bool:
        done = total_of(samples(cluster.brokers[0]), "kafscale_compaction_bytes_total")
        if done != last[0][0]:
            last[0] = (done, time.monotonic())
        return time.monotonic() - last[0][1] > 35

    wait_for(quiet, 300, "compaction rests", pause_s=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2)
    report("draining older data from S3", measure(parser.parse_args().gib))


if __name__ == "__main__":
    main()

"""Goal: taking over a lost broker with 10,000 partitions, whose manifests describe 100 GiB, takes less than 5 seconds
and 500 requests of the store.

Run: python -m tests.bench.takeover [--partitions 10000] [--gib 100] [--delay-ms 20] [--workers 2]. The lost broker's
workers are real ones, run in this process on an S3 server: they take the partitions on, are told of extents in packs of
64 MiB that nobody ever wrote, write a checkpoint, acknowledge so many flushes after it and are gone without a word. A
broker is then started as processes, meets their registrations missing in an empty etcd, and takes over. Counted is from
its saying that a broker is lost until all partitions have taken a record.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import time
from collections import defaultdict
from typing import Any

from kafscale.config import Settings
from kafscale.coordination.assignment import FIRST_EPOCH
from kafscale.coordination.cluster import (
    OFFSETS_TOPIC,
    Assignment,
    ClusterState,
    Topic,
    Version,
    encode_version,
)
from kafscale.protocol.batches import build_batch, read_header
from kafscale.storage.cluster_log import FIRST_VERSION, ClusterLog
from kafscale.storage.extents import Extent
from kafscale.storage.keys import Keys
from kafscale.storage.s3 import S3Store, S3Target
from loadtest import wire
from loadtest.broker_process import BrokerProcess, wait_for
from loadtest.cluster import Cluster
from loadtest.measure import process_cpu_seconds, report
from loadtest.partitions import error_codes, request_for_each
from loadtest.s3_server import S3Server
from tests.unit.storage.rig import log_id
from tests.unit.workers.whole_worker import WholeWorker

SLOTS = 256
TOPIC_PARTITIONS = 1_000
EXTENT_BYTES = 1 << 20
PACK_BYTES = 64 << 20
LIMIT_S, LIMIT_REQUESTS = 5.0, 500
_LOST = re.compile(r"brokers are lost")
_METHODS = ("GET", "HEAD", "PUT", "LIST", "POST")


async def leave_behind(server: S3Server, partitions: int, gib: float, workers: int, tail: int) -> list[str]:
    """Fill the bucket with what a broker of that size leaves; returns its topics."""
    target = S3Target(
        bucket=server.bucket, endpoint=server.endpoint, path_style=True, access_key="key", secret_key="secret"
    )
    store, keys = S3Store(target), Keys("kafscale")
    nodes = [WholeWorker(_settings(server), store, log_number=index + 1, node_id=index) for index in range(workers)]
    topics = {
        f"t{number}": Topic(f"t{number}", random.Random(f"t{number}").randbytes(16), min(TOPIC_PARTITIONS, partitions))
        for number in range(-(-partitions // TOPIC_PARTITIONS))
    }
    offsets = Topic(OFFSETS_TOPIC, random.Random("offsets").randbytes(16), 50, {"cleanup.policy": "compact"})
    state = ClusterState(
        version=FIRST_VERSION,
        cluster_id="takeover",
        slot_count=SLOTS,
        slots=[[Assignment(FIRST_EPOCH, slot % workers, log_id(slot % workers + 1))] for slot in range(SLOTS)],
        topics={**topics, OFFSETS_TOPIC: offsets},
    )
    version = Version(FIRST_VERSION, "bench", 0, [], snapshot=state)
    log = ClusterLog(store, keys, nodes[0].clock, random.Random(1))
    assert await log.append(FIRST_VERSION, encode_version(version))
    for index in range(workers):
        node = WholeWorker(_settings(server), store, log_number=index + 1, node_id=index, state=state)
        await node.start()
        await _live(node, keys, int(gib * 2**30 / partitions), tail)
        node.stop()
    await store.close()
    return list(topics)


def _settings(server: S3Server) -> Settings:
    return Settings(s3_bucket=server.bucket, slots=SLOTS)


async def _live(node: WholeWorker, keys: Keys, partition_bytes: int, tail: int) -> None:
    """Hold what a worker holds that has been up for long, and acknowledge `tail` flushes after its checkpoint."""
    worker = node.worker
    owned = [partition for partition in worker.ownership.partitions() if partition.topic != OFFSETS_TOPIC]
    placed = 0
    for partition in owned:
        for number in range(max(1, partition_bytes // EXTENT_BYTES)):
            key = keys.pack(node.log_id, placed // PACK_BYTES)
            first = number * 1000
            partition.extents.append(
                Extent(first, first + 999, node.clock.wall_ms(), key, placed % PACK_BYTES, EXTENT_BYTES)
            )
            worker.ownership.references.add(key)
            placed += EXTENT_BYTES
            partition.size_bytes += EXTENT_BYTES
            partition.high_watermark = partition.next_offset = first + 1000
        worker.ownership.changed(partition)
    await worker.checkpointer.write()
    batch = build_batch([(None, b"v" * 100)], timestamp_ms=node.clock.wall_ms())
    chance = random.Random(node.log_id)
    for _ in range(tail):
        durable = asyncio.Event()
        for partition in chance.sample(owned, len(owned) // 5):
            copy = bytearray(batch)
            _, flush = worker.flusher.append(partition, copy, read_header(copy), node.clock.wall_ms())
        flush.answers.append(lambda _, durable=durable: durable.set())
        worker.flusher.hasten()
        await durable.wait()


class Patient(BrokerProcess):
    """Not waited for: it is ready only when it has taken over."""

    def start(self, wait: bool = True) -> Patient:
        super().start(wait=False)
        return self


def measure(partitions: int, gib: float, delay_ms: float, workers: int, tail: int) -> list[dict[str, Any]]:
    cluster = Cluster(0, workers, make=Patient, spare=2)
    with cluster:
        topics = asyncio.run(leave_behind(cluster.s3, partitions, gib, workers, tail))
        cluster.set_s3(delay_s=delay_ms / 1000)
        broker = cluster.add(1)
        try:
            wait_for(lambda: _LOST.search(broker.log()), 120, "the loss is noticed", pause_s=0.005)
        except TimeoutError as late:
            raise TimeoutError(f"{late}:\n{broker.log()[-4000:]}") from None
        began, before, cpu_before = time.monotonic(), cluster.s3_counts(), _cpu_seconds(broker)
        _write_everywhere(broker, topics)
        took, cpu = time.monotonic() - began, _cpu_seconds(broker)
        asked = cluster.s3_counts()
        asked.subtract(before)
        requests = {method: asked[method] for method in _METHODS if asked[method]}
        return [
            {
                "partitions": partitions,
                "GiB described": gib,
                "flushes after the checkpoint": tail * workers,
                "store delayed by ms": delay_ms,
                "seconds": took,
                "aim s": LIMIT_S,
                "CPU s of the supervisor": cpu[0] - cpu_before[0],
                "of the workers": " and ".join(
                    f"{now - then:.2f}" for now, then in zip(cpu[1:], cpu_before[1:], strict=True)
                ),
                "requests": sum(requests.values()),
                "aim requests": LIMIT_REQUESTS,
                "of these": ", ".join(f"{count} {method}" for method, count in requests.items()),
                "MB read": asked["down_bytes"] / 1e6,
            }
        ]


def _cpu_seconds(broker: BrokerProcess) -> list[float]:
    """Of the supervisor and of each worker."""
    assert broker.process is not None
    return [process_cpu_seconds(pid) for pid in (broker.process.pid, *broker.worker_pids())]


def _write_everywhere(broker: BrokerProcess, topics: list[str]) -> None:
    """A record to every partition, as soon as it is led. All requests go out before the first answer is waited for:
    each takes a flush interval, however long the takeover took."""
    waiting = {(topic, index) for topic in topics for index in range(TOPIC_PARTITIONS)}

    def all_taken() -> bool:
        by_leader: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        with wire.Connection(broker.port) as seed:
            for topic in sorted({topic for topic, _ in waiting}):
                for index, port in wire.leaders(seed, topic).items():
                    if (topic, index) in waiting:
                        by_leader[port][topic].append(index)
        with contextlib.ExitStack() as open_ones:
            asked = []
            for port, wanted in by_leader.items():
                with contextlib.suppress(OSError):
                    connection = open_ones.enter_context(wire.Connection(port))
                    for topic, indexes in wanted.items():
                        connection.send(request_for_each(topic, indexes))
                        asked.append((connection, topic))
            for connection, topic in asked:
                with contextlib.suppress(OSError, wire.Closed):
                    codes = error_codes(connection.receive_frame())
                    waiting.difference_update((topic, index) for index, code in codes.items() if code == 0)
        return not waiting

    wait_for(all_taken, 120, "all partitions take records", pause_s=0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partitions", type=int, default=10_000)
    parser.add_argument("--gib", type=float, default=100)
    parser.add_argument("--delay-ms", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tail", type=int, default=60, help="flushes of each worker after its checkpoint")
    options = parser.parse_args()
    rows = measure(options.partitions, options.gib, options.delay_ms, options.workers, options.tail)
    report("taking over a lost broker", rows)


if __name__ == "__main__":
    main()

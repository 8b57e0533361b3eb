"""Goal: a worker's day on a bucket, in compressed time: how many objects lie there at the end of each hour, and what
the requests of the day cost.

Run: python -m tests.bench.day [--hours 24] [--partitions 40] [--every 250]. A whole worker with all its upkeep runs on
a store in memory and in virtual time; each flush gets a small record for some of the partitions, as a quiet topic has
them, and retention is off: whatever grows with the number of flushes would be seen to grow.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter

import msgspec

from kafscale.config import Settings
from kafscale.metrics import STORE_OPERATIONS, label_sets
from kafscale.protocol.batches import build_batch, read_header
from tests.sim import loop as sim
from tests.unit.workers.whole_worker import WholeWorker

PRICES = {"put": 5e-6, "list": 5e-6, "get": 4e-7, "delete": 0.0}


class Look(msgspec.Struct):
    """What lies in the bucket, by kind, and what was asked of it until then."""

    objects: Counter[str]
    requests: Counter[str]
    flushes: int

    def dollars(self) -> float:
        return sum(count * PRICES[name.split("/")[0]] for name, count in self.requests.items())


async def live(hours: float, partitions: int, every_ms: int, look_every_s: float, report: list[Look]) -> None:
    chance = random.Random(1)
    settings = Settings(
        cluster_namespace="ns",
        s3_bucket="bucket",
        flush_interval_ms=every_ms,
        log_retention_ms=-1,
        checkpoint_interval_ms=60_000,
        cache_bytes=64 << 20,
    )
    node = await WholeWorker(settings).start()
    node.create("t", 2, 2 * partitions)  # Half of them are this node's.
    worker = node.worker
    owned = [partition for partition in worker.ownership.partitions() if partition.topic == "t"]
    batch = build_batch([(None, b"v" * 30)], timestamp_ms=node.clock.wall_ms())
    look_at = look_every_s
    flushes = 0
    while node.clock.monotonic() < hours * 3600:
        for partition in chance.sample(owned, max(1, len(owned) // 4)):
            copy = bytearray(batch)
            worker.flusher.append(partition, copy, read_header(copy), node.clock.wall_ms())
        flushes += 1
        await asyncio.sleep(every_ms / 1000)
        if node.clock.monotonic() >= min(look_at, hours * 3600):
            look_at += look_every_s
            objects = Counter(key.split("/")[1] for key in node.store.bodies())
            report.append(Look(objects, requests_of(node), flushes))
    node.stop()


def requests_of(node: WholeWorker) -> Counter[str]:
    cells = node.metrics.cells
    names = ["/".join(labels) for labels in label_sets(STORE_OPERATIONS)]
    return Counter({name: cells[STORE_OPERATIONS + offset] for offset, name in enumerate(names)})


def run(hours: float, partitions: int, every_ms: int, look_every_s: float = 3600.0) -> list[Look]:
    """What such a life leaves, looked at every so often."""
    report: list[Look] = []
    loop = sim.SimLoop()
    sim.run(live(hours, partitions, every_ms, look_every_s, report), loop)
    assert not loop.uncaught, loop.uncaught
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--partitions", type=int, default=40)
    parser.add_argument("--every", type=int, default=250, help="milliseconds between flushes")
    options = parser.parse_args()
    began = time.perf_counter()
    for number, hour in enumerate(run(options.hours, options.partitions, options.every), 1):
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(hour.objects.items()))
        asked = ", ".join(f"{name} {count}" for name, count in sorted(hour.requests.items()) if count)
        print(
            f"hour {number:2}: {hour.flushes:,} flushes, {sum(hour.objects.values())} objects ({kinds});"
            f" ${hour.dollars():.3f}: {asked}",
            flush=True,
        )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

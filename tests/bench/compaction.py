"""Goal: what compaction costs beside a busy local store: objects and bytes a second, CPU per GB, and how long it holds
the loop.

Run: python tests/bench/compaction.py [folder]. Each line first fills a local store with data objects, as fast as it
takes them; then compacts them all, from memory or from the store. CPU is that of the whole process, threads included.
"""

from __future__ import annotations

import asyncio
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from kafscale.clock import SystemClock
from kafscale.protocol.batches import build_batch, read_header
from kafscale.storage.compaction import CompactionPolicy, Compactor
from kafscale.storage.flush import Flush
from kafscale.storage.flusher import Flusher, FlushPolicy
from kafscale.storage.keys import Keys
from kafscale.storage.local import LocalStore
from kafscale.storage.tail_cache import TailCache
from kafscale.storage.worker_log import WorkerLog
from tests.unit.storage.rig import References, make_partition

# Flushes, partitions in each, batches of each, bytes of a batch.
SHAPES = {
    "1,000 flushes of 20 small partitions": (1000, 20, 2, 300),
    "1,000 flushes of one small batch": (1000, 1, 1, 300),
    "500 flushes of 8 partitions, 16 KB": (500, 8, 1, 16_000),
    "64 flushes of 8 partitions, 500 KB": (64, 8, 1, 500_000),
    "20 flushes of 5,000 tiny batches": (20, 4, 1250, 100),
}


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(label: str, root: Path, shape: tuple[int, int, int, int], in_memory: bool) -> None:
    flushes, spread, batches, size = shape
    clock, keys, log_id = SystemClock(), Keys("bench"), "0" * 32
    store = LocalStore(root)
    tail = TailCache(1 << 30)
    references = References(log_id)
    partitions = [make_partition(number) for number in range(spread)]

    def on_flushed(flush: Flush, seconds: float) -> None:
        for _, extent in flush.placed:
            references.add(extent.key)

    log = WorkerLog(store, keys, log_id, clock, random.Random(1), lambda reason: print("fenced:", reason))
    flusher = Flusher(log, keys, clock, FlushPolicy(flush_bytes=8 << 20, interval_s=None), tail, on_flushed)
    policy = CompactionPolicy(objects=2, bytes=1 << 60, idle_s=0.0)
    compactor = Compactor(
        store, keys, log_id, clock, random.Random(1), references, tail, lambda p: True, lambda p: None, policy
    )
    began = time.perf_counter()
    value = random.Random(1).randbytes(size)
    for _ in range(flushes):
        done = asyncio.get_running_loop().create_future()
        for partition in partitions:
            for _ in range(batches):
                batch = build_batch([(None, value)])
                _, flush = flusher.append(partition, batch, read_header(batch), clock.wall_ms())
        flush.answers.append(lambda *_, done=done: done.set_result(None))
        await done
        compactor.flushed(flush.small_bytes)
    flushing = time.perf_counter() - began
    if not in_memory:
        tail.evict(1 << 60)
    held = [0.0]

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            held.append(time.perf_counter() - before - 0.001)

    watcher = asyncio.ensure_future(watch())
    began, cpu, waited = time.perf_counter(), cpu_seconds(), 0
    written = 0
    while compactor.due() and waited < 100:
        written += (await compactor.run_once(partitions)).bytes_written
        waited += 1
    wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    watcher.cancel()
    left = len({extent.key for partition in partitions for extent in partition.extents})
    held.sort()
    flushed_gb = flushes * spread * batches * size / 1e9
    print(
        f"{label:38s} {'memory' if in_memory else 'store':6s} {flushes / flushing:6.0f} flushes/s  "
        f"compacted {flushes / wall:7.0f} objects/s {written / wall / 1e6:6.0f} MB/s to {left:3d}  "
        f"CPU {cpu / flushes * 1e6:6.0f} µs/object {cpu / flushed_gb:7.2f} CPU-s/GB flushed  "
        f"loop held at most {held[-1] * 1e3:4.1f} ms, p99 {held[int(len(held) * 0.99)] * 1e3:4.1f}"
    )
    await store.close()


async def main(folder: Path) -> None:
    for number, (label, shape) in enumerate(SHAPES.items()):
        for in_memory in (True, False):
            await measure(label, folder / f"{number}-{in_memory}", shape, in_memory)


if __name__ == "__main__":
    chosen = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    try:
        uvloop.run(main(chosen))
    finally:
        shutil.rmtree(chosen)

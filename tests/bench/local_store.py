"""Goal: what a put costs on the local store: latency and CPU by size, and by way of writing.

Run: python tests/bench/local_store.py [folder]. CPU is that of the whole process, thread hop and event loop included.
Judge by CPU-seconds per GB and by ratios within one run.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from kafscale.storage.local import LocalStore
from kafscale.storage.store import Buffer, Purpose

SIZES = {"4 KB": (4066, 400), "64 KB": (65_000, 300), "256 KB": (262_127, 200), "1 MB": (1_048_000, 100)}
SIZES["4 MB"] = (4_194_205, 60)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(label: str, store: LocalStore, parts: list[Buffer], puts: int, in_flight: int) -> None:
    size = sum(len(part) for part in parts)
    took: list[float] = []
    number = 0

    async def put_some() -> None:
        nonlocal number
        while number < puts:
            number += 1
            key = f"bench/log/{number:020d}"
            began = time.perf_counter()
            await store.put_if_absent(key, parts, Purpose.FLUSH)
            took.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), cpu_seconds()
    await asyncio.gather(*(put_some() for _ in range(in_flight)))
    wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    took.sort()
    await store.delete([f"bench/log/{made:020d}" for made in range(1, number + 1)], Purpose.SWEEP)
    print(
        f"{label:44s} p50 {took[len(took) // 2] * 1e6:7.0f} µs  p99 {took[int(len(took) * 0.99)] * 1e6:7.0f} µs"
        f"  {puts / wall:6.0f} puts/s  CPU {cpu / puts * 1e6:7.0f} µs/put  {cpu / puts / size * 1e9:6.2f} CPU-s/GB"
    )


async def main(root: Path) -> None:
    memory = mmap.mmap(-1, 5 << 20)
    aligned = memoryview(memory)
    aligned[:] = os.urandom(len(aligned))
    for label, (size, puts) in SIZES.items():
        store = LocalStore(root)
        copied = bytes(aligned[:size])
        await store.put_if_absent("bench/warm", [copied], Purpose.FLUSH)
        await store.delete(["bench/warm"], Purpose.SWEEP)
        for in_flight in (1, 4):
            await measure(f"{label}, {in_flight} in flight", store, [copied], puts, in_flight)
        await measure(f"{label}, aligned buffer", store, [aligned[:size]], puts, 1)
        parts: list[Buffer] = [copied[start : start + 1000] for start in range(0, size, 1000)]
        await measure(f"{label}, in parts of 1,000 bytes", store, parts, puts, 1)
        store._writer._direct = False
        await measure(f"{label}, page cache", store, [copied], puts, 1)
        store._unnamed_files = False
        await measure(f"{label}, page cache, temporary name", store, [copied], puts, 1)
        await store.close()


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    try:
        asyncio.run(main(folder))
    finally:
        shutil.rmtree(folder)

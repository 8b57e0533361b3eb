"""Prints what the hot path of record batches costs. Run: python -m tests.bench.batches

Not a test: figures depend on the machine. The bounds to keep in mind: 2 to 3 µs for a one-record batch, 50 µs for a
compressed megabyte.
"""

from __future__ import annotations

import json
import timeit

from kafscale.protocol import batches, compression
from tests.unit.protocol.batch_samples import NOW_MS

NAMES = {0: "none", 1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}


def microseconds(call: object, number: int) -> float:
    """The best of five rounds, per call."""
    return min(timeit.repeat(call, number=number, repeat=5)) / number * 1e6


def main() -> None:
    row = json.dumps({"tail": "N14228", "origin": "EWR", "dest": "IAH", "delay": 2.5}).encode()
    for count, number in ((1, 50_000), (160, 20_000), (10_000, 300)):
        records = [(b"N14228", row + b"%d" % index) for index in range(count)]
        for codec, name in NAMES.items():
            batch = memoryview(batches.build_batch(records, timestamp_ms=NOW_MS, codec=codec))
            cost = microseconds(lambda batch=batch: batches.check_produced(batch, 1 << 21, NOW_MS), number)
            print(f"check_produced  {count:6} records  {name:6}  {len(batch):9,} bytes  {cost:8.2f} µs")
    batch = batches.build_batch([(b"key", b"value")], timestamp_ms=NOW_MS)
    print(f"stamp           {microseconds(lambda: batches.stamp(batch, 1 << 40, 7), 100_000):.2f} µs")
    print(f"build_batch     {microseconds(lambda: batches.build_batch([(b'key', b'value')]), 20_000):.2f} µs")
    run = bytes(batch) * 1000
    print(f"iterate         {microseconds(lambda: sum(1 for _ in batches.iterate(run)), 100) / 1000:.2f} µs a batch")
    noise = memoryview(compression.compress(compression.SNAPPY, row * 11_000))
    print(
        f"claimed_size    {microseconds(lambda: compression.claimed_size(2, noise), 300):.2f} µs, snappy of a megabyte"
    )


if __name__ == "__main__":
    main()

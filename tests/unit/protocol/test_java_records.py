"""Goal: Kafka's own Java classes read our batches and write ours to read, in every codec."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kafscale.protocol import batches
from kafscale.protocol.records import iterate_records
from tests.unit.protocol.batch_samples import NOW_MS

pytestmark = [pytest.mark.java, pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java here")]

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


def test_java_reads_ours_and_we_read_javas() -> None:
    """Goal: the same records, keys, offsets and timestamps in both directions, over several blocks and chunks."""
    values = [f"{number * 2654435761:032b}" * 8 for number in range(2000)]  # half a megabyte
    records = [(b"%d" % place, value.encode()) for place, value in enumerate(values)]
    timestamps = [NOW_MS + (place * 7919) % 1000 - 500 for place in range(len(values))]
    ours = [
        batches.build_batch(records, base_offset=30, timestamps=timestamps, codec=codec) for codec in CODECS.values()
    ]
    run = subprocess.run(
        [sys.executable, "-m", "tests.unit.protocol.java_records"],
        input=json.dumps({"batches": [batch.hex() for batch in ours], "values": values}),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    for found in answer["read"]:
        assert [(bytes.fromhex(key), bytes.fromhex(value)) for key, value, _, _ in found] == records
        assert [(timestamp, offset) for *_, timestamp, offset in found] == [
            (timestamp, 30 + place) for place, timestamp in enumerate(timestamps)
        ]
    for name, text in answer["written"].items():
        theirs = bytes.fromhex(text)
        header = batches.check_produced(memoryview(theirs), 1 << 21, NOW_MS)
        assert header.codec == CODECS[name]
        assert [(r.key, r.value, r.timestamp_ms, r.offset) for r in iterate_records(theirs)] == [
            (key, value, place, place) for place, (key, value) in enumerate(records)
        ]

"""One fault, over and over, under load; and the account of it.

An idempotent producer writes numbered records, a group reads and commits them. After each act both must go on. At the
end everything is read back: nothing acknowledged is missing, elsewhere or twice, offsets are dense, no confirmed commit
went back, and `kafscale verify` finds nothing wrong in the bucket.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import uuid
from typing import Any

from loadtest.cluster import Cluster
from loadtest.s3_server import settings_for
from tests.e2e.confluent_clients import create_topic
from tests.e2e.load import GroupReader, IdempotentLoad, check_records
from tests.soak.faults import Act

PARTITIONS = 12
# After every hundred records: a thousand a second, so that minutes of them can be read back.
PAUSE_S = 0.1
# Of each kind, after an act.
PROGRESS_RECORDS = 100
SETTINGS = {
    # Soaks are after what breaks: a flush need not save money, and checkpoints and compaction are to be frequent.
    "KAFSCALE_FLUSH_INTERVAL_MS": "20",
    "KAFSCALE_SLOTS": "48",
    "KAFSCALE_CHECKPOINT_INTERVAL_MS": "2000",
    "KAFSCALE_GROUP_INITIAL_REBALANCE_DELAY_MS": "100",
    "KAFSCALE_S3_TIMEOUT_MS": "3000",
}


def endure(
    cluster: Cluster, acts: list[Act], seconds: float, ttl_s: float, seed: int, pause_s: float = PAUSE_S
) -> dict[str, Any]:
    """Each of the acts once, and then any of them until so many seconds have passed.

    Raises:
        AssertionError, TimeoutError: with what was found, or what did not go on.
    """
    chance = random.Random(seed)
    topic = f"soak-{uuid.uuid4().hex[:8]}"
    create_topic(cluster.bootstrap, topic, PARTITIONS)
    began = time.monotonic()
    done = 0
    with IdempotentLoad(cluster.bootstrap, topic, PARTITIONS, pause_s=pause_s) as load:
        load.wait_progress(PROGRESS_RECORDS)
        with GroupReader(cluster.bootstrap, topic, f"{topic}-group") as reader:
            reader.wait_progress(PROGRESS_RECORDS)
            while done < len(acts) or time.monotonic() - began < seconds:
                act = acts[done] if done < len(acts) else chance.choice(acts)
                act(cluster, chance, ttl_s)
                load.wait_progress(PROGRESS_RECORDS)
                reader.wait_progress(PROGRESS_RECORDS)
                done += 1
            load.finish()
            reader.finish()
    check_records(cluster.bootstrap, load)
    check_bucket(cluster)
    return {
        "acts": done,
        "seconds": time.monotonic() - began,
        "records acknowledged": len(load.acknowledged),
        "of these committed by then": sum(reader.committed.values()),
        "longest without an answer s": load.longest_silence_s,
    }


def check_bucket(cluster: Cluster) -> None:
    """`kafscale verify` finds nothing missing, corrupt, unreferenced or out of place, while brokers run."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KAFSCALE_")}
    verified = subprocess.run(
        [sys.executable, "-m", "kafscale", "verify", "--json"],
        env=inherited | settings_for(cluster.s3.endpoint, cluster.s3.bucket),
        capture_output=True,
        text=True,
    )
    found = [json.loads(line) for line in verified.stdout.splitlines()]
    bad = [entry for entry in found if entry["wrong"] != "leftover"]
    assert verified.returncode == 0 and not bad, (verified.stderr[-2000:], bad[:5])

"""Goal: what `make soak` does for minutes, for seconds: brokers as processes on a real etcd and an S3 server, hurt
under load; then without etcd, then without the store."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator

import pytest

from loadtest.cluster import Cluster
from loadtest.s3_server import S3Server
from tests.e2e.broker import Broker
from tests.s3_servers import make_bucket, moto
from tests.soak import faults
from tests.soak.stability import MEMORY_SETTINGS, without_etcd, without_s3
from tests.soak.trial import SETTINGS, endure

LEASE_TTL_MS = 1000
# Seconds of waiting are saved by more records.
PAUSE_S = 0.02
OUTAGE_S = 3 * LEASE_TTL_MS / 1000


class ServedBucket(S3Server):
    """A bucket of a server that somebody else started."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        self.bucket = bucket
        self.port = int(endpoint.rpartition(":")[2])

    def start(self) -> ServedBucket:
        return self

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with moto() as endpoint:
        served = ServedBucket(endpoint, make_bucket(endpoint, f"soak-{uuid.uuid4().hex}"))
        settings = SETTINGS | MEMORY_SETTINGS
        with Cluster(2, 1, settings, make=Broker, s3=served, lease_ttl_ms=LEASE_TTL_MS) as made:
            yield made


def test_nothing_is_lost_whatever_is_done(cluster: Cluster) -> None:
    """Goal: a broker paused past its lease, one whose answers are lost, and one that is killed: nothing acknowledged is
    lost or doubled, no confirmed commit goes back, and the bucket is in order."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    acts = [faults.pause_broker, faults.lose_answers, faults.kill_broker]
    endure(cluster, acts, 0, LEASE_TTL_MS / 1000, seed, PAUSE_S)


def test_without_etcd_nobody_notices(cluster: Cluster) -> None:
    """Goal: no client meets a single error, new idempotent producers and members come, a killed worker is replaced, no
    slot moves; topics are refused with an error to be retried."""
    without_etcd(cluster, OUTAGE_S, PAUSE_S)


def test_without_the_store_nobody_is_restarted(cluster: Cluster) -> None:
    """Goal: errors to be retried within the request's timeout, bounded memory, not ready but alive; what is in memory
    can be read, and all goes on."""
    without_s3(cluster, OUTAGE_S, PAUSE_S)

"""Goal: the settings name the coordination, in the spellings that people have for etcd's addresses."""

from __future__ import annotations

import asyncio
import random

import pytest

from kafscale.clock import SystemClock
from kafscale.config.sources import resolve
from kafscale.coordination.etcd import EtcdCoordination
from kafscale.coordination.opening import open_coordination
from kafscale.coordination.store import CoordinationStore, EmbeddedCoordination
from kafscale.errors import StartError, UsageError


def opened(**environ: str) -> CoordinationStore:
    settings = resolve({}, {f"KAFSCALE_{name}": value for name, value in environ.items()}).settings

    async def scenario() -> CoordinationStore:
        coordination = open_coordination(settings, SystemClock(), random.Random(1))
        await coordination.close()
        return coordination

    return asyncio.run(scenario())


def test_without_etcd_a_broker_is_its_cluster() -> None:
    assert isinstance(opened(), EmbeddedCoordination)


@pytest.mark.parametrize(
    ("endpoints", "hosts", "is_secure"),
    [
        ("etcd:2379", [("etcd", 2379)], False),
        ("http://a.example:2379,http://10.0.0.2:2381/", [("a.example", 2379), ("10.0.0.2", 2381)], False),
        ("https://etcd-0.etcd:2379", [("etcd-0.etcd", 2379)], True),
        ("[2001:db8::1]:2379", [("[2001:db8::1]", 2379)], False),
    ],
)
def test_spellings_of_addresses(endpoints: str, hosts: list[tuple[str, int]], is_secure: bool) -> None:
    """Goal: plain addresses and URLs, one or several; https means TLS."""
    coordination = opened(S3_BUCKET="bucket", ETCD_ENDPOINTS=endpoints)
    assert isinstance(coordination, EtcdCoordination)
    assert list(coordination._servers.endpoints) == hosts
    assert coordination._servers.is_secure == is_secure


@pytest.mark.parametrize("endpoints", ["etcd", "etcd:port", "ftp://etcd:2379", "etcd:2379;other:2379", "etcd:2379,"])
def test_what_is_no_address_is_named(endpoints: str) -> None:
    with pytest.raises(UsageError, match="KAFSCALE_ETCD_ENDPOINTS"):
        opened(S3_BUCKET="bucket", ETCD_ENDPOINTS=endpoints)


def test_brokers_of_a_cluster_need_a_bucket() -> None:
    """Goal: a directory is shared with nobody."""
    with pytest.raises(StartError, match="set s3_bucket"):
        opened(ETCD_ENDPOINTS="etcd:2379")

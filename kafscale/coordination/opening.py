"""Opens the coordination that the settings name: etcd, or the embedded one of a broker that is its whole cluster."""

from __future__ import annotations

import random

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.coordination.store import CoordinationStore, EmbeddedCoordination
from kafscale.errors import StartError


def open_coordination(settings: Settings, clock: Clock, random_source: random.Random) -> CoordinationStore:
    """The coordination; nothing is asked of it yet. To be called on a running loop. Raises StartError."""
    if settings.etcd_endpoints is None:
        return EmbeddedCoordination()
    if settings.s3_bucket is None:
        raise StartError(
            "brokers of a cluster share a bucket: set s3_bucket (KAFSCALE_S3_BUCKET), or leave etcd_endpoints out"
        )
    # Takes a while to import, and not everybody needs it.
    from kafscale.coordination.etcd import EtcdCoordination
    from kafscale.coordination.etcd_client import EtcdServers, credentials

    addresses = settings.etcd_endpoints.split(",")
    endpoints = [address.rpartition("//")[2].rstrip("/").rpartition(":") for address in addresses]
    servers = EtcdServers(
        endpoints=tuple((host, int(port)) for host, _, port in endpoints),
        tls=any(address.startswith("https:") for address in addresses),
        username=settings.etcd_username,
        password=settings.etcd_password,
        ca_file=settings.etcd_ca_file,
        cert_file=settings.etcd_cert_file,
        key_file=settings.etcd_key_file,
    )
    # Looked at now, so that a file that is missing or broken stops the start before anything is asked of anyone.
    credentials(servers)
    return EtcdCoordination(
        servers, settings.cluster_namespace, settings.etcd_lease_ttl_ms / 1000, clock, random_source
    )

"""Idle connections: worker memory for each, after ApiVersions and Metadata, five thousand of them."""

from __future__ import annotations

import argparse
import resource
from typing import Any

from loadtest import wire
from loadtest.measure import report
from loadtest.target import Target, add_arguments, target

WARM_UP = 500


def _greeted(port: int) -> wire.Connection:
    """A connection that has asked what a client asks first, and is now silent."""
    connection = wire.Connection(port)
    connection.call(wire.API_VERSIONS, 3, client_software_name="idle", client_software_version="1")
    connection.call(
        wire.METADATA,
        9,
        topics=None,
        allow_auto_topic_creation=False,
        include_cluster_authorized_operations=False,
        include_topic_authorized_operations=False,
    )
    return connection


def measure(broker: Target, connections: int = 5_000) -> list[dict[str, Any]]:
    """One row: worker memory before and with the connections, and the difference for each."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    opened = []
    try:
        for _ in range(WARM_UP):
            _greeted(broker.port).close()
        before = broker.worker_resident_bytes()
        opened = [_greeted(broker.port) for _ in range(connections)]
        during = broker.worker_resident_bytes()
    finally:
        for connection in opened:
            connection.close()
    return [
        {
            "connections": connections,
            "worker RSS before, MiB": before / 2**20,
            "with them, MiB": during / 2**20,
            "KiB a connection": (during - before) / connections / 1024,
        }
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, seconds=0)
    parser.add_argument("--connections", type=int, default=5_000)
    options = parser.parse_args()
    with target(options) as broker:
        rows = measure(broker, options.connections)
    report("idle connections", rows)


if __name__ == "__main__":
    main()

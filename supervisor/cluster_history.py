"""Reading the cluster log: from its objects to the state at its newest version. Reads only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kafscale.coordination.cluster import FORMAT_VERSION, ClusterState, Version, apply, decode_version
from kafscale.errors import Corrupt, StartError
from kafscale.storage.cluster_log import FIRST_VERSION, ClusterLog

READS_AT_ONCE = 16


async def load_state(
    cluster_log: ClusterLog, progress: Callable[[int, int], None] = lambda read, newest: None
) -> ClusterState | None:
    """The newest state in the log, or None if the log is empty.

    Reads back from the newest version to the last snapshot; `progress(versions read, newest version)` is told after
    every round. Raises Corrupt, StoreUnavailable, and StartError for a newer format.
    """
    newest = await cluster_log.newest()
    if newest == 0:
        return None
    versions: list[Version] = []
    while not versions or versions[-1].snapshot is None:
        highest = versions[-1].version - 1 if versions else newest
        wanted = range(highest, max(highest - READS_AT_ONCE, FIRST_VERSION - 1), -1)
        if not wanted:
            raise Corrupt("no version of the cluster log carries the cluster's state")
        for number, payload in zip(wanted, await asyncio.gather(*map(cluster_log.read, wanted)), strict=True):
            if payload is None:
                raise Corrupt(f"version {number} of the cluster log is missing")
            versions.append(read_version(payload))
            if versions[-1].snapshot is not None:
                break
        progress(len(versions), newest)
    state = versions[-1].snapshot
    assert state is not None
    for version in reversed(versions[:-1]):
        state = apply(state, version)
    return state


def read_version(payload: bytes) -> Version:
    """A version, if this code may act on it. Raises Corrupt, and StartError for a newer format."""
    version = decode_version(payload)
    if version.snapshot is not None and version.snapshot.format_version > FORMAT_VERSION:
        raise StartError(
            f"the cluster is in format {version.snapshot.format_version}, newer than this Kafscale reads "
            f"({FORMAT_VERSION}): start a newer version"
        )
    return version

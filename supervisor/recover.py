"""`kafscale recover`: reads the bucket and says what a start with an empty coordination store would bring up.

Nothing has to be recovered by hand: the bucket is where every decision lives, and a start reads it by itself. This
shows what is there before anybody starts. It reads only, of a running cluster too: it seals no log and takes no lock.
What is asked of the store is the cluster log back to its last snapshot, and the logs that slots name from their newest
checkpoint on.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.coordination.assignment import named_logs
from kafscale.coordination.cluster import ClusterState
from kafscale.errors import Corrupt, StartError
from kafscale.storage.cluster_log import ClusterLog
from kafscale.storage.keys import Keys
from kafscale.storage.opening import open_store
from kafscale.storage.store import ObjectStore
from kafscale.storage.takeover import LogReader, find_end
from supervisor.cluster_history import load_state

READS_AT_ONCE = 8
SHOWN_TOPICS = 1000


class LogFinding(msgspec.Struct, frozen=True):
    """What a log that some slot names was found to hold. `problem` is empty where it can be read."""

    log_id: str
    slots: int
    sealed: bool = False
    to_replay: int = 0
    problem: str = ""


def run(settings: Settings) -> int:
    """Print the findings. Returns 1 where something that a start needs can't be read. Raises KafscaleError."""
    if settings.s3_bucket is None and not Path(settings.data_dir).is_dir():
        raise StartError(f"there is no data directory {settings.data_dir}")
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    clock, source = SystemClock(), random.Random()
    store = open_store(settings, clock, source)
    try:
        keys = Keys(settings.cluster_namespace)
        cluster_log = ClusterLog(store, keys, clock, source)
        state = await load_state(
            cluster_log, lambda read, newest: _say(f"read {read} of at most {newest} versions of the cluster log")
        )
        if state is None:
            raise StartError(f"no cluster lies under the namespace {settings.cluster_namespace!r}: a start founds one")
        logs = await find_logs(store, keys, clock, source, state, _say)
    finally:
        await store.close()
    print("\n".join(described(state, logs)), flush=True)
    return 1 if any(found.problem for found in logs) else 0


async def find_logs(
    store: ObjectStore,
    keys: Keys,
    clock: SystemClock,
    source: random.Random,
    state: ClusterState,
    progress: Callable[[str], None],
) -> list[LogFinding]:
    """Every log that some slot names, read from its newest checkpoint on."""
    reader = LogReader(store, keys, clock, source)
    slots = Counter(log_id for entries in state.slots for log_id in {entry.log_id for entry in entries})
    log_ids = sorted(named_logs(state))
    found: list[LogFinding] = []

    async def look(log_id: str) -> LogFinding:
        try:
            end = await find_end(reader, log_id)
        except Corrupt as error:
            return LogFinding(log_id, slots[log_id], problem=str(error))
        return LogFinding(log_id, slots[log_id], end.sealed, end.end - end.replay_from)

    for start in range(0, len(log_ids), READS_AT_ONCE):
        found += await asyncio.gather(*map(look, log_ids[start : start + READS_AT_ONCE]))
        progress(f"read {len(found)} of {len(log_ids)} logs")
    return found


def described(state: ClusterState, logs: list[LogFinding]) -> list[str]:
    """The findings, a line each."""
    owners = Counter(entries[-1].node_id for entries in state.slots if entries)
    lines = [
        f"Cluster     {state.cluster_id}, version {state.version} of its log, format {state.format_version}",
        f"Topics      {len(state.topics)} with {sum(t.partitions for t in state.topics.values())} partitions",
        f"Slots       {state.slot_count}, owned by {len(owners)} nodes",
        f"Logs        {len(logs)} named by slots, {sum(log.sealed for log in logs)} of them ended",
        f"To replay   {sum(log.to_replay for log in logs)} objects",
        "",
        "A start takes over what its broker owned; what nobody owns any more is spread over the brokers that are up.",
        "",
        "Topics:",
    ]
    for topic in sorted(state.topics.values(), key=lambda topic: topic.name)[:SHOWN_TOPICS]:
        configs = ", ".join(f"{name}={value}" for name, value in sorted(topic.configs.items()))
        lines.append(f"  {topic.name}  partitions {topic.partitions}" + (f"  {configs}" if configs else ""))
    if len(state.topics) > SHOWN_TOPICS:
        lines.append(f"  and {len(state.topics) - SHOWN_TOPICS} more")
    lines += ["", "Owners:"]
    lines += [f"  node {node_id}  slots {count}" for node_id, count in sorted(owners.items())]
    problems = [log for log in logs if log.problem]
    if problems:
        lines += ["", "These logs can't be read, and their slots could not be served:"]
        lines += [f"  {log.log_id}  slots {log.slots}  {log.problem}" for log in problems]
    return lines


def _say(text: str) -> None:
    """Progress, beside the findings."""
    print(text, file=sys.stderr, flush=True)

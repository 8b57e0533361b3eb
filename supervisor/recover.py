"""`kafscale recover`: reads the bucket and says what a start with an empty coordination store would bring up.

Nothing has to be recovered by hand: the bucket is where every decision lives, and a start reads it by itself. This
shows what is there before anybody starts. It reads only, of a running cluster too: it seals no log and takes no lock.
What is asked of the store is the cluster log back to its last snapshot, the logs that slots name from their newest
checkpoint on, the slots' manifests, and those records of `__consumer_offsets` that are newer.

Each kind of thing in the catalogue is shown by a function in `SECTIONS`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from kafscale.clock import Clock, SystemClock
from kafscale.config import Settings
from kafscale.coordination.cluster import OFFSETS_TOPIC, ClusterState
from kafscale.coordination.groups.events import GroupConfig
from kafscale.coordination.groups.shard import GroupShard
from kafscale.errors import Corrupt, ObjectMissing, StartError
from kafscale.storage.cluster_log import ClusterLog
from kafscale.storage.keys import Keys
from kafscale.storage.lookups import batches_from
from kafscale.storage.reads import ColdReader
from kafscale.storage.store import ObjectStore
from kafscale.storage.takeover import LogReader
from kafscale.terminal import escaped
from supervisor.bucket_reader import BucketReader, Contents, LoadedPartition
from supervisor.cluster_history import load_state
from supervisor.progress import Progress
from supervisor.read_store import open_for_reading
from supervisor.verify_report import as_text

SHOWN = 1000
READ_BYTES = 32 << 20


class Holdings(msgspec.Struct):
    """What was counted on the way. Keys are topic names; of `commits` group ids, with how many partitions of how many
    topics the group has committed offsets for."""

    records: Counter[str] = msgspec.field(default_factory=Counter)
    bytes: Counter[str] = msgspec.field(default_factory=Counter)
    commits: dict[str, tuple[int, int]] = {}
    problems: list[str] = []


def run(settings: Settings) -> int:
    """Print the findings. Returns 1 where something that a start needs can't be read. Raises KafscaleError."""
    if settings.s3_bucket is None and not Path(settings.data_dir).is_dir():
        raise StartError(f"there is no data directory {settings.data_dir}")
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    clock, source = SystemClock(), random.Random()  # nosec B311
    progress = Progress(clock)
    store = open_for_reading(settings, clock, source, progress)
    try:
        keys = Keys(settings.cluster_namespace)
        cluster_log = ClusterLog(store, keys, clock, source)
        state = await load_state(
            cluster_log, lambda read, newest: progress.note(f"read {read} of {newest} versions of the cluster log")
        )
        if state is None:
            raise StartError(f"no cluster lies under the namespace {settings.cluster_namespace!r}: a start founds one")
        progress.say(f"read the cluster log up to version {state.version}")
        holdings = Holdings()
        counting = _Counting(store, clock, holdings)
        reader = LogReader(store, keys, clock, source)
        contents = await BucketReader(settings, store, keys, reader, state, counting.visit, progress.note).read({})
        progress.say(f"read {len(contents.logs)} of {len(contents.logs)} logs and {state.slot_count} slots")
    finally:
        progress.clear()
        await store.close()
    print("\n".join(described(state, contents, holdings)), flush=True)
    return 1 if contents.findings or holdings.problems else 0


class _Counting:
    """Counts what partitions hold, and what groups have committed."""

    def __init__(self, store: ObjectStore, clock: Clock, holdings: Holdings) -> None:
        self._reader = ColdReader(store, clock, READ_BYTES)
        self._holdings = holdings

    async def visit(self, loaded: LoadedPartition) -> None:
        partition = loaded.log
        self._holdings.records[partition.topic] += partition.high_watermark - partition.log_start_offset
        self._holdings.bytes[partition.topic] += partition.size_bytes
        if partition.topic != OFFSETS_TOPIC:
            return
        try:
            shard = await self._replayed(loaded)
        except (Corrupt, ObjectMissing) as error:
            problem = f"the groups of {partition.topic}-{partition.index} can't be read: {error}"
            self._holdings.problems.append(problem)
            return
        self._holdings.commits |= shard.committed()

    async def _replayed(self, loaded: LoadedPartition) -> GroupShard:
        """As the coordinator does (`workers/groups.py`)."""
        config = GroupConfig()
        state, partition = loaded.group_state, loaded.log
        shard = GroupShard(config, new_id=str) if state is None else GroupShard.restore(state, config, new_id=str)
        start = max(loaded.replay_from, partition.log_start_offset)
        async for _, batch in batches_from(partition, self._reader, start):
            shard.replay_batch(batch, loaded.replay_from)
        return shard


# What is shown


def _topics(state: ClusterState, holdings: Holdings) -> list[str]:
    lines = []
    for topic in sorted(state.topics.values(), key=lambda topic: topic.name):
        configs = ", ".join(f"{name}={value}" for name, value in sorted(topic.configs.items()))
        held = f"records {holdings.records[topic.name]:,}  bytes {holdings.bytes[topic.name]:,}"
        lines.append(f"{topic.name}  partitions {topic.partitions}  {held}" + (f"  {configs}" if configs else ""))
    return lines


def _groups(_: ClusterState, holdings: Holdings) -> list[str]:
    return [
        f"{group_id}  offsets committed for {partitions} partitions of {topics} topics"
        for group_id, (topics, partitions) in sorted(holdings.commits.items())
    ]


def _acls(state: ClusterState, _: Holdings) -> list[str]:
    return [str(binding) for binding in state.acls]


def _users(state: ClusterState, _: Holdings) -> list[str]:
    """Of a mechanism without a credential an administrator has said that there is none, whatever a file says."""
    return [
        f"{user}  {', '.join(name if kept is not None else f'{name} deleted' for name, kept in sorted(found.items()))}"
        for user, found in sorted(state.credentials.items())
    ]


def _quotas(state: ClusterState, _: Holdings) -> list[str]:
    return [
        f"{quota.entity}  {', '.join(f'{key}={value:g}' for key, value in sorted(quota.values.items()))}"
        for quota in state.quotas
    ]


def _owners(state: ClusterState, _: Holdings) -> list[str]:
    owners = Counter(entries[-1].node_id for entries in state.slots if entries)
    return [f"node {node_id}  slots {count}" for node_id, count in sorted(owners.items())]


SECTIONS: tuple[tuple[str, Callable[[ClusterState, Holdings], list[str]]], ...] = (
    ("Topics", _topics),
    ("Groups", _groups),
    ("ACLs", _acls),
    ("Users", _users),
    ("Quotas", _quotas),
    ("Owners", _owners),
)


def described(state: ClusterState, contents: Contents, holdings: Holdings) -> list[str]:
    """The findings, a line each."""
    lines = [
        f"Cluster     {state.cluster_id}, version {state.version} of its log, format {state.format_version}",
        f"Topics      {len(state.topics)} with {sum(t.partitions for t in state.topics.values())} partitions",
        f"Records     {sum(holdings.records.values()):,} of {sum(holdings.bytes.values()):,} bytes",
        f"Groups      {len(holdings.commits)} with committed offsets",
        f"ACLs        {len(state.acls)}, credentials of {len(state.credentials)} users, quotas of {len(state.quotas)}",
        f"Slots       {state.slot_count}, owned by {len({entries[-1].node_id for entries in state.slots if entries})}"
        " nodes",
        f"Logs        {len(contents.logs)} named by slots, {sum(log.sealed for log in contents.logs.values())} of them"
        " ended",
        f"To replay   {contents.to_replay} objects",
        "",
        "A start takes over what its broker owned; what nobody owns any more is spread over the brokers that are up.",
    ]
    for title, section in SECTIONS:
        entries = section(state, holdings)
        lines += ["", f"{title}:", *(f"  {entry}" for entry in entries[:SHOWN])]
        if len(entries) > SHOWN:
            lines.append(f"  and {len(entries) - SHOWN} more")
    names = {topic.topic_id: topic.name for topic in state.topics.values()}
    problems = [as_text(finding, names) for finding in contents.findings] + holdings.problems
    if problems:
        lines += ["", "These can't be read as they must be (`kafscale verify` looks at everything):"]
        lines += [f"  {problem}" for problem in problems[:SHOWN]]
    return list(map(escaped, lines))

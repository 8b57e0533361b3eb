"""The group coordinators of this worker: the runtime around the pure `GroupShard`s.

Owns one shard for each partition of `__consumer_offsets` that is served here, and their timers. What must always hold:
a record that a shard decided on is appended at once, in order; no reply leaves before every earlier record of its shard
is durable. It fails as its partition does: when the worker is fenced nothing more is answered.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable
from typing import Any

from kafscale.clock import Clock, Timer
from kafscale.config import Settings
from kafscale.coordination.cluster import OFFSETS_TOPIC, Assignment, Topic
from kafscale.coordination.groups.events import GroupConfig, Outcome, TimerKey, Token
from kafscale.coordination.groups.shard import GroupShard
from kafscale.errors import Retry, StoreUnavailable, StoreUnclear
from kafscale.metrics import REBALANCES, MetricsBlock
from kafscale.protocol.batches import build_batch, read_header
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.backoff import backoff_seconds
from kafscale.storage.flusher import Flusher
from kafscale.storage.lookups import batches_from
from kafscale.storage.partition import PartitionLog
from kafscale.storage.reads import ColdReader
from workers.context import ClusterView

# When the oldest data has waited so long to become durable, no more is begun.
STALLED_SECONDS = 5.0

# Takes a shard, the request's token, monotonic milliseconds and wall milliseconds.
Call = Callable[[GroupShard, Token, int, int], Outcome]


class _Coordinated:
    """A partition of `__consumer_offsets`, its shard, and the timers that the shard asked for."""

    __slots__ = ("partition", "shard", "timers")

    def __init__(self, partition: PartitionLog, shard: GroupShard) -> None:
        self.partition = partition
        self.shard = shard
        self.timers: dict[TimerKey, Timer] = {}


class Groups:
    """Coordinators by partition of `__consumer_offsets`."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        cluster: ClusterView,
        flusher: Flusher,
        reader: ColdReader,
        random_source: random.Random,
        metrics: MetricsBlock,
    ) -> None:
        self._config = GroupConfig(
            session_timeout_min_ms=settings.group_min_session_timeout_ms,
            session_timeout_max_ms=settings.group_max_session_timeout_ms,
            initial_rebalance_delay_ms=settings.group_initial_rebalance_delay_ms,
            offsets_retention_ms=settings.offsets_retention_minutes * 60_000,
            group_max_members=settings.group_max_size,
        )
        self._clock = clock
        self._cluster = cluster
        self._flusher = flusher
        self._reader = reader
        self._random = random_source
        self._cells = metrics.cells
        self._loaded: dict[int, _Coordinated] = {}
        self._serving: dict[int, _Coordinated] = {}
        # What could not be loaded, and was not served since.
        self._failed: set[int] = set()
        # Given to another worker, and what their last manifest takes from here.
        self._closed: dict[int, _Coordinated] = {}

    # Requests

    def partition_of(self, group_id: str) -> int:
        """The partition of `__consumer_offsets` that holds the group, by Kafka's rule. Raises Retry without one."""
        topic = self._cluster.topic(OFFSETS_TOPIC)
        if topic is None:
            raise Retry(ErrorCode.COORDINATOR_NOT_AVAILABLE, f"the topic {OFFSETS_TOPIC} does not exist yet")
        return (java_hash(group_id) & 0x7FFFFFFF) % topic.partitions

    def coordinator(self, group_id: str) -> Assignment | None:
        """Who coordinates the group now."""
        topic = self._cluster.topic(OFFSETS_TOPIC)
        return None if topic is None else self._cluster.leader(topic, self.partition_of(group_id))

    def is_served(self, group_id: str) -> bool:
        """Whether this worker coordinates the group right now."""
        return self.partition_of(group_id) in self._serving

    async def request(self, group_id: str, call: Call) -> Any:
        """Let the group's shard decide, and wait for its reply (perhaps a later call's).

        Raises Retry (NOT_COORDINATOR, COORDINATOR_LOAD_IN_PROGRESS, COORDINATOR_NOT_AVAILABLE) where the group is not
        coordinated here.
        """
        if self._flusher.oldest_age() > STALLED_SECONDS:
            # Or everyone who comes back would leave one more request waiting.
            raise Retry(ErrorCode.COORDINATOR_NOT_AVAILABLE, "the object store does not answer; try again later")
        index = self.partition_of(group_id)
        coordinated = self._serving.get(index)
        if coordinated is None:
            if index in self._failed and self._is_ours(index):
                raise Retry(ErrorCode.COORDINATOR_NOT_AVAILABLE, f"what is stored of group {group_id!r} is damaged")
            if index in self._loaded or self._is_ours(index):
                raise Retry(ErrorCode.COORDINATOR_LOAD_IN_PROGRESS, f"group {group_id!r} is being loaded")
            raise Retry(ErrorCode.NOT_COORDINATOR, f"group {group_id!r} is coordinated by another worker")
        return await self._ask(coordinated, call)

    async def request_all(self, call: Call) -> list[Any]:
        """Ask every shard of this worker, for what concerns all groups. Raises Retry while one is not loaded yet."""
        topic = self._cluster.topic(OFFSETS_TOPIC)
        for index in range(topic.partitions if topic is not None else 0):
            if index not in self._serving and self._is_ours(index):
                raise Retry(ErrorCode.COORDINATOR_LOAD_IN_PROGRESS, "some groups are being loaded")
        answers = [self._ask(coordinated, call) for coordinated in self._serving.values()]
        return [await answer for answer in answers]

    def _is_ours(self, index: int) -> bool:
        """Whether a partition of `__consumer_offsets` is assigned to this node, served or not."""
        topic = self._cluster.topic(OFFSETS_TOPIC)
        leader = None if topic is None else self._cluster.leader(topic, index)
        return leader is not None and leader.node_id == self._cluster.node_id

    def _ask(self, coordinated: _Coordinated, call: Call) -> asyncio.Future[Any]:
        token: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._take(coordinated, call(coordinated.shard, token, *self._now()))
        return token

    # Outcomes

    def _now(self) -> tuple[int, int]:
        return int(self._clock.monotonic() * 1000), self._clock.wall_ms()

    def _take(self, coordinated: _Coordinated, outcome: Outcome) -> None:
        """Append what was decided, set the timers, and let the replies go when all of it is durable."""
        partition = coordinated.partition
        if outcome.writes:
            now_ms = self._clock.wall_ms()
            batch = build_batch(outcome.writes, timestamp_ms=now_ms)
            self._flusher.append(partition, batch, read_header(batch), now_ms)
        self._cells[REBALANCES] += outcome.rebalances
        for key, deadline_ms in outcome.timers:
            self._set_timer(coordinated, key, deadline_ms)
        if not outcome.replies:
            return
        flush = partition.last_flush
        if flush is None:
            _reply(outcome)
        else:
            flush.answers.append(lambda _: _reply(outcome))

    def _set_timer(self, coordinated: _Coordinated, key: TimerKey, deadline_ms: int | None) -> None:
        old = coordinated.timers.pop(key, None)
        if old is not None:
            old.cancel()
        if deadline_ms is not None:
            delay = max(0.0, deadline_ms / 1000 - self._clock.monotonic())
            coordinated.timers[key] = self._clock.call_later(delay, self._fire, coordinated, key)

    def _fire(self, coordinated: _Coordinated, key: TimerKey) -> None:
        coordinated.timers.pop(key, None)
        now_ms, wall_ms = self._now()
        # A timer may run a fraction of a millisecond early; the shard compares whole ones.
        self._take(coordinated, coordinated.shard.on_timer(key, now_ms + 1, wall_ms))

    # Ownership's side

    async def load(self, partition: PartitionLog, state: bytes | None, replay_from: int) -> None:
        """Take over a partition that may coordinate groups: `state` from a manifest, then its records from
        `replay_from` on. It is served from `serve` on."""
        if partition.topic != OFFSETS_TOPIC:
            return
        for wait in backoff_seconds(self._random):
            try:
                shard = await self._replayed(partition, state, replay_from)
            except (StoreUnavailable, StoreUnclear):
                await self._clock.sleep(wait)
            else:
                self._loaded[partition.index] = _Coordinated(partition, shard)
                return

    async def _replayed(self, partition: PartitionLog, state: bytes | None, replay_from: int) -> GroupShard:
        shard = self._new_shard(state)
        async for _, batch in batches_from(partition, self._reader, max(replay_from, partition.log_start_offset)):
            shard.replay_batch(batch, replay_from)
        return shard

    def serve(self, partition: PartitionLog) -> None:
        """Begin to coordinate the groups of a partition that was loaded, or is new."""
        if partition.topic != OFFSETS_TOPIC:
            return
        self._failed.discard(partition.index)
        coordinated = self._loaded.pop(partition.index, None) or _Coordinated(partition, self._new_shard(None))
        self._serving[partition.index] = coordinated
        self._take(coordinated, coordinated.shard.activate(*self._now()))

    def fail(self, topic: Topic, index: int) -> None:
        """The groups of that partition can't be coordinated: what is stored of them is damaged."""
        if topic.name == OFFSETS_TOPIC:
            self._loaded.pop(index, None)
            self._failed.add(index)

    def snapshot(self, partition: PartitionLog) -> bytes | None:
        """The state to put into the slot's manifest; None if the partition coordinates nothing."""
        if partition.topic != OFFSETS_TOPIC:
            return None
        for shards in (self._serving, self._loaded, self._closed):
            coordinated = shards.get(partition.index)
            if coordinated is not None and coordinated.partition is partition:
                return coordinated.shard.snapshot()
        return None

    def close(self, partition: PartitionLog) -> None:
        """Coordinate the partition's groups no more: another worker will. Everyone who waits is sent there."""
        if partition.topic != OFFSETS_TOPIC:
            return
        coordinated = self._serving.pop(partition.index, None)
        if coordinated is not None:
            self._take(coordinated, coordinated.shard.deactivate(*self._now()))
        else:
            coordinated = self._loaded.pop(partition.index, None)
        if coordinated is not None:
            self._closed[partition.index] = coordinated

    def forget(self, partition: PartitionLog) -> None:
        """The partition was released."""
        if partition.topic == OFFSETS_TOPIC:
            self._closed.pop(partition.index, None)

    def topic_deleted(self, topic: Topic) -> None:
        """Forget the offsets committed for a topic that is gone."""
        for coordinated in self._serving.values():
            self._take(coordinated, coordinated.shard.on_topic_deleted(topic.name, topic.topic_id, *self._now()))

    def stop(self) -> None:
        """Call off every timer."""
        for coordinated in self._serving.values():
            for timer in coordinated.timers.values():
                timer.cancel()
            coordinated.timers.clear()

    def release_waiting(self) -> None:
        """Send everyone who waits for a rebalance to the next coordinator: this one is about to stop."""
        for coordinated in self._serving.values():
            self._take(coordinated, coordinated.shard.deactivate(*self._now()))

    def group_count(self) -> int:
        return sum(coordinated.shard.group_count() for coordinated in self._serving.values())

    def _new_shard(self, state: bytes | None) -> GroupShard:
        if state is None:
            return GroupShard(self._config, new_id=self._new_id, topic_id_of=self._topic_id)
        return GroupShard.restore(state, self._config, new_id=self._new_id, topic_id_of=self._topic_id)

    def _new_id(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _topic_id(self, name: str) -> bytes | None:
        topic = self._cluster.topic(name)
        return None if topic is None else topic.topic_id


def _reply(outcome: Outcome) -> None:
    for token, response in outcome.replies:
        if not token.done():
            token.set_result(response)


def java_hash(text: str) -> int:
    """Java's String.hashCode, as an unsigned 32-bit number: every client and tool computes coordinators with it."""
    value = 0
    encoded = text.encode("utf-16-be", "surrogatepass")
    for position in range(0, len(encoded), 2):
        value = (value * 31 + (encoded[position] << 8 | encoded[position + 1])) & 0xFFFFFFFF
    return value

"""A node that coordinates groups: real dispatch, handlers, shards, flusher and log on a store in memory.

Node 0 of two, which share the partitions of `__consumer_offsets`. Requests go in as bytes and answers come out as
bytes, through the client's side of the codec. Use inside a running loop.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
from collections.abc import Coroutine, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.control import NodeAddress
from kafscale.coordination.cluster import OFFSETS_TOPIC, Assignment, ClusterState, Topic, slot_of
from kafscale.coordination.topic_configs import effective
from kafscale.metrics import MetricsBlock
from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.records import iterate_records
from kafscale.protocol.schema import Buffer, Message
from kafscale.quota_use import QuotaUse
from kafscale.security.access import ANONYMOUS
from kafscale.storage.flusher import Flusher, FlushPolicy
from kafscale.storage.keys import Keys
from kafscale.storage.lookups import batches_from
from kafscale.storage.memory import MemoryStore
from kafscale.storage.partition import PartitionLog
from kafscale.storage.reads import ColdReader
from kafscale.storage.store import Purpose
from kafscale.storage.tail_cache import TailCache
from kafscale.storage.worker_log import WorkerLog
from workers.apis import handlers
from workers.authorization import Authority
from workers.caller import Caller
from workers.context import ClusterView
from workers.dispatch import Dispatcher
from workers.groups import Groups
from workers.lease import Lease
from workers.listener import Listener
from workers.quotas import Quotas

HERE, ELSEWHERE = 0, 1
SLOTS = 8
LOG_ID = "ab" * 16
KEYS = Keys("test")
CLIENT_HOST = "10.9.8.7"
TIMEOUT_SECONDS = 20.0
OFFSETS = Topic(OFFSETS_TOPIC, b"\x00" * 15 + b"\x01", 4)
FLIGHTS = Topic("flights", b"\x00" * 15 + b"\x02", 3)
PLANES = Topic("planes", b"\x00" * 15 + b"\x03", 1)


class Closed(Exception):
    """The connection was closed instead of an answer; says why."""


class HeldStore(MemoryStore):
    """A store that takes objects only while its gate is open."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.gate = asyncio.Event()
        self.gate.set()
        self.was_asked = asyncio.Event()

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        self.was_asked.set()
        await self.gate.wait()
        await super().put_if_absent(key, parts, purpose)


class _Pending:
    """The place of an answer, as a connection would have it."""

    def __init__(self) -> None:
        self.bytes: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.on_close = None

    def answer(self, buffers: list[Buffer] | None) -> None:
        assert buffers is not None
        self.bytes.set_result(b"".join(buffers))

    def close_connection(self, reason: str) -> None:
        self.bytes.set_exception(Closed(reason))


class GroupNode:
    """`is_loaded`: whether the groups that are assigned here are served already."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        is_loaded: bool = True,
        is_authorization_on: bool = False,
    ) -> None:
        self.settings = settings or Settings(group_initial_rebalance_delay_ms=0)
        self.listener = Listener("clients")
        clock = SystemClock()
        slots = [[Assignment(3, slot % 2, f"{slot % 2:032x}")] for slot in range(SLOTS)]
        topics = {topic.name: topic for topic in (OFFSETS, FLIGHTS, PLANES)}
        self.cluster = ClusterView(HERE, ClusterState(version=1, cluster_id="c1", slot_count=SLOTS, slots=slots))
        self.set_topics(topics)
        self.cluster.nodes = {n: NodeAddress(n, f"host{n}", 19092 + n, None) for n in (HERE, ELSEWHERE)}
        self.store = HeldStore()
        log = WorkerLog(self.store, KEYS, LOG_ID, clock, random.Random(1), _never_fenced)
        policy = FlushPolicy(flush_bytes=1 << 20, interval_s=None, gather_s=0.0)
        self.flusher = Flusher(log, KEYS, clock, policy, TailCache(1 << 24), lambda flush, seconds: None)
        self.reader = ColdReader(self.store, clock, 1 << 20)
        self.metrics = MetricsBlock.in_memory()
        self.groups = Groups(
            self.settings, clock, self.cluster, self.flusher, self.reader, random.Random(2), self.metrics
        )
        context: Any = SimpleNamespace(
            audit=None,
            quotas=Quotas(clock, self.metrics, QuotaUse.alone()),
            settings=self.settings,
            clock=clock,
            cluster=self.cluster,
            groups=self.groups,
            lease=Lease(clock, log, 3600.0),
            authority=Authority(clock, self.metrics, is_on=is_authorization_on),
            metrics=self.metrics,
        )
        self.dispatcher = Dispatcher(context, handlers())
        self.partitions: dict[int, PartitionLog] = {}
        self._correlation_ids = itertools.count(1000)
        if is_loaded:
            self.serve()

    def set_topics(self, topics: dict[str, Topic]) -> None:
        self.cluster.replace_state(msgspec.structs.replace(self.cluster.state, topics=topics))

    def serve(self) -> None:
        """Begin to coordinate the groups that are assigned here."""
        for index in range(OFFSETS.partitions):
            leader = self.cluster.leader(OFFSETS, index)
            if leader is not None and leader.node_id == HERE:
                slot = slot_of(OFFSETS.topic_id, index, SLOTS)
                config = effective(OFFSETS.configs, self.settings)
                partition = PartitionLog(OFFSETS.name, OFFSETS.topic_id, index, slot, leader.epoch, config)
                partition.lead(leader.epoch)
                self.partitions[index] = partition
                self.groups.serve(partition)

    def names(self, node_id: int = HERE, prefix: str = "group") -> Iterator[str]:
        """Group ids that this node coordinates."""
        for number in itertools.count():
            name = f"{prefix}-{number}"
            leader = self.groups.coordinator(name)
            if leader is not None and leader.node_id == node_id:
                yield name

    def name(self, node_id: int = HERE, prefix: str = "group") -> str:
        return next(self.names(node_id, prefix))

    def begin(self, key: ApiKey, version: int, message: Message, client_id: str | None = "tester") -> asyncio.Task[Any]:
        """Send a request; the task ends with the decoded answer, or raises Closed."""
        api = APIS[key]
        correlation_id = next(self._correlation_ids)
        frame = bytearray(b"".join(encode_request(api, version, correlation_id, client_id, message)))
        pending: Any = _Pending()
        connection = Caller(self.listener, CLIENT_HOST, ANONYMOUS, forwards=False)
        self.dispatcher(connection, frame, 4, len(frame), pending)
        # The receive buffer is used again at once.
        frame[:] = bytes(len(frame))

        async def decoded() -> Any:
            raw = await asyncio.wait_for(pending.bytes, TIMEOUT_SECONDS)
            (size,) = struct.unpack_from(">i", raw)
            assert size == len(raw) - 4
            answered, response = decode_response(api, version, raw, 4, len(raw))
            assert answered == correlation_id
            return response

        return asyncio.get_running_loop().create_task(decoded())

    async def ask(self, key: ApiKey, version: int, message: Message) -> Any:
        return await self.begin(key, version, message)

    async def records(self) -> list[tuple[bytes, bytes | None]]:
        """What the log says of groups, durable, oldest first in each partition."""
        found = []
        for partition in self.partitions.values():
            async for _, batch in batches_from(partition, self.reader, 0):
                found += [(record.key, record.value) for record in iterate_records(batch) if record.key is not None]
        return found


def _never_fenced(reason: str) -> None:
    raise AssertionError(reason)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)

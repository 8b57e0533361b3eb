"""A node without storage and processes: real connections, dispatch, handlers and admin, around a small real controller.

Requests go in as bytes and answers come out as bytes, through the client's side of the codec.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from kafscale.config import Settings
from kafscale.control import CommandReply, CommandRequest, NodeAddress
from kafscale.coordination.cluster import Assignment, ClusterState, Topic, Version, apply, slot_of
from kafscale.coordination.commands import CreateTopic, Draft, decide_all, decode_commands, encode_results
from kafscale.coordination.topic_configs import effective
from kafscale.errors import Invalid
from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.batches import build_batch, read_header
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.schema import Message
from kafscale.quota_use import QuotaUse
from kafscale.storage.extents import Extent
from kafscale.storage.keys import Keys
from kafscale.storage.memory import MemoryStore
from kafscale.storage.partition import PartitionLog
from kafscale.storage.reads import ColdReader
from tests.unit.workers.doubles import Bench, FakeTransport
from workers.admin import Admin
from workers.apis import handlers
from workers.authentication import Authenticator
from workers.authorization import Authority
from workers.context import ClusterView
from workers.dispatch import AnyHandler, Dispatcher
from workers.listener import Listener
from workers.producer_ids import ProducerIds
from workers.quotas import Quotas

NODE_ID = 0
OTHER_NODE_ID = 1
SLOTS = 8


class Partitions:
    """What is served here: the partitions of the slots that this node owns, and nothing durable about them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._found: dict[tuple[str | bytes, int], PartitionLog] = {}

    def follow(self, cluster: ClusterView) -> None:
        state = cluster.state
        alive: dict[tuple[str | bytes, int], PartitionLog] = {}
        for topic in state.topics.values():
            for index in range(topic.partitions):
                leader = cluster.leader(topic, index)
                if leader is None or leader.node_id != cluster.node_id:
                    continue
                found = self._found.get((topic.topic_id, index))
                if found is None:
                    slot = slot_of(topic.topic_id, index, state.slot_count)
                    config = effective(topic.configs, self._settings)
                    found = PartitionLog(topic.name, topic.topic_id, index, slot, leader.epoch, config)
                    found.lead(leader.epoch)
                alive[topic.topic_id, index] = alive[topic.name, index] = found
        self._found = alive

    def has_failed(self, topic_id: bytes, index: int) -> bool:
        return False

    def partition(self, topic: str | bytes, index: int) -> PartitionLog | None:
        return self._found.get((topic, index))

    def partitions(self) -> list[PartitionLog]:
        return [partition for (name, _), partition in self._found.items() if isinstance(name, str)]

    async def delete_records(self, partition: PartitionLog, before_offset: int) -> int:
        target = partition.high_watermark if before_offset == -1 else before_offset
        if not 0 <= target <= partition.high_watermark:
            raise Invalid(ErrorCode.OFFSET_OUT_OF_RANGE, f"{before_offset} is out of range")
        partition.start_at(target)
        return partition.log_start_offset


class Lease:
    """Fresh, or not."""

    fresh = True

    def is_fresh(self, now: float) -> bool:
        return self.fresh


class Node:
    """Node 0 of two, which share the slots. With authorization on nobody may anything until `authority` gets rules. Use
    inside a running loop."""

    def __init__(
        self,
        settings: Settings | None = None,
        is_authorization_on: bool = False,
        served: list[AnyHandler] | None = None,
        listener: Listener | None = None,
        quota_use: QuotaUse | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.is_controller_silent = False
        self.requests: list[CommandRequest] = []
        self._topic_numbers = itertools.count(1)
        self._correlation_ids = itertools.count(1000)
        slots = [[Assignment(3, slot % 2, f"{slot % 2:032x}")] for slot in range(SLOTS)]
        self.cluster = ClusterView(NODE_ID, ClusterState(version=1, cluster_id="c1", slot_count=SLOTS, slots=slots))
        self.set_nodes(NODE_ID, OTHER_NODE_ID)
        self.ownership = Partitions(self.settings)
        self.lease = Lease()
        dispatch: Any = lambda *frame: self.dispatcher(*frame)  # noqa: E731 - the bench comes first
        self.bench = Bench(dispatch, self.settings, listener=listener)
        self.clock = self.bench.clock
        self.admin = Admin(self.clock, self._decide)
        store = MemoryStore(self.clock)
        self.authority = Authority(self.clock, self.bench.metrics, is_on=is_authorization_on)
        self.quotas = Quotas(self.clock, self.bench.metrics, quota_use or QuotaUse.alone())
        self.context: Any = SimpleNamespace(
            settings=self.settings,
            clock=self.clock,
            cluster=self.cluster,
            ownership=self.ownership,
            lease=self.lease,
            admin=self.admin,
            cold_reader=ColdReader(store, self.clock, 1 << 20),
            authenticator=Authenticator(self.settings, self.clock, self.bench.metrics, lambda: None),
            producer_ids=ProducerIds(store, Keys("test"), self.clock, random.Random(1), "me"),
            authority=self.authority,
            quotas=self.quotas,
            audit=None,
            metrics=self.bench.metrics,
            tasks=set(),
        )
        self.dispatcher = Dispatcher(self.context, served or handlers())

    def set_nodes(self, *node_ids: int) -> None:
        self.cluster.nodes = {
            node_id: NodeAddress(node_id, f"host{node_id}", 19092 + node_id, None) for node_id in node_ids
        }

    # The controller

    def _decide(self, request: CommandRequest) -> None:
        self.requests.append(request)
        if not self.is_controller_silent:
            asyncio.get_running_loop().call_soon(self.answer, request)

    def answer(self, request: CommandRequest) -> None:
        state = self.cluster.state
        changes, results = decide_all(
            Draft(state),
            decode_commands(request.commands),
            lambda: next(self._topic_numbers).to_bytes(16, "big"),
            self.clock.wall_ms(),
            self.settings.auto_create_partitions,
        )
        if changes:
            state = apply(state, Version(state.version + 1, "controller", 0, changes))
            self.cluster.replace_state(state)
            self.context.authenticator.follow(state)
            self.quotas.follow(state.quotas)
            self.bench.connections.quotas_changed()
            self.ownership.follow(self.cluster)
        self.admin.on_reply(CommandReply(request.request_id, state.version, encode_results(results)))

    # The client

    async def create(self, name: str, partitions: int = 4) -> Topic:
        # A controller that fails must fail the test, not hang it.
        (result,) = await asyncio.wait_for(self.admin.submit([CreateTopic(name=name, partitions=partitions)]), 10)
        assert result.topic is not None, result
        return result.topic

    def connect(self) -> FakeTransport:
        return self.bench.connect()

    async def call(self, key: ApiKey, version: int, message: Message, transport: FakeTransport | None = None) -> Any:
        """The answer to a request of this version, decoded; None if the connection was closed instead."""
        api = APIS[key]
        correlation_id = next(self._correlation_ids)
        request = b"".join(encode_request(api, version, correlation_id, "tester", message))
        raw = await self.exchange(request, transport or self.connect())
        if raw is None:
            return None
        (size,) = struct.unpack_from(">i", raw)
        assert size == len(raw) - 4
        answered, response = decode_response(api, version, raw, 4, len(raw))
        assert answered == correlation_id
        return response

    async def until(self, condition: Callable[[], bool]) -> None:
        """Turns of the loop until `condition` holds."""
        for _ in range(1000):
            self.bench.settle()
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("it did not come to that")

    async def exchange(self, request: bytes, transport: FakeTransport) -> bytes | None:
        """The bytes that come back for some bytes; None if the connection was closed."""
        before = len(transport.written)
        transport.send(request)
        await self.until(lambda: len(transport.written) > before or transport.is_closing)
        return transport.written[before:] or None


def append(partition: PartitionLog, timestamps: list[int], value: bytes = b"v") -> None:
    """A durable batch with records of these times, in memory."""
    base_offset = partition.next_offset
    batch = build_batch([(None, value)] * len(timestamps), base_offset, partition.leader_epoch, timestamps=timestamps)
    header = read_header(batch)
    partition.next_offset = header.last_offset + 1
    partition.commit(
        Extent(base_offset, header.last_offset, header.max_timestamp, f"k/{base_offset}", 0, len(batch), [batch])
    )

"""A whole worker in virtual time: all that production wires, on a store in memory that can be held and made to fail.

Requests go in as bytes on a connection and answers come out as bytes. Node 0 of two, which share the slots; the cluster
log is played by the test. Use inside `run`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from kafscale.config import Settings
from kafscale.control import ClusterVersion, Configure, NodeAddress, Ping, Pong
from kafscale.coordination.cluster import (
    Assignment,
    Change,
    ClusterState,
    CreateTopic,
    DeleteTopic,
    SetConfigs,
    SetPartitions,
    Topic,
    Version,
    apply,
    encode_state,
    encode_version,
)
from kafscale.metrics import MetricsBlock
from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.batches import build_batch
from kafscale.protocol.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from kafscale.protocol.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from kafscale.protocol.schema import Message
from kafscale.quota_use import QuotaUse
from kafscale.storage.keys import Keys
from kafscale.storage.metered import Meter, MeteredStore
from kafscale.storage.partition import PartitionLog
from kafscale.storage.reads import ColdReader
from kafscale.storage.store import Buffer, Purpose
from tests.sim import loop as sim
from tests.unit.storage.rig import EPOCH_MS, LoopClock, ScriptedStore, log_id
from tests.unit.workers.doubles import FakeTransport
from workers.connection import Connection
from workers.peers.peers import Dial, no_way
from workers.worker import Worker

HERE, ELSEWHERE = 0, 1
SLOTS = 4
EPOCH = 3
# No test goes on for longer, or what it waits for never comes.
END_OF_TIME = 7200.0

_Result = TypeVar("_Result")


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run `main` in virtual time; what nobody caught fails the test."""
    loop = sim.SimLoop(END_OF_TIME)
    result = sim.run(main, loop)
    assert not loop.uncaught, loop.uncaught
    return result


class HeldStore(ScriptedStore):
    """A store that takes objects whose key has `held` in it only while its gate is open."""

    def __init__(self) -> None:
        super().__init__(LoopClock())
        self.gate = asyncio.Event()
        self.gate.set()
        self.held = "/log/"

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        if self.held in key and not self.gate.is_set():
            self._note("held", key)
            await self.gate.wait()
        await super().put_if_absent(key, parts, purpose)

    def bodies(self) -> dict[str, bytes]:
        """Everything in the store."""
        return {key: body for key, (body, _) in self.inner._objects.items()}


class Client(FakeTransport):
    """One connection to the worker. Answers are read with `answer`, in order."""

    def __init__(self, protocol: Connection) -> None:
        self._woken = asyncio.Event()
        self._read_to = 0
        super().__init__(protocol)

    def write(self, data: Any) -> None:
        super().write(data)
        self._woken.set()

    def writelines(self, parts: list[Any]) -> None:
        super().writelines(parts)
        self._woken.set()

    def close(self) -> None:
        super().close()
        self._woken.set()
        asyncio.get_running_loop().call_soon(self.lose)

    def resume_reading(self) -> None:
        super().resume_reading()
        asyncio.get_running_loop().call_soon(self.send)

    def lose(self, error: Exception | None = None) -> None:
        if self.protocol in self.protocol._shared._all:
            super().lose(error)

    async def frame(self) -> bytes | None:
        """The next answer, whole; None if the connection is closed first."""
        while True:
            written = self.written
            if len(written) >= self._read_to + 4:
                (size,) = struct.unpack_from(">i", written, self._read_to)
                if len(written) >= self._read_to + 4 + size:
                    start, self._read_to = self._read_to, self._read_to + 4 + size
                    return written[start : self._read_to]
            if self.is_closing:
                return None
            self._woken.clear()
            await self._woken.wait()

    @property
    def has_answers(self) -> bool:
        """Whether something came that was not read yet."""
        return len(self.written) > self._read_to

    async def answer(self, key: ApiKey, version: int) -> Any:
        """The next answer, decoded; None if the connection is closed first."""
        raw = await self.frame()
        if raw is None:
            return None
        _, response = decode_response(APIS[key], version, raw, 4, len(raw))
        return response


class WholeWorker:
    """A worker, its store and its clients."""

    def __init__(
        self,
        settings: Settings | None = None,
        store: HeldStore | None = None,
        *,
        log_number: int = 1,
        state: ClusterState | None = None,
        node_id: int = HERE,
        nodes: Sequence[NodeAddress] | None = None,
        dial: Dial = no_way,
        quota_use: QuotaUse | None = None,
    ) -> None:
        self.clock = LoopClock()
        self.store = store or HeldStore()
        self.settings = settings or Settings(cluster_namespace="ns")
        self.keys = Keys(self.settings.cluster_namespace)
        self.log_id = log_id(log_number)
        self.state = state or first_state()
        self.sent: list[Any] = []
        self.stopped: list[str] = []
        self.metrics = MetricsBlock.in_memory()
        nodes = nodes or [NodeAddress(node, f"host{node}", 19092 + node, None) for node in (HERE, ELSEWHERE)]
        configure = Configure(
            settings=self.settings,
            worker_index=0,
            node_id=node_id,
            log_id=self.log_id,
            cluster_state=encode_state(self.state),
            nodes=list(nodes),
            sockets=[],
            metrics_fd=-1,
        )
        self.worker = Worker(
            configure,
            MeteredStore(self.store, Meter(self.metrics.cells, self.clock)),
            self.clock,
            random.Random(log_number),
            self.metrics,
            self._sent,
            self.stopped.append,
            dial=dial,
            quota_use=quota_use,
        )
        # Of the connections that are made from now on: the first of those that are configured.
        self.listener = next(iter(self.worker._listeners.values()))
        self._correlation_ids = itertools.count(1000)

    def let_in(self) -> None:
        """Take connections, before any slot is loaded."""
        self.worker.connections.start(asyncio.get_running_loop().call_soon)

    async def start(self) -> WholeWorker:
        self._keep_pinging()
        await self.worker.start()
        return self

    def _keep_pinging(self) -> None:
        if not self.worker.is_stopped:
            self.ping()
            self.clock.call_later(1.0, self._keep_pinging)

    def _sent(self, message: Any) -> None:
        if not isinstance(message, Pong):
            self.sent.append(message)

    async def checkpoint(self) -> None:
        """Write one, and delete what may go after it, as the worker does now and then."""
        await self.worker.checkpointer.write()
        await self.worker.checkpointer.delete_doomed()

    def stop(self) -> None:
        """As a crash: what is in flight comes to nothing."""
        self.worker.stop("the test ends")

    # The supervisor

    def decide(self, *changes: Change) -> None:
        """The next version of the cluster log."""
        version = Version(self.state.version + 1, "controller", 0, list(changes))
        self.state = apply(self.state, version)
        if not self.worker.is_stopped:
            self.worker.receive(ClusterVersion(version.version, encode_version(version)))

    def ping(self) -> None:
        self.worker.receive(Ping(1, self.clock.monotonic()))

    def create(self, name: str, number: int, partitions: int = 1, **configs: str) -> Topic:
        """A topic whose partition 0 is ours where `number` is even."""
        topic = Topic(name, id_of(number), partitions, {key.replace("_", "."): value for key, value in configs.items()})
        self.decide(CreateTopic(topic))
        return topic

    def delete(self, name: str) -> None:
        self.decide(DeleteTopic(name, self.state.topics[name].topic_id))

    def grow(self, name: str, partitions: int) -> None:
        self.decide(SetPartitions(name, partitions))

    def configure(self, name: str, **configs: str) -> None:
        self.decide(SetConfigs(name, {key.replace("_", "."): value for key, value in configs.items()}))

    def partition(self, name: str, index: int = 0) -> PartitionLog:
        found = self.worker.ownership.partition(name, index)
        assert found is not None, (name, index)
        return found

    @property
    def reader(self) -> ColdReader:
        """What the worker reads back from its store with."""
        return self.worker.groups._reader

    # The clients

    def connect(self) -> Client:
        return Client(Connection(self.worker.connections, self.listener))

    def send(
        self, client: Client, key: ApiKey, version: int, message: Message, client_id: str | None = "tester"
    ) -> None:
        client.send(b"".join(encode_request(APIS[key], version, next(self._correlation_ids), client_id, message)))

    async def call(self, key: ApiKey, version: int, message: Message, client: Client | None = None) -> Any:
        """The answer; None if the connection was closed instead."""
        client = client or self.connect()
        self.send(client, key, version, message)
        return await client.answer(key, version)

    async def produce(self, topic: str, *batches: bytearray, index: int = 0, client: Client | None = None) -> list[int]:
        """Produce one batch after the other; returns their base offsets. Every one must be taken."""
        client = client or self.connect()
        bases = []
        for batch in batches:
            answer = await self.call(ApiKey.PRODUCE, 9, produce_request((topic, index, batch)), client)
            result = answer.responses[0].partition_responses[0]
            assert result.error_code == 0, result
            bases.append(result.base_offset)
        return bases


def first_state(log_number: int = 1) -> ClusterState:
    """Node 0 owns the even slots, node 1 the odd ones."""
    slots = [[Assignment(EPOCH, slot % 2, log_id(log_number if slot % 2 == 0 else 99))] for slot in range(SLOTS)]
    return ClusterState(version=1, cluster_id="c1", slot_count=SLOTS, slots=slots)


def id_of(number: int) -> bytes:
    """A topic id; its first eight bytes decide the slots."""
    return number.to_bytes(8, "big") + b"\0" * 7 + b"\1"


def batch_of(*values: bytes, **options: Any) -> bytearray:
    """A batch as a client sends it, its records made when virtual time began."""
    options.setdefault("timestamp_ms", EPOCH_MS)
    return build_batch([(None, value) for value in values or (b"v",)], **options)


def produce_request(
    *data: tuple[str | bytes, int, Buffer | None],
    acks: int = -1,
    timeout_ms: int = 30_000,
    transactional_id: str | None = None,
) -> ProduceRequest:
    """Entries of one topic that stand together share a topic entry. Topics by name, or by id (bytes)."""
    topics = []
    for topic, entries in itertools.groupby(data, key=lambda entry: entry[0]):
        partitions = [
            PartitionProduceData(index=index, records=None if records is None else memoryview(bytes(records)))
            for _, index, records in entries
        ]
        named = {"topic_id": topic} if isinstance(topic, bytes) else {"name": topic}
        topics.append(TopicProduceData(partition_data=partitions, **named))
    return ProduceRequest(transactional_id=transactional_id, acks=acks, timeout_ms=timeout_ms, topic_data=topics)


def fetch_request(
    *wanted: tuple[str | bytes, int, int],
    max_wait_ms: int = 0,
    min_bytes: int = 1,
    max_bytes: int = 50 << 20,
    partition_max_bytes: int = 1 << 20,
    session_id: int = 0,
    **fields: int,
) -> FetchRequest:
    """Of each (topic, partition, offset); `fields` go to every partition."""
    topics = []
    for topic, entries in itertools.groupby(wanted, key=lambda entry: entry[0]):
        partitions = [
            FetchPartition(partition=index, fetch_offset=offset, partition_max_bytes=partition_max_bytes, **fields)
            for _, index, offset in entries
        ]
        named = {"topic_id": topic} if isinstance(topic, bytes) else {"topic": topic}
        topics.append(FetchTopic(partitions=partitions, **named))
    return FetchRequest(
        max_wait_ms=max_wait_ms,
        min_bytes=min_bytes,
        max_bytes=max_bytes,
        session_id=session_id,
        session_epoch=-1,
        topics=topics,
    )

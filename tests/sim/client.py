"""What simulated Kafka clients have in common: connections, requests and answers in real bytes, and the cluster's map.

A client speaks versions that it draws by its seed, follows leaders as Kafka's clients do (metadata, back-off, retries),
and writes down in the history what it did and saw. It must not know anything of the broker but the protocol.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from kafscale.protocol.schema import Message
from tests.sim.history import Event, History, Partition
from tests.sim.network import ClientEnd, Network
from tests.sim.world import Process, SimClock, World

REQUEST_TIMEOUT_SECONDS = 8.0
BACKOFF_SECONDS = 0.1
RECONNECT_BACKOFF_MAX_SECONDS = 1.0
BOOTSTRAP_PORT = 9092

# What says "look for the leader again, and send it again".
MOVED = frozenset(
    {
        ErrorCode.NOT_LEADER_OR_FOLLOWER,
        ErrorCode.LEADER_NOT_AVAILABLE,
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.UNKNOWN_TOPIC_ID,
        ErrorCode.FENCED_LEADER_EPOCH,
        ErrorCode.UNKNOWN_LEADER_EPOCH,
        ErrorCode.OFFSET_NOT_AVAILABLE,
        ErrorCode.REQUEST_TIMED_OUT,
        ErrorCode.KAFKA_STORAGE_ERROR,
        ErrorCode.NOT_ENOUGH_REPLICAS,
        ErrorCode.COORDINATOR_LOAD_IN_PROGRESS,
        ErrorCode.COORDINATOR_NOT_AVAILABLE,
        ErrorCode.NOT_COORDINATOR,
    }
)


class Lost(Exception):
    """The connection is gone, or the answer did not come in time: what became of the request nobody knows."""


class Recorder:
    """The history being written, and numbers for what is in it."""

    def __init__(self) -> None:
        self.history = History([], {})
        self._number = 0
        self.operations = 0
        # Of a process that answered: the log that it writes, and whether it answered for a partition, or a group, that
        # is another's meanwhile, since the store could not warn it. The broker's part of the world knows.
        self.log_of: Callable[[Process], str] = lambda server: ""
        self.is_unwarned: Callable[[Process, Partition | str, float], bool] = lambda server, what, asked_at: False

    def number(self) -> int:
        self._number += 1
        return self._number

    def add(self, event: Event) -> None:
        self.history.events.append(event)


class Wire:
    """One connection: requests in a row, answers in the same order."""

    def __init__(self, world: World, end: ClientEnd, client_id: str) -> None:
        self._world = world
        self._end = end
        self._client_id = client_id
        self._correlation_id = 0
        self._waiting: deque[tuple[int, ApiKey, int, asyncio.Future[Any]]] = deque()
        self._received = bytearray()
        end.on_data = self._data
        end.on_lost = self._lost

    @property
    def is_lost(self) -> bool:
        return self._end.is_lost

    @property
    def server(self) -> Process:
        """The process at the other end."""
        return self._end.server_process

    def send(self, key: ApiKey, version: int, message: Message) -> asyncio.Future[Any]:
        """Send a request; the future gives its answer, or raises Lost."""
        self._correlation_id += 1
        answer: asyncio.Future[Any] = self._world.loop.create_future()
        if self._end.is_lost:
            answer.set_exception(Lost("the connection was gone already"))
            return answer
        frame = encode_request(APIS[key], version, self._correlation_id, self._client_id, message)
        self._waiting.append((self._correlation_id, key, version, answer))
        self._end.send(b"".join(frame))
        return answer

    def send_unanswered(self, key: ApiKey, version: int, message: Message) -> None:
        """Send a request that gets no answer (acks=0)."""
        self._correlation_id += 1
        frame = encode_request(APIS[key], version, self._correlation_id, self._client_id, message)
        self._end.send(b"".join(frame))

    async def ask(self, key: ApiKey, version: int, message: Message) -> Any:
        return await self.wait(self.send(key, version, message))

    async def wait(self, answer: asyncio.Future[Any], seconds: float = REQUEST_TIMEOUT_SECONDS) -> Any:
        """The answer; a client that loses patience gives the whole connection up, as real ones do."""
        patience = self._world.loop.call_later(seconds, self.close)
        try:
            return await answer
        finally:
            patience.cancel()

    def close(self) -> None:
        self._end.close()

    def _data(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= 4:
            (size,) = struct.unpack_from(">i", self._received)
            if len(self._received) < 4 + size:
                break
            frame = bytes(self._received[4 : 4 + size])
            del self._received[: 4 + size]
            self._answer(frame)

    def _answer(self, frame: bytes) -> None:
        if not self._waiting:
            self._world.complain(f"{self._end.name} got an answer to nothing")
            return
        expected, key, version, answer = self._waiting.popleft()
        try:
            correlation_id, message = decode_response(APIS[key], version, frame, 0, len(frame))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the broker's fault
            self._world.complain(f"{self._end.name} can't read the answer to {key.name} v{version}: {error!r}")
            self.close()
            return
        if correlation_id != expected:
            self._world.complain(f"{self._end.name} got answer {correlation_id} where {expected} comes next")
            self.close()
        elif not answer.done():
            answer.set_result(message)

    def _lost(self) -> None:
        while self._waiting:
            answer = self._waiting.popleft()[3]
            if not answer.done():
                answer.set_exception(Lost("the connection broke"))
                answer.exception()  # Nobody need have waited for it.


class Client:
    """A client with its own process, chance and map of the cluster."""

    def __init__(self, world: World, network: Network, recorder: Recorder, name: str) -> None:
        self.name = name
        self.world = world
        self.process = world.process(name)
        self.clock = SimClock(world, self.process)
        self.random: random.Random = world.stream(name)
        self.recorder = recorder
        self._network = network
        self._ports: dict[int, int] = {}
        self._wires: dict[int, Wire] = {}
        # Port → how often in a row nobody was there.
        self._refusals: dict[int, int] = {}
        # (topic, partition) → (node, leader epoch); topic → id.
        self.leaders: dict[tuple[str, int], tuple[int, int]] = {}
        self.topic_ids: dict[str, bytes] = {}
        self.partition_counts: dict[str, int] = {}
        self.metadata_version = self.random.choice((4, 7, 9, 12, 13))

    async def backoff(self) -> None:
        await asyncio.sleep(BACKOFF_SECONDS * self.random.uniform(0.5, 1.5))

    async def connect(self, port: int) -> Wire:
        """A connection of its own. Raises Lost, and the later the more often nobody was there."""
        try:
            end = await self._network.connect(port, self.process)
        except ConnectionRefusedError as error:
            refusals = self._refusals[port] = self._refusals.get(port, 0) + 1
            seconds = min(BACKOFF_SECONDS * 2 ** (refusals - 1), RECONNECT_BACKOFF_MAX_SECONDS)
            await asyncio.sleep(seconds * self.random.uniform(0.8, 1.2))
            raise Lost(str(error)) from error
        self._refusals.pop(port, None)
        return Wire(self.world, end, self.name)

    async def wire_to(self, node: int) -> Wire:
        """The connection to a node. Raises Lost."""
        wire = self._wires.get(node)
        if wire is None or wire.is_lost:
            if node not in self._ports:
                raise Lost(f"node {node} is not known")
            wire = self._wires[node] = await self.connect(self._ports[node])
        return wire

    async def fresh_wire_to(self, node: int) -> Wire:
        """Another connection to the node, in parallel to the usual one. Raises Lost."""
        if node not in self._ports:
            raise Lost(f"node {node} is not known")
        return await self.connect(self._ports[node])

    async def ask_any(self, key: ApiKey, version: int, message: Message) -> Any:
        """Ask a node at random, or whoever answers the bootstrap address. Raises Lost."""
        nodes = [*self._ports, -1]
        node = nodes[self.random.randrange(len(nodes))]
        if node >= 0:
            return await (await self.wire_to(node)).ask(key, version, message)
        wire = await self.connect(BOOTSTRAP_PORT)
        try:
            return await wire.ask(key, version, message)
        finally:
            wire.close()

    async def refresh(self, *topics: str) -> bool:
        """Learn the leaders of these topics; False if it did not work this time."""
        asked = [MetadataRequestTopic(name=topic) for topic in topics]
        request = MetadataRequest(topics=asked, allow_auto_topic_creation=False)
        try:
            answer = await self.ask_any(ApiKey.METADATA, self.metadata_version, request)
        except Lost:
            return False
        for broker in answer.brokers:
            self._ports[broker.node_id] = broker.port
        known = False
        for topic in answer.topics:
            if topic.error_code:
                continue
            known = True
            if self.metadata_version >= 10:
                self.topic_ids[topic.name] = topic.topic_id
            self.partition_counts[topic.name] = len(topic.partitions)
            for partition in topic.partitions:
                self._learn(topic.name, partition)
        return known

    def _learn(self, topic: str, partition: Any) -> None:
        """Take a leader over, unless it is of an older epoch than what is known, as Kafka's clients do (KIP-320)."""
        key = (topic, partition.partition_index)
        before = self.leaders.get(key)
        epoch = partition.leader_epoch
        if partition.leader_id < 0 or (before is not None and 0 <= epoch < before[1]):
            return
        self.leaders[key] = (partition.leader_id, epoch)

    async def leader_of(self, topic: str, partition: int) -> int:
        """The leading node, looked for until it is found."""
        while (topic, partition) not in self.leaders:
            await self.refresh(topic)
            if (topic, partition) not in self.leaders:
                await self.backoff()
        return self.leaders[topic, partition][0]

    async def until(self, what: Callable[[], Any]) -> Any:
        """Repeat an attempt (a coroutine function) until it returns something that is not None."""
        while True:
            try:
                result = await what()
            except Lost:
                result = None
            if result is not None:
                return result
            await self.backoff()

    def unexpected(self, what: str, code: int) -> None:
        """An answer that no fault explains."""
        self.world.complain(f"{self.name}: {what} was answered with {ErrorCode(code).name}")

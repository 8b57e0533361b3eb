"""A simulated producer, idempotent or not: up to five batches of a partition in flight, sent again until answered."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from kafscale.protocol.api import ApiKey
from kafscale.protocol.batches import build_batch
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.init_producer_id import InitProducerIdRequest
from kafscale.protocol.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from tests.sim.client import MOVED, Client, Lost, Recorder, Wire
from tests.sim.history import ProduceAcknowledged, ProduceInvoked, ProduceRefused
from tests.sim.network import Network
from tests.sim.world import EPOCH_MS, World

IN_FLIGHT_MAX = 5
# The same next batch refused as out of order so often: its predecessor is not coming back.
OUT_OF_ORDER_MAX = 60


@dataclass
class Batch:
    op: int
    number: int
    base_sequence: int
    values: tuple[str, ...]
    records: bytes


@dataclass
class Lane:
    """One partition of a producer."""

    topic: str
    partition: int
    left: int
    made: int = 0
    sequence: int = 0
    unacknowledged: deque[Batch] = field(default_factory=deque)
    # The broker remembers a producer's last five batches of a partition.
    recent: deque[Batch] = field(default_factory=lambda: deque(maxlen=IN_FLIGHT_MAX))
    out_of_order: int = 0


class Producer(Client):
    """Sends `batches` batches to every partition; `run` returns when each is acknowledged."""

    def __init__(
        self,
        world: World,
        network: Network,
        recorder: Recorder,
        name: str,
        partitions: list[tuple[str, int]],
        batches: int,
        pace_seconds: float,
        idempotent: bool = True,
    ) -> None:
        super().__init__(world, network, recorder, name)
        self._lanes = [Lane(topic, partition, batches) for topic, partition in partitions]
        self._pace_seconds = pace_seconds
        self._idempotent = idempotent
        self._version = self.random.choice((3, 7, 9, 11, 12, 13))
        if self._version >= 13:
            self.metadata_version = 12
        self._acks = self.random.choice((-1, -1, -1, 1))
        self._timeout_ms = self.random.choice((1500, 5000, 30_000))
        self._producer_id = -1
        self._producer_epoch = -1

    async def run(self) -> None:
        if self._idempotent:
            answer = await self.until(self._init)
            self._producer_id, self._producer_epoch = answer.producer_id, answer.producer_epoch
        await asyncio.gather(*(self._fill(lane) for lane in self._lanes))

    async def _init(self) -> Any:
        answer = await self.ask_any(ApiKey.INIT_PRODUCER_ID, 4, InitProducerIdRequest(transactional_id=None))
        if answer.error_code == 0:
            return answer
        if answer.error_code not in MOVED:
            self.unexpected("InitProducerId", answer.error_code)
        return None

    async def _fill(self, lane: Lane) -> None:
        await self.leader_of(lane.topic, lane.partition)
        while lane.left or lane.unacknowledged:
            window = self.random.randint(1, IN_FLIGHT_MAX)
            while lane.left and len(lane.unacknowledged) < window:
                self._make(lane)
            try:
                moved = await self._send_window(lane)
            except Lost:
                moved = True
            if moved:
                await self.backoff()
                await self.refresh(lane.topic)
            elif self._idempotent and lane.recent and self.random.random() < 0.05:
                await self._repeat(lane)
            if lane.left and self.random.random() < 0.5:
                await asyncio.sleep(self.random.expovariate(1 / self._pace_seconds))

    def _make(self, lane: Lane) -> None:
        count = self.random.randint(1, 4)
        name = f"{self.name}/{lane.topic}-{lane.partition}/{lane.made}"
        padding = "x" * self.random.choice((0, 0, 0, 100, 2000))
        values = tuple(f"{name}.{place}" for place in range(count))
        batch = build_batch(
            [(self.name.encode(), f"{value} {padding}".encode()) for value in values],
            timestamp_ms=EPOCH_MS + int(self.world.loop.time() * 1000),
            producer_id=self._producer_id,
            producer_epoch=self._producer_epoch,
            base_sequence=lane.sequence if self._idempotent else -1,
        )
        op = self.recorder.number()
        self.recorder.operations += 1
        self.recorder.add(
            ProduceInvoked(op, self.name, (lane.topic, lane.partition), lane.made, values, self._idempotent)
        )
        lane.unacknowledged.append(Batch(op, lane.made, lane.sequence, values, bytes(batch)))
        lane.made += 1
        lane.left -= 1
        lane.sequence += count

    def _request(self, lane: Lane, batch: Batch) -> ProduceRequest:
        data = PartitionProduceData(index=lane.partition, records=batch.records)
        topic = TopicProduceData(
            name=lane.topic, topic_id=self.topic_ids.get(lane.topic, bytes(16)), partition_data=[data]
        )
        return ProduceRequest(acks=self._acks, timeout_ms=self._timeout_ms, topic_data=[topic])

    async def _send_window(self, lane: Lane) -> bool:
        """Send all that is unacknowledged, in order, and take the answers. True if the leader should be looked up."""
        node = await self.leader_of(lane.topic, lane.partition)
        wire = await self.wire_to(node)
        batches = list(lane.unacknowledged)
        twin = asyncio.ensure_future(self._twin(lane, node, batches[0])) if self._sends_twins() else None
        answers = [wire.send(ApiKey.PRODUCE, self._version, self._request(lane, batch)) for batch in batches]
        moved = False
        for batch, answer in zip(batches, answers, strict=True):
            try:
                response = await wire.wait(answer)
            except Lost:
                moved = True
                continue
            is_next = bool(lane.unacknowledged) and batch is lane.unacknowledged[0]
            moved = not self._take(lane, batch, response, is_next) or moved
        if twin is not None:
            await twin
        return moved

    def _sends_twins(self) -> bool:
        return self._idempotent and self.random.random() < 0.1

    async def _twin(self, lane: Lane, node: int, batch: Batch) -> None:
        """The same batch over another connection at the same time: what a client does that lost its first one."""
        wire: Wire | None = None
        try:
            wire = await self.fresh_wire_to(node)
            response = await wire.ask(ApiKey.PRODUCE, self._version, self._request(lane, batch))
        except Lost:
            return
        finally:
            if wire is not None:
                wire.close()
        self._take(lane, batch, response, is_next=False)

    async def _repeat(self, lane: Lane) -> None:
        """Send something once more that was acknowledged: the answer must be the same."""
        batch = lane.recent[self.random.randrange(len(lane.recent))]
        self.recorder.operations += 1
        try:
            wire = await self.wire_to(await self.leader_of(lane.topic, lane.partition))
            response = await wire.ask(ApiKey.PRODUCE, self._version, self._request(lane, batch))
        except Lost:
            return
        self._take(lane, batch, response, is_next=False)

    def _take(self, lane: Lane, batch: Batch, response: Any, is_next: bool) -> bool:
        """Take one answer over; False if it should be sent again."""
        result = response.responses[0].partition_responses[0]
        code = result.error_code
        if code in (ErrorCode.NONE, ErrorCode.DUPLICATE_SEQUENCE_NUMBER):
            offset = result.base_offset if code == ErrorCode.NONE else -1
            self.recorder.add(ProduceAcknowledged(batch.op, offset))
            if lane.unacknowledged and lane.unacknowledged[0] is batch:
                lane.unacknowledged.popleft()
                lane.recent.append(batch)
                lane.out_of_order = 0
            return True
        if code == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER:
            if is_next:
                lane.out_of_order += 1
                if lane.out_of_order > OUT_OF_ORDER_MAX:
                    self._give_up(lane, batch, code)
            return False
        if code not in MOVED:
            self._give_up(lane, batch, code)
        return False

    def _give_up(self, lane: Lane, batch: Batch, code: int) -> None:
        self.unexpected(f"batch {batch.number} of {lane.topic}-{lane.partition}", code)
        if batch in lane.unacknowledged:
            self.recorder.add(ProduceRefused(batch.op))
            lane.unacknowledged.clear()
            lane.left = 0

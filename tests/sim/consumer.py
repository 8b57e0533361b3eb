"""Simulated readers: fetching partitions from wherever they are led, alone or as a member of a consumer group."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from kafscale.errors import Corrupt, Invalid
from kafscale.protocol.api import ApiKey
from kafscale.protocol.batches import check_stored, iterate
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from kafscale.protocol.messages.find_coordinator import FindCoordinatorRequest
from kafscale.protocol.messages.heartbeat import HeartbeatRequest
from kafscale.protocol.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from kafscale.protocol.messages.leave_group import LeaveGroupRequest, MemberIdentity
from kafscale.protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from kafscale.protocol.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from kafscale.protocol.messages.offset_fetch import OffsetFetchRequest, OffsetFetchRequestTopic
from kafscale.protocol.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment
from kafscale.protocol.records import iterate_records
from tests.sim.client import MOVED, Client, Lost, Recorder, Wire
from tests.sim.history import (
    Assigned,
    CommitAcknowledged,
    CommitInvoked,
    CommitRefused,
    Fetched,
    FetchInvoked,
    FinalLog,
    OffsetFetched,
    OffsetFetchInvoked,
    Partition,
    PositionSet,
)
from tests.sim.network import Network
from tests.sim.world import World

EARLIEST, LATEST = -2, -1
SESSION_TIMEOUT_MS = 6000


class Consumer(Client):
    """Reads partitions from the position of each on. `positions` is the next offset of every partition read."""

    def __init__(self, world: World, network: Network, recorder: Recorder, name: str) -> None:
        super().__init__(world, network, recorder, name)
        self.positions: dict[Partition, int] = {}
        # What was last said of each partition: its high watermark and log start offset.
        self.ends: dict[Partition, int] = {}
        self.starts: dict[Partition, int] = {}
        self._fetch_version = self.random.choice((4, 7, 9, 11, 12, 13, 16, 17))
        if self._fetch_version >= 13:
            self.metadata_version = 12
        self._partition_max_bytes = self.random.choice((200, 4000, 1 << 20))

    def seek(self, partition: Partition, offset: int) -> None:
        self.positions[partition] = offset
        self.recorder.add(PositionSet(self.name, partition, offset))

    async def poll(self, max_wait_ms: int) -> int:
        """Fetch once from every leader of what is read. Returns how many records came."""
        by_node: dict[int, list[Partition]] = {}
        for partition in self.positions:
            by_node.setdefault(await self.leader_of(*partition), []).append(partition)
        if not by_node:
            await self.backoff()
            return 0
        polls = (self._fetch(node, partitions, max_wait_ms) for node, partitions in sorted(by_node.items()))
        results = await asyncio.gather(*polls)
        if any(moved for _, moved in results):
            await self.backoff()
            await self.refresh(*sorted({topic for topic, _ in self.positions}))
        return sum(count for count, _ in results)

    async def _fetch(self, node: int, partitions: list[Partition], max_wait_ms: int) -> tuple[int, bool]:
        asked = {partition: self.positions[partition] for partition in partitions}
        request_number = self.recorder.number()
        self.recorder.operations += 1
        self.recorder.add(FetchInvoked(request_number, self.name))
        epochs = {partition: self.leaders[partition][1] for partition in partitions}
        asked_at = self.world.loop.time()
        try:
            wire = await self.wire_to(node)
            answer = await wire.ask(ApiKey.FETCH, self._fetch_version, self._fetch_request(asked, epochs, max_wait_ms))
        except Lost:
            return 0, True
        count, moved = 0, False
        for topic in answer.responses:
            name = topic.topic if self._fetch_version < 13 else self._topic_named(topic.topic_id)
            for data in topic.partitions:
                partition = (name, data.partition_index)
                # A rebalance may have taken the partition away, or a seek moved it, while the answer was on its way.
                if self.positions.get(partition) != asked.get(partition):
                    continue
                fetched = Fetched(
                    request_number,
                    self.name,
                    partition,
                    data.high_watermark,
                    leader_epoch=epochs[partition] if self._fetch_version >= 9 else -1,
                    answered_by=self.recorder.log_of(wire.server),
                    unwarned=self.recorder.is_unwarned(wire.server, partition, asked_at),
                )
                taken = await self._take(fetched, data)
                if taken is None:
                    moved = True
                else:
                    count += taken
        return count, moved

    def _topic_named(self, topic_id: bytes) -> str:
        return next(name for name, known in self.topic_ids.items() if known == topic_id)

    def _fetch_request(
        self, asked: dict[Partition, int], epochs: dict[Partition, int], max_wait_ms: int
    ) -> FetchRequest:
        by_topic: dict[str, list[FetchPartition]] = {}
        for (topic, index), offset in asked.items():
            by_topic.setdefault(topic, []).append(
                FetchPartition(
                    partition=index,
                    current_leader_epoch=epochs[topic, index],
                    fetch_offset=offset,
                    partition_max_bytes=self._partition_max_bytes,
                )
            )
        topics = [
            FetchTopic(topic=topic, topic_id=self.topic_ids.get(topic, bytes(16)), partitions=partitions)
            for topic, partitions in by_topic.items()
        ]
        return FetchRequest(max_wait_ms=max_wait_ms, min_bytes=1, max_bytes=1 << 20, topics=topics)

    async def _take(self, fetched: Fetched, data: Any) -> int | None:
        """Take a partition's part of an answer; `fetched` lacks the records. None if its leader must be looked up."""
        code, partition = data.error_code, fetched.partition
        if code == ErrorCode.OFFSET_OUT_OF_RANGE:
            await self._out_of_range(partition)
            return None
        if code in MOVED:
            return None
        if code:
            self.unexpected(f"a fetch of {partition[0]}-{partition[1]}", code)
            return None
        records = self._open(partition, data.records)
        self.recorder.add(msgspec.structs.replace(fetched, records=tuple(records)))
        self.ends[partition] = data.high_watermark
        self.starts[partition] = data.log_start_offset
        if records:
            self.positions[partition] = records[-1][0] + 1
        return len(records)

    def _open(self, partition: Partition, data: Any) -> list[tuple[int, str]]:
        """The records from the position on. A damaged batch is complained about; a last one cut short is not read."""
        if data is None or not len(data):
            return []
        records = []
        try:
            check_stored(data)
            for position, header in iterate(data):
                opened = iterate_records(data[position : position + header.size_bytes])
                records += [(r.offset, (r.value or b"").decode().split(" ")[0]) for r in opened]
        except (Corrupt, Invalid) as error:
            self.world.complain(f"{self.name} was served damaged records of {partition[0]}-{partition[1]}: {error}")
        return [record for record in records if record[0] >= self.positions[partition]]

    async def _out_of_range(self, partition: Partition) -> None:
        """Below the log start retention came first; anywhere else the broker has lost its end."""
        bounds = await self.bounds(partition)
        if bounds is None:
            return
        position = self.positions.get(partition)
        if position is None:
            return
        if position < bounds[0]:
            self.seek(partition, bounds[0])
        elif position > bounds[1]:
            self.world.complain(
                f"{self.name}: offset {position} of {partition[0]}-{partition[1]}, which it came to by reading, is out"
                f" of range; the broker says {bounds[0]} to {bounds[1]}"
            )

    async def bounds(self, partition: Partition) -> tuple[int, int] | None:
        """Log start offset and high watermark; None if they can't be had now."""
        found = []
        for timestamp in (EARLIEST, LATEST):
            wanted = ListOffsetsPartition(partition_index=partition[1], timestamp=timestamp)
            request = ListOffsetsRequest(
                replica_id=-1, topics=[ListOffsetsTopic(name=partition[0], partitions=[wanted])]
            )
            try:
                wire = await self.wire_to(await self.leader_of(*partition))
                answer = await wire.ask(ApiKey.LIST_OFFSETS, 7, request)
            except Lost:
                await self.refresh(partition[0])
                return None
            result = answer.topics[0].partitions[0]
            if result.error_code:
                if result.error_code not in MOVED:
                    self.unexpected(f"ListOffsets of {partition[0]}-{partition[1]}", result.error_code)
                await self.refresh(partition[0])
                return None
            found.append(result.offset)
        return found[0], found[1]

    async def read_all(self, partitions: Sequence[Partition]) -> dict[Partition, FinalLog]:
        """Every partition from its start to its end, as it is now."""
        logs = {}
        for partition in partitions:
            await self.leader_of(*partition)
            start, end = await self.until(lambda partition=partition: self.bounds(partition))
            self.positions = {}
            self.seek(partition, start)
            first = len(self.recorder.history.events)
            while self.positions[partition] < end:
                await self.poll(100)
            events = self.recorder.history.events[first:]
            records = [r for e in events if isinstance(e, Fetched) and e.reader == self.name for r in e.records]
            logs[partition] = FinalLog(start, end, records)
        return logs


@dataclass(frozen=True)
class Membership:
    """What a member is within one generation."""

    member_id: str
    generation: int
    partitions: list[Partition]


class Rejoin(Exception):
    """The generation is over."""


class Member(Consumer):
    """A member of a consumer group: joins, reads what it is assigned, commits, and sometimes leaves or falls silent."""

    def __init__(
        self, world: World, network: Network, recorder: Recorder, name: str, group: str, topics: Sequence[str]
    ) -> None:
        super().__init__(world, network, recorder, name)
        self._group = group
        self._topics = sorted(topics)
        self._member_id = ""
        self._coordinator = -1
        self._group_wire: Wire | None = None
        self._committed: dict[Partition, int] = {}
        self._join_version = self.random.choice((2, 5, 7, 9))
        self._commit_version = self.random.choice((2, 5, 7, 8, 9))
        self._offsets_version = self.random.choice((1, 5, 7))
        self.generations = 0
        self.is_stopping = False

    async def run(self) -> None:
        """Until `is_stopping` is set."""
        while not self.is_stopping:
            try:
                membership = await self._join()
                self.generations += 1
                await self._serve(membership)
            except Rejoin:
                pass
            except Lost:
                self._coordinator = -1
                await self.backoff()
            self.positions.clear()
        await self._leave()

    # Finding and speaking to the coordinator

    async def _ask(self, key: ApiKey, version: int, message: Any, seconds: float = 8.0) -> Any:
        if self._coordinator < 0 or self._group_wire is None or self._group_wire.is_lost:
            await self._find_coordinator()
        wire = self._group_wire
        assert wire is not None
        return await wire.wait(wire.send(key, version, message), seconds)

    async def _find_coordinator(self) -> None:
        answer = await self.ask_any(ApiKey.FIND_COORDINATOR, 2, FindCoordinatorRequest(key=self._group))
        if answer.error_code:
            if answer.error_code not in MOVED:
                self.unexpected("FindCoordinator", answer.error_code)
            raise Lost("there is no coordinator now")
        self._coordinator = answer.node_id
        self._ports[answer.node_id] = answer.port
        # Joins wait long; fetches must not wait behind them.
        self._group_wire = await self.connect(answer.port)

    def _check(self, what: str, code: int) -> None:
        """Raise what an error code means for a member."""
        if not code:
            return
        if code in (ErrorCode.REBALANCE_IN_PROGRESS, ErrorCode.ILLEGAL_GENERATION):
            raise Rejoin
        if code in (ErrorCode.UNKNOWN_MEMBER_ID, ErrorCode.FENCED_INSTANCE_ID):
            self._member_id = ""
            raise Rejoin
        if code not in MOVED:
            self.unexpected(what, code)
        # Whoever asks again, the run of the member or a last reading, looks for the coordinator first.
        self._coordinator = -1
        raise Lost(f"{what} answered {code}")

    # Joining

    async def _join(self) -> Membership:
        subscription = struct.pack(">hi", 0, len(self._topics))
        subscription += b"".join(struct.pack(">h", len(topic)) + topic.encode() for topic in self._topics)
        request = JoinGroupRequest(
            group_id=self._group,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            rebalance_timeout_ms=5000,
            member_id=self._member_id,
            protocol_type="consumer",
            protocols=[JoinGroupRequestProtocol(name="range", metadata=subscription + struct.pack(">i", -1))],
        )
        self.recorder.operations += 1
        joined = await self._ask(ApiKey.JOIN_GROUP, self._join_version, request, seconds=20.0)
        if joined.error_code == ErrorCode.MEMBER_ID_REQUIRED:
            self._member_id = joined.member_id
            raise Rejoin
        self._check("JoinGroup", joined.error_code)
        self._member_id = joined.member_id
        assignments = []
        if joined.leader == joined.member_id and joined.members:
            assignments = await self._assign([member.member_id for member in joined.members])
        synced = await self._ask(
            ApiKey.SYNC_GROUP,
            3,
            SyncGroupRequest(
                group_id=self._group,
                generation_id=joined.generation_id,
                member_id=self._member_id,
                assignments=assignments,
            ),
            seconds=20.0,
        )
        self._check("SyncGroup", synced.error_code)
        partitions = _decode_assignment(synced.assignment)
        self.world.trace(f"{self.name} generation {joined.generation_id} {partitions}")
        self.recorder.add(Assigned(self._group, joined.generation_id, self._member_id, tuple(partitions)))
        return Membership(self._member_id, joined.generation_id, partitions)

    async def _assign(self, members: list[str]) -> list[SyncGroupRequestAssignment]:
        await self.refresh(*self._topics)
        every = [(topic, index) for topic in self._topics for index in range(self.partition_counts.get(topic, 0))]
        return [
            SyncGroupRequestAssignment(member_id=member, assignment=_encode_assignment(every[place :: len(members)]))
            for place, member in enumerate(sorted(members))
        ]

    # Reading and committing

    async def _serve(self, membership: Membership) -> None:
        await self._start_reading(membership)
        heard_at = self.world.loop.time()
        while not self.is_stopping:
            if self.positions:
                await self.poll(self.random.choice((50, 500)))
            else:
                await asyncio.sleep(0.3)
            if self.random.random() < 0.4:
                await self._commit(membership)
            if self.world.loop.time() - heard_at > 0.5:
                await self._heartbeat(membership)
                heard_at = self.world.loop.time()
            fate = self.random.random()
            if fate < 0.004:
                self.world.trace(f"{self.name} leaves")
                await self._leave()
                raise Rejoin
            if fate < 0.008:
                self.world.trace(f"{self.name} falls silent")
                await asyncio.sleep(self.random.uniform(1, 2 * SESSION_TIMEOUT_MS / 1000))
        await self._commit(membership)

    async def _start_reading(self, membership: Membership) -> None:
        self._committed = {}
        if not membership.partitions:
            return
        offsets = await self.committed(membership.partitions)
        for partition, offset in offsets.items():
            self._committed[partition] = offset
            self.seek(partition, max(offset, 0))

    async def committed(self, partitions: list[Partition]) -> dict[Partition, int]:
        """The group's committed offsets. Raises Lost."""
        operations = {}
        by_topic: dict[str, list[int]] = {}
        for topic, index in partitions:
            operation = operations[topic, index] = self.recorder.number()
            self.recorder.add(OffsetFetchInvoked(operation, self._group, (topic, index)))
            by_topic.setdefault(topic, []).append(index)
        self.recorder.operations += 1
        asked_at = self.world.loop.time()
        request = OffsetFetchRequest(
            group_id=self._group,
            topics=[
                OffsetFetchRequestTopic(name=name, partition_indexes=indexes) for name, indexes in by_topic.items()
            ],
        )
        answer = await self._ask(ApiKey.OFFSET_FETCH, self._offsets_version, request)
        self._check("OffsetFetch", answer.error_code if self._offsets_version >= 2 else 0)
        assert self._group_wire is not None
        unwarned = self.recorder.is_unwarned(self._group_wire.server, self._group, asked_at)
        offsets = {}
        for topic in answer.topics:
            for data in topic.partitions:
                self._check("OffsetFetch", data.error_code)
                partition = (topic.name, data.partition_index)
                offsets[partition] = data.committed_offset
                self.recorder.add(OffsetFetched(operations[partition], data.committed_offset, unwarned))
        return offsets

    async def _commit(self, membership: Membership) -> None:
        moved = {p: offset for p, offset in self.positions.items() if offset != self._committed.get(p) and offset > 0}
        if not moved:
            return
        operations = {}
        by_topic: dict[str, list[OffsetCommitRequestPartition]] = {}
        for (topic, index), offset in moved.items():
            operation = operations[topic, index] = self.recorder.number()
            self.recorder.add(CommitInvoked(operation, self._group, (topic, index), offset))
            by_topic.setdefault(topic, []).append(
                OffsetCommitRequestPartition(partition_index=index, committed_offset=offset, committed_metadata="")
            )
        self.recorder.operations += 1
        request = OffsetCommitRequest(
            group_id=self._group,
            generation_id_or_member_epoch=membership.generation,
            member_id=membership.member_id,
            topics=[OffsetCommitRequestTopic(name=name, partitions=parts) for name, parts in by_topic.items()],
        )
        answer = await self._ask(ApiKey.OFFSET_COMMIT, self._commit_version, request)
        worst = 0
        for topic in answer.topics:
            for data in topic.partitions:
                partition = (topic.name, data.partition_index)
                code = data.error_code
                if not code:
                    self.recorder.add(CommitAcknowledged(operations[partition]))
                    self._committed[partition] = moved[partition]
                elif code in (ErrorCode.ILLEGAL_GENERATION, ErrorCode.UNKNOWN_MEMBER_ID):
                    self.recorder.add(CommitRefused(operations[partition]))
                worst = worst or code
        self._check("OffsetCommit", worst)

    async def _heartbeat(self, membership: Membership) -> None:
        self.recorder.operations += 1
        request = HeartbeatRequest(
            group_id=self._group, generation_id=membership.generation, member_id=membership.member_id
        )
        answer = await self._ask(ApiKey.HEARTBEAT, 3, request)
        if answer.error_code == ErrorCode.REBALANCE_IN_PROGRESS:
            await self._commit(membership)
        self._check("Heartbeat", answer.error_code)

    async def _leave(self) -> None:
        if not self._member_id:
            return
        member = MemberIdentity(member_id=self._member_id)
        try:
            await self._ask(ApiKey.LEAVE_GROUP, 3, LeaveGroupRequest(group_id=self._group, members=[member]))
        except Lost:
            pass
        self._member_id = ""


def _encode_assignment(partitions: Sequence[Partition]) -> bytes:
    """ConsumerProtocolAssignment v0: version, topics with their partitions, user data."""
    by_topic: dict[str, list[int]] = {}
    for topic, index in partitions:
        by_topic.setdefault(topic, []).append(index)
    encoded = struct.pack(">hi", 0, len(by_topic))
    for topic, indexes in by_topic.items():
        encoded += struct.pack(">h", len(topic)) + topic.encode()
        encoded += struct.pack(f">i{len(indexes)}i", len(indexes), *indexes)
    return encoded + struct.pack(">i", -1)


def _decode_assignment(data: bytes) -> list[Partition]:
    if not data:
        return []
    partitions = []
    _, count = struct.unpack_from(">hi", data)
    position = 6
    for _ in range(count):
        (length,) = struct.unpack_from(">h", data, position)
        topic = data[position + 2 : position + 2 + length].decode()
        position += 2 + length
        (indexes,) = struct.unpack_from(">i", data, position)
        partitions += [(topic, index) for index in struct.unpack_from(f">{indexes}i", data, position + 4)]
        position += 4 + 4 * indexes
    return partitions

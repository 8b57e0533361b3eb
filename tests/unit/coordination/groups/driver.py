"""A shard's runtime for tests: keeps the log, the replies and the timers, in virtual time.

After every call it holds the shard to its two promises: what its records add up to is its durable state, and no reply
tells what the records so far don't say.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from kafscale.coordination.groups.events import (
    DescribeGroupsRequest,
    GroupConfig,
    HeartbeatRequest,
    HeartbeatResponse,
    JoinGroupRequest,
    JoinGroupResponse,
    LeaveGroupRequest,
    LeaveGroupResponse,
    LeavingMember,
    OffsetCommitRequest,
    OffsetCommitResponse,
    OffsetFetchRequest,
    OffsetFetchResponse,
    Outcome,
    PartitionCommit,
    SyncGroupRequest,
    SyncGroupResponse,
    TimerKey,
    TimerKind,
    TopicCommit,
    TopicPartitions,
)
from kafscale.coordination.groups.records import GroupKey, GroupRecord, read_group_value, read_key
from kafscale.coordination.groups.shard import GroupShard
from kafscale.protocol.error_codes import ErrorCode

WALL_START_MS = 1_700_000_000_000
GROUP = "readers"


def subscription(*topics: str) -> bytes:
    """A consumer's subscription, version 0, as in Kafka's ConsumerProtocolSubscription."""
    names = b"".join(len(name).to_bytes(2, "big") + name.encode() for name in topics)
    return b"\0\0" + len(topics).to_bytes(4, "big") + names + b"\xff\xff\xff\xff"


class Driver:
    def __init__(self, config: GroupConfig | None = None, topic_ids: dict[str, bytes] | None = None) -> None:
        self.config = config or GroupConfig(initial_rebalance_delay_ms=0)
        self.topic_ids = topic_ids if topic_ids is not None else {}
        self.now_ms = 5_000
        self.log: list[tuple[bytes, bytes | None]] = []
        self.replies: dict[int, Any] = {}
        self.requests: dict[int, Any] = {}
        self.timers: dict[TimerKey, int] = {}
        self._ids = itertools.count()
        self._tokens = itertools.count(1)
        self.shard = self._new_shard()
        self.mirror = self._new_shard()
        self.records: dict[str, GroupRecord] = {}
        """The last record of each group in the log."""
        self.lives: dict[str, int] = {}
        """How often each group was deleted: with that its generations start anew."""
        self.run(lambda now, wall: self.shard.activate(now, wall))

    def _new_id(self) -> str:
        return f"id{next(self._ids)}"

    def _new_shard(self) -> GroupShard:
        return GroupShard(self.config, new_id=self._new_id, topic_id_of=self.topic_ids.get)

    @property
    def wall_ms(self) -> int:
        return WALL_START_MS + self.now_ms

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self, call: Callable[[int, int], Outcome]) -> Outcome:
        outcome = call(self.now_ms, self.wall_ms)
        for key, value in outcome.writes:
            self.log.append((key, value))
            self.mirror.replay(key, value)
            subject = read_key(key)
            if isinstance(subject, GroupKey):
                self._note(subject.group_id, value)
        for key, deadline in outcome.timers:
            if deadline is None:
                self.timers.pop(key, None)
            else:
                assert deadline >= self.now_ms
                self.timers[key] = deadline
        assert durable(self.mirror) == durable(self.shard)
        for token, response in outcome.replies:
            assert token not in self.replies, "answered twice"
            self.replies[token] = response
            self._check_grounds(self.requests[token], response)
        return outcome

    def _note(self, group_id: str, value: bytes | None) -> None:
        if value is None:
            self.records.pop(group_id, None)
            self.lives[group_id] = self.lives.get(group_id, 0) + 1
            return
        record = read_group_value(value)
        before = self.records.get(group_id)
        assert before is None or record.generation >= before.generation, "a generation went back"
        self.records[group_id] = record

    def _check_grounds(self, request: Any, response: Any) -> None:
        """Is what the reply tells durable?"""
        record = self.records.get(getattr(request, "group_id", ""))
        match response:
            case JoinGroupResponse(error=ErrorCode.NONE):
                assert record is not None
                assert (record.generation, record.protocol) == (response.generation, response.protocol_name)
                assert response.member_id in {member.member_id for member in record.members}
                assert {told.member_id for told in response.members} <= {member.member_id for member in record.members}
            case SyncGroupResponse(error=ErrorCode.NONE):
                assert record is not None and record.generation == request.generation
                kept = {member.member_id: member.assignment for member in record.members}
                assert kept[request.member_id] == response.assignment
            case HeartbeatResponse(error=ErrorCode.NONE):
                assert record is not None and record.generation == request.generation
                assert request.member_id in {member.member_id for member in record.members}
            case OffsetCommitResponse():
                for wanted, topic in zip(request.topics, response.topics, strict=True):
                    for asked, result in zip(wanted.partitions, topic.partitions, strict=True):
                        if result.error is ErrorCode.NONE:
                            assert self._durable_offset(request.group_id, topic.name, asked.partition) == asked.offset
            case OffsetFetchResponse():
                for topic in response.topics:
                    for found in topic.partitions:
                        if found.offset != -1:
                            kept_offset = self._durable_offset(request.group_id, topic.name, found.partition)
                            assert kept_offset == found.offset

    def _durable_offset(self, group_id: str, topic: str, partition: int) -> int:
        return durable(self.mirror)["offsets"][group_id][topic][partition][0]

    def advance(self, milliseconds: int) -> None:
        """Let time pass, and fire what comes due in between, in order."""
        end_ms = self.now_ms + milliseconds
        while due := [(deadline, key) for key, deadline in self.timers.items() if deadline <= end_ms]:
            deadline, key = min(due)
            self.now_ms = max(self.now_ms, deadline)
            del self.timers[key]
            self.run(lambda now, wall, key=key: self.shard.on_timer(key, now, wall))
        self.now_ms = end_ms

    def restart(self, snapshot: bytes | None = None, since: int = 0) -> None:
        """Take over: from the log, or from a snapshot and the log since. Requests in flight are lost."""
        if snapshot is None:
            self.shard = self._new_shard()
        else:
            self.shard = GroupShard.restore(snapshot, self.config, new_id=self._new_id, topic_id_of=self.topic_ids.get)
        for key, value in self.log[since:]:
            self.shard.replay(key, value)
        self.timers.clear()
        self.now_ms += 1
        self.run(lambda now, wall: self.shard.activate(now, wall))

    # --- requests ---------------------------------------------------------------------------------------------------

    def send(self, method: str, request: Any) -> int:
        token = next(self._tokens)
        self.requests[token] = request
        self.run(lambda now, wall: getattr(self.shard, method)(request, token, now, wall))
        return token

    def ask(self, method: str, request: Any) -> Any:
        """A request that must be answered at once."""
        return self.replies[self.send(method, request)]

    def join(self, member_id: str = "", **changes: Any) -> int:
        fields: dict[str, Any] = {
            "group_id": GROUP,
            "client_id": "client",
            "client_host": "/127.0.0.1",
            "session_timeout_ms": 10_000,
            "rebalance_timeout_ms": 30_000,
            "protocol_type": "consumer",
            "protocols": (("range", subscription("t")),),
        }
        return self.send("join_group", JoinGroupRequest(member_id=member_id, **(fields | changes)))

    def sync(self, joined: JoinGroupResponse, assignments: dict[str, bytes] | None = None, **changes: Any) -> int:
        fields = {"group_id": GROUP, "generation": joined.generation, "member_id": joined.member_id}
        pairs = tuple((assignments or {}).items())
        return self.send("sync_group", SyncGroupRequest(assignments=pairs, **(fields | changes)))

    def heartbeat(self, joined: JoinGroupResponse, **changes: Any) -> ErrorCode:
        fields = {"group_id": GROUP, "generation": joined.generation, "member_id": joined.member_id}
        return self.ask("heartbeat", HeartbeatRequest(**(fields | changes))).error

    def leave(self, member_id: str, instance_id: str | None = None, group_id: str = GROUP) -> LeaveGroupResponse:
        leaving = (LeavingMember(member_id=member_id, instance_id=instance_id),)
        return self.ask("leave_group", LeaveGroupRequest(group_id=group_id, members=leaving))

    def commit(self, offset: int, topic: str = "t", partition: int = 0, **changes: Any) -> ErrorCode:
        """`topic_id`, `metadata` and `leader_epoch` go with the partition, other changes with the request."""
        topic_id = changes.pop("topic_id", bytes(16))
        own = {name: changes.pop(name) for name in ("metadata", "leader_epoch") if name in changes}
        one = TopicCommit(
            name=topic,
            topic_id=topic_id,
            partitions=(PartitionCommit(partition=partition, offset=offset, **own),),
        )
        response = self.ask("offset_commit", OffsetCommitRequest(**({"group_id": GROUP, "topics": (one,)} | changes)))
        return response.topics[0].partitions[0].error

    def committed(self, topic: str = "t", partition: int = 0, **changes: Any) -> int:
        wanted = (TopicPartitions(name=topic, partitions=(partition,)),)
        response = self.ask("offset_fetch", OffsetFetchRequest(**({"group_id": GROUP, "topics": wanted} | changes)))
        return response.topics[0].partitions[0].offset

    # --- whole exchanges --------------------------------------------------------------------------------------------

    def stable(self, *instances: str | None, count: int = 1, **changes: Any) -> list[JoinGroupResponse]:
        """A stable group of so many members, the leader first. Member n is assigned b"part n".

        With `instances` the members are static ones of those names.
        """
        each = [changes | {"instance_id": name} for name in instances] or [changes] * count
        first = self.replies[self.join(**each[0])]
        others = [self.join(**one) for one in each[1:]]
        answers = [first]
        if others:
            again = self.join(first.member_id, **each[0])
            answers = [self.replies[token] for token in (again, *others)]
        plan = {answer.member_id: b"part %d" % index for index, answer in enumerate(answers)}
        waiting = [
            self.sync(answer, instance_id=one.get("instance_id"))
            for answer, one in zip(answers[1:], each[1:], strict=True)
        ]
        leading = self.sync(answers[0], plan, instance_id=each[0].get("instance_id"))
        for token, answer in zip([leading, *waiting], answers, strict=True):
            assert self.replies[token].assignment == plan[answer.member_id]
        return answers

    def answer(self, token: int) -> Any:
        """The reply to a request, None while there is none."""
        return self.replies.get(token)

    def state(self, group_id: str = GROUP) -> str:
        return self.ask("describe_groups", DescribeGroupsRequest(group_ids=(group_id,))).groups[0].state

    def timer(self, kind: TimerKind, member_id: str = "", group_id: str = GROUP) -> int | None:
        return self.timers.get(TimerKey(kind, group_id, member_id))


def durable(shard: GroupShard) -> Any:
    """What a takeover would load, in a form that compares."""
    return msgspec.msgpack.decode(shard.snapshot())

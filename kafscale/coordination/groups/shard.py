"""The groups of one `__consumer_offsets` partition. Owns them, their offsets and their deadlines.

Two rules of residence: nothing here waits, reads a clock or touches a socket or store (time and ids come in as
arguments); and a request's `Outcome` holds all that it decided. The runtime makes its records durable, then lets its
replies go, and holds every reply until all earlier records of the shard are durable: so memory may run ahead of the
log, and what clients are told never does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

import msgspec

from kafscale.coordination.groups import administration
from kafscale.coordination.groups.events import (
    DeletedGroup,
    DeleteGroupsRequest,
    DeleteGroupsResponse,
    DescribeGroupsRequest,
    DescribeGroupsResponse,
    GroupConfig,
    HeartbeatRequest,
    JoinGroupRequest,
    JoinGroupResponse,
    LeaveGroupRequest,
    ListGroupsRequest,
    OffsetCommitRequest,
    OffsetCommitResponse,
    OffsetDeleteRequest,
    OffsetDeleteResponse,
    OffsetFetchRequest,
    Outcome,
    PartitionResult,
    SyncGroupRequest,
    TimerKey,
    TimerKind,
    Token,
    TopicResult,
)
from kafscale.coordination.groups.group import Group, GroupState
from kafscale.coordination.groups.joining import Joining, valid_name
from kafscale.coordination.groups.membership import Membership
from kafscale.coordination.groups.offsets import Offsets, OffsetTable
from kafscale.coordination.groups.rebalance import Rebalance, sync_timer
from kafscale.coordination.groups.records import (
    GroupKey,
    GroupRecord,
    OffsetRecord,
    read_group_value,
    read_key,
    read_offset_value,
)
from kafscale.coordination.groups.step import Step
from kafscale.errors import Corrupt
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.records import iterate_records

SNAPSHOT_VERSION = 1
# A look for expired offsets yields to other work after about so many, and goes on a moment later.
_SWEEP_OFFSETS = 10_000
_SWEEP_GROUPS = 1_000
_SWEEP_PAUSE_MS = 10

_RETENTION_TIMER = TimerKey(TimerKind.RETENTION)


class _Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the shard's records add up to."""

    version: int = SNAPSHOT_VERSION
    groups: dict[str, GroupRecord]
    offsets: dict[str, dict[str, dict[int, OffsetRecord]]]


_Request = TypeVar("_Request")


class GroupShard:
    """Every method that takes a `token` answers it, in its own outcome or in a later one's.

    `now_ms` is of a clock that never goes back and is what deadlines are given in; `wall_ms` is since the Unix epoch
    and is what records are stamped with.
    """

    def __init__(
        self,
        config: GroupConfig,
        *,
        new_id: Callable[[], str],
        topic_id_of: Callable[[str], bytes | None] = lambda _: None,
    ) -> None:
        """`new_id` makes the random part of member ids (a UUID); `topic_id_of` says which id a topic's name has now."""
        self._config = config
        self._groups: dict[str, Group] = {}
        self._table = OffsetTable()
        self._deadlines: dict[TimerKey, int] = {}
        self._sweep: deque[str] = deque()
        self._rebalance = Rebalance(config)
        self._joining = Joining(config, new_id, self._rebalance)
        self._membership = Membership(config, self._rebalance)
        self._offsets = Offsets(config, self._table, topic_id_of)

    # --- members ----------------------------------------------------------------------------------------------------

    def join_group(self, request: JoinGroupRequest, token: Token, now_ms: int, wall_ms: int) -> Outcome:
        step = self._step(now_ms, wall_ms)
        error = self._joining.check_request(request)
        group = self._groups.get(request.group_id)
        if error is ErrorCode.NONE and group is None:
            if request.member_id:
                error = ErrorCode.UNKNOWN_MEMBER_ID
            elif len(self._groups) >= self._config.shard_max_groups:
                error = ErrorCode.COORDINATOR_NOT_AVAILABLE
            else:
                group = self._create(request.group_id, wall_ms)
        if error is not ErrorCode.NONE or group is None:
            step.reply(token, JoinGroupResponse(error=error, member_id=request.member_id))
            return step.outcome()
        self._joining.join(step, group, request, token)
        return self._finish(step, group)

    def sync_group(self, request: SyncGroupRequest, token: Token, now_ms: int, wall_ms: int) -> Outcome:
        return self._with_group(self._membership.sync, request, request.group_id, token, now_ms, wall_ms)

    def heartbeat(self, request: HeartbeatRequest, token: Token, now_ms: int, wall_ms: int) -> Outcome:
        return self._with_group(self._membership.heartbeat, request, request.group_id, token, now_ms, wall_ms)

    def leave_group(self, request: LeaveGroupRequest, token: Token, now_ms: int, wall_ms: int) -> Outcome:
        return self._with_group(self._membership.leave, request, request.group_id, token, now_ms, wall_ms)

    def _with_group(
        self,
        handle: Callable[[Step, Group | None, _Request, Token], None],
        request: _Request,
        group_id: str,
        token: Token,
        now_ms: int,
        wall_ms: int,
    ) -> Outcome:
        step = self._step(now_ms, wall_ms)
        group = self._groups.get(group_id)
        handle(step, group, request, token)
        return self._finish(step, group)

    # --- offsets ----------------------------------------------------------------------------------------------------

    def offset_commit(self, request: OffsetCommitRequest, token: Token, now_ms: int, wall_ms: int) -> Outcome:
        """An error of the group stands at every partition, as the response has no other place for it."""
        step = self._step(now_ms, wall_ms)
        group = self._groups.get(request.group_id)
        error = self._offsets.check_commit(group, request)
        if group is None and error is ErrorCode.NONE:
            if not valid_name(request.group_id):
                error = ErrorCode.INVALID_GROUP_ID
            elif len(self._groups) >= self._config.shard_max_groups:
                error = ErrorCode.COORDINATOR_NOT_AVAILABLE
            else:
                group = self._create(request.group_id, wall_ms)
        if error is not ErrorCode.NONE or group is None:
            step.reply(token, OffsetCommitResponse(topics=_refused(request, error)))
            return step.outcome()
        member = group.members.get(request.member_id)
        if member is not None:
            step.start_session(group, member)  # a commit is as good as a heartbeat
        step.reply(token, OffsetCommitResponse(topics=self._offsets.commit(step, group, request.topics)))
        return self._finish(step, group)

    def offset_fetch(self, request: OffsetFetchRequest, token: Token, now_ms: int, wall_ms: int) -> Outcome:
        step = self._step(now_ms, wall_ms)
        step.reply(token, self._offsets.fetch(request))
        return step.outcome()

    def offset_delete(self, request: OffsetDeleteRequest, token: Token, now_ms: int, wall_ms: int) -> Outcome:
        step = self._step(now_ms, wall_ms)
        group = self._groups.get(request.group_id)
        if not request.group_id:
            step.reply(token, OffsetDeleteResponse(error=ErrorCode.INVALID_GROUP_ID))
        elif group is None:
            step.reply(token, OffsetDeleteResponse(error=ErrorCode.GROUP_ID_NOT_FOUND))
        else:
            step.reply(token, self._offsets.delete(step, group, request))
        return self._finish(step, group)

    def on_topic_deleted(self, name: str, topic_id: bytes, now_ms: int, wall_ms: int) -> Outcome:
        """Forget what was committed for this topic. Calling it again, or late, does no harm."""
        step = self._step(now_ms, wall_ms)
        self._offsets.delete_topic(step, name, topic_id)
        return step.outcome()

    # --- administration ---------------------------------------------------------------------------------------------

    def describe_groups(self, request: DescribeGroupsRequest, token: Token, now_ms: int, wall_ms: int) -> Outcome:
        step = self._step(now_ms, wall_ms)
        described = tuple(administration.describe(name, self._groups.get(name)) for name in request.group_ids)
        step.reply(token, DescribeGroupsResponse(groups=described))
        return step.outcome()

    def list_groups(self, request: ListGroupsRequest, token: Token, now_ms: int, wall_ms: int) -> Outcome:
        step = self._step(now_ms, wall_ms)
        step.reply(token, administration.list_groups(self._groups.values(), request))
        return step.outcome()

    def delete_groups(self, request: DeleteGroupsRequest, token: Token, now_ms: int, wall_ms: int) -> Outcome:
        step = self._step(now_ms, wall_ms)
        deleted = tuple(DeletedGroup(group_id=name, error=self._delete(step, name)) for name in request.group_ids)
        step.reply(token, DeleteGroupsResponse(groups=deleted))
        return step.outcome()

    def _delete(self, step: Step, group_id: str) -> ErrorCode:
        group = self._groups.get(group_id)
        if group is None:
            return ErrorCode.GROUP_ID_NOT_FOUND
        if group.state is not GroupState.EMPTY:
            return ErrorCode.NON_EMPTY_GROUP
        self._offsets.delete_all(step, group_id)
        self._forget(step, group)
        return ErrorCode.NONE

    # --- time -------------------------------------------------------------------------------------------------------

    def on_timer(self, key: TimerKey, now_ms: int, wall_ms: int) -> Outcome:
        """A timer has come due. One that was cancelled or put off meanwhile does nothing."""
        step = self._step(now_ms, wall_ms)
        deadline = self._deadlines.get(key)
        if deadline is None or deadline > now_ms:
            return step.outcome()
        del self._deadlines[key]
        if key.kind is TimerKind.RETENTION:
            self._sweep_some(step)
            return step.outcome()
        group = self._groups.get(key.group_id)
        if group is None:
            return step.outcome()
        if key.kind is TimerKind.SESSION:
            self._rebalance.on_session_timer(step, group, key.member_id)
        elif key.kind is TimerKind.JOIN:
            self._rebalance.on_join_timer(step, group)
        else:
            self._rebalance.on_sync_timer(step, group)
        return self._finish(step, group)

    def _sweep_some(self, step: Step) -> None:
        """Expire offsets of some groups, and forget groups that have neither members nor offsets left."""
        if not self._sweep:
            self._sweep.extend(self._groups)
        seen_offsets = 0
        for _ in range(min(_SWEEP_GROUPS, len(self._sweep))):
            group = self._groups.get(self._sweep.popleft())
            if group is None:
                continue
            seen_offsets += self._offsets.expire(step, group)
            has_offsets = self._table.count(group.group_id) > 0
            if group.state is GroupState.EMPTY and not has_offsets and not group.pending_join:
                self._forget(step, group)
            if seen_offsets >= _SWEEP_OFFSETS:
                break
        step.schedule(_RETENTION_TIMER, _SWEEP_PAUSE_MS if self._sweep else self._config.offsets_check_interval_ms)

    # --- takeover ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """The shard's durable state, as its records add up to: msgpack, versioned. Requests in flight aren't in it."""
        return msgspec.msgpack.encode(
            _Snapshot(
                groups={name: group.record for name, group in self._groups.items() if group.record is not None},
                offsets={name: self._table.topics(name) for name in self._table.group_ids()},
            )
        )

    def committed(self) -> dict[str, tuple[int, int]]:
        """Group id → of how many topics, and of how many partitions, it has committed offsets."""
        return {name: (len(self._table.topics(name)), self._table.count(name)) for name in self._table.group_ids()}

    @classmethod
    def restore(
        cls,
        data: bytes,
        config: GroupConfig,
        *,
        new_id: Callable[[], str],
        topic_id_of: Callable[[str], bytes | None] = lambda _: None,
    ) -> GroupShard:
        """A shard from a snapshot; replay the records since then, then call `activate`. Raises Corrupt."""
        try:
            snapshot = msgspec.msgpack.decode(data, type=_Snapshot)
        except msgspec.DecodeError as error:
            raise Corrupt(f"a group snapshot that can't be read: {error}") from error
        if snapshot.version != SNAPSHOT_VERSION:
            raise Corrupt(f"a group snapshot of version {snapshot.version}, this release reads {SNAPSHOT_VERSION}")
        shard = cls(config, new_id=new_id, topic_id_of=topic_id_of)
        for group_id, record in snapshot.groups.items():
            shard._groups[group_id] = Group.load(group_id, record)
        for group_id, topics in snapshot.offsets.items():
            shard._groups.setdefault(group_id, Group(group_id, 0))
            for topic, committed in topics.items():
                for partition, offset in committed.items():
                    shard._table.put(group_id, topic, partition, offset)
        return shard

    def replay_batch(self, batch: bytes | memoryview, first_offset: int) -> None:
        """Take in a batch of the log, before `activate`, but for what lies below that offset.

        Raises Corrupt, and Invalid where it is no batch.
        """
        for record in iterate_records(batch):
            if record.key is not None and record.offset >= first_offset:
                self.replay(record.key, record.value)

    def replay(self, key: bytes, value: bytes | None) -> None:
        """Take in a record of the log, before `activate`. Records are absolute, so once more does no harm.

        Raises Corrupt.
        """
        subject = read_key(key)
        group_id = subject.group_id
        if isinstance(subject, GroupKey):
            if value is not None:
                self._groups[group_id] = Group.load(group_id, read_group_value(value))
            elif self._table.count(group_id):
                self._groups[group_id] = Group(group_id, 0)
            else:
                self._groups.pop(group_id, None)
        elif value is not None:
            self._groups.setdefault(group_id, Group(group_id, 0))
            self._table.put(group_id, subject.topic, subject.partition, read_offset_value(value))
        else:
            self._table.remove(group_id, subject.topic, subject.partition)
            group = self._groups.get(group_id)
            if group is not None and group.record is None and not self._table.count(group_id):
                del self._groups[group_id]

    def activate(self, now_ms: int, wall_ms: int) -> Outcome:
        """Begin to coordinate: every loaded member gets a whole session to be heard of again."""
        step = self._step(now_ms, wall_ms)
        for group in self._groups.values():
            for member in group.members.values():
                step.start_session(group, member)
            if group.state is GroupState.COMPLETING_REBALANCE:
                group.pending_sync.update(group.members)
                step.schedule(sync_timer(group), group.rebalance_timeout_ms())
            elif len(group.members) > self._config.group_max_members:
                self._rebalance.prepare(step, group)  # the limit was lowered: let members commit, then shed some
        step.schedule(_RETENTION_TIMER, self._config.offsets_check_interval_ms)
        return step.outcome()

    def deactivate(self, now_ms: int, wall_ms: int) -> Outcome:
        """Stop coordinating: all who wait are sent to the new coordinator, all timers are called off."""
        step = self._step(now_ms, wall_ms)
        for group in self._groups.values():
            for member in group.members.values():
                self._rebalance.answer(step, group, member, ErrorCode.NOT_COORDINATOR)
        for key in list(self._deadlines):
            step.cancel(key)
        return step.outcome()

    # --- groups -----------------------------------------------------------------------------------------------------

    def group_count(self) -> int:
        return len(self._groups)

    def _step(self, now_ms: int, wall_ms: int) -> Step:
        return Step(now_ms, wall_ms, self._deadlines)

    def _create(self, group_id: str, wall_ms: int) -> Group:
        group = self._groups[group_id] = Group(group_id, wall_ms)
        return group

    def _finish(self, step: Step, group: Group | None) -> Outcome:
        """A group that was created for a request and has nothing to remember after it goes again."""
        if (
            group is not None
            and group.state is GroupState.EMPTY
            and group.record is None
            and not group.pending_join
            and not self._table.count(group.group_id)
            and self._groups.get(group.group_id) is group
        ):
            self._forget(step, group)
        return step.outcome()

    def _forget(self, step: Step, group: Group) -> None:
        for member_id in sorted(group.pending_join):
            step.end_session(group, member_id)
        step.bury(group)
        group.transition(GroupState.DEAD, step.wall_ms)
        del self._groups[group.group_id]


def _refused(request: OffsetCommitRequest, error: ErrorCode) -> tuple[TopicResult, ...]:
    return tuple(
        TopicResult(
            name=topic.name,
            topic_id=topic.topic_id,
            partitions=tuple(PartitionResult(partition=wanted.partition, error=error) for wanted in topic.partitions),
        )
        for topic in request.topics
    )

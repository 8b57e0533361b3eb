"""From one generation to the next: gathering members, choosing leader and protocol, waiting for the leader's word.

The rules are those of Kafka's classic group coordinator. One thing is ours: a generation is written before any member
is told of it (Kafka writes it only with the assignments), so that no reply stands on ground that a takeover could lose.
"""

from __future__ import annotations

from kafscale.coordination.groups.events import (
    GroupConfig,
    JoinGroupResponse,
    SyncGroupResponse,
    TimerKey,
    TimerKind,
)
from kafscale.coordination.groups.group import Group, GroupState, Member
from kafscale.coordination.groups.step import Step
from kafscale.protocol.error_codes import ErrorCode

# How long to wait again for static members of whom none has come back, at the least: their own timeout may be 0.
_EMPTY_HANDED_RETRY_MS = 1_000


def join_timer(group: Group) -> TimerKey:
    return TimerKey(TimerKind.JOIN, group.group_id)


def sync_timer(group: Group) -> TimerKey:
    return TimerKey(TimerKind.SYNC, group.group_id)


class Rebalance:
    """Moves groups between states. Holds settings only; all state is the group's."""

    def __init__(self, config: GroupConfig) -> None:
        self._config = config

    # --- towards a new generation -----------------------------------------------------------------------------------

    def prepare(self, step: Step, group: Group) -> None:
        """Call the members together for a new generation."""
        if group.state is GroupState.COMPLETING_REBALANCE:
            self.fail_syncs(step, group, ErrorCode.REBALANCE_IN_PROGRESS)
        step.cancel(sync_timer(group))
        group.pending_sync.clear()
        is_first = group.state is GroupState.EMPTY
        group.transition(GroupState.PREPARING_REBALANCE, step.wall_ms)
        if not is_first:
            if group.all_joined():
                self.complete(step, group)
            else:
                step.schedule(join_timer(group), group.rebalance_timeout_ms())
            return
        # A first rebalance waits a little for more members, instead of being followed by one for each (KIP-134).
        delay_ms = self._config.initial_rebalance_delay_ms
        group.new_member_added = False
        group.initial_remaining_ms = max(group.rebalance_timeout_ms() - delay_ms, 0)
        if delay_ms == 0:
            self.complete(step, group)
        else:
            step.schedule(join_timer(group), delay_ms)

    def prepare_or_complete(self, step: Step, group: Group) -> None:
        """A member has joined, changed or gone."""
        if group.state is GroupState.PREPARING_REBALANCE:
            self.complete_if_all_joined(step, group)
        else:
            self.prepare(step, group)

    def complete_if_all_joined(self, step: Step, group: Group) -> None:
        if (
            group.state is GroupState.PREPARING_REBALANCE
            and group.previous_state is not GroupState.EMPTY
            and group.all_joined()
        ):
            self.complete(step, group)

    def on_join_timer(self, step: Step, group: Group) -> None:
        if group.state is not GroupState.PREPARING_REBALANCE:
            return
        is_first = group.previous_state is GroupState.EMPTY
        if is_first and group.new_member_added and group.initial_remaining_ms > 0:
            delay_ms = min(self._config.initial_rebalance_delay_ms, group.initial_remaining_ms)
            group.new_member_added = False
            group.initial_remaining_ms -= delay_ms
            step.schedule(join_timer(group), delay_ms)
            return
        self.complete(step, group)

    def complete(self, step: Step, group: Group) -> None:
        """Begin the generation with those who joined; dynamic members who did not are out, static ones stay."""
        step.cancel(join_timer(group))
        for member in list(group.members.values()):
            if member.join is None and member.instance_id is None:
                self.remove(step, group, member)
        if not group.elect_leader() and group.members:
            step.schedule(join_timer(group), max(group.rebalance_timeout_ms(), _EMPTY_HANDED_RETRY_MS))
            return
        group.next_generation(step.wall_ms)
        step.persist(group)
        if group.state is GroupState.EMPTY:
            return
        for member in group.members.values():
            waiting = group.await_join(member, None)
            if waiting is not None:
                is_leader = member.member_id == group.leader
                step.reply(waiting.token, joined(group, member, with_members=is_leader))
            step.start_session(group, member)
            member.is_new = False
            group.pending_sync.add(member.member_id)
        step.schedule(sync_timer(group), group.rebalance_timeout_ms())

    # --- the leader's word ------------------------------------------------------------------------------------------

    def assign(self, step: Step, group: Group, assignments: dict[str, bytes]) -> None:
        """The leader has spoken: write it, then tell all who wait. Members it left out get nothing."""
        for member in group.members.values():
            member.assignment = assignments.get(member.member_id, b"")
        group.transition(GroupState.STABLE, step.wall_ms)
        step.rebalances += 1
        step.persist(group)
        for member in group.members.values():
            if member.sync is not None:
                step.reply(member.sync.token, synced(group, member))
                member.sync = None
                step.start_session(group, member)

    def fail_syncs(self, step: Step, group: Group, error: ErrorCode) -> None:
        """Answer all who wait for assignments with an error."""
        for member in group.members.values():
            member.assignment = b""
            if member.sync is not None:
                step.reply(member.sync.token, SyncGroupResponse(error=error))
                member.sync = None
                step.start_session(group, member)

    def has_synced(self, step: Step, group: Group, member: Member) -> None:
        group.pending_sync.discard(member.member_id)
        if not group.pending_sync:
            step.cancel(sync_timer(group))

    def on_sync_timer(self, step: Step, group: Group) -> None:
        """Members that joined and then never asked for their assignment are out."""
        if group.state not in (GroupState.COMPLETING_REBALANCE, GroupState.STABLE) or not group.pending_sync:
            return
        for member in [group.members[member_id] for member_id in sorted(group.pending_sync)]:
            self.remove(step, group, member)
        self.prepare(step, group)

    # --- members that go --------------------------------------------------------------------------------------------

    def remove(self, step: Step, group: Group, member: Member, error: ErrorCode = ErrorCode.UNKNOWN_MEMBER_ID) -> None:
        """Take a member out, and answer what it still waits for."""
        self.answer(step, group, member, error)
        step.end_session(group, member.member_id)
        group.remove(member.member_id)

    def answer(self, step: Step, group: Group, member: Member, error: ErrorCode) -> None:
        """Answer what a member waits for with an error."""
        waiting = group.await_join(member, None)
        if waiting is not None:
            step.reply(waiting.token, JoinGroupResponse(error=error, member_id=member.member_id))
        if member.sync is not None:
            step.reply(member.sync.token, SyncGroupResponse(error=error))
            member.sync = None

    def after_removal(self, step: Step, group: Group) -> None:
        if group.state is not GroupState.EMPTY:
            self.prepare_or_complete(step, group)

    def on_session_timer(self, step: Step, group: Group, member_id: str) -> None:
        if member_id in group.pending_join:
            group.pending_join.remove(member_id)
            self.complete_if_all_joined(step, group)
            return
        member = group.members.get(member_id)
        if member is None:
            return
        # One that waits for us is not late, unless it never learnt its id: then its client may be long gone.
        if not member.is_new and (member.join is not None or member.sync is not None):
            return
        self.remove(step, group, member)
        self.after_removal(step, group)


def joined(group: Group, member: Member, *, with_members: bool) -> JoinGroupResponse:
    """The reply that tells a member of the group's current generation."""
    return JoinGroupResponse(
        generation=group.generation,
        protocol_type=group.protocol_type,
        protocol_name=group.protocol_name,
        leader=group.leader or "",
        member_id=member.member_id,
        members=group.joined_members() if with_members else (),
    )


def synced(group: Group, member: Member) -> SyncGroupResponse:
    return SyncGroupResponse(
        protocol_type=group.protocol_type, protocol_name=group.protocol_name, assignment=member.assignment
    )

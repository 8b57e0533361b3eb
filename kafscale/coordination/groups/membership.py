"""SyncGroup, Heartbeat and LeaveGroup: what members of a generation say, checked against it. Owns no state."""

from __future__ import annotations

from kafscale.coordination.groups.events import (
    GroupConfig,
    HeartbeatRequest,
    HeartbeatResponse,
    LeaveGroupRequest,
    LeaveGroupResponse,
    LeavingMember,
    LeftMember,
    SyncGroupRequest,
    SyncGroupResponse,
    Token,
)
from kafscale.coordination.groups.group import Group, GroupState, Waiting
from kafscale.coordination.groups.rebalance import Rebalance, synced
from kafscale.coordination.groups.step import Step
from kafscale.protocol.error_codes import ErrorCode


class Membership:
    """Handles what members say; a group of None is one that does not exist."""

    def __init__(self, config: GroupConfig, rebalance: Rebalance) -> None:
        self._config = config
        self._rebalance = rebalance

    # --- SyncGroup --------------------------------------------------------------------------------------------------

    def sync(self, step: Step, group: Group | None, request: SyncGroupRequest, token: Token) -> None:
        """The reply comes at once, or with the leader's SyncGroup."""
        if not request.group_id:
            step.reply(token, SyncGroupResponse(error=ErrorCode.INVALID_GROUP_ID))
            return
        error = self._check_sync(group, request)
        if error is not ErrorCode.NONE or group is None:
            step.reply(token, SyncGroupResponse(error=error))
            return
        member = group.members[request.member_id]
        if group.state is GroupState.STABLE:
            self._rebalance.has_synced(step, group, member)
            step.start_session(group, member)
            step.reply(token, synced(group, member))
            return
        if member.sync is not None:
            step.reply(member.sync.token, SyncGroupResponse(error=ErrorCode.REBALANCE_IN_PROGRESS))
        member.sync = Waiting(token)
        self._rebalance.has_synced(step, group, member)
        if member.member_id == group.leader:
            self._take_assignments(step, group, request)

    def _check_sync(self, group: Group | None, request: SyncGroupRequest) -> ErrorCode:
        if group is None:
            return ErrorCode.UNKNOWN_MEMBER_ID
        error = group.check_member(request.member_id, request.instance_id)
        if error is not ErrorCode.NONE:
            return error
        if request.generation != group.generation:
            return ErrorCode.ILLEGAL_GENERATION
        # A client that names type and protocol (version 5, KIP-559) must name those of the generation.
        if request.protocol_type is not None and request.protocol_type != group.protocol_type:
            return ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        if request.protocol_name is not None and request.protocol_name != group.protocol_name:
            return ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        if group.state is GroupState.PREPARING_REBALANCE:
            return ErrorCode.REBALANCE_IN_PROGRESS
        return ErrorCode.NONE

    def _take_assignments(self, step: Step, group: Group, request: SyncGroupRequest) -> None:
        assignments = dict(request.assignments)
        if sum(map(len, assignments.values())) > self._config.group_max_assignment_bytes:
            # As Kafka does when the record is too large for its topic: all are told, and try again.
            self._rebalance.fail_syncs(step, group, ErrorCode.UNKNOWN_SERVER_ERROR)
            self._rebalance.prepare(step, group)
            return
        self._rebalance.assign(step, group, assignments)

    # --- Heartbeat --------------------------------------------------------------------------------------------------

    def heartbeat(self, step: Step, group: Group | None, request: HeartbeatRequest, token: Token) -> None:
        step.reply(token, HeartbeatResponse(error=self._heartbeat(step, group, request)))

    def _heartbeat(self, step: Step, group: Group | None, request: HeartbeatRequest) -> ErrorCode:
        if not request.group_id:
            return ErrorCode.INVALID_GROUP_ID
        if group is None:
            return ErrorCode.UNKNOWN_MEMBER_ID
        error = group.check_member(request.member_id, request.instance_id)
        if error is not ErrorCode.NONE:
            return error
        if request.generation != group.generation:
            return ErrorCode.ILLEGAL_GENERATION
        step.start_session(group, group.members[request.member_id])
        if group.state is GroupState.PREPARING_REBALANCE:
            return ErrorCode.REBALANCE_IN_PROGRESS
        return ErrorCode.NONE

    # --- LeaveGroup -------------------------------------------------------------------------------------------------

    def leave(self, step: Step, group: Group | None, request: LeaveGroupRequest, token: Token) -> None:
        if not request.group_id:
            step.reply(token, LeaveGroupResponse(error=ErrorCode.INVALID_GROUP_ID))
            return
        if group is None:
            step.reply(token, LeaveGroupResponse(error=ErrorCode.UNKNOWN_MEMBER_ID))
            return
        before = len(group.members)
        left = tuple(
            LeftMember(
                member_id=leaving.member_id,
                instance_id=leaving.instance_id,
                error=self._leave(step, group, leaving),
            )
            for leaving in request.members
        )
        step.reply(token, LeaveGroupResponse(members=left))
        if len(group.members) < before:
            self._rebalance.after_removal(step, group)
        else:
            self._rebalance.complete_if_all_joined(step, group)  # a member that was only expected may have gone

    def _leave(self, step: Step, group: Group, leaving: LeavingMember) -> ErrorCode:
        member_id = leaving.member_id
        if not member_id and leaving.instance_id is not None:
            # An administrator removes a static member by its instance id alone.
            member_id = group.static_members.get(leaving.instance_id, "")
        if member_id in group.pending_join and leaving.instance_id is None:
            group.pending_join.remove(member_id)
            step.end_session(group, member_id)
            return ErrorCode.NONE
        error = group.check_member(member_id, leaving.instance_id)
        if error is ErrorCode.NONE:
            self._rebalance.remove(step, group, group.members[member_id])
        return error

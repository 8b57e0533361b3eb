"""JoinGroup: who may join, under which id, and whether that calls for a new generation.

Member ids are given in two steps (KIP-394); a static member keeps its place when it comes back within its session
(KIP-345, KIP-814). Owns no state.
"""

from __future__ import annotations

from collections.abc import Callable

from kafscale.coordination.groups.events import (
    GroupConfig,
    JoinGroupRequest,
    JoinGroupResponse,
    TimerKey,
    TimerKind,
    Token,
)
from kafscale.coordination.groups.group import Group, GroupState, Member, Waiting
from kafscale.coordination.groups.rebalance import Rebalance, joined
from kafscale.coordination.groups.step import Step
from kafscale.protocol.error_codes import ErrorCode

# Records hold strings of at most 32,767 bytes, and a character may take four. What clients send beyond is refused.
MAX_NAME_CHARS = 8_000
# Of a client's id as much as goes into the ids of its members.
_MAX_CLIENT_ID_CHARS = 4_000


def valid_name(name: str) -> bool:
    return len(name) <= MAX_NAME_CHARS


class Joining:
    """Handles JoinGroup for a group that exists."""

    def __init__(self, config: GroupConfig, new_id: Callable[[], str], rebalance: Rebalance) -> None:
        self._config = config
        self._new_id = new_id
        self._rebalance = rebalance

    def check_request(self, request: JoinGroupRequest) -> ErrorCode:
        """What can be said without looking at the group."""
        if not request.group_id or not valid_name(request.group_id):
            return ErrorCode.INVALID_GROUP_ID
        config = self._config
        if not config.session_timeout_min_ms <= request.session_timeout_ms <= config.session_timeout_max_ms:
            return ErrorCode.INVALID_SESSION_TIMEOUT
        if len(request.protocols) > config.member_max_protocols:
            return ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        names = (request.instance_id or "", request.protocol_type, *(name for name, _ in request.protocols))
        if not all(map(valid_name, names)):
            return ErrorCode.INVALID_REQUEST
        return ErrorCode.NONE

    def join(self, step: Step, group: Group, request: JoinGroupRequest, token: Token) -> None:
        """`request` has passed `check_request`. The reply may come with a later event."""
        error = self._check_room(step, group, request)
        if error is ErrorCode.NONE:
            names = frozenset(name for name, _ in request.protocols)
            if not group.supports(request.protocol_type, names):
                error = ErrorCode.INCONSISTENT_GROUP_PROTOCOL
            elif request.member_id:
                error = self._join_known(step, group, request, token)
            else:
                error = self._join_new(step, group, request, token)
        if error is not ErrorCode.NONE:
            step.reply(token, JoinGroupResponse(error=error, member_id=request.member_id))

    def _check_room(self, step: Step, group: Group, request: JoinGroupRequest) -> ErrorCode:
        """GROUP_MAX_SIZE_REACHED if the members, or what they have to say, would be too many."""
        member = group.members.get(request.member_id)
        limit = self._config.group_max_members
        if group.state is GroupState.EMPTY:
            has_room = True
        elif group.state is GroupState.PREPARING_REBALANCE:
            has_room = (member is not None and member.join is not None) or group.joining < limit
        else:
            has_room = member is not None or len(group.members) < limit
        if not has_room:
            if member is not None:
                self._rebalance.remove(step, group, member, ErrorCode.GROUP_MAX_SIZE_REACHED)
                self._rebalance.after_removal(step, group)
            return ErrorCode.GROUP_MAX_SIZE_REACHED
        if member is None and request.instance_id is not None:
            member = group.members.get(group.static_members.get(request.instance_id, ""))
        known_bytes = member.subscription_bytes() if member is not None else 0
        asked_bytes = sum(len(metadata) for _, metadata in request.protocols)
        if group.subscription_bytes - known_bytes + asked_bytes > self._config.group_max_subscription_bytes:
            return ErrorCode.GROUP_MAX_SIZE_REACHED
        return ErrorCode.NONE

    # --- without a member id ----------------------------------------------------------------------------------------

    def _join_new(self, step: Step, group: Group, request: JoinGroupRequest, token: Token) -> ErrorCode:
        if request.instance_id is not None:
            member_id = f"{request.instance_id}-{self._new_id()}"
            old_member_id = group.static_members.get(request.instance_id)
            if old_member_id is None:
                self._add(step, group, request, token, member_id)
            else:
                self._return_static(step, group, request, token, group.members[old_member_id], member_id)
            return ErrorCode.NONE
        member_id = f"{request.client_id[:_MAX_CLIENT_ID_CHARS]}-{self._new_id()}"
        if not request.requires_known_member_id:
            self._add(step, group, request, token, member_id)
            return ErrorCode.NONE
        if len(group.pending_join) >= self._config.group_max_pending_members:
            return ErrorCode.COORDINATOR_NOT_AVAILABLE
        group.pending_join.add(member_id)
        step.schedule(TimerKey(TimerKind.SESSION, group.group_id, member_id), request.session_timeout_ms)
        step.reply(token, JoinGroupResponse(error=ErrorCode.MEMBER_ID_REQUIRED, member_id=member_id))
        return ErrorCode.NONE

    def _add(self, step: Step, group: Group, request: JoinGroupRequest, token: Token, member_id: str) -> None:
        member = Member(
            member_id=member_id,
            instance_id=request.instance_id,
            client_id=request.client_id[:_MAX_CLIENT_ID_CHARS],
            client_host=request.client_host,
            rebalance_timeout_ms=request.rebalance_timeout_ms,
            session_timeout_ms=request.session_timeout_ms,
            protocols=request.protocols,
            is_new=True,
        )
        if not group.members:
            group.protocol_type = request.protocol_type
        if group.state is GroupState.PREPARING_REBALANCE and group.previous_state is GroupState.EMPTY:
            group.new_member_added = True
        group.add(member)
        group.await_join(member, Waiting(token))
        # It cannot send heartbeats before it knows its generation.
        step.schedule(TimerKey(TimerKind.SESSION, group.group_id, member_id), self._config.new_member_join_timeout_ms)
        self._rebalance.prepare_or_complete(step, group)

    def _return_static(
        self, step: Step, group: Group, request: JoinGroupRequest, token: Token, member: Member, member_id: str
    ) -> None:
        """A static member is back without its id (a restart): the new id replaces and fences the old one."""
        old_leader = group.leader
        self._rebalance.answer(step, group, member, ErrorCode.FENCED_INSTANCE_ID)
        step.end_session(group, member.member_id)
        group.replace_static(member, member_id)
        member.client_id = request.client_id[:_MAX_CLIENT_ID_CHARS]
        member.client_host = request.client_host
        group.update(member, request.protocols, request.session_timeout_ms, request.rebalance_timeout_ms)
        step.start_session(group, member)
        if group.state is not GroupState.STABLE or group.select_protocol() != group.protocol_name:
            group.await_join(member, Waiting(token))
            # While it completes, the leader may have been told of the old id already: so all must join again.
            self._rebalance.prepare_or_complete(step, group)
            return
        group.refresh_subscription()
        step.persist(group)
        is_leader = group.leader == member_id
        response = joined(group, member, with_members=is_leader and request.skips_assignment)
        if request.skips_assignment:
            response = JoinGroupResponse(
                generation=response.generation,
                protocol_type=response.protocol_type,
                protocol_name=response.protocol_name,
                leader=response.leader,
                member_id=response.member_id,
                members=response.members,
                skip_assignment=is_leader,
            )
        elif is_leader:
            # Before version 9 a leader could not be told to leave assignments alone: so it is told that another leads.
            response = JoinGroupResponse(
                generation=response.generation,
                protocol_type=response.protocol_type,
                protocol_name=response.protocol_name,
                leader=old_leader or "",
                member_id=response.member_id,
            )
        step.reply(token, response)

    # --- with a member id -------------------------------------------------------------------------------------------

    def _join_known(self, step: Step, group: Group, request: JoinGroupRequest, token: Token) -> ErrorCode:
        if request.member_id in group.pending_join:
            if request.instance_id is not None:
                return ErrorCode.UNKNOWN_MEMBER_ID  # a static member never gets an id to come back with
            group.pending_join.remove(request.member_id)
            self._add(step, group, request, token, request.member_id)
            return ErrorCode.NONE
        error = group.check_member(request.member_id, request.instance_id)
        if error is not ErrorCode.NONE:
            return error
        member = group.members[request.member_id]
        unchanged = member.protocols == request.protocols
        if group.state is GroupState.COMPLETING_REBALANCE and unchanged:
            # It seems to have missed the reply to its first JoinGroup.
            step.reply(token, joined(group, member, with_members=member.member_id == group.leader))
            return ErrorCode.NONE
        if group.state is GroupState.STABLE and unchanged and member.member_id != group.leader:
            step.reply(token, joined(group, member, with_members=False))
            return ErrorCode.NONE
        group.update(member, request.protocols, request.session_timeout_ms, request.rebalance_timeout_ms)
        replaced = group.await_join(member, Waiting(token))
        if replaced is not None:
            # It asked again on another connection, most likely; whoever still reads the old one should ask again too.
            step.reply(
                replaced.token,
                JoinGroupResponse(error=ErrorCode.REBALANCE_IN_PROGRESS, member_id=member.member_id),
            )
        self._rebalance.prepare_or_complete(step, group)
        return ErrorCode.NONE

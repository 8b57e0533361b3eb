"""LeaveGroup (key 13), versions 0 to 5: members go, one (below v3) or several at once (KIP-345).

Left out: the reason that a client gives (v5), which is not used.
"""

from __future__ import annotations

from typing import Final

from kafscale.coordination.groups import events
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse, MemberResponse
from kafscale.security.needs import READ_GROUP
from workers.context import Context, Request

FIRST_WITH_MEMBERS: Final = 3


async def handle(context: Context, request: Request, message: LeaveGroupRequest) -> LeaveGroupResponse:
    version = request.header.api_version
    if not request.access.allows(READ_GROUP, message.group_id):
        return LeaveGroupResponse(error_code=ErrorCode.GROUP_AUTHORIZATION_FAILED)
    leaving = (
        tuple(
            events.LeavingMember(member_id=member.member_id, instance_id=member.group_instance_id)
            for member in message.members
        )
        if version >= FIRST_WITH_MEMBERS
        else (events.LeavingMember(member_id=message.member_id),)
    )
    wanted = events.LeaveGroupRequest(group_id=message.group_id, members=leaving)
    found: events.LeaveGroupResponse = await context.groups.request(
        message.group_id, lambda shard, *at: shard.leave_group(wanted, *at)
    )
    if version < FIRST_WITH_MEMBERS:
        return LeaveGroupResponse(error_code=found.error or found.members[0].error)
    if found.error is ErrorCode.UNKNOWN_MEMBER_ID:
        # The group does not exist: as in Kafka, that is said of each member.
        return LeaveGroupResponse(
            members=[_left(member.member_id, member.instance_id, found.error) for member in leaving]
        )
    return LeaveGroupResponse(
        error_code=found.error,
        members=[_left(member.member_id, member.instance_id, member.error) for member in found.members],
    )


def _left(member_id: str, instance_id: str | None, error: ErrorCode) -> MemberResponse:
    return MemberResponse(member_id=member_id, group_instance_id=instance_id, error_code=error)

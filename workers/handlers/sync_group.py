"""SyncGroup (key 14), versions 0 to 5: the leader hands in the assignment, each member waits for its part of it.

Nothing is left out.
"""

from __future__ import annotations

from typing import Final

from kafscale.coordination.groups import events
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.sync_group import SyncGroupRequest, SyncGroupResponse
from kafscale.security.needs import READ_GROUP
from workers.context import Context, Request

# KIP-559: from this version on a member must say which protocol it means.
FIRST_WITH_PROTOCOL: Final = 5


async def handle(context: Context, request: Request, message: SyncGroupRequest) -> SyncGroupResponse:
    if not request.access.allows(READ_GROUP, message.group_id):
        return SyncGroupResponse(error_code=ErrorCode.GROUP_AUTHORIZATION_FAILED)
    if request.header.api_version >= FIRST_WITH_PROTOCOL and None in (message.protocol_type, message.protocol_name):
        return SyncGroupResponse(error_code=ErrorCode.INCONSISTENT_GROUP_PROTOCOL)
    wanted = events.SyncGroupRequest(
        group_id=message.group_id,
        generation=message.generation_id,
        member_id=message.member_id,
        instance_id=message.group_instance_id,
        protocol_type=message.protocol_type,
        protocol_name=message.protocol_name,
        assignments=tuple((given.member_id, given.assignment) for given in message.assignments),
    )
    found: events.SyncGroupResponse = await context.groups.request(
        message.group_id, lambda shard, *at: shard.sync_group(wanted, *at)
    )
    return SyncGroupResponse(
        error_code=found.error,
        protocol_type=found.protocol_type,
        protocol_name=found.protocol_name,
        assignment=found.assignment,
    )

"""JoinGroup (key 11), versions 0 to 9: enter a group and wait for its next generation.

The answer comes when the generation begins, and not before its record is durable. Left out: the reason that a client
gives (v8), which is not used.
"""

from __future__ import annotations

from typing import Final

from kafscale.coordination.groups import events
from kafscale.errors import Retry
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.join_group import JoinGroupRequest, JoinGroupResponse, JoinGroupResponseMember
from kafscale.security.needs import READ_GROUP
from workers.context import Context, Request

FIRST_WITH_REBALANCE_TIMEOUT: Final = 1
# KIP-394: a new member is told its id and asks again with it.
FIRST_WITH_KNOWN_MEMBER_ID: Final = 4
# From this version on "no protocol" is null instead of empty.
FIRST_WITH_NULL_PROTOCOL: Final = 7
# KIP-814: a static leader that comes back can be told to leave the assignment alone.
FIRST_WITH_SKIP_ASSIGNMENT: Final = 9


async def handle(context: Context, request: Request, message: JoinGroupRequest) -> JoinGroupResponse:
    version = request.header.api_version
    no_protocol = None if version >= FIRST_WITH_NULL_PROTOCOL else ""
    if not request.access.allows(READ_GROUP, message.group_id):
        return JoinGroupResponse(
            error_code=ErrorCode.GROUP_AUTHORIZATION_FAILED, member_id=message.member_id, protocol_name=no_protocol
        )
    wanted = events.JoinGroupRequest(
        group_id=message.group_id,
        member_id=message.member_id,
        instance_id=message.group_instance_id,
        client_id=request.header.client_id or "",
        # As Java prints an address that has no name.
        client_host=f"/{request.client_host}",
        session_timeout_ms=message.session_timeout_ms,
        rebalance_timeout_ms=(
            message.rebalance_timeout_ms if version >= FIRST_WITH_REBALANCE_TIMEOUT else message.session_timeout_ms
        ),
        protocol_type=message.protocol_type,
        protocols=tuple((protocol.name, protocol.metadata) for protocol in message.protocols),
        requires_known_member_id=version >= FIRST_WITH_KNOWN_MEMBER_ID,
        skips_assignment=version >= FIRST_WITH_SKIP_ASSIGNMENT,
    )
    try:
        found: events.JoinGroupResponse = await context.groups.request(
            message.group_id, lambda shard, *at: shard.join_group(wanted, *at)
        )
    except Retry as error:
        return JoinGroupResponse(error_code=error.code, member_id=message.member_id, protocol_name=no_protocol)
    return JoinGroupResponse(
        error_code=found.error,
        generation_id=found.generation,
        protocol_type=found.protocol_type,
        protocol_name=found.protocol_name or no_protocol,
        leader=found.leader,
        skip_assignment=found.skip_assignment,
        member_id=found.member_id,
        members=[
            JoinGroupResponseMember(
                member_id=member.member_id, group_instance_id=member.instance_id, metadata=member.metadata
            )
            for member in found.members
        ],
    )

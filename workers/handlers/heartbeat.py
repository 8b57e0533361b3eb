"""Heartbeat (key 12), versions 0 to 4: a member lives, and hears whether its group rebalances. Nothing is left out."""

from __future__ import annotations

from kafscale.coordination.groups import events
from kafscale.errors import Retry
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
from kafscale.security.needs import READ_GROUP
from workers.context import Context, Request


async def handle(context: Context, request: Request, message: HeartbeatRequest) -> HeartbeatResponse:
    if not request.access.allows(READ_GROUP, message.group_id):
        return HeartbeatResponse(error_code=ErrorCode.GROUP_AUTHORIZATION_FAILED)
    wanted = events.HeartbeatRequest(
        group_id=message.group_id,
        generation=message.generation_id,
        member_id=message.member_id,
        instance_id=message.group_instance_id,
    )
    try:
        found: events.HeartbeatResponse = await context.groups.request(
            message.group_id, lambda shard, *at: shard.heartbeat(wanted, *at)
        )
    except Retry as error:
        if error.code != ErrorCode.COORDINATOR_LOAD_IN_PROGRESS:
            raise
        # As in Kafka: every member gets a whole session once the group is loaded, so all is well with this one.
        return HeartbeatResponse()
    return HeartbeatResponse(error_code=found.error)

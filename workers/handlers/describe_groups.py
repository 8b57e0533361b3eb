"""DescribeGroups (key 15), versions 0 to 6: state and members of groups, each from its own coordinator.

A group that does not exist is in state Dead; from v6 on that is an error too (KIP-1043). Nothing is left out.
"""

from __future__ import annotations

from typing import Final

import msgspec

from kafscale.coordination.groups import events
from kafscale.protocol.acls import ResourceType
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.describe_groups import (
    DescribedGroup,
    DescribedGroupMember,
    DescribeGroupsRequest,
    DescribeGroupsResponse,
)
from kafscale.security.needs import DESCRIBE_GROUP
from workers.authorization import NOT_ASKED_FOR
from workers.context import Context, Request
from workers.coordinators import ask_by_shard
from workers.groups import Call

FIRST_WITH_GROUP_ID_NOT_FOUND: Final = 6


async def handle(context: Context, request: Request, message: DescribeGroupsRequest) -> DescribeGroupsResponse:
    tells_missing = request.header.api_version >= FIRST_WITH_GROUP_ID_NOT_FOUND
    access = request.access
    # A group is answered once, however often it is named: its members are much to answer a few bytes with.
    named = dict.fromkeys(message.groups)
    allowed = [group_id for group_id in named if access.allows(DESCRIBE_GROUP, group_id)]
    answers = await ask_by_shard(context, allowed, _call, _read)
    groups = []
    for group_id in named:
        answer = answers.get(group_id, ErrorCode.GROUP_AUTHORIZATION_FAILED)
        if isinstance(answer, ErrorCode):
            groups.append(DescribedGroup(error_code=answer, group_id=group_id))
            continue
        if answer.error is ErrorCode.GROUP_ID_NOT_FOUND and not tells_missing:
            answer = msgspec.structs.replace(answer, error=ErrorCode.NONE, error_message=None)
        asked = message.include_authorized_operations
        operations = access.operations(ResourceType.GROUP, group_id) if asked else NOT_ASKED_FOR
        groups.append(_described(answer, operations))
    return DescribeGroupsResponse(groups=groups)


def failed(message: DescribeGroupsRequest, code: int, text: str) -> DescribeGroupsResponse:
    """The error for each group."""
    groups = [DescribedGroup(error_code=code, error_message=text, group_id=group_id) for group_id in message.groups]
    return DescribeGroupsResponse(groups=groups)


def _call(group_ids: tuple[str, ...]) -> Call:
    return lambda shard, *at: shard.describe_groups(events.DescribeGroupsRequest(group_ids=group_ids), *at)


def _read(response: events.DescribeGroupsResponse) -> list[tuple[str, events.DescribedGroup]]:
    return [(group.group_id, group) for group in response.groups]


def _described(group: events.DescribedGroup, operations: int) -> DescribedGroup:
    return DescribedGroup(
        error_code=group.error,
        error_message=group.error_message,
        group_id=group.group_id,
        group_state=group.state,
        protocol_type=group.protocol_type,
        protocol_data=group.protocol,
        members=[
            DescribedGroupMember(
                member_id=member.member_id,
                group_instance_id=member.instance_id,
                client_id=member.client_id,
                client_host=member.client_host,
                member_metadata=member.metadata,
                member_assignment=member.assignment,
            )
            for member in group.members
        ],
        authorized_operations=operations if group.error is ErrorCode.NONE else NOT_ASKED_FOR,
    )

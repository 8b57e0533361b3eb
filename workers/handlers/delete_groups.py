"""DeleteGroups (key 42), versions 0 to 2: forget groups without members, and all they have committed.

Each group has its own answer, from its own coordinator. Nothing is left out.
"""

from __future__ import annotations

from kafscale.coordination.groups import events
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.delete_groups import DeletableGroupResult, DeleteGroupsRequest, DeleteGroupsResponse
from kafscale.security.needs import DELETE_GROUP
from workers.context import Context, Request
from workers.coordinators import ask_by_shard
from workers.groups import Call


async def handle(context: Context, request: Request, message: DeleteGroupsRequest) -> DeleteGroupsResponse:
    """A group that is named twice is deleted, and answered, once."""
    named = dict.fromkeys(message.groups_names)
    allowed = [group_id for group_id in named if request.access.allows(DELETE_GROUP, group_id)]
    codes = await ask_by_shard(context, allowed, _call, _read)
    return DeleteGroupsResponse(
        results=[
            DeletableGroupResult(
                group_id=group_id, error_code=codes.get(group_id, ErrorCode.GROUP_AUTHORIZATION_FAILED)
            )
            for group_id in named
        ]
    )


def failed(message: DeleteGroupsRequest, code: int, text: str) -> DeleteGroupsResponse:
    """The error for each group."""
    names = dict.fromkeys(message.groups_names)
    return DeleteGroupsResponse(results=[DeletableGroupResult(group_id=name, error_code=code) for name in names])


def _call(group_ids: tuple[str, ...]) -> Call:
    return lambda shard, *at: shard.delete_groups(events.DeleteGroupsRequest(group_ids=group_ids), *at)


def _read(response: events.DeleteGroupsResponse) -> list[tuple[str, ErrorCode]]:
    return [(group.group_id, group.error) for group in response.groups]

"""ListGroups (key 16), versions 0 to 5: the groups that this node coordinates; clients ask every node.

COORDINATOR_LOAD_IN_PROGRESS while some of them are still being loaded, rather than an answer that lacks them. Filters
by state (v4, KIP-518) and by type (v5, KIP-848; all groups here are "classic"). Groups that the client may not describe
are not listed. Nothing is left out.
"""

from __future__ import annotations

from kafscale.coordination.groups import events
from kafscale.protocol.messages.list_groups import ListedGroup, ListGroupsRequest, ListGroupsResponse
from kafscale.security.needs import LIST_GROUP
from workers.context import Context, Request


async def handle(context: Context, request: Request, message: ListGroupsRequest) -> ListGroupsResponse:
    wanted = events.ListGroupsRequest(states=tuple(message.states_filter), types=tuple(message.types_filter))
    found: list[events.ListGroupsResponse] = await context.groups.request_all(
        lambda shard, *at: shard.list_groups(wanted, *at)
    )
    return ListGroupsResponse(
        groups=[
            ListedGroup(
                group_id=group.group_id,
                protocol_type=group.protocol_type,
                group_state=group.state,
                group_type=group.group_type,
            )
            for shard in found
            for group in shard.groups
            if request.access.shows(LIST_GROUP, group.group_id)
        ]
    )

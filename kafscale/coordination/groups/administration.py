"""DescribeGroups and ListGroups: groups as an administrator sees them. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable

from kafscale.coordination.groups.events import (
    DescribedGroup,
    DescribedMember,
    ListedGroup,
    ListGroupsRequest,
    ListGroupsResponse,
)
from kafscale.coordination.groups.group import Group, GroupState
from kafscale.protocol.error_codes import ErrorCode

GROUP_TYPE = "classic"


def describe(group_id: str, group: Group | None) -> DescribedGroup:
    if group is None:
        return DescribedGroup(
            group_id=group_id,
            error=ErrorCode.GROUP_ID_NOT_FOUND,
            error_message=f"Group {group_id} not found.",
            state=GroupState.DEAD.value,
        )
    # Between generations there is no protocol that the members' words could be read by.
    is_stable = group.state is GroupState.STABLE
    return DescribedGroup(
        group_id=group_id,
        state=group.state.value,
        protocol_type=group.protocol_type or "",
        protocol=(group.protocol_name or "") if is_stable else "",
        members=tuple(
            DescribedMember(
                member_id=member.member_id,
                instance_id=member.instance_id,
                client_id=member.client_id,
                client_host=member.client_host,
                metadata=member.metadata(group.protocol_name) if is_stable else b"",
                assignment=member.assignment if is_stable else b"",
            )
            for member in group.members.values()
        ),
    )


def list_groups(groups: Iterable[Group], request: ListGroupsRequest) -> ListGroupsResponse:
    """Names of states and types that don't exist match nothing."""
    states = {name.lower() for name in request.states}
    types = {name.lower() for name in request.types}
    if types and GROUP_TYPE not in types:
        return ListGroupsResponse(groups=())
    return ListGroupsResponse(
        groups=tuple(
            ListedGroup(group_id=group.group_id, protocol_type=group.protocol_type or "", state=group.state.value)
            for group in groups
            if not states or group.state.value.lower() in states
        )
    )

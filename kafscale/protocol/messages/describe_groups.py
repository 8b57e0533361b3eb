"""DescribeGroups (key 15): state and members of classic groups.

v3 authorized operations; v4 static members (KIP-345); v5 flexible; v6 an error message, and GROUP_ID_NOT_FOUND for
what is not there (KIP-1043).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, boolean, int16, int32, octets, string


class DescribeGroupsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    groups: Annotated[Sequence[str], array("0+", of="string")] = ()
    include_authorized_operations: Annotated[bool, boolean("3+")] = False


class DescribedGroupMember(Message, frozen=True, kw_only=True):
    member_id: Annotated[str, string("0+")] = ""
    group_instance_id: Annotated[str | None, string("4+", nullable="4+")] = None
    client_id: Annotated[str, string("0+")] = ""
    client_host: Annotated[str, string("0+")] = ""
    member_metadata: Annotated[bytes, octets("0+")] = b""
    member_assignment: Annotated[bytes, octets("0+")] = b""


class DescribedGroup(Message, frozen=True, kw_only=True):
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("6+", nullable="6+")] = None
    group_id: Annotated[str, string("0+")] = ""
    group_state: Annotated[str, string("0+")] = ""
    protocol_type: Annotated[str, string("0+")] = ""
    protocol_data: Annotated[str, string("0+")] = ""
    members: Annotated[Sequence[DescribedGroupMember], array("0+")] = ()
    authorized_operations: Annotated[int, int32("3+")] = -(2**31)


class DescribeGroupsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("1+")] = 0
    groups: Annotated[Sequence[DescribedGroup], array("0+")] = ()

"""ListGroups (key 16): the groups that a node coordinates.

v3 flexible; v4 filter by state (KIP-518); v5 filter by type (KIP-848).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int16, int32, string


class ListGroupsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    states_filter: Annotated[Sequence[str], array("4+", of="string")] = ()
    types_filter: Annotated[Sequence[str], array("5+", of="string")] = ()


class ListedGroup(Message, frozen=True, kw_only=True):
    group_id: Annotated[str, string("0+")] = ""
    protocol_type: Annotated[str, string("0+")] = ""
    group_state: Annotated[str, string("4+")] = ""
    group_type: Annotated[str, string("5+")] = ""


class ListGroupsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("1+")] = 0
    error_code: Annotated[int, int16("0+")] = 0
    groups: Annotated[Sequence[ListedGroup], array("0+")] = ()

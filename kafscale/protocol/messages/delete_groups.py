"""DeleteGroups (key 42): delete empty groups.

v2 flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int16, int32, string


class DeleteGroupsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    groups_names: Annotated[Sequence[str], array("0+", of="string")] = ()


class DeletableGroupResult(Message, frozen=True, kw_only=True):
    group_id: Annotated[str, string("0+")] = ""
    error_code: Annotated[int, int16("0+")] = 0


class DeleteGroupsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    results: Annotated[Sequence[DeletableGroupResult], array("0+")] = ()

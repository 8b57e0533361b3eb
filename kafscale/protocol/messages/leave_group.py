"""LeaveGroup (key 13): leave a group, from v3 on several members at once (KIP-345).

v4 flexible; v5 a reason (KIP-800).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int16, int32, string


class MemberIdentity(Message, frozen=True, kw_only=True):
    member_id: Annotated[str, string("3+")] = ""
    group_instance_id: Annotated[str | None, string("3+", nullable="3+")] = None
    reason: Annotated[str | None, string("5+", nullable="5+")] = None


class LeaveGroupRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    group_id: Annotated[str, string("0+")] = ""
    member_id: Annotated[str, string("0-2")] = ""
    members: Annotated[Sequence[MemberIdentity], array("3+")] = ()


class MemberResponse(Message, frozen=True, kw_only=True):
    member_id: Annotated[str, string("3+")] = ""
    group_instance_id: Annotated[str | None, string("3+", nullable="3+")] = ""
    error_code: Annotated[int, int16("3+")] = 0


class LeaveGroupResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("1+")] = 0
    error_code: Annotated[int, int16("0+")] = 0
    members: Annotated[Sequence[MemberResponse], array("3+")] = ()

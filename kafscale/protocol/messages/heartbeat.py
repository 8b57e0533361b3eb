"""Heartbeat (key 12): a member lives.

v3 static members (KIP-345); v4 flexible.
"""

from typing import Annotated

from kafscale.protocol.schema import Message, int16, int32, string


class HeartbeatRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    group_id: Annotated[str, string("0+")] = ""
    generation_id: Annotated[int, int32("0+")] = 0
    member_id: Annotated[str, string("0+")] = ""
    group_instance_id: Annotated[str | None, string("3+", nullable="3+")] = None


class HeartbeatResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("1+")] = 0
    error_code: Annotated[int, int16("0+")] = 0

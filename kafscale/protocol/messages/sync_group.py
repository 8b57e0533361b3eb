"""SyncGroup (key 14): the leader hands in the assignment, each member takes its part.

v3 static members (KIP-345); v4 flexible; v5 protocol type and name (KIP-559).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int16, int32, octets, string


class SyncGroupRequestAssignment(Message, frozen=True, kw_only=True):
    member_id: Annotated[str, string("0+")] = ""
    assignment: Annotated[bytes, octets("0+")] = b""


class SyncGroupRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    group_id: Annotated[str, string("0+")] = ""
    generation_id: Annotated[int, int32("0+")] = 0
    member_id: Annotated[str, string("0+")] = ""
    group_instance_id: Annotated[str | None, string("3+", nullable="3+")] = None
    protocol_type: Annotated[str | None, string("5+", nullable="5+")] = None
    protocol_name: Annotated[str | None, string("5+", nullable="5+")] = None
    assignments: Annotated[Sequence[SyncGroupRequestAssignment], array("0+")] = ()


class SyncGroupResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("1+")] = 0
    error_code: Annotated[int, int16("0+")] = 0
    protocol_type: Annotated[str | None, string("5+", nullable="5+")] = None
    protocol_name: Annotated[str | None, string("5+", nullable="5+")] = None
    assignment: Annotated[bytes, octets("0+")] = b""

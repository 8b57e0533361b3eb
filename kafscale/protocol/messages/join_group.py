"""JoinGroup (key 11): enter a group, or say again what one supports, and wait for the generation.

v1 rebalance timeout; v5 static members (KIP-345); v6 flexible; v7 protocol type in the answer; v8 a reason (KIP-800);
v9 leave to skip the assignment (KIP-814).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, boolean, int16, int32, octets, string


class JoinGroupRequestProtocol(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    metadata: Annotated[bytes, octets("0+")] = b""


class JoinGroupRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    group_id: Annotated[str, string("0+")] = ""
    session_timeout_ms: Annotated[int, int32("0+")] = 0
    rebalance_timeout_ms: Annotated[int, int32("1+")] = -1
    member_id: Annotated[str, string("0+")] = ""
    group_instance_id: Annotated[str | None, string("5+", nullable="5+")] = None
    protocol_type: Annotated[str, string("0+")] = ""
    protocols: Annotated[Sequence[JoinGroupRequestProtocol], array("0+")] = ()
    reason: Annotated[str | None, string("8+", nullable="8+")] = None


class JoinGroupResponseMember(Message, frozen=True, kw_only=True):
    member_id: Annotated[str, string("0+")] = ""
    group_instance_id: Annotated[str | None, string("5+", nullable="5+")] = None
    metadata: Annotated[bytes, octets("0+")] = b""


class JoinGroupResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("2+")] = 0
    error_code: Annotated[int, int16("0+")] = 0
    generation_id: Annotated[int, int32("0+")] = -1
    protocol_type: Annotated[str | None, string("7+", nullable="7+")] = None
    protocol_name: Annotated[str | None, string("0+", nullable="7+")] = ""
    leader: Annotated[str, string("0+")] = ""
    skip_assignment: Annotated[bool, boolean("9+")] = False
    member_id: Annotated[str, string("0+")] = ""
    members: Annotated[Sequence[JoinGroupResponseMember], array("0+")] = ()

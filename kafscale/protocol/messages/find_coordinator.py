"""FindCoordinator (key 10): the node that coordinates a group or a transactional id.

v1 kinds of keys; v3 flexible; v4 several keys at once (KIP-699).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int8, int16, int32, string


class FindCoordinatorRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    key: Annotated[str, string("0-3")] = ""
    key_type: Annotated[int, int8("1+")] = 0
    coordinator_keys: Annotated[Sequence[str], array("4+", of="string")] = ()


class Coordinator(Message, frozen=True, kw_only=True):
    key: Annotated[str, string("4+")] = ""
    node_id: Annotated[int, int32("4+")] = 0
    host: Annotated[str, string("4+")] = ""
    port: Annotated[int, int32("4+")] = 0
    error_code: Annotated[int, int16("4+")] = 0
    error_message: Annotated[str | None, string("4+", nullable="4+")] = ""


class FindCoordinatorResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("1+")] = 0
    error_code: Annotated[int, int16("0-3")] = 0
    error_message: Annotated[str | None, string("1-3", nullable="1-3")] = ""
    node_id: Annotated[int, int32("0-3")] = 0
    host: Annotated[str, string("0-3")] = ""
    port: Annotated[int, int32("0-3")] = 0
    coordinators: Annotated[Sequence[Coordinator], array("4+")] = ()

"""CreateAcls (key 30): create ACLs.

v1 pattern types (KIP-290); v2 flexible; v3 users as resources (KIP-373).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int8, int16, int32, string


class AclCreation(Message, frozen=True, kw_only=True):
    resource_type: Annotated[int, int8("0+")] = 0
    resource_name: Annotated[str, string("0+")] = ""
    resource_pattern_type: Annotated[int, int8("1+")] = 3
    principal: Annotated[str, string("0+")] = ""
    host: Annotated[str, string("0+")] = ""
    operation: Annotated[int, int8("0+")] = 0
    permission_type: Annotated[int, int8("0+")] = 0


class CreateAclsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    creations: Annotated[Sequence[AclCreation], array("0+")] = ()


class AclCreationResult(Message, frozen=True, kw_only=True):
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = ""


class CreateAclsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    results: Annotated[Sequence[AclCreationResult], array("0+")] = ()

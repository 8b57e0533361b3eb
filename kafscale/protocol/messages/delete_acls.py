"""DeleteAcls (key 31): delete the ACLs that filters match.

v1 pattern types (KIP-290); v2 flexible; v3 users as resources (KIP-373).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int8, int16, int32, string


class DeleteAclsFilter(Message, frozen=True, kw_only=True):
    resource_type_filter: Annotated[int, int8("0+")] = 0
    resource_name_filter: Annotated[str | None, string("0+", nullable="0+")] = ""
    pattern_type_filter: Annotated[int, int8("1+")] = 3
    principal_filter: Annotated[str | None, string("0+", nullable="0+")] = ""
    host_filter: Annotated[str | None, string("0+", nullable="0+")] = ""
    operation: Annotated[int, int8("0+")] = 0
    permission_type: Annotated[int, int8("0+")] = 0


class DeleteAclsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    filters: Annotated[Sequence[DeleteAclsFilter], array("0+")] = ()


class DeleteAclsMatchingAcl(Message, frozen=True, kw_only=True):
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = ""
    resource_type: Annotated[int, int8("0+")] = 0
    resource_name: Annotated[str, string("0+")] = ""
    pattern_type: Annotated[int, int8("1+")] = 3
    principal: Annotated[str, string("0+")] = ""
    host: Annotated[str, string("0+")] = ""
    operation: Annotated[int, int8("0+")] = 0
    permission_type: Annotated[int, int8("0+")] = 0


class DeleteAclsFilterResult(Message, frozen=True, kw_only=True):
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = ""
    matching_acls: Annotated[Sequence[DeleteAclsMatchingAcl], array("0+")] = ()


class DeleteAclsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    filter_results: Annotated[Sequence[DeleteAclsFilterResult], array("0+")] = ()

"""DescribeConfigs (key 32): settings of topics and brokers.

v1 sources and synonyms; v3 types and documentation; v4 flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, boolean, int8, int16, int32, string


class DescribeConfigsResource(Message, frozen=True, kw_only=True):
    resource_type: Annotated[int, int8("0+")] = 0
    resource_name: Annotated[str, string("0+")] = ""
    configuration_keys: Annotated[Sequence[str] | None, array("0+", nullable="0+", of="string")] = ()


class DescribeConfigsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    resources: Annotated[Sequence[DescribeConfigsResource], array("0+")] = ()
    include_synonyms: Annotated[bool, boolean("0+")] = False
    include_documentation: Annotated[bool, boolean("3+")] = False


class DescribeConfigsSynonym(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    value: Annotated[str | None, string("0+", nullable="0+")] = ""
    source: Annotated[int, int8("0+")] = 0


class DescribeConfigsResourceResult(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    value: Annotated[str | None, string("0+", nullable="0+")] = ""
    read_only: Annotated[bool, boolean("0+")] = False
    config_source: Annotated[int, int8("0+")] = -1
    is_sensitive: Annotated[bool, boolean("0+")] = False
    synonyms: Annotated[Sequence[DescribeConfigsSynonym], array("0+")] = ()
    config_type: Annotated[int, int8("3+")] = 0
    documentation: Annotated[str | None, string("3+", nullable="0+")] = ""


class DescribeConfigsResult(Message, frozen=True, kw_only=True):
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = ""
    resource_type: Annotated[int, int8("0+")] = 0
    resource_name: Annotated[str, string("0+")] = ""
    configs: Annotated[Sequence[DescribeConfigsResourceResult], array("0+")] = ()


class DescribeConfigsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    results: Annotated[Sequence[DescribeConfigsResult], array("0+")] = ()

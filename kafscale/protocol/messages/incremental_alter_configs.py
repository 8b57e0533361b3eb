"""IncrementalAlterConfigs (key 44): change single settings of a resource (KIP-339).

v1 flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, boolean, int8, int16, int32, string


class AlterableConfig(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    config_operation: Annotated[int, int8("0+")] = 0
    value: Annotated[str | None, string("0+", nullable="0+")] = ""


class AlterConfigsResource(Message, frozen=True, kw_only=True):
    resource_type: Annotated[int, int8("0+")] = 0
    resource_name: Annotated[str, string("0+")] = ""
    configs: Annotated[Sequence[AlterableConfig], array("0+")] = ()


class IncrementalAlterConfigsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    resources: Annotated[Sequence[AlterConfigsResource], array("0+")] = ()
    validate_only: Annotated[bool, boolean("0+")] = False


class AlterConfigsResourceResponse(Message, frozen=True, kw_only=True):
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = ""
    resource_type: Annotated[int, int8("0+")] = 0
    resource_name: Annotated[str, string("0+")] = ""


class IncrementalAlterConfigsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    responses: Annotated[Sequence[AlterConfigsResourceResponse], array("0+")] = ()

"""DescribeClientQuotas (key 48): the quotas of entities that a filter matches (KIP-546).

v1 flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, boolean, float64, int8, int16, int32, string


class ComponentData(Message, frozen=True, kw_only=True):
    entity_type: Annotated[str, string("0+")] = ""
    match_type: Annotated[int, int8("0+")] = 0
    match: Annotated[str | None, string("0+", nullable="0+")] = ""


class DescribeClientQuotasRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    components: Annotated[Sequence[ComponentData], array("0+")] = ()
    strict: Annotated[bool, boolean("0+")] = False


class EntityData(Message, frozen=True, kw_only=True):
    entity_type: Annotated[str, string("0+")] = ""
    entity_name: Annotated[str | None, string("0+", nullable="0+")] = ""


class ValueData(Message, frozen=True, kw_only=True):
    key: Annotated[str, string("0+")] = ""
    value: Annotated[float, float64("0+")] = 0.0


class EntryData(Message, frozen=True, kw_only=True):
    entity: Annotated[Sequence[EntityData], array("0+")] = ()
    values: Annotated[Sequence[ValueData], array("0+")] = ()


class DescribeClientQuotasResponse(Message, frozen=True, kw_only=True):
    """What the broker answers. `entries` is null where there is an error."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = ""
    entries: Annotated[Sequence[EntryData] | None, array("0+", nullable="0+")] = ()

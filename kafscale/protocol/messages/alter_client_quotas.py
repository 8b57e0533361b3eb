"""AlterClientQuotas (key 49): set quotas of entities, and take them away (KIP-546).

v1 flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, boolean, float64, int16, int32, string


class EntityData(Message, frozen=True, kw_only=True):
    entity_type: Annotated[str, string("0+")] = ""
    entity_name: Annotated[str | None, string("0+", nullable="0+")] = ""


class OpData(Message, frozen=True, kw_only=True):
    key: Annotated[str, string("0+")] = ""
    value: Annotated[float, float64("0+")] = 0.0
    remove: Annotated[bool, boolean("0+")] = False


class EntryData(Message, frozen=True, kw_only=True):
    entity: Annotated[Sequence[EntityData], array("0+")] = ()
    ops: Annotated[Sequence[OpData], array("0+")] = ()


class AlterClientQuotasRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    entries: Annotated[Sequence[EntryData], array("0+")] = ()
    validate_only: Annotated[bool, boolean("0+")] = False


class EntryResult(Message, frozen=True, kw_only=True):
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = ""
    entity: Annotated[Sequence[EntityData], array("0+")] = ()


class AlterClientQuotasResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    entries: Annotated[Sequence[EntryResult], array("0+")] = ()

"""Where an encoded answer says for how long its client is throttled, so that this can be said after the fact.

Handlers encode answers without knowing of quotas; whoever sends them fills in the time. Pure: from bytes to bytes.
Answers that have no such field, or have it where only reading them would find it, stay as they are.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Final

from kafscale.protocol.schema import Buffer, fields
from kafscale.protocol.table import APIS, ApiKey

THROTTLE_MS_MAX: Final = 2**31 - 1

_INT32: Final = struct.Struct(">i")
_NOT_THROTTLED: Final = bytes(4)
# Size and correlation id.
_HEAD_BYTES: Final = 8
_BYTES_BY_KIND: Final = {"bool": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uuid": 16}


@functools.cache
def throttle_place(key: int, version: int) -> int | None:
    """Where the field's four bytes begin: from an answer's start, size included, or, negative, from its end."""
    api = APIS[key]
    if key == ApiKey.PRODUCE:
        # Behind the results, of any length; behind it come only tags.
        return -5 if api.is_flexible(version) else -4
    place = _HEAD_BYTES + api.has_flexible_response_header(version)
    for field in fields(api.response):
        if field.wire.tag is not None or version not in field.wire.versions:
            continue
        if field.name == "throttle_time_ms":
            return place
        size = _BYTES_BY_KIND.get(field.wire.kind)
        if size is None:
            return None
        place += size
    return None


def throttled(key: int, version: int, answer: Sequence[Buffer], throttle_ms: int) -> list[Buffer]:
    """The answer, saying that its client is throttled for so long. What is changed of it is copied."""
    place = throttle_place(key, version)
    told = list(answer)
    if place is None:
        return told
    if place < 0:
        place += sum(map(len, told))
    for number, buffer in enumerate(told):
        if place < len(buffer):
            # Not all zero: these are tags, which a failed Produce has behind the field. It is throttled untold.
            if place >= 0 and buffer[place : place + 4] == _NOT_THROTTLED:
                copy = bytearray(buffer)
                _INT32.pack_into(copy, place, min(throttle_ms, THROTTLE_MS_MAX))
                told[number] = copy
            return told
        place -= len(buffer)
    return told

"""The same messages written by kio, an independent codec with a class for every version. Knows nothing of ours but the
declared names; where the two call a field differently, it is kio dropping a unit (`throttle_time` for milliseconds).
"""

from __future__ import annotations

import dataclasses
import io
import types
import typing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from kio.index import load_request_schema, load_response_schema
from kio.schema.errors import ErrorCode
from kio.serial import entity_writer

from kafscale.protocol.schema import Message, fields
from kafscale.protocol.table import Api


def oracle_type(api: Api, version: int, message: type[Message]) -> type[Any]:
    load = load_request_schema if message is api.request else load_response_schema
    return load(api.key, version)


def oracle_bytes(api: Api, version: int, message: Message) -> bytes:
    """What kio makes of the same values. AssertionError where the two do not have the same fields."""
    entity = oracle_type(api, version, type(message))
    out = io.BytesIO()
    entity_writer(entity)(out, _entity(entity, message, version))
    return out.getvalue()


def _entity(entity: type[Any], message: Message, version: int) -> Any:
    hints = typing.get_type_hints(entity)
    ours = {field.name for field in fields(type(message)) if version in field.wire.versions}
    arguments = {}
    for field in dataclasses.fields(entity):
        name = field.name if field.name in ours else field.name + "_ms"
        assert name in ours, f"{type(message).__name__} v{version} lacks {field.name}"
        ours.remove(name)
        arguments[field.name] = _value(getattr(message, name), hints[field.name], field.metadata, version)
    assert not ours, f"{type(message).__name__} v{version} should not have {ours}"
    return entity(**arguments)


def _value(value: Any, hint: Any, metadata: Any, version: int) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return tuple(_value(item, typing.get_args(hint)[0], metadata, version) for item in value)
    if dataclasses.is_dataclass(hint):
        return _entity(typing.cast(Any, hint), value, version)
    match metadata.get("kafka_type"):
        case "error_code":
            return ErrorCode(value)
        case "timedelta_i32" | "timedelta_i64":
            return timedelta(milliseconds=value)
        case "datetime_i64":
            return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=value)
        case "uuid":
            return None if not any(value) else UUID(bytes=value)
    return value

"""Random messages made from the declarations, for the codec's property tests. Knows no codec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.schema import Field, Kind, Message, fields
from kafscale.protocol.table import APIS, Api

INTEGER_BITS: dict[Kind, int] = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}


def every_message() -> Iterator[tuple[Api, int, type[Message]]]:
    """(api, version, request or response) for all that the table holds."""
    for api in APIS.values():
        for version in range(api.min_version, api.max_version + 1):
            yield api, version, api.request
            yield api, version, api.response


def title(parameters: tuple[Api, int, type[Message]]) -> str:
    return f"{parameters[2].__name__}-v{parameters[1]}"


def messages(message: type[Message], version: int, *, tame: bool = False) -> st.SearchStrategy[Any]:
    """Messages that `version` can hold; fields it lacks keep their defaults.

    `tame` keeps error codes to known ones and times to what a Python datetime can say: the oracle has types for these.
    """
    values = {field.name: _values(field, version, tame) for field in fields(message) if version in field.wire.versions}
    return st.builds(message, **values)


def _values(field: Field, version: int, tame: bool) -> st.SearchStrategy[Any]:
    kind = field.wire.kind
    values: st.SearchStrategy[Any]
    if kind == "array":
        if field.message is not None:
            element = messages(field.message, version, tame=tame)
        else:
            assert field.wire.of is not None
            element = _primitive(field.wire.of)
        values = st.lists(element, max_size=3).map(tuple)
    elif kind == "struct":
        assert field.message is not None
        values = messages(field.message, version, tame=tame)
    elif tame and field.name.endswith("error_code"):
        values = st.sampled_from([int(code) for code in ErrorCode if code <= 120])
    elif tame and (field.name.endswith("_ms") or "timestamp" in field.name):
        values = st.integers(0, 2**31 - 1) if kind == "int32" else st.integers(0, 2**41)
    else:
        values = _primitive(kind)
    if version in field.wire.nullable:
        values = st.none() | values
    if field.wire.tag is not None:
        values = st.just(field.default) | values
    return values


def _primitive(kind: Kind) -> st.SearchStrategy[Any]:
    if kind in INTEGER_BITS:
        limit = 2 ** (INTEGER_BITS[kind] - 1)
        return st.integers(-limit, limit - 1)
    match kind:
        case "bool":
            return st.booleans()
        case "uuid":
            return st.binary(min_size=16, max_size=16)
        case "string":
            # Lengths on both sides of where a varint takes a second byte.
            return st.text(max_size=5) | st.integers(120, 300).map("x".__mul__)
        case "float64":
            return st.floats(allow_nan=False)
        case "bytes" | "records":
            return st.binary(max_size=5) | st.integers(120, 300).map(bytes)
    raise AssertionError(kind)

"""Goal: the notation means what it says, declarations agree with kio's on nulls and defaults, slips are caught."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

import pytest

from kafscale.protocol.schema import Message, Versions, array, fields, int32, string
from kafscale.protocol.table import Api
from tests.unit.protocol.declared import every_message, title
from tests.unit.protocol.oracle import oracle_type


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("0+", [0, 99], [-1]), ("3+", [3, 4], [2]), ("1-3", [1, 2, 3], [0, 4]), ("2", [2], [1, 3]), ("none", [], [0, 1])],
)
def test_versions(text: str, inside: list[int], outside: list[int]) -> None:
    """Kafka's notation for ranges of versions."""
    versions = Versions.parse(text)
    assert all(version in versions for version in inside)
    assert not any(version in versions for version in outside)


@pytest.mark.parametrize("parameters", list(every_message()), ids=title)
def test_nulls_and_defaults_are_kafkas(parameters: tuple[Api, int, type[Message]]) -> None:
    """Where kio allows null so do we, and nowhere else; where it has a default, ours is the same."""
    api, version, kind = parameters
    _compare(oracle_type(api, version, kind), kind, version)


def _compare(entity: type[Any], kind: type[Message], version: int) -> None:
    hints = typing.get_type_hints(entity)
    theirs = {field.name: field for field in dataclasses.fields(entity)}
    for field in fields(kind):
        if version not in field.wire.versions:
            continue
        name = field.name if field.name in theirs else field.name.removesuffix("_ms")
        hint = hints[name]
        optional = isinstance(hint, types.UnionType)
        if field.wire.kind not in ("uuid", "int64"):  # kio has None for the zero id and for the time -1
            assert optional == (version in field.wire.nullable), field.name
        default = theirs[name].default
        if default is not dataclasses.MISSING and field.wire.kind not in ("struct", "uuid"):
            if isinstance(default, timedelta):
                default = default // timedelta(milliseconds=1)
            assert default == field.default or (default is None and field.default == -1), field.name
        if field.message is not None:
            _compare(_nested(hint), field.message, version)


def _nested(hint: Any) -> type[Any]:
    if dataclasses.is_dataclass(hint):
        return typing.cast(type[Any], hint)
    return next(_nested(part) for part in typing.get_args(hint) if part not in (types.NoneType, Ellipsis))


def test_a_field_without_a_wire_type_is_caught() -> None:
    """A plain annotation is a slip, not a field that is never sent."""

    class Slip(Message, frozen=True, kw_only=True):
        name: str = ""

    with pytest.raises(TypeError, match=r"Slip\.name says no wire type"):
        fields(Slip)


def test_an_array_of_nothing_is_caught() -> None:
    """An array names its element: a struct in the annotation, or a primitive by `of`."""

    class Slip(Message, frozen=True, kw_only=True):
        numbers: Annotated[Sequence[int], array("0+")] = ()

    with pytest.raises(TypeError, match=r"Slip\.numbers names no struct"):
        fields(Slip)


def test_fields_keep_their_order() -> None:
    """The order of declaration is the order on the wire."""

    class Pair(Message, frozen=True, kw_only=True):
        second: Annotated[str, string("0+")] = "x"
        first: Annotated[int, int32("1+")] = 5

    assert [(field.name, field.wire.kind, field.default) for field in fields(Pair)] == [
        ("second", "string", "x"),
        ("first", "int32", 5),
    ]

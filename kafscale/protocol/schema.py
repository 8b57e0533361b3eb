"""The notation in which messages are declared: a wire type and the versions that carry it, at the field.

A message is a frozen `msgspec.Struct` whose fields are annotated, for instance

    name: Annotated[str | None, string("0+", nullable="12+")] = ""
    partitions: Annotated[Sequence[Partition], array("0+")] = ()
    replica_nodes: Annotated[Sequence[int], array("0+", of="int32")] = ()
    current_leader: Annotated[LeaderIdAndEpoch, struct("10+", tag=0)] = LeaderIdAndEpoch()

This file knows what the notation means and how to read it back from a class. It knows nothing of bytes: `compiler.py`
makes functions of it. Which versions are flexible (KIP-482) is said once per API, in `table.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgspec

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes, format B."""

Records: TypeAlias = Buffer | Sequence[Buffer]
"""Record batches. Decoded: one memoryview of the frame. To encode: one buffer, or several that follow each other."""

Kind: TypeAlias = Literal[
    "bool",
    "int8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "float64",
    "uuid",
    "string",
    "bytes",
    "records",
    "array",
    "struct",
]

ZERO_UUID: Final = bytes(16)
"""Kafka's "no id"."""

_NO_UPPER_BOUND: Final = 0x7FFF


class Message(msgspec.Struct, frozen=True, gc=False):
    """Base of every message and of the structs inside it. Without cycles, so the collector need not look (gc=False)."""


@dataclass(frozen=True, slots=True)
class Versions:
    """A closed range of versions; empty where low > high."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Versions:
        """Read Kafka's notation: `3+`, `0-12`, `2`, or `none`."""
        if text == "none":
            return cls(0, -1)
        if text.endswith("+"):
            return cls(int(text[:-1]), _NO_UPPER_BOUND)
        low, _, high = text.partition("-")
        return cls(int(low), int(high or low))

    def __contains__(self, version: int) -> bool:
        return self.low <= version <= self.high


@dataclass(frozen=True, slots=True)
class Wire:
    """How one field travels: its kind, and the versions in which it is there, may be null, and is tagged."""

    kind: Kind
    versions: Versions
    nullable: Versions
    tag: int | None
    of: Kind | None
    """An array's element."""


def _wire(kind: Kind, versions: str, nullable: str = "none", tag: int | None = None, of: Kind | None = None) -> Wire:
    return Wire(kind, Versions.parse(versions), Versions.parse(nullable), tag, of)


def boolean(versions: str, *, tag: int | None = None) -> Wire:
    """One byte, 0 or 1."""
    return _wire("bool", versions, tag=tag)


def int8(versions: str, *, tag: int | None = None) -> Wire:
    return _wire("int8", versions, tag=tag)


def int16(versions: str, *, tag: int | None = None) -> Wire:
    return _wire("int16", versions, tag=tag)


def int32(versions: str, *, tag: int | None = None) -> Wire:
    return _wire("int32", versions, tag=tag)


def int64(versions: str, *, tag: int | None = None) -> Wire:
    return _wire("int64", versions, tag=tag)


def float64(versions: str, *, tag: int | None = None) -> Wire:
    return _wire("float64", versions, tag=tag)


def uuid(versions: str, *, tag: int | None = None) -> Wire:
    """Sixteen raw bytes; all zero means none."""
    return _wire("uuid", versions, tag=tag)


def string(versions: str, *, nullable: str = "none", tag: int | None = None) -> Wire:
    """UTF-8, of at most 32,767 bytes."""
    return _wire("string", versions, nullable, tag)


def octets(versions: str, *, nullable: str = "none", tag: int | None = None) -> Wire:
    """Kafka's `bytes`: copied out of the frame when decoded."""
    return _wire("bytes", versions, nullable, tag)


def batches(versions: str, *, nullable: str = "none") -> Wire:
    """Record batches: a slice of the frame when decoded, passed on uncopied when encoded."""
    return _wire("records", versions, nullable)


def array(versions: str, *, nullable: str = "none", tag: int | None = None, of: Kind | None = None) -> Wire:
    """A sequence; `of` names a primitive element, else the element is the struct in the annotation."""
    return _wire("array", versions, nullable, tag, of)


def struct(versions: str, *, tag: int | None = None) -> Wire:
    """A nested struct, named by the annotation."""
    return _wire("struct", versions, tag=tag)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message, as declared."""

    name: str
    wire: Wire
    message: type[Message] | None
    """The nested struct, where the kind is struct or array of structs."""
    default: Any


@functools.cache
def fields(message: type[Message]) -> tuple[Field, ...]:
    """What `message` declares, in wire order. TypeError where a field is not declared in the notation."""
    hints = get_type_hints(message, include_extras=True)
    declared = []
    for field in msgspec.structs.fields(message):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated or not isinstance(hint.__metadata__[0], Wire):
            raise TypeError(f"{message.__name__}.{field.name} says no wire type")
        wire = hint.__metadata__[0]
        nested = None
        if wire.kind == "struct" or (wire.kind == "array" and wire.of is None):
            nested = _nested(hint.__origin__)
            if nested is None:
                raise TypeError(f"{message.__name__}.{field.name} names no struct")
        declared.append(Field(field.name, wire, nested, field.default))
    return tuple(declared)


def _nested(hint: Any) -> type[Message] | None:
    """The struct inside `Struct`, `Sequence[Struct]` or `Sequence[Struct] | None`."""
    if isinstance(hint, type) and issubclass(hint, Message):
        return hint
    for argument in get_args(hint):
        found = _nested(argument)
        if found is not None:
            return found
    return None

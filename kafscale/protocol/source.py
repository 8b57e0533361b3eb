"""A codec function while it is being written: its lines, the constants it closes over, its runs of fixed-size fields.

What decoding and encoding have in common. The text of a function is made of names and numbers from the declarations
and of nothing else.
"""

from __future__ import annotations

import functools
import struct
from typing import Any, Final

from kafscale.protocol.schema import Field, Kind, Message, fields

FORMATS: Final[dict[Kind, str]] = {
    "bool": "?",
    "int8": "b",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "float64": "d",
    "uuid": "16s",
}
"""`struct` characters of the kinds whose size is fixed."""


@functools.cache
def least_size(message: type[Message], version: int, flexible: bool) -> int:
    """The fewest bytes that a `message` can take: what an array's count is checked against."""
    size = 1 if flexible else 0
    for field in fields(message):
        if version in field.wire.versions and field.wire.tag is None:
            if field.wire.kind == "struct":
                assert field.message is not None
                size += least_size(field.message, version, flexible)
            else:
                size += least_size_of(field.wire.kind, flexible)
    return size


def least_size_of(kind: Kind, flexible: bool) -> int:
    """The same for a value of a kind that is no struct: an empty one, where its size varies."""
    if kind in FORMATS:
        return struct.calcsize(">" + FORMATS[kind])
    return 1 if flexible else 2 if kind == "string" else 4


class Source:
    """A function being written: its lines, the constants it closes over, fresh names, and a run of fixed fields."""

    def __init__(self, message: type[Message], version: int, flexible: bool) -> None:
        self.message = message
        self.version = version
        self.flexible = flexible
        self.lines: list[str] = []
        self.depth = 1
        self.constants: dict[str, Any] = {}
        self.names = 0
        self.run: list[tuple[str, str]] = []

    @property
    def title(self) -> str:
        return f"{self.message.__name__} v{self.version}"

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def name(self, stem: str) -> str:
        self.names += 1
        return f"{stem}{self.names}"

    def constant(self, stem: str, value: object) -> str:
        """A name for `value` in the function's namespace; the same object keeps its name."""
        for name, known in self.constants.items():
            if known is value:
                return name
        name = self.name(stem)
        self.constants[name] = value
        return name

    def packer(self, formats: str, method: str) -> str:
        """The name of a bound method of the `struct.Struct` of these characters."""
        name = f"{method}_{formats}".replace("?", "T")
        if name not in self.constants:
            self.constants[name] = getattr(struct.Struct(">" + formats), method)
        return name

    def carried(self, message: type[Message]) -> tuple[list[Field], list[Field]]:
        """The fields that this version has: those in place, and those that are tagged, by tag."""
        present = [field for field in fields(message) if self.version in field.wire.versions]
        tagged = [field for field in present if field.wire.tag is not None]
        return [field for field in present if field.wire.tag is None], sorted(tagged, key=lambda f: f.wire.tag or 0)

    def is_nullable(self, field: Field) -> bool:
        return self.version in field.wire.nullable

    def build(self, head: str) -> Any:
        text = "\n".join([head, *self.lines, ""])
        namespace = dict(self.constants)
        # The text is made of field names and numbers from the declarations alone, never of anything received.
        exec(compile(text, f"<codec of {self.title}>", "exec"), namespace)  # nosec B102
        return namespace["codec"]

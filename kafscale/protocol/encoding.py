"""Writes encoders: one straight-line function from a message to bytes, for one message at one version.

Bytes are gathered in a list and joined once; where a message has records, the list is joined up to each of them, and
the records themselves are passed on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeAlias

from kafscale.protocol import wire
from kafscale.protocol.schema import Buffer, Field, Kind, Message
from kafscale.protocol.source import FORMATS, Source

Encoder: TypeAlias = Callable[[Any], bytes]
"""A message to its bytes. ValueError if this version cannot hold it."""

ChunkEncoder: TypeAlias = Callable[[Any], list[Buffer]]
"""The same for messages with records: buffers that follow each other, records among them uncopied."""


class EncoderSource(Source):
    """Writes `codec(message)`. Bytes are appended to a list and joined once; `add` is the append of the moment."""

    def __init__(self, message: type[Message], version: int, flexible: bool, *, chunks: bool) -> None:
        super().__init__(message, version, flexible)
        self.chunks = chunks
        self.add = "add"

    def compile(self) -> Any:
        title = self.title

        def refuse(error: Exception) -> ValueError:
            return ValueError(f"{title} cannot be written: {error}")

        self.constants |= {
            "refuse": refuse,
            "pack_error": struct.error,
            "uvarint": wire.uvarint,
            "one_byte": wire.SMALL_UVARINTS,
            "string_length": wire.string_length,
            "records_size": wire.records_size,
            "add_records": wire.add_records,
            "pack": struct.pack,
        }
        self.line("parts = []")
        self.line("add = parts.append")
        if self.chunks:
            self.line("buffers = []")
        self.line("try:")
        self.depth += 1
        self.struct(self.message, "message")
        self.flush()
        if self.chunks:
            self.line("if parts:")
            self.line("    buffers.append(b''.join(parts))")
            self.line("return buffers")
        else:
            self.line("return b''.join(parts)")
        self.depth -= 1
        self.line("except (pack_error, TypeError, AttributeError, ValueError) as error:")
        self.line("    raise refuse(error) from error")
        return self.build("def codec(message):")

    def write(self, formats: str, expression: str) -> None:
        self.run.append((formats, expression))

    def flush(self, varint: str | None = None, encode: str = "uvarint") -> None:
        """Pack the pending run; `varint` names a variable that follows it as an unsigned varint, made by `encode`."""
        run, self.run = self.run, []
        if varint is None:
            if run:
                self.line(f"{self.add}({self.packed(run)})")
            return
        short = self.packed([*run, ("B", varint)]) if run else f"one_byte[{varint}]"
        long = f"{self.packed(run)} + {encode}({varint})" if run else f"{encode}({varint})"
        self.line(f"{self.add}({short} if {varint} < 128 else {long})")

    def packed(self, run: list[tuple[str, str]]) -> str:
        formats = "".join(f for f, _ in run)
        arguments = ", ".join(e for f, e in run if f != "x")
        if not arguments:
            return repr(bytes(len(run)))
        return f"{self.packer(formats, 'pack')}({arguments})"

    def struct(self, message: type[Message], variable: str) -> None:
        plain, tagged = self.carried(message)
        for field in plain:
            self.value(field, f"{variable}.{field.name}")
        if self.flexible:
            if tagged:
                self.tags(tagged, variable)
            else:
                self.write("x", "")

    def tags(self, tagged: list[Field], variable: str) -> None:
        """Write the tagged fields that differ from their defaults, lowest tag first."""
        self.flush()
        section, outer = self.name("section"), self.add
        self.line(f"{section} = []")
        for field in tagged:
            value, content, add = self.name("v"), self.name("content"), self.name("add")
            self.line(f"{value} = {variable}.{field.name}")
            default = self.constant("default", field.default)
            if field.wire.kind == "array" and not field.default:
                self.line(f"if {value}:")  # a list equals no empty tuple, so ask for emptiness
            else:
                self.line(f"if {value} != {default}:")
            self.depth += 1
            self.line(f"{content} = []")
            self.line(f"{add} = {content}.append")
            self.add = add
            self.value(field, value)
            self.flush()
            self.line(f"{content} = b''.join({content})")
            self.line(f"{section} += (uvarint({field.wire.tag}), uvarint(len({content})), {content})")
            self.depth -= 1
        self.add = outer
        self.line(f"{outer}(uvarint(len({section}) // 3))")
        self.line(f"for raw in {section}:")
        self.line(f"    {outer}(raw)")

    def value(self, field: Field, expression: str) -> None:
        kind = field.wire.kind
        if kind == "uuid":
            self.uuid(expression)
        elif kind in FORMATS:
            self.write(FORMATS[kind], expression)
        elif kind == "struct":
            assert field.message is not None
            self.struct(field.message, expression)
        elif kind == "array":
            self.array(field, expression)
        else:
            self.sized(kind, expression, nullable=self.is_nullable(field))

    def uuid(self, expression: str) -> None:
        """Sixteen bytes and no others: `struct` alone would cut or pad them."""
        value = self.name("v")
        self.line(f"{value} = {expression}")
        self.line(f"if len({value}) != 16:")
        self.line("    raise ValueError('an id is not 16 bytes')")
        self.write(FORMATS["uuid"], value)

    def length(self, legacy: str, n: str, value: str, size: str, *, nullable: bool, encode: str = "uvarint") -> None:
        """Write the length `size` of `value`, or null. `encode` makes a varint of it when one byte is too few."""
        extra = " + 1" if self.flexible else ""
        null = "0" if self.flexible else "-1"
        self.line(f"{n} = {null} if {value} is None else {size}{extra}" if nullable else f"{n} = {size}{extra}")
        if self.flexible:
            self.flush(varint=n, encode=encode)
        else:
            self.write(legacy, n)
            self.flush()

    def sized(self, kind: Kind, expression: str, *, nullable: bool) -> None:
        """Write a string, bytes or records."""
        value, n = self.name("v"), self.name("n")
        self.line(f"{value} = {expression}")
        if kind == "string":
            encoded = f"{value}.encode()"
            self.line(f"{value} = None if {value} is None else {encoded}" if nullable else f"{value} = {encoded}")
            self.length("h", n, value, f"len({value})", nullable=nullable, encode="string_length")
        elif kind == "bytes":
            self.length("i", n, value, f"len({value})", nullable=nullable)
        else:
            self.length("i", n, value, f"records_size({value})", nullable=nullable)
        if nullable:
            self.line(f"if {value} is not None:")
            self.depth += 1
        if kind == "records":
            self.line("buffers.append(b''.join(parts))")
            self.line("parts.clear()")
            self.line(f"add_records(buffers, {value})")
        else:
            self.line(f"{self.add}({value})")
        if nullable:
            self.depth -= 1

    def array(self, field: Field, expression: str) -> None:
        value, n = self.name("v"), self.name("n")
        nullable = self.is_nullable(field)
        self.line(f"{value} = {expression}")
        self.length("i", n, value, f"len({value})", nullable=nullable)
        if nullable:
            self.line(f"if {value} is not None:")
            self.depth += 1
        if field.message is None and field.wire.of in FORMATS and field.wire.of != "uuid":
            assert field.wire.of is not None
            self.line(f"{self.add}(pack(f'>{{len({value})}}{FORMATS[field.wire.of]}', *{value}))")
        else:
            item = self.name("item")
            self.line(f"for {item} in {value}:")
            self.depth += 1
            if field.message is not None:
                self.struct(field.message, item)
            elif field.wire.of == "uuid":
                self.uuid(item)
            else:
                assert field.wire.of is not None
                self.sized(field.wire.of, item, nullable=False)
            self.flush()
            self.depth -= 1
        if nullable:
            self.depth -= 1

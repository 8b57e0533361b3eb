"""From a declaration to a function: one straight-line decoder and one encoder per (message, version).

Nested structs are written out in place, runs of fixed-size fields become one `struct` call, and what a version lacks
costs nothing. Functions are compiled when first asked for and kept by a cache on pure functions. This file knows the
wire format and the notation of `schema.py`; it knows no API, header or frame.

How hostile bytes are met. The position only moves forward, so a read past the end is let happen and caught at the
next length, array or the end of the message (`struct.error` and `IndexError` where it leaves the buffer too); what
it read is never used before that. Lengths and counts are compared with the bytes left before anything is made of them.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import Any, Final

from kafscale.errors import ProtocolError
from kafscale.protocol import wire
from kafscale.protocol.schema import Buffer, Field, Kind, Message, fields

Decoder = Callable[[Buffer, int, int], Any]
"""(buffer, position, end) to the message that fills exactly those bytes. ProtocolError if they are not one."""

Encoder = Callable[[Any], bytes]
"""A message to its bytes. ValueError if this version cannot hold it."""

ChunkEncoder = Callable[[Any], list[Buffer]]
"""The same for messages with records: buffers that follow each other, records among them uncopied."""

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
def decoder(message: type[Message], version: int, flexible: bool) -> Decoder:
    """The function that reads `message` at `version`; `flexible` is KIP-482's encoding."""
    return _DecoderSource(message, version, flexible).compile()


@functools.cache
def encoder(message: type[Message], version: int, flexible: bool) -> Encoder:
    """The function that writes `message`, which has no records, at `version`."""
    encode: Encoder = _EncoderSource(message, version, flexible, chunks=False).compile()
    return encode


@functools.cache
def chunk_encoder(message: type[Message], version: int, flexible: bool) -> ChunkEncoder:
    """The function that writes `message`, which has records, at `version`."""
    encode: ChunkEncoder = _EncoderSource(message, version, flexible, chunks=True).compile()
    return encode


@functools.cache
def has_records(message: type[Message]) -> bool:
    """Whether record batches travel in `message`, so that it is written with `chunk_encoder`."""
    return any(
        field.wire.kind == "records" or (field.message is not None and has_records(field.message))
        for field in fields(message)
    )


@functools.cache
def least_size(message: type[Message], version: int, flexible: bool) -> int:
    """The fewest bytes that a `message` can take: what an array's count is checked against."""
    size = 1 if flexible else 0
    for field in fields(message):
        if version in field.wire.versions and not _is_tagged(field, flexible):
            if field.wire.kind == "struct":
                assert field.message is not None
                size += least_size(field.message, version, flexible)
            else:
                size += _least_size(field.wire.kind, flexible)
    return size


def _least_size(kind: Kind, flexible: bool) -> int:
    if kind in FORMATS:
        return struct.calcsize(">" + FORMATS[kind])
    return 1 if flexible else 2 if kind == "string" else 4


def _is_tagged(field: Field, flexible: bool) -> bool:
    return field.wire.tag is not None and flexible


class _Source:
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
        tagged = [field for field in present if _is_tagged(field, self.flexible)]
        return [field for field in present if field not in tagged], sorted(tagged, key=lambda f: f.wire.tag or 0)

    def is_nullable(self, field: Field) -> bool:
        return self.version in field.wire.nullable

    def build(self, head: str) -> Any:
        text = "\n".join([head, *self.lines, ""])
        namespace = dict(self.constants)
        # The text is made of field names and numbers from the declarations alone, never of anything received.
        exec(compile(text, f"<codec of {self.title}>", "exec"), namespace)
        return namespace["codec"]


class _DecoderSource(_Source):
    """Writes `codec(buffer, position, end)`. Locals: `at` the position, `budget` the array elements still allowed."""

    def compile(self) -> Decoder:
        title = self.title

        def bad_length(path: str, length: int, left: int) -> ProtocolError:
            return ProtocolError(f"{title}: {path} says length {length} where {left} bytes are left")

        def bad_end(left: int) -> ProtocolError:
            if left < 0:
                return ProtocolError(f"{title}: the message ends {-left} bytes early")
            return ProtocolError(f"{title}: {left} bytes are left over")

        def bad_read(error: Exception) -> ProtocolError:
            if isinstance(error, UnicodeDecodeError):
                return ProtocolError(f"{title}: a string is not UTF-8")
            return ProtocolError(f"{title}: the message ends early")

        self.constants |= {
            "bad_length": bad_length,
            "bad_end": bad_end,
            "bad_read": bad_read,
            "short_buffer": struct.error,
            "uvarint_tail": wire.read_uvarint_tail,
            "skip_tags": wire.skip_tags,
            "unpack_from": struct.unpack_from,
        }
        self.line(f"budget = {wire.MAX_ELEMENTS}")
        self.line("try:")
        self.depth += 1
        result = self.struct(self.message, "")
        self.flush()
        self.line("if at != end:")
        self.line("    raise bad_end(end - at)")
        self.line(f"return {result}")
        self.depth -= 1
        self.line("except (short_buffer, IndexError, UnicodeDecodeError) as error:")
        self.line("    raise bad_read(error) from None")
        decode: Decoder = self.build("def codec(buffer, at, end):")
        return decode

    def read(self, formats: str) -> str:
        """A variable that will hold the next fixed-size value once the run is flushed."""
        variable = self.name("v")
        self.run.append((formats, variable))
        return variable

    def flush(self) -> None:
        if not self.run:
            return
        formats = "".join(f for f, _ in self.run)
        variables = [v for _, v in self.run]
        self.run = []
        if formats == "B":
            self.line(f"{variables[0]} = buffer[at]")
        else:
            self.line(f"{', '.join(variables)}, = {self.packer(formats, 'unpack_from')}(buffer, at)")
        self.line(f"at += {struct.calcsize('>' + formats)}")

    def struct(self, message: type[Message], path: str) -> str:
        """Read the fields of `message`; returns the expression that builds it."""
        plain, tagged = self.carried(message)
        arguments = [f"{field.name}={self.value(field, path + field.name)}" for field in plain]
        if self.flexible:
            arguments += self.tags(tagged, path)
        return f"{self.constant(message.__name__, message)}({', '.join(arguments)})"

    def tags(self, tagged: list[Field], path: str) -> list[str]:
        """Read a section of tagged fields; unknown ones are passed over, as KIP-482 asks."""
        count = self.read("B")
        self.flush()
        if not tagged:
            self.line(f"if {count}:")
            self.line(f"    at = skip_tags(buffer, at, end, {count})")
            return []
        targets = {field.name: self.name("t") for field in tagged}
        for field in tagged:
            self.line(f"{targets[field.name]} = {self.constant('default', field.default)}")
        self.line(f"if {count}:")
        self.depth += 1
        self.line(f"if {count} > 127:")
        self.line(f"    {count}, at = uvarint_tail(buffer, at, {count})")
        self.line(f"if {count} * 2 > end - at:")
        self.line(f"    raise bad_length({path + '(tags)'!r}, {count}, end - at)")
        self.line(f"for _ in range({count}):")
        self.depth += 1
        tag, size, stop = self.name("tag"), self.name("n"), self.name("stop")
        self.varint(tag)
        self.varint(size)
        self.line(f"{stop} = at + {size}")
        self.line(f"if {stop} > end:")
        self.line(f"    raise bad_length({path + '(tag)'!r}, {size}, end - at)")
        for index, field in enumerate(tagged):
            self.line(f"{'if' if index == 0 else 'elif'} {tag} == {field.wire.tag}:")
            self.depth += 1
            value = self.value(field, path + field.name)
            self.flush()
            self.line(f"{targets[field.name]} = {value}")
            self.line(f"if at != {stop}:")
            self.line(f"    raise bad_length({path + field.name!r}, {size}, {stop} - at)")
            self.depth -= 1
        self.line("else:")
        self.line(f"    at = {stop}")
        self.depth -= 2
        return [f"{name}={target}" for name, target in targets.items()]

    def varint(self, variable: str) -> None:
        self.line(f"{variable} = buffer[at]")
        self.line("at += 1")
        self.line(f"if {variable} > 127:")
        self.line(f"    {variable}, at = uvarint_tail(buffer, at, {variable})")

    def value(self, field: Field, path: str) -> str:
        """Read one field; returns the expression of its value, valid once the run is flushed."""
        kind = field.wire.kind
        if kind in FORMATS:
            return self.read(FORMATS[kind])
        if kind == "struct":
            assert field.message is not None
            return self.struct(field.message, path + ".")
        if kind == "array":
            return self.array(field, path)
        return self.sized(kind, path, nullable=self.is_nullable(field))

    def length(self, legacy: str, check: str, path: str, *, nullable: bool) -> str:
        """Read a length or count, refuse it where `check` (a template of `{n}`) holds, and leave -1 for null.

        Where null is allowed the caller's code must go on inside `if n < 0: ... else:`.
        """
        n = self.name("n")
        if self.flexible:
            self.run.append(("B", n))
            self.flush()
            self.line(f"if {n} > 127:")
            self.line(f"    {n}, at = uvarint_tail(buffer, at, {n})")
            self.line(f"{n} -= 1")
        else:
            self.run.append((legacy, n))
            self.flush()
        lowest = -1 if nullable else 0
        self.line(f"if {n} < {lowest} or {check.format(n=n)}:")
        self.line(f"    raise bad_length({path!r}, {n}, end - at)")
        return n

    def sized(self, kind: Kind, path: str, *, nullable: bool) -> str:
        """Read a string, bytes or records."""
        value = self.name("v")
        check = "{n} > end - at"
        if kind == "string" and self.flexible:
            check += f" or {{n}} > {wire.MAX_STRING_BYTES}"
        n = self.length("h" if kind == "string" else "i", check, path, nullable=nullable)
        take = {
            "string": f"str(buffer[at:at + {n}], 'utf-8')",
            "bytes": f"bytes(buffer[at:at + {n}])",
            "records": f"memoryview(buffer)[at:at + {n}]",
        }[kind]
        if not nullable:
            self.line(f"{value} = {take}")
            self.line(f"at += {n}")
            return value
        self.line(f"if {n} < 0:")
        self.line(f"    {value} = None")
        self.line("else:")
        self.line(f"    {value} = {take}")
        self.line(f"    at += {n}")
        return value

    def array(self, field: Field, path: str) -> str:
        """Read an array into a tuple. Its count is bounded by the bytes left and by the message's budget."""
        value = self.name("v")
        nullable = self.is_nullable(field)
        if field.message is not None:
            least = least_size(field.message, self.version, self.flexible)
        else:
            assert field.wire.of is not None
            least = _least_size(field.wire.of, self.flexible)
        count = f"{{n}} * {least}" if least > 1 else "{n}"
        n = self.length("i", f"{count} > end - at or {{n}} > budget", path, nullable=nullable)
        if nullable:
            self.line(f"if {n} < 0:")
            self.line(f"    {value} = None")
            self.line("else:")
            self.depth += 1
        self.line(f"budget -= {n}")
        if field.message is None and field.wire.of in FORMATS and field.wire.of != "uuid":
            assert field.wire.of is not None
            self.line(f"{value} = unpack_from(f'>{{{n}}}{FORMATS[field.wire.of]}', buffer, at)")
            self.line(f"at += {n} * {least}" if least > 1 else f"at += {n}")
        else:
            self.elements(field, value, n, path)
        if nullable:
            self.depth -= 1
        return value

    def elements(self, field: Field, value: str, count: str, path: str) -> None:
        items, add = self.name("items"), self.name("add")
        self.line(f"{items} = []")
        self.line(f"{add} = {items}.append")
        self.line(f"for _ in range({count}):")
        self.depth += 1
        if field.message is not None:
            item = self.struct(field.message, path + ".")
        elif field.wire.of == "uuid":
            item = self.read(FORMATS["uuid"])
        else:
            assert field.wire.of is not None
            item = self.sized(field.wire.of, path, nullable=False)
        self.flush()
        self.line(f"{add}({item})")
        self.depth -= 1
        self.line(f"{value} = tuple({items})")


class _EncoderSource(_Source):
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

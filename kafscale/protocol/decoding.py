"""Writes decoders: one straight-line function from bytes to a message, for one message at one version.

How hostile bytes are met. The position only moves forward, so a read past the end is let happen and caught at the
next length, array or the end of the message (`struct.error` and `IndexError` where it leaves the buffer too); what
it read is never used before that. Lengths and counts are compared with the bytes left before anything is made of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeAlias

from kafscale.errors import ProtocolError
from kafscale.protocol import wire
from kafscale.protocol.schema import Buffer, Field, Kind, Message
from kafscale.protocol.source import FORMATS, Source, least_size, least_size_of

Decoder: TypeAlias = Callable[[Buffer, int, int], Any]
"""(buffer, position, end) to the message that fills exactly those bytes. ProtocolError if they are not one."""


class DecoderSource(Source):
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
        # Brokers ignore what follows a request's body, and librdkafka counts on it: its Metadata request for all topics
        # has three bytes too many in flexible versions.
        self.line("if at > end:" if self.message.__name__.endswith("Request") else "if at != end:")
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
            least = least_size_of(field.wire.of, self.flexible)
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

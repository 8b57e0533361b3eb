"""Goal: tagged fields that we do not know are passed over at every level of every flexible message (KIP-482)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given

from kafscale.errors import ProtocolError
from kafscale.protocol.api import APIS, Api, ApiKey
from kafscale.protocol.encoding import EncoderSource
from kafscale.protocol.fetch import parse_fetch
from kafscale.protocol.headers import parse_request_header
from kafscale.protocol.messages.fetch import FetchRequest
from kafscale.protocol.messages.produce import ProduceRequest
from kafscale.protocol.produce import parse_produce
from kafscale.protocol.schema import Message, fields
from tests.unit.protocol.declared import every_message, messages, title
from tests.unit.protocol.frames import decode, encode, few

UNKNOWN = b"\x64\x03abc" + b"\x80\x7d\xc8\x01" + bytes(200)
"""Two tagged fields: tag 100 of three bytes, tag 16,000 of two hundred."""

SECTION = b"\x02" + UNKNOWN

FLEXIBLE = [parameters for parameters in every_message() if parameters[0].is_flexible(parameters[1])]


class WithUnknownTags(EncoderSource):
    """An encoder that puts two unknown tagged fields at the end of every struct, and no known ones."""

    def struct(self, message: type[Message], variable: str) -> None:
        plain, _ = self.carried(message)
        for field in plain:
            self.value(field, f"{variable}.{field.name}")
        self.flush()
        self.line(f"{self.add}({SECTION!r})")


def encode_with_unknown(message: Message, version: int) -> bytes:
    written = WithUnknownTags(type(message), version, True, chunks=True).compile()(message)
    return b"".join(written)


def without_tagged(message: Any, version: int) -> Any:
    """`message` with the default in every tagged field."""
    changes: dict[str, Any] = {}
    for field in fields(type(message)):
        if field.wire.tag is not None:
            changes[field.name] = field.default
        elif field.message is not None and version in field.wire.versions:
            value = getattr(message, field.name)
            if value is not None:
                changes[field.name] = tuple(without_tagged(item, version) for item in value)
    return msgspec.structs.replace(message, **changes)


@pytest.mark.parametrize("parameters", FLEXIBLE, ids=title)
def test_unknown_tags_are_passed_over(parameters: tuple[Api, int, type[Message]]) -> None:
    """The message is read as if they were not there."""
    api, version, kind = parameters

    @few(8)
    @given(messages(kind, version))
    def check(message: Message) -> None:
        expected = without_tagged(message, version)
        assert decode(api, version, kind, encode_with_unknown(expected, version)) == expected

    check()


@pytest.mark.parametrize("version", range(9, 14))
def test_produce_by_hand(version: int) -> None:
    """The same for the hand-written parser of Produce."""

    @few(20)
    @given(messages(ProduceRequest, version))
    def check(message: ProduceRequest) -> None:
        expected = encode(APIS[ApiKey.PRODUCE], version, message)
        raw = encode_with_unknown(message, version)
        assert parse_produce(version, raw, 0, len(raw)) == parse_produce(version, expected, 0, len(expected))

    check()


@pytest.mark.parametrize("version", range(12, 19))
def test_fetch_by_hand(version: int) -> None:
    """The same for the hand-written parser of Fetch."""

    @few(20)
    @given(messages(FetchRequest, version))
    def check(message: FetchRequest) -> None:
        plain = without_tagged(message, version)
        expected = encode(APIS[ApiKey.FETCH], version, plain)
        raw = encode_with_unknown(plain, version)
        assert parse_fetch(version, raw, 0, len(raw)) == parse_fetch(version, expected, 0, len(expected))

    check()


def test_known_tags_among_unknown_ones() -> None:
    """Known tagged fields are read where unknown ones stand before and after them, in whatever order."""
    api = APIS[ApiKey.FETCH]
    message = FetchRequest(cluster_id="abc")
    plain = encode(api, 12, FetchRequest())
    known = b"\x00\x04\x04abc"
    for section in (b"\x03" + known + UNKNOWN, b"\x03" + UNKNOWN + known):
        assert decode(api, 12, FetchRequest, plain[:-1] + section) == message


def test_a_known_tag_of_another_size_is_refused() -> None:
    """A tagged field whose content is shorter or longer than its size says is damage."""
    api = APIS[ApiKey.FETCH]
    plain = encode(api, 12, FetchRequest())
    for section in (b"\x01\x00\x05\x04abc", b"\x01\x00\x05\x04abc\x00", b"\x01\x00\x03\x04abc"):
        with pytest.raises(ProtocolError):
            decode(api, 12, FetchRequest, plain[:-1] + section)


def test_a_tag_larger_than_the_frame_is_refused_at_once() -> None:
    """Where a message has known tags too, an unknown one may not lead past the end."""
    plain = encode(APIS[ApiKey.FETCH], 12, FetchRequest())
    with pytest.raises(ProtocolError, match="says length 9 where 1 bytes"):
        decode(APIS[ApiKey.FETCH], 12, FetchRequest, plain[:-1] + b"\x01\x64\x09a")


def test_header() -> None:
    """The request header has tagged fields too."""
    raw = bytes.fromhex("000300090000000700026162") + SECTION
    header, position = parse_request_header(raw, 0, len(raw))
    assert (header.client_id, position) == ("ab", len(raw))

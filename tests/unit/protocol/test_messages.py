"""Goal: every message of every version is what an independent codec says it is, and survives the way there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.protocol.compiler import decoder
from kafscale.protocol.schema import Message
from kafscale.protocol.table import Api
from tests.unit.protocol.declared import every_message, messages, title
from tests.unit.protocol.frames import decode, encode, few
from tests.unit.protocol.oracle import oracle_bytes

EVERY = list(every_message())


@pytest.mark.parametrize("parameters", EVERY, ids=title)
def test_bytes_are_those_of_an_independent_codec(parameters: tuple[Api, int, type[Message]]) -> None:
    """Random messages are written byte for byte as kio writes them, and read back as they were."""
    api, version, kind = parameters

    @few(8)
    @given(messages(kind, version, tame=True))
    def check(message: Message) -> None:
        raw = encode(api, version, message)
        assert raw == oracle_bytes(api, version, message)
        assert decode(api, version, kind, raw) == message

    check()


@pytest.mark.parametrize("parameters", EVERY, ids=title)
def test_whole_range_survives(parameters: tuple[Api, int, type[Message]]) -> None:
    """Any value of the wire types, unknown error codes and odd times too, is read back as it was written."""
    api, version, kind = parameters

    @few(8)
    @given(messages(kind, version), st.binary(max_size=3), st.binary(max_size=3))
    def check(message: Message, before: bytes, after: bytes) -> None:
        raw = encode(api, version, message)
        buffer = memoryview(before + raw + after)
        read = decoder(kind, version, api.is_flexible(version))(buffer, len(before), len(before) + len(raw))
        assert read == message

    check()

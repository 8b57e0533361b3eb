"""Goal: variable-length integers and tagged fields are read and written as Kafka does, and bounded."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.serial.writers import write_unsigned_varint
from kio.static.primitive import uvarint as kio_uvarint

from kafscale.errors import ProtocolError
from kafscale.protocol.wire import read_uvarint, skip_tags, string_length, uvarint
from tests.unit.protocol.frames import few


@few(200)
@given(st.integers(0, 2**31 - 1) | st.sampled_from([0, 127, 128, 16383, 16384, 2**31 - 1]))
def test_uvarint(value: int) -> None:
    """The same bytes as kio's, and back, with the position behind them."""
    out = io.BytesIO()
    write_unsigned_varint(out, kio_uvarint(value))
    raw = uvarint(value)
    assert raw == out.getvalue()
    assert read_uvarint(b"?" + raw + b"?", 1) == (value, 1 + len(raw))


def test_an_endless_varint_is_refused() -> None:
    """Five bytes are the most that a length takes."""
    assert read_uvarint(b"\xff\xff\xff\xff\x0f", 0) == (2**32 - 1, 5)
    with pytest.raises(ProtocolError, match="longer than 5 bytes"):
        read_uvarint(b"\xff" * 100, 0)


def test_skip_tags() -> None:
    """Passed over by their sizes; a size or a number past the end is refused."""
    raw = b"\x00\x02ab" + b"\x80\x01\x00"
    assert skip_tags(raw, 0, len(raw), 2) == len(raw)
    with pytest.raises(ProtocolError, match="100 tagged fields in 7 bytes"):
        skip_tags(raw, 0, len(raw), 100)
    with pytest.raises(ProtocolError, match="a tagged field of 2 bytes where 1 are left"):
        skip_tags(raw, 0, 3, 1)


def test_string_length() -> None:
    """32,767 bytes are the most that a string may have (a short's range, also where the length is a varint)."""
    assert string_length(32_768) == uvarint(32_768)
    with pytest.raises(ValueError, match="32768 bytes"):
        string_length(32_769)

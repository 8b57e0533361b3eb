"""Goal: a PROXY header is read to its last byte and no further, and anything that is not exactly one is refused."""

from __future__ import annotations

import ipaddress
import socket
import struct

import crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.errors import ProtocolError
from kafscale.security.proxy_protocol import SIGNATURE_V2, HeaderReader, ProxiedSource

BEHIND = b"\x00\x00\x00\x14 and so on, which belongs to the client"


def read(stream: bytes, piece: int = 1 << 20) -> tuple[HeaderReader, bytes]:
    """Feed a stream in pieces of at most `piece`; returns the reader and what it left."""
    reader = HeaderReader()
    position = 0
    while reader.wanted:
        data = stream[position : position + min(piece, reader.wanted)]
        if not data:
            raise EOFError
        reader.feed(data)
        position += len(data)
    return reader, stream[position:]


def v2(family: int, body: bytes, head: int = 0x21, length: int | None = None) -> bytes:
    return SIGNATURE_V2 + struct.pack(">BBH", head, family, len(body) if length is None else length) + body


V4 = socket.inet_aton("192.0.2.1") + socket.inet_aton("198.51.100.2") + struct.pack(">HH", 50000, 9092)
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::1") * 2 + struct.pack(">HH", 50000, 9092)
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.1") * 2 + struct.pack(">HH", 50000, 9092)


def with_checksum(body: bytes, wrong: int = 0) -> bytes:
    header = v2(0x11, body + b"\x03\x00\x04" + bytes(4))
    return header[:-4] + struct.pack(">I", crc32c.crc32c(header) ^ wrong)


GOOD = {
    b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 9092\r\n": ProxiedSource("192.0.2.1", 50000),
    b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n": ProxiedSource("255.255.255.255", 65535),
    b"PROXY TCP4 1.1.1.1 1.1.1.1 0 1\r\n": ProxiedSource("1.1.1.1", 0),
    b"PROXY TCP6 2001:db8::1 2001:DB8::2 50000 9092\r\n": ProxiedSource("2001:db8::1", 50000),
    b"PROXY TCP6 ::ffff:192.0.2.1 ::1 50000 9092\r\n": ProxiedSource("192.0.2.1", 50000),
    b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n": ProxiedSource(
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535
    ),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n": None,
    v2(0x11, V4): ProxiedSource("192.0.2.1", 50000),
    v2(0x21, V6): ProxiedSource("2001:db8::1", 50000),
    v2(0x21, MAPPED): ProxiedSource("192.0.2.1", 50000),
    v2(0x11, V4 + b"\x04\x00\x00" + b"\xea\x00\x05hello"): ProxiedSource("192.0.2.1", 50000),
    with_checksum(V4): ProxiedSource("192.0.2.1", 50000),
    v2(0x00, b"", head=0x20): None,
    v2(0x11, V4, head=0x20): None,
    v2(0x31, b"whatever" * 27, head=0x20): None,
}


@pytest.mark.parametrize("header", list(GOOD))
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_good_headers(header: bytes, piece: int) -> None:
    """In whatever pieces it comes, the source is found and nothing behind the header is taken."""
    reader, left = read(header + BEHIND, piece)
    assert reader.source == GOOD[header]
    assert left == BEHIND


@pytest.mark.parametrize(
    "stream",
    [
        b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 9092\n" + BEHIND,
        b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 9092\r" + BEHIND,
        b"PROXY TCP4 192.0.2.1 198.51.100.2 50000\r\n" + BEHIND,
        b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 9092 1\r\n" + BEHIND,
        b"PROXY TCP4  192.0.2.1 198.51.100.2 50000 9092\r\n" + BEHIND,
        b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 9092 \r\n" + BEHIND,
        b"PROXY TCP4 192.0.2.01 198.51.100.2 50000 9092\r\n" + BEHIND,
        b"PROXY TCP4 192.0.2.1 198.51.100.2 050000 9092\r\n" + BEHIND,
        b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 9092\r\n" + BEHIND,
        b"PROXY TCP4 192.0.2.1 198.51.100.2 +5000 9092\r\n" + BEHIND,
        b"PROXY TCP4 2001:db8::1 2001:db8::2 50000 9092\r\n" + BEHIND,
        b"PROXY TCP6 192.0.2.1 198.51.100.2 50000 9092\r\n" + BEHIND,
        b"PROXY TCP6 fe80::1%1 fe80::2 50000 9092\r\n" + BEHIND,
        b"PROXY TCP4 ops-admin 198.51.100.2 50000 9092\r\n" + BEHIND,
        b"PROXY UDP4 192.0.2.1 198.51.100.2 50000 9092\r\n" + BEHIND,
        b"PROXY TCP4 192.0.2.1 198.51.100.2 50000 9092\xff\r\n" + BEHIND,
        b"PROXYX TCP4 192.0.2.1 198.51.100.2 50000 9092\r\n" + BEHIND,
        b"PROXY unknown\r\n" + BEHIND,
        b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n" + BEHIND,
        b"proxy TCP4 192.0.2.1 198.51.100.2 50000 9092\r\n" + BEHIND,
        b"PROXY " + b"\r\n" * 60,
        b"\x00\x00\x00\x14\x00\x12\x00\x03" + BEHIND,
        b"\x16\x03\x01\x02\x00\x01" + BEHIND,
        v2(0x11, V4, head=0x11) + BEHIND,
        v2(0x11, V4, head=0x31) + BEHIND,
        v2(0x11, V4, head=0x22) + BEHIND,
        v2(0x11, V4, head=0x2F) + BEHIND,
        v2(0x00, V4) + BEHIND,
        v2(0x12, V4) + BEHIND,
        v2(0x31, b"a" * 216) + BEHIND,
        v2(0x11, V4[:-1]) + BEHIND,
        v2(0x21, V4) + BEHIND,
        v2(0x11, V4, length=4097) + b"x" * 5000,
        v2(0x11, V4, length=0xFFFF) + b"x" * 70_000,
        v2(0x11, V4 + b"\x04\x00") + BEHIND,
        v2(0x11, V4 + b"\x04\x00\x09short") + BEHIND,
        v2(0x11, V4 + b"\x03\x00\x03abc") + BEHIND,
        with_checksum(V4, wrong=1) + BEHIND,
        SIGNATURE_V2[:-1] + b"X" + BEHIND,
    ],
)
def test_bad_headers(stream: bytes) -> None:
    """Anything that is not exactly a header over TCP is an error, found before the stream ends."""
    for piece in (1, 1 << 20):
        with pytest.raises(ProtocolError):
            read(stream, piece)


@given(st.ip_addresses(), st.integers(0, 65535), st.integers(1, 40))
def test_any_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, piece: int) -> None:
    """Every address is read the same from both versions."""
    family, word = (0x11, "TCP4") if address.version == 4 else (0x21, "TCP6")
    binary = v2(family, address.packed * 2 + struct.pack(">HH", port, 1))
    text = f"PROXY {word} {address} {address} {port} 1\r\n".encode()
    assert read(binary, piece)[0].source == read(text, piece)[0].source


@given(st.binary(max_size=200), st.integers(1, 40))
def test_rubbish(data: bytes, piece: int) -> None:
    """Whatever comes: a header, or the protocol error, within a bounded number of bytes."""
    for stream in (data, b"PROXY " + data, SIGNATURE_V2 + data):
        try:
            reader, _ = read(stream, piece)
        except (ProtocolError, EOFError):
            continue
        assert reader.source is None or ipaddress.ip_address(reader.source.host)

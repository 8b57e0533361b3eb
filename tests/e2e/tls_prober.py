"""What a TLS server agrees to, asked with ClientHellos made by hand: no library refuses first to send what is old.

Only the first flight: a ClientHello out, a ServerHello or an alert in (RFC 5246 section 7.4, RFC 8446 section 4).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

SSL_3, TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3 = 0x0300, 0x0301, 0x0302, 0x0303, 0x0304
# By kind; with the certificates of the tests (ECDSA) only some could be chosen, with others all are offered.
AEAD_SUITES = (0xC02B, 0xC02C, 0xC02F, 0xC030, 0xCCA8, 0xCCA9)
TLS_1_3_SUITES = (0x1301, 0x1302, 0x1303)
WEAK_SUITES = {
    "CBC": (0xC009, 0xC00A, 0xC013, 0xC014, 0xC023, 0xC024, 0xC027, 0xC028, 0x002F, 0x0035, 0x003C, 0x003D),
    "without forward secrecy": (0x009C, 0x009D),
    "3DES": (0x000A, 0xC008, 0xC012),
    "RC4": (0x0004, 0x0005, 0xC007, 0xC011),
    "CCM with short tags": (0xC0AE, 0xC0AF),
    "ARIA and Camellia": (0xC05C, 0xC05D, 0xC086, 0xC087),
    "no encryption": (0x0000, 0x0001, 0x0002, 0x003B, 0xC006, 0xC010),
    "export": (0x0003, 0x0006, 0x0008, 0x0014),
    "anonymous": (0x0018, 0x001B, 0x0034, 0x006C, 0xC016, 0xC018, 0xC019),
}
NULL_COMPRESSION, DEFLATE = 0, 1
_HANDSHAKE, _ALERT = 22, 21
_SERVER_HELLO = 2
_SUPPORTED_VERSIONS, _SESSION_TICKET = 43, 35
_X25519 = 0x001D


class Agreed(NamedTuple):
    """What the server chose."""

    version: int
    suite: int
    compression: int
    extensions: dict[int, bytes]


def probe(
    host: str,
    port: int,
    version: int,
    suites: Sequence[int],
    compressions: Sequence[int] = (NULL_COMPRESSION,),
    extensions: Sequence[tuple[int, bytes]] = (),
) -> Agreed | None:
    """The server's choice, or None if it would not have any of it."""
    with socket.create_connection((host, port), timeout=30) as connection:
        connection.sendall(_client_hello(version, suites, compressions, extensions))
        received = b""
        while len(received) < 5 or len(received) < 5 + struct.unpack_from(">H", received, 3)[0]:
            try:
                data = connection.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            received += data
    if received[0] == _ALERT:
        return None
    assert received[0] == _HANDSHAKE and received[5] == _SERVER_HELLO, received[:16].hex()
    return _server_hello(received[9:])


def _client_hello(
    version: int, suites: Sequence[int], compressions: Sequence[int], extensions: Sequence[tuple[int, bytes]]
) -> bytes:
    signatures = b"".join(struct.pack(">H", number) for number in (0x0403, 0x0804, 0x0401, 0x0503, 0x0203, 0x0201))
    groups = struct.pack(">HHHHH", 8, _X25519, 0x0017, 0x0018, 0x0019)
    given = [
        (10, groups),
        (11, b"\1\0"),
        (13, struct.pack(">H", len(signatures)) + signatures),
        (0xFF01, b"\0"),
        *extensions,
    ]
    if version >= TLS_1_3:
        given += [
            (_SUPPORTED_VERSIONS, b"\2" + struct.pack(">H", version)),
            (51, struct.pack(">HHH", 36, _X25519, 32) + os.urandom(32)),
        ]
    packed = b"".join(struct.pack(">HH", kind, len(data)) + data for kind, data in given)
    body = (
        struct.pack(">H", min(version, TLS_1_2))
        + os.urandom(32)
        + b"\0"
        + struct.pack(">H", 2 * len(suites))
        + b"".join(struct.pack(">H", suite) for suite in suites)
        + bytes([len(compressions), *compressions])
        + (struct.pack(">H", len(packed)) + packed if version > SSL_3 else b"")
    )
    hello = b"\1" + len(body).to_bytes(3, "big") + body
    return struct.pack(">BHH", _HANDSHAKE, min(version, TLS_1_0), len(hello)) + hello


def _server_hello(body: bytes) -> Agreed:
    (version,) = struct.unpack_from(">H", body)
    position = 35 + body[34]
    suite, compression = struct.unpack_from(">HB", body, position)
    position += 3
    extensions: dict[int, bytes] = {}
    if position + 2 <= len(body):
        end = position + 2 + struct.unpack_from(">H", body, position)[0]
        position += 2
        while position < end:
            kind, length = struct.unpack_from(">HH", body, position)
            extensions[kind] = body[position + 4 : position + 4 + length]
            position += 4 + length
    if _SUPPORTED_VERSIONS in extensions:
        (version,) = struct.unpack(">H", extensions[_SUPPORTED_VERSIONS])
    return Agreed(version, suite, compression, extensions)

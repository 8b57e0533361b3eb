"""The PROXY protocol's header, versions 1 and 2: what a proxy says of the client before the client's first byte.

Sans-I/O. `HeaderReader.wanted` says how many bytes to read next, `feed` takes them; it never asks for a byte that
belongs to what follows the header, so that nothing is left over (TLS may follow). Source: the specification of haproxy
(doc/proxy-protocol.txt, 2020/03/05). Whoever reads decides which peers may speak it, and for how long it waits.

Strict where the specification leaves room: a header that is not exactly right is an error, and so are address families
that say nothing of a client over TCP. A rogue header must not pass for another address.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Final, NamedTuple

import crc32c

from kafscale.errors import ProtocolError
from kafscale.security.addresses import normalized_address

SIGNATURE_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
V1_BYTES_MAX: Final = 107
# Addresses and TLVs. The specification has a 16-bit length; a proxy that sends a TLS certificate's names needs a few
# hundred bytes.
V2_BODY_BYTES_MAX: Final = 4096

_V1_PREFIX: Final = b"PROXY "
_V1_BYTES_MIN: Final = len(b"PROXY UNKNOWN\r\n")
_V2_HEAD: Final = struct.Struct(">12sBBH")
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_IPV6: Final = re.compile(r"[0-9a-fA-F:.]{2,39}")
_TLV_CRC32C: Final = 0x03

_LOCAL, _PROXY = 0, 1
_TCP_OVER_IPV4, _TCP_OVER_IPV6 = 0x11, 0x21


class ProxiedSource(NamedTuple):
    """The client's address, normalized, and port, as the proxy says."""

    host: str
    port: int


class HeaderReader:
    """Reads one header. When `wanted` is 0 it is complete, and `source` says whom it speaks of: None for the proxy
    itself (LOCAL, such as a health check, and UNKNOWN)."""

    def __init__(self) -> None:
        self.wanted = _V1_BYTES_MIN
        self.source: ProxiedSource | None = None
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Take up to `wanted` bytes. Raises ProtocolError as soon as they can't be a header."""
        assert 0 < len(data) <= self.wanted
        self._data += data
        self.wanted -= len(data)
        if self._data[0] == _V1_PREFIX[0]:
            self._feed_v1()
        else:
            self._feed_v2()

    def _feed_v1(self) -> None:
        data = self._data
        if not data.startswith(_V1_PREFIX[: len(data)]):
            raise ProtocolError("no PROXY header")
        # Never asked for more than the line: what was read ends with it, and neither character is within it.
        if data.endswith(b"\r\n") and not self.wanted:
            self.source = _parse_v1(bytes(data[:-2]))
        elif b"\n" in data or b"\r" in data[:-1]:
            raise ProtocolError("a PROXY v1 header that does not end with CR LF")
        elif not self.wanted:
            if len(data) >= V1_BYTES_MAX:
                raise ProtocolError(f"a PROXY v1 header of more than {V1_BYTES_MAX} bytes")
            # Two more are missing at least, unless the first of them is there.
            self.wanted = 1 if data.endswith(b"\r") or len(data) == V1_BYTES_MAX - 1 else 2

    def _feed_v2(self) -> None:
        data = self._data
        if not data.startswith(SIGNATURE_V2[: len(data)]):
            raise ProtocolError("no PROXY header")
        if len(data) < _V2_HEAD.size:
            if not self.wanted:
                self.wanted = _V2_HEAD.size - len(data)
            return
        _, version_and_command, family, length = _V2_HEAD.unpack_from(data)
        if len(data) == _V2_HEAD.size:
            _check_v2_head(version_and_command, family, length)
            self.wanted = length
        if not self.wanted:
            _check_checksum(data, family, version_and_command & 0x0F)
            if version_and_command & 0x0F == _PROXY:
                self.source = _parse_v2_address(data, family)


def _parse_v1(line: bytes) -> ProxiedSource | None:
    if b"\r" in line or b"\n" in line:
        raise ProtocolError("a PROXY v1 header that does not end with CR LF")
    try:
        words = line.decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProtocolError("a PROXY v1 header that is not ASCII") from None
    if words[1] == "UNKNOWN":
        # "The receiver must ignore anything presented before the CRLF": such a proxy may append addresses.
        return None
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise ProtocolError("a PROXY v1 header that does not name protocol, two addresses and two ports")
    parse = _ipv4 if words[1] == "TCP4" else _ipv6
    source, _ = parse(words[2]), parse(words[3])
    ports = []
    for text in words[4:]:
        if not _PORT.fullmatch(text) or int(text) > 0xFFFF:
            raise ProtocolError("a PROXY v1 header with a port that is none")
        ports.append(int(text))
    return ProxiedSource(source, ports[0])


def _ipv4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))  # Refuses leading zeros.
    except ValueError:
        raise ProtocolError("a PROXY v1 header with an address that is no IPv4 address") from None


def _ipv6(text: str) -> str:
    try:
        if not _IPV6.fullmatch(text):
            raise ValueError
        return normalized_address(str(ipaddress.IPv6Address(text)))
    except ValueError:
        raise ProtocolError("a PROXY v1 header with an address that is no IPv6 address") from None


def _check_v2_head(version_and_command: int, family: int, length: int) -> None:
    if version_and_command >> 4 != 2:
        raise ProtocolError(f"a PROXY header of version {version_and_command >> 4}")
    command = version_and_command & 0x0F
    if command not in (_LOCAL, _PROXY):
        raise ProtocolError(f"a PROXY v2 header with the unknown command {command}")
    if length > V2_BODY_BYTES_MAX:
        raise ProtocolError(f"a PROXY v2 header of {length} bytes; {V2_BODY_BYTES_MAX} are allowed")
    if command == _LOCAL:
        return
    needed = _address_bytes(family)
    if not needed:
        raise ProtocolError(f"a PROXY v2 header of family 0x{family:02x}; TCP over IPv4 or IPv6 is served")
    if length < needed:
        raise ProtocolError(f"a PROXY v2 header of {length} bytes, too short for its addresses")


def _address_bytes(family: int) -> int:
    return {_TCP_OVER_IPV4: 12, _TCP_OVER_IPV6: 36}.get(family, 0)


def _parse_v2_address(data: bytearray, family: int) -> ProxiedSource:
    start = _V2_HEAD.size
    if family == _TCP_OVER_IPV4:
        (port,) = struct.unpack_from(">H", data, start + 8)
        return ProxiedSource(str(ipaddress.IPv4Address(bytes(data[start : start + 4]))), port)
    (port,) = struct.unpack_from(">H", data, start + 32)
    return ProxiedSource(normalized_address(str(ipaddress.IPv6Address(bytes(data[start : start + 16])))), port)


def _check_checksum(data: bytearray, family: int, command: int) -> None:
    """Walk the TLVs, and compare the checksum where there is one (section 2.2.3). A LOCAL header's are not looked at:
    the receiver "must discard the protocol block"."""
    if command != _PROXY:
        return
    position = _V2_HEAD.size + _address_bytes(family)
    while position < len(data):
        if position + 3 > len(data):
            raise ProtocolError("a PROXY v2 header whose last field is cut off")
        kind, length = struct.unpack_from(">BH", data, position)
        end = position + 3 + length
        if end > len(data):
            raise ProtocolError("a PROXY v2 header with a field that is longer than what is left")
        if kind == _TLV_CRC32C:
            if length != 4:
                raise ProtocolError("a PROXY v2 header with a checksum that is none")
            (said,) = struct.unpack_from(">I", data, position + 3)
            zeroed = bytearray(data)
            zeroed[position + 3 : end] = bytes(4)
            if crc32c.crc32c(bytes(zeroed)) != said:
                raise ProtocolError("a PROXY v2 header with a wrong checksum")
        position = end

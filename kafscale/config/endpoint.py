"""An address as people write it: HOST:PORT, an IPv6 host in brackets. Texts only: nothing is looked up or bound."""

from __future__ import annotations

import ipaddress
import re

import msgspec

# RFC 1123 labels, with the underscore that container networks use in names.
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_ALL_NUMERIC = re.compile(r"[0-9.]+")

EVERY_ADDRESS = "0.0.0.0"  # nosec B104


class Endpoint(msgspec.Struct, frozen=True):
    """A host (name, IPv4 or IPv6 without brackets) and a port. Port 0 means: whichever is free when bound."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_wildcard(self) -> bool:
        """Whether the host stands for every address of the machine, so that no client could be told it."""
        address = _ip_address(self.host)
        if address is None:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return address.is_unspecified or (mapped is not None and mapped.is_unspecified)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the host: a loopback address, or `localhost`, which RFC 6761 makes one."""
        if self.host.rstrip(".").lower() == "localhost":
            return True
        address = _ip_address(self.host)
        mapped = getattr(address, "ipv4_mapped", None)
        return address is not None and (address.is_loopback or (mapped is not None and mapped.is_loopback))

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read HOST:PORT; a missing host (`:9092`) is every IPv4 address. Raises ValueError that says what is wrong."""
        host, port = _split(text)
        if port is None:
            raise ValueError(f"{text!r} has no port; write HOST:PORT")
        return cls(_checked_host(host) if host else EVERY_ADDRESS, port)

    @classmethod
    def parse_advertised(cls, text: str) -> Endpoint:
        """Read HOST[:PORT] that clients can connect to; port 0 stands for none given. Raises ValueError."""
        host, port = _split(text)
        if not host:
            raise ValueError(f"{text!r} has no host; write HOST or HOST:PORT")
        if port == 0:
            raise ValueError(f"{text!r}: clients cannot connect to port 0")
        endpoint = cls(_checked_host(host), port or 0)
        if endpoint.is_wildcard:
            raise ValueError(f"{text!r} stands for every address; give the one that clients can reach")
        return endpoint


def _split(text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is no address; an IPv6 host is written [HOST]:PORT")
        if not isinstance(_ip_address(host), ipaddress.IPv6Address):
            raise ValueError(f"{text!r}: {host!r} is no IPv6 address")
        return host, _port(text, rest[1:]) if rest else None
    if text.count(":") > 1:
        raise ValueError(f"{text!r} is ambiguous; write an IPv6 host in brackets, [HOST]:PORT")
    host, colon, port = text.partition(":")
    return host, _port(text, port) if colon else None


def _port(text: str, digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) <= 65535):
        raise ValueError(f"{text!r}: the port {digits!r} is no number from 0 to 65535")
    return int(digits)


def _checked_host(host: str) -> str:
    if _ip_address(host) is not None:
        return host
    if len(host) > 253 or not _HOST_NAME.fullmatch(host) or _ALL_NUMERIC.fullmatch(host):
        raise ValueError(f"{host!r} is neither a host name nor an IP address")
    return host


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None

"""Client addresses as texts: one spelling for each, and whether one lies in a set of networks.

Rules, principals and limits compare addresses as texts, so an IPv4 address that came in through an IPv6 socket
(`::ffff:10.0.0.1`, RFC 4291 section 2.5.5.2) must read like any other IPv4 address. Pure; looks no name up.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def normalized_address(host: str) -> str:
    """The one spelling of an IP address: v4-mapped as IPv4, IPv6 compressed and without a zone. What is no IP address
    stays as it is."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped
    return str(address if mapped is None else mapped)


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Read addresses and CIDR networks, v4-mapped ones as IPv4. Raises ValueError that names the one that is none."""
    networks: list[Network] = []
    for text in texts:
        try:
            network = ipaddress.ip_network(text.strip())
        except ValueError as error:
            raise ValueError(f"{text.strip()!r} is no address or network: {error}") from None
        if isinstance(network, ipaddress.IPv6Network):
            mapped = network.network_address.ipv4_mapped
            if mapped is not None and network.prefixlen >= 96:
                network = ipaddress.IPv4Network((mapped, network.prefixlen - 96))
        networks.append(network)
    return tuple(networks)


def is_within(host: str, networks: Sequence[Network]) -> bool:
    """Whether a normalized address lies in one of the networks. What is no IP address lies in none."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address.version == network.version and address in network for network in networks)

"""Pieces that the hand-written answers to Produce and Fetch have in common: topics, strings, the nodes of KIP-951.

Pure functions from values to bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from kafscale.protocol.wire import string_length, uvarint

Topic: TypeAlias = str | bytes
"""A name, or from the version with topic ids on, sixteen bytes."""

Leader: TypeAlias = tuple[int, int]
"""(node id, leader epoch)"""

Node: TypeAlias = tuple[int, str, int, str | None]
"""(node id, host, port, rack)"""

_int32: Final = struct.Struct(">i").pack


def runs_by_topic(results: Sequence[tuple[Any, ...]]) -> list[tuple[Topic, int, int]]:
    """(topic, first, behind last) of each run of results whose first item, the topic, is the same."""
    runs = []
    first = 0
    while first < len(results):
        topic = results[first][0]
        last = first + 1
        while last < len(results) and results[last][0] == topic:
            last += 1
        runs.append((topic, first, last))
        first = last
    return runs


def compact_string(value: str | None) -> bytes:
    """A nullable compact string."""
    if value is None:
        return b"\0"
    raw = value.encode()
    return string_length(len(raw) + 1) + raw


def compact_topic(topic: Topic) -> bytes:
    """A name as a compact string, an id as it is."""
    if isinstance(topic, str):
        raw = topic.encode()
        return string_length(len(raw) + 1) + raw
    return topic


def legacy_string(value: Topic) -> bytes:
    """A name with its length in two bytes. TypeError for an id, which old versions do not know."""
    if not isinstance(value, str):
        raise TypeError("this version names topics and knows no ids")
    raw = value.encode()
    return len(raw).to_bytes(2, "big", signed=True) + raw


def node_endpoints_tags(nodes: Sequence[Node]) -> bytes:
    """The tagged fields that end an answer: tag 0, the nodes that it names as leaders (KIP-951)."""
    if not nodes:
        return b"\0"
    parts = [uvarint(len(nodes) + 1)]
    for node_id, host, port, rack in nodes:
        parts += (
            _int32(node_id),
            compact_string(host),
            _int32(port),
            compact_string(rack),
            b"\0",
        )
    content = b"".join(parts)
    return b"".join((b"\x01\x00", uvarint(len(content)), content))

"""The bytes of a compiled rule set: a header, and arrays of numbers that are looked things up in where they lie.

    magic (8) | format version (u32) | CRC-32C of all that follows (u32) | generation (u64) | size in bytes (u64)
    | flags (u32) | rules (u32) | number of sections (u32) | 0 (u32)
    | per section: offset (u64), length (u64) | the sections, each on a multiple of 64

Numbers are in the machine's own order: a snapshot never leaves the machine. Sections are arrays of u32, u64 or bytes;
where they say "columns of" an object, entry n of each is about the object n. What a decision reads of an object stands
together in a *row*, as a cache line brings it. Numbers of groups and patterns begin at 1; 0 is none.

A *subject* is who rules are about: a principal from a host in Kafka's bindings, a principal of a document, or anybody
(the patterns of all bindings, kept only where resources without any are open to everyone). A *group* holds a subject's
rules on one kind of resource; its *patterns* are the names, in order, each with the operations (or actions) that it
allows and denies, as masks. A group's prefixes are laid out as *stretches*: the names from one on up to the next fall
under the same prefixes, so one binary search finds the masks of all prefixes of a name. Literal names, and subjects,
are found in hash tables: CRC-32 is the hash, since Python's differs from process to process.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from typing import Final, Literal

import crc32c

from kafscale.errors import Corrupt

MAGIC: Final = b"KAFSACL\n"
FORMAT_VERSION: Final = 1

HEADER: Final = struct.Struct("=8sIIQQIIII")
# Where what the checksum covers begins.
CHECKED_FROM: Final = 16
_SECTION: Final = struct.Struct("=QQ")
ALIGNMENT: Final = 64

# Flags.
KAFKA: Final = 1
KAFSCALE: Final = 2
ALLOW_IF_NONE: Final = 4
ALLOW_BY_DEFAULT: Final = 8
BROKEN: Final = 16
HOSTS: Final = 32
"""Some binding names a host."""

# Kinds of subjects, the first byte of their keys.
KAFKA_SUBJECT: Final = b"K"
DOCUMENT_SUBJECT: Final = b"D"
ANYBODY: Final = b"A"

SECTIONS: Final[Mapping[str, Literal["B", "I", "Q"]]] = {
    # Hash table of subjects; columns of subjects; a row of groups by kind of resource for each.
    "subject_starts": "I",
    "subject_entries": "I",
    "subject_key_at": "I",
    "subject_key_bytes": "I",
    "subject_position": "I",
    "subject_groups": "I",
    # Rows of groups: see GROUP_ROW.
    "groups": "I",
    # Rows of patterns: see NAME_ROW. Columns of patterns. A parent is the longest other prefix of the group that the
    # name begins with.
    "patterns": "I",
    "pattern_kind": "B",
    "pattern_parent": "I",
    "pattern_rule_first": "I",
    # Hash table of literal names: pairs of hash and pattern.
    "literal_starts": "I",
    "literal_entries": "I",
    # Rows of stretches: where one begins, and the masks of the prefixes over it. The longest of these.
    "stretches": "I",
    "stretch_pattern": "I",
    # Patterns that may allow to write somewhere, whatever is denied elsewhere.
    "candidates": "I",
    "rules": "Q",
    "texts": "B",
    # msgpack: what is only shown.
    "details": "B",
}

# A group: its subject; the pattern of any name; its patterns, its stretches and its candidates, from and up to.
GROUP_ROW: Final = (
    "subject",
    "any",
    "first",
    "end",
    "stretch_first",
    "stretch_end",
    "candidate_first",
    "candidate_end",
)
GROUP_SHIFT: Final = 3
# A pattern or a stretch: where its name begins among the texts, how long it is, what is allowed and denied.
NAME_ROW: Final = ("at", "bytes", "allow", "deny")
NAME_SHIFT: Final = 2

# Kinds of patterns.
LITERAL: Final = 0
PREFIX: Final = 1
ANY_NAME: Final = 2

RESOURCE_KINDS: Final = 8
"""Groups in a subject's row: one for each number of a ResourceType."""

# A rule is a u64: the mask of a document's actions, or the number of a binding's operation; whether it denies; and its
# position in its document's list.
RULE_SUBJECT_BITS: Final = 7
RULE_DENIES: Final = 1 << RULE_SUBJECT_BITS
RULE_POSITION_SHIFT: Final = 8


def subject_key(kind: bytes, principal: str = "", host: str = "") -> bytes:
    """The bytes by which a subject is found. The length keeps principal and host apart."""
    name = text_bytes(principal)
    return b"".join((kind, len(name).to_bytes(4, "little"), name, text_bytes(host)))


def text_bytes(text: str) -> bytes:
    """A name's bytes. Half a surrogate pair, which no client can send, is kept rather than refused."""
    return text.encode("utf-8", "surrogatepass")


def pack(generation: int, flags: int, rule_count: int, sections: Mapping[str, array[int] | bytes]) -> bytearray:
    """The snapshot's bytes."""
    places = []
    parts: list[bytes | array[int]] = []
    position = HEADER.size + _SECTION.size * len(SECTIONS)
    for name, typecode in SECTIONS.items():
        section = sections[name]
        assert not isinstance(section, array) or section.typecode == typecode, name
        size = len(section) * (section.itemsize if isinstance(section, array) else 1)
        padding = -position % ALIGNMENT
        parts += [bytes(padding), section]
        position += padding
        places.append(_SECTION.pack(position, size))
        position += size
    header = HEADER.pack(MAGIC, FORMAT_VERSION, 0, generation, position, flags, rule_count, len(SECTIONS), 0)
    data = bytearray(b"".join([header, *places, *parts]))
    with memoryview(data) as view:
        struct.pack_into("=I", data, CHECKED_FROM - 4, crc32c.crc32c(view[CHECKED_FROM:]))
    return data


class Contents:
    """The sections of a snapshot, in place."""

    def __init__(self, buffer: memoryview) -> None:
        """Raises Corrupt where the bytes are no whole, unchanged snapshot of this version of the format."""
        if len(buffer) < HEADER.size:
            raise Corrupt(f"an ACL snapshot of {len(buffer)} bytes is too short")
        magic, version, checksum, generation, size, flags, rule_count, count, _ = HEADER.unpack_from(buffer)
        if magic != MAGIC:
            raise Corrupt("an ACL snapshot does not begin as one")
        if version != FORMAT_VERSION:
            raise Corrupt(f"an ACL snapshot is of format {version}; this version reads {FORMAT_VERSION}")
        if size != len(buffer):
            raise Corrupt(f"an ACL snapshot of {size} bytes has {len(buffer)}")
        if crc32c.crc32c(buffer[CHECKED_FROM:]) != checksum:
            raise Corrupt("an ACL snapshot's checksum is wrong")
        if count != len(SECTIONS):
            raise Corrupt(f"an ACL snapshot has {count} sections, not {len(SECTIONS)}")
        self.generation: int = generation
        self.flags: int = flags
        self.rule_count: int = rule_count
        self._sections: dict[str, memoryview[int]] = {}
        self._offsets: dict[str, int] = {}
        position = HEADER.size
        for name, typecode in SECTIONS.items():
            offset, length = _SECTION.unpack_from(buffer, position)
            position += _SECTION.size
            if offset + length > size or offset % ALIGNMENT or length % array(typecode).itemsize:
                raise Corrupt(f"an ACL snapshot's section {name} does not lie within it")
            part = buffer[offset : offset + length]
            self._sections[name] = part.cast(typecode)
            self._offsets[name] = offset

    def offset(self, name: str) -> int:
        """Where a section begins."""
        return self._offsets[name]

    def __getitem__(self, name: str) -> memoryview[int]:
        return self._sections[name]

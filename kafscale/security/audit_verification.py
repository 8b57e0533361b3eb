"""Whether a chain of records is whole: which record is the first that was changed, removed, moved, doubled or cut off.

Fed line by line, in the order in which they lie there; looks one line ahead, and keeps nothing but its place and what
it has found. What the chain says of itself (gaps, rotation) and what was anchored elsewhere is taken into account: the
end of a chain can only be known from outside it. Pure: it knows no file and no store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from kafscale.security.audit_chain import GENESIS, ChainLink, Gap, SealedRecord, notes_of, read_record

FINDINGS_MAX: Final = 100


class Wrong(StrEnum):
    """What was done to a record."""

    CHANGED = "changed"
    REMOVED = "removed"
    MOVED = "moved"
    DUPLICATED = "duplicated"
    INSERTED = "inserted"
    TRUNCATED = "truncated"


class Finding(msgspec.Struct):
    """What is wrong, with which record (by its number), and at which place it shows."""

    wrong: Wrong
    sequence: int
    place: str
    text: str


class Line(msgspec.Struct, frozen=True):
    """A line without its end. `is_torn`: it had none."""

    place: str
    content: bytes
    is_torn: bool = False


class ChainReport(msgspec.Struct):
    """What there is of one broker's chain. `notes` are no faults: what can't be known, and why."""

    chain: str
    first: int = 0
    last: int = 0
    records: int = 0
    anchors: int = 0
    findings: list[Finding] = []
    notes: list[str] = []
    findings_omitted: int = 0


Anchors = Mapping[str, Sequence[ChainLink]]
"""By the chain's name: records that were seen from outside, in any order."""


def verify_lines(
    lines: Iterable[Line], anchors: Anchors, *, is_whole: bool = True, is_ordered: bool = True
) -> list[ChainReport]:
    """A report for each chain that there are lines or anchors of.

    `is_whole`: all that there is of the chains should be here, from the first record on, but for what rotation threw
    away. Not `is_ordered`: the lines come from several partitions, so their order says nothing, and one that is there
    twice was only sent again.
    """
    if not is_ordered:
        lines = _in_order(lines)
    verifiers: dict[str, _ChainVerifier] = {}
    current: _ChainVerifier | None = None
    homeless: list[tuple[SealedRecord | None, Line]] = []
    for line in lines:
        record = None if line.is_torn else read_record(line.content)
        if record is not None and record.is_intact:
            found = verifiers.get(record.chain)
            if found is None:
                found = _ChainVerifier(record.chain, anchors.get(record.chain, ()), is_whole, is_ordered)
                verifiers[record.chain] = found
                for stray in homeless:
                    found.feed(*stray)
                homeless = []
            current = found
        if current is None:
            # Which chain it was of can only be told by what follows.
            homeless.append((record, line))
        else:
            current.feed(record, line)
    for name, links in anchors.items():
        if name not in verifiers and links:
            verifiers[name] = _ChainVerifier(name, links, is_whole, is_ordered)
    if homeless:
        of_any = next(iter(verifiers.values()), None) or _ChainVerifier("", (), is_whole, is_ordered)
        verifiers.setdefault(of_any.report.chain, of_any)
        for stray in homeless:
            of_any.feed(*stray)
    return [verifier.finish() for verifier in verifiers.values()]


def _in_order(lines: Iterable[Line]) -> Iterator[Line]:
    """By chain and number. Lines that can't be read stand where they came, at the end."""
    keyed = []
    for position, line in enumerate(lines):
        record = read_record(line.content)
        key = ("\U0010ffff", 0, "", position) if record is None else (record.chain, record.sequence, "", position)
        keyed.append((key, line))
    keyed.sort(key=lambda entry: entry[0])
    return (line for _, line in keyed)


class _Missing(msgspec.Struct):
    """Numbers that were not where they belong, and those of them that stood elsewhere."""

    first: int
    last: int
    finding: Finding
    returned: set[int]


class _ChainVerifier:
    """One chain's. `feed` every line, then `finish`."""

    def __init__(self, name: str, anchors: Sequence[ChainLink], is_whole: bool, is_ordered: bool) -> None:
        self.report = ChainReport(name)
        self._anchors = {link.sequence: link.hash for link in anchors}
        self._is_whole = is_whole
        self._is_ordered = is_ordered
        # The number that comes next, and what its `prev` may be; empty where that is not known.
        self._expected = 1
        self._previous = frozenset((GENESIS,))
        self._pending: tuple[SealedRecord | None, Line] | None = None
        self._missing: list[_Missing] = []
        # Records that stood before their place, by number: their hashes, and what was said of them.
        self._ahead: dict[int, tuple[str, Finding]] = {}
        self._rotated_to = 0
        self._is_cut = False
        self._before_first: _Missing | None = None

    def feed(self, record: SealedRecord | None, line: Line) -> None:
        if self._pending is not None:
            self._judge(*self._pending, record)
        self._pending = (record, line)

    def finish(self) -> ChainReport:
        if self._pending is not None:
            self._judge(*self._pending, None)
            self._pending = None
        for missing in self._missing:
            _settle(missing)
        self._judge_beginning()
        self._judge_anchors()
        return self.report

    # One line

    def _judge(self, record: SealedRecord | None, line: Line, following: SealedRecord | None) -> None:
        if line.is_torn:
            self._find(Wrong.TRUNCATED, self._expected, line, "the line stops short")
            self._is_cut = True
            return
        self.report.records += 1
        if record is None or not record.is_intact:
            self._judge_broken(record, line, following)
            return
        gap, rotation = notes_of(line.content)
        if rotation is not None:
            self._rotated_to = max(self._rotated_to, rotation.last)
        while self._expected in self._ahead:
            # It was met before its place, and told of.
            hash_ahead, finding = self._ahead.pop(self._expected)
            if record.sequence == self._expected:
                # That was a copy.
                finding.wrong, finding.sequence = Wrong.DUPLICATED, record.sequence
                finding.text = "it stands before its place too"
                break
            self._previous = frozenset((hash_ahead,))
            self._expected += 1
        if record.sequence == self._expected:
            self._judge_link(record, line, following)
            self._accept(record)
        elif record.sequence > self._expected:
            self._judge_leap(record, line, following, gap)
        else:
            self._judge_return(record, line)

    def _accept(self, record: SealedRecord) -> None:
        self._check_anchor(record)
        self.report.first = self.report.first or record.sequence
        self.report.last = max(self.report.last, record.sequence)
        self._expected = record.sequence + 1
        self._previous = frozenset((record.stated,))

    def _judge_broken(self, record: SealedRecord | None, line: Line, following: SealedRecord | None) -> None:
        """A line that is no record, or not what its hash says."""
        expected = self._expected
        if following is not None and following.is_intact:
            if following.sequence == expected:
                text = f"a line that is no record of the chain, before record {expected}"
                self._find(Wrong.INSERTED, expected, line, text)
                return
            if not self.report.first and following.sequence > 2:
                # Of a first line nothing is known but what the next one says.
                expected = following.sequence - 1
                self._miss_beginning(expected, line)
        self.report.first = self.report.first or expected
        what = "the line is no record" if record is None else "its content is not what its hash says"
        self._find(Wrong.CHANGED, expected, line, what)
        self.report.last = max(self.report.last, expected)
        self._expected = expected + 1
        # Either the content was changed, or the hash.
        self._previous = frozenset() if record is None else frozenset((record.stated, record.computed))

    def _judge_link(self, record: SealedRecord, line: Line, following: SealedRecord | None) -> None:
        if not self._previous or record.previous in self._previous:
            return
        belongs = following is None or (following.is_intact and following.previous == record.stated)
        if belongs:
            # It agrees with what follows: the one before it was put in another's place.
            text = f"record {record.sequence} refers to another: it was replaced, and given a sound hash"
            self._find(Wrong.CHANGED, record.sequence - 1, line, text)
        else:
            self._find(Wrong.CHANGED, record.sequence, line, "it does not refer to the record before it")

    def _judge_leap(self, record: SealedRecord, line: Line, following: SealedRecord | None, gap: Gap | None) -> None:
        """A record whose number is too high."""
        expected = self._expected
        is_gap = gap is not None and gap.last == record.sequence - 1
        if gap is not None and is_gap and (gap.first <= expected or not self.report.first):
            self._pass_gap(record, line, gap)
            return
        next_number = following.sequence if following is not None and following.is_intact else 0
        if next_number == expected:
            if record.sequence == expected + 1:
                # Two changed places, or either was moved past the other: the first of them is named.
                finding = self._find(Wrong.MOVED, expected, line, f"record {record.sequence} stands before it")
            else:
                finding = self._find(Wrong.MOVED, record.sequence, line, f"it stands before record {expected}")
            self._ahead[record.sequence] = (record.stated, finding)
            self._check_anchor(record)
            return
        if next_number == expected + 1 and record.sequence != expected + 1:
            finding = self._find(Wrong.MOVED, expected, line, f"record {record.sequence} stands in its place")
            self._missing.append(_Missing(expected, expected, finding, set()))
            self._ahead[record.sequence] = (record.stated, finding)
            self._check_anchor(record)
            self._expected = expected + 1
            self._previous = frozenset()
            return
        last = record.sequence - 1
        if not self.report.first:
            self._miss_beginning(record.sequence, line)
            self._accept(record)
            return
        text = f"{_range(expected, last)} not here; record {record.sequence} follows"
        finding = self._find(Wrong.REMOVED, expected, line, text)
        self._missing.append(_Missing(expected, last, finding, set()))
        self._accept(record)

    def _miss_beginning(self, sequence: int, line: Line) -> None:
        """The first line is of this record. That may be all right."""
        finding = Finding(Wrong.REMOVED, 1, line.place, f"{_range(1, sequence - 1)} not here")
        self._before_first = _Missing(1, sequence - 1, finding, set())
        self._missing.append(self._before_first)

    def _pass_gap(self, record: SealedRecord, line: Line, gap: Gap) -> None:
        if not self.report.first:
            self.report.notes.append(f"begins behind a gap: {_shown(gap)}")
            self._accept(record)
            return
        if gap.first == self._expected and self._previous and record.previous not in self._previous:
            text = f"record {record.sequence} refers to another: it was replaced, and given a sound hash"
            self._find(Wrong.CHANGED, self._expected - 1, line, text)
        self.report.notes.append(f"a gap: {_shown(gap)}")
        self._accept(record)

    def _judge_return(self, record: SealedRecord, line: Line) -> None:
        """A record whose number is too low."""
        for missing in self._missing:
            if missing.first <= record.sequence <= missing.last and record.sequence not in missing.returned:
                missing.returned.add(record.sequence)
                self._check_anchor(record)
                return
        if not self._is_ordered:
            self.report.notes.append(f"record {record.sequence} was sent twice")
        else:
            self._find(Wrong.DUPLICATED, record.sequence, line, "it stands here again")

    # The whole

    def _judge_beginning(self) -> None:
        before = self._before_first
        if before is None:
            return
        if before.returned or (self._is_whole and self._rotated_to < before.last):
            self.report.findings.insert(0, before.finding)
        elif self._is_whole:
            self.report.notes.append(f"records up to {self._rotated_to} were thrown away by rotation")
        else:
            self.report.notes.append(before.finding.text)

    def _check_anchor(self, record: SealedRecord) -> None:
        anchored = self._anchors.pop(record.sequence, None)
        if anchored is None:
            return
        self.report.anchors += 1
        if anchored != record.stated:
            text = "it is not the record that was anchored; it, or one since the anchor before, was replaced"
            self._find(Wrong.CHANGED, record.sequence, Line("the anchors", b""), text)

    def _judge_anchors(self) -> None:
        """What was anchored and not met."""
        report = self.report
        for sequence in sorted(self._anchors):
            if sequence > report.last:
                text = f"record {sequence} was anchored: {_range(report.last + 1, sequence)} cut off"
                if not self._is_cut:
                    self._find(Wrong.TRUNCATED, report.last + 1, Line("the end", b""), text)
                return
            is_told = any(missing.first <= sequence <= missing.last for missing in self._missing)
            if sequence >= report.first and not is_told:
                self._find(Wrong.REMOVED, sequence, Line("the anchors", b""), "it was anchored, and is not here")

    def _find(self, wrong: Wrong, sequence: int, line: Line, text: str) -> Finding:
        finding = Finding(wrong, sequence, line.place, text)
        if len(self.report.findings) < FINDINGS_MAX:
            self.report.findings.append(finding)
        else:
            self.report.findings_omitted += 1
        return finding


def _settle(missing: _Missing) -> None:
    """Say of what was not where it belongs whether it is anywhere."""
    if not missing.returned:
        if missing.finding.wrong is Wrong.MOVED:
            missing.finding.wrong = Wrong.REMOVED
        return
    gone = next((n for n in range(missing.first, missing.last + 1) if n not in missing.returned), None)
    if gone is None:
        missing.finding.wrong = Wrong.MOVED
        missing.finding.text = f"{_range(missing.first, missing.last)} not in place, but further down"
    else:
        missing.finding.wrong = Wrong.REMOVED
        missing.finding.sequence = gone


def _range(first: int, last: int) -> str:
    return f"record {first} is" if first == last else f"records {first} to {last} are"


def _shown(gap: Gap) -> str:
    why = f" ({gap.reason})" if gap.reason else ""
    return f"{_range(gap.first, gap.last)} known to nobody{why}"

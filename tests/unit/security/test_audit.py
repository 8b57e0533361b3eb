"""Goal: whatever an event holds, its record is one valid line of JSON; whatever is done to a line, the verifier says to
which record."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.security.audit_chain import LINE_BYTES_MAX, START, Chain, ChainLink, read_record
from kafscale.security.audit_event import (
    AuditEvent,
    Kind,
    Origin,
    Resource,
    Severity,
    body_of,
    decode_events,
    encode_events,
)
from kafscale.security.audit_verification import ChainReport, Finding, Line, Wrong, verify_lines

ORIGIN = Origin("Zm9v", 3)
TEXT = st.text(st.characters(codec=None), max_size=40) | st.sampled_from(
    [
        "a\nb\r\n",
        "\x1b[2J\x07",
        "\x7f\x85\x9b31m",
        "\u2028x\u2029\u202e",
        '"},"hash":"' + "0" * 64 + '"}\n{"seq":1',
        '","gap":{"first":1,"last":9},"x":"',
        "\ud800",
        "\0",
        "\\",
        "\U000e0001" * 600,
        "x" * 65536,
    ]
)
INTEGER = st.integers()
RESOURCE = st.builds(Resource, kind=TEXT, name=TEXT, detail=TEXT, error_code=INTEGER)
EVENT = st.builds(
    AuditEvent,
    kind=st.sampled_from(Kind),
    time_ms=INTEGER,
    action=TEXT,
    is_success=st.booleans(),
    severity=st.sampled_from(Severity),
    principal=TEXT,
    client_host=TEXT,
    client_id=st.none() | TEXT,
    listener=TEXT,
    mechanism=TEXT,
    api_version=INTEGER,
    correlation_id=INTEGER,
    resources=st.lists(RESOURCE, max_size=4) | st.lists(RESOURCE, min_size=1, max_size=1).map(lambda one: one * 500),
    resources_omitted=st.integers(0),
    error_code=INTEGER,
    reason=TEXT,
    decision=TEXT,
    operation=TEXT,
    rule=TEXT,
    rule_source=TEXT,
    count=INTEGER,
    end_ms=INTEGER,
    node_id=INTEGER,
    details=st.dictionaries(TEXT, TEXT | INTEGER | st.booleans(), max_size=4),
)


def event(number: int = 0, **fields: Any) -> AuditEvent:
    given: dict[str, Any] = {"principal": "User:alice", "client_host": "10.0.0.1", "client_id": f"c{number}"}
    return AuditEvent(kind=Kind.ACCESS, time_ms=1000 + number, action="Produce", **given | fields)


def records(count: int, first: int = 1, chain: Chain | None = None) -> list[bytes]:
    """Lines with their ends."""
    chain = chain or Chain(ORIGIN.chain)
    return [chain.seal(body_of(event(number), ORIGIN)) for number in range(first, first + count)]


def verify(lines: list[bytes], *anchored: int, whole: list[bytes] | None = None, **options: bool) -> ChainReport:
    """Of lines as they lie in a file; `anchored` are the places, in `whole`, of records that were anchored."""
    numbered = [
        Line(f"line {number}", line.rstrip(b"\n"), is_torn=not line.endswith(b"\n"))
        for number, line in enumerate(lines, 1)
    ]
    links = [found.link for place in anchored if (found := read_record((whole or lines)[place].rstrip(b"\n")))]
    (report,) = verify_lines(numbered, {ORIGIN.chain: links}, **options)
    return report


def first_wrong(report: ChainReport) -> tuple[Wrong, int]:
    found: Finding = report.findings[0]
    return found.wrong, found.sequence


# Lines


@settings(max_examples=100)
@given(st.lists(EVENT, min_size=1, max_size=3))
def test_any_event_makes_one_valid_line(events: list[AuditEvent]) -> None:
    """Goal: any texts and numbers give one line of printable JSON of bounded length, which the verifier takes."""
    chain = Chain(ORIGIN.chain)
    lines = [chain.seal(body_of(one, ORIGIN)) for one in events]
    for number, line in enumerate(lines, 1):
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        assert len(line) <= LINE_BYTES_MAX
        assert line[:-1].decode().isprintable()
        read = orjson.loads(line)
        assert (read["seq"], read["chain"]) == (number, ORIGIN.chain)
        assert read["class_uid"] in (3002, 6002, 6003)
        assert read["metadata"]["product"]["uid"] == "3"
    report = verify(lines, len(lines) - 1)
    assert not report.findings and not report.notes


@settings(max_examples=100)
@given(st.lists(EVENT, max_size=3))
def test_events_survive_their_way_to_the_writer(events: list[AuditEvent]) -> None:
    """Goal: what can be sent comes out as it went in; what can't is refused, and is not sent half."""
    try:
        sent = encode_events(events)
    except (OverflowError, UnicodeEncodeError):
        return
    received = decode_events(sent)
    assert [list(one.resources) for one in received] == [list(one.resources) for one in events]
    assert [one.details for one in received] == [one.details for one in events]


def test_a_line_says_who_did_what_to_what_and_which_rule_decided() -> None:
    """Goal: the OCSF form of a denial has actor, decision, rule, source address, API and resource."""
    denied = event(
        api_version=9,
        correlation_id=7,
        is_success=False,
        error_code=29,
        resources=[Resource("topic", "orders", error_code=29)],
        decision="denied",
        rule="deny write on topic orders",
        rule_source="acl.json",
        operation="WRITE",
        node_id=100,
    )
    read = orjson.loads(Chain(ORIGIN.chain).seal(body_of(denied, ORIGIN)))
    assert (read["class_uid"], read["activity_id"], read["type_uid"]) == (6003, 3, 600303)
    assert (read["status_id"], read["status_code"]) == (2, "29")
    assert read["time_dt"] == "1970-01-01T00:00:01.000Z"
    assert read["actor"] == {
        "user": {"type": "User", "name": "alice"},
        "authorizations": [
            {"decision": "denied", "policy": {"desc": "deny write on topic orders", "name": "acl.json"}}
        ],
    }
    assert read["src_endpoint"] == {"ip": "10.0.0.1"}
    assert read["api"]["operation"] == "Produce" and read["api"]["request"] == {"uid": "7"}
    assert read["resources"] == [{"type": "topic", "name": "orders", "data": {"error_code": 29}}]
    assert read["unmapped"] == {"client_id": "c0", "operation": "WRITE", "node_id": 100}


# The chain


def test_a_whole_chain_is_found_whole() -> None:
    """Goal: nothing is reported of what nobody touched, and the anchors are met."""
    lines = records(20)
    report = verify(lines, 4, 19)
    assert (report.first, report.last, report.records, report.anchors) == (1, 20, 20, 2)
    assert not report.findings and not report.notes


def test_a_chain_goes_on_from_its_last_record() -> None:
    """Goal: a writer that is told of the last record continues the chain."""
    lines = records(3)
    last = read_record(lines[-1].rstrip())
    assert last is not None
    assert not verify(lines + records(3, chain=Chain(ORIGIN.chain, last.link))).findings


@settings(max_examples=100)
@given(st.integers(0, 11), st.data())
def test_any_edit_of_a_line_is_named(place: int, data: st.DataObject) -> None:
    """Goal: whichever byte of whichever line is changed, added or removed, that record is named."""
    lines = records(12)
    line = bytearray(lines[place][:-1])
    at = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b not in (10, line[at])))
    match data.draw(st.sampled_from(["change", "add", "remove"])):
        case "change":
            line[at] = byte
        case "add":
            line.insert(at, byte)
        case _:
            del line[at]
    edited = [*lines[:place], bytes(line) + b"\n", *lines[place + 1 :]]
    if edited == lines:
        return  # One of two bytes that are alike.
    assert first_wrong(verify(edited)) == (Wrong.CHANGED, place + 1)


@settings(max_examples=200)
@given(st.integers(0, 9), st.integers(1, 4))
def test_removed_lines_are_named(place: int, count: int) -> None:
    """Goal: the first of the lines that were taken out is named, at the beginning and at the end too."""
    lines = records(12)
    left = lines[:place] + lines[place + count :]
    report = verify(left, 11, whole=lines)
    is_end = place + count >= len(lines)
    assert first_wrong(report) == (Wrong.TRUNCATED if is_end else Wrong.REMOVED, place + 1)
    assert len(report.findings) == 1


@settings(max_examples=300)
@given(st.integers(0, 11), st.integers(0, 11))
def test_moved_lines_are_named(origin: int, target: int) -> None:
    """Goal: a line that was put elsewhere is named, or the one in whose place it stands."""
    lines = records(12)
    moved = lines[:origin] + lines[origin + 1 :]
    moved.insert(target, lines[origin])
    report = verify(moved, 11, whole=lines)
    if moved == lines:
        assert not report.findings
        return
    wrong, sequence = first_wrong(report)
    assert wrong in (Wrong.MOVED, Wrong.REMOVED, Wrong.DUPLICATED)
    displaced = min(origin, target) + 1
    assert sequence in (origin + 1, displaced)


@settings(max_examples=200)
@given(st.integers(0, 11), st.integers(0, 11))
def test_exchanged_lines_are_named(one: int, other: int) -> None:
    """Goal: of two lines that changed places one is named first, and nothing but those two."""
    lines = records(12)
    lines[one], lines[other] = lines[other], lines[one]
    report = verify(lines)
    if one == other:
        assert not report.findings
        return
    assert {found.sequence for found in report.findings} <= {one + 1, other + 1}
    assert first_wrong(report)[0] in (Wrong.MOVED, Wrong.REMOVED)


@settings(max_examples=200)
@given(st.integers(0, 11), st.integers(0, 12))
def test_doubled_lines_are_named(place: int, target: int) -> None:
    """Goal: a line that stands there twice is named, wherever the copy stands."""
    lines = records(12)
    copied = [*lines[:target], lines[place], *lines[target:]]
    wrong, sequence = first_wrong(verify(copied))
    assert wrong in (Wrong.DUPLICATED, Wrong.MOVED)
    assert sequence == place + 1


@settings(max_examples=200)
@given(st.integers(1, 12 * 200))
def test_a_file_that_was_cut_off_is_found(cut: int) -> None:
    """Goal: of a file that ends too early the first record that is not whole is named, wherever it was cut."""
    lines = records(12)
    content = b"".join(lines)
    kept = content[: -min(cut, len(content) - 1)]
    left = kept.splitlines(keepends=True)
    whole = sum(line.endswith(b"\n") for line in left)
    assert first_wrong(verify(left, 11, whole=lines)) == (Wrong.TRUNCATED, whole + 1)


def test_what_was_put_between_is_named() -> None:
    """Goal: a foreign line is told from a changed record."""
    lines = records(4)
    assert first_wrong(verify([*lines[:2], b"rubbish\n", *lines[2:]])) == (Wrong.INSERTED, 3)
    changed = lines[1].replace(b"Produce", b"Consume")
    assert first_wrong(verify([*lines[:2], changed, *lines[2:]])) == (Wrong.INSERTED, 3)


def resealed(line: bytes, **changes: bytes) -> bytes:
    """A line that someone changed who knows how hashes are made."""
    text = line.rsplit(b',"hash":"', 1)[0]
    for old, new in changes.items():
        text = text.replace(old.encode(), new)
    return text + b',"hash":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


@pytest.mark.parametrize("place", range(4))
def test_a_record_with_a_new_hash_is_named(place: int) -> None:
    """Goal: who changes a record and gives it a sound hash is found by the record after it."""
    lines = records(6)
    lines[place] = resealed(lines[place], Produce=b"Consume")
    assert first_wrong(verify(lines)) == (Wrong.CHANGED, place + 1)


def test_a_chain_that_was_made_anew_is_found_by_its_anchors() -> None:
    """Goal: who rewrites everything from some record on can't rewrite what was anchored."""
    lines = records(10)
    kept = read_record(lines[4].rstrip())
    assert kept is not None
    forged = lines[:5] + records(5, first=100, chain=Chain(ORIGIN.chain, kept.link))
    assert not verify(forged).findings
    assert first_wrong(verify(forged, 3, 7, whole=lines)) == (Wrong.CHANGED, 8)


def test_nothing_left_is_found_by_its_anchors() -> None:
    """Goal: an empty file is no clean one."""
    lines = records(5)
    assert first_wrong(verify([], 2, 4, whole=lines)) == (Wrong.TRUNCATED, 1)


def test_a_gap_is_what_the_chain_says_of_it() -> None:
    """Goal: numbers that a broker says it may have lost are no finding; one of them that was anchored is."""
    chain = Chain(ORIGIN.chain)
    before = records(4, chain=chain)
    chain.skip_to(1000)
    gap = chain.seal(body_of(event(), ORIGIN) | {"gap": {"first": 5, "last": 999, "reason": "a crash"}})
    lines = [*before, gap, *records(2, chain=chain)]
    report = verify(lines)
    assert not report.findings and "5 to 999" in report.notes[0]
    assert (report.first, report.last) == (1, 1002)
    whole = before + records(2, chain=Chain(ORIGIN.chain, before_link(before)))
    # Two of the numbers were written after all.
    assert not verify(whole + lines[4:]).findings
    assert first_wrong(verify(lines, 5, whole=whole)) == (Wrong.REMOVED, 6)
    # Not so for a gap that leaves out more than it says.
    assert first_wrong(verify(before[:3] + lines[4:])) == (Wrong.REMOVED, 4)


def before_link(lines: list[bytes]) -> ChainLink:
    found = read_record(lines[-1].rstrip())
    return START if found is None else found.link


def test_what_rotation_threw_away_is_no_finding() -> None:
    """Goal: a missing beginning is a finding unless the chain itself says that it was thrown away."""
    chain = Chain(ORIGIN.chain)
    lines = records(6, chain=chain)
    rotation = chain.seal(body_of(event(), ORIGIN) | {"rotation": {"last": 3}})
    assert not verify([*lines[3:], rotation]).findings
    assert first_wrong(verify([*lines[4:], rotation])) == (Wrong.REMOVED, 1)
    assert first_wrong(verify(lines[3:])) == (Wrong.REMOVED, 1)
    part = verify(lines[3:], is_whole=False)
    assert not part.findings and part.notes == ["records 1 to 3 are not here"]


def test_lines_of_several_partitions_are_put_in_order() -> None:
    """Goal: what was read from a topic is verified whatever the order of its partitions; brokers are told apart."""
    lines = records(9)
    other = Origin("Zm9v", 4)
    others = Chain(other.chain)
    mixed = lines + [others.seal(body_of(event(number), other)) for number in range(5)]
    random.Random(1).shuffle(mixed)
    numbered = [Line(str(number), line.rstrip(b"\n")) for number, line in enumerate([*mixed, mixed[0]])]
    reports = verify_lines(numbered, {}, is_ordered=False)
    assert sorted((report.chain, report.records) for report in reports if not report.findings)
    assert {report.chain for report in reports} == {ORIGIN.chain, other.chain}
    assert [note for report in reports for note in report.notes if "twice" in note]
    without = [line for line in numbered if b'"seq":7,' not in line.content]
    (damaged,) = [report for report in verify_lines(without, {}, is_ordered=False) if report.findings]
    assert (damaged.findings[0].wrong, damaged.findings[0].sequence) == (Wrong.REMOVED, 7)

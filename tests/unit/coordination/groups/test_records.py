"""Records of __consumer_offsets have Kafka's byte layouts, round trip, and never read as something they are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kafscale.coordination.groups.records import (
    GroupKey,
    GroupRecord,
    MemberRecord,
    OffsetKey,
    OffsetRecord,
    group_key,
    group_value,
    offset_key,
    offset_value,
    read_group_value,
    read_key,
    read_offset_value,
    subscribed_topics,
)
from kafscale.errors import Corrupt

names = st.text(max_size=40)
int32 = st.integers(-(2**31), 2**31 - 1)
int64 = st.integers(-(2**63), 2**63 - 1)
offsets = st.builds(
    OffsetRecord,
    offset=int64,
    leader_epoch=int32,
    metadata=st.text(max_size=300),
    commit_timestamp_ms=int64,
    topic_id=st.one_of(st.just(bytes(16)), st.binary(min_size=16, max_size=16)),
)
members = st.builds(
    MemberRecord,
    member_id=names,
    instance_id=st.none() | names,
    client_id=names,
    client_host=names,
    rebalance_timeout_ms=int32,
    session_timeout_ms=int32,
    subscription=st.binary(max_size=60),
    assignment=st.binary(max_size=60),
)
groups = st.builds(
    GroupRecord,
    protocol_type=names,
    generation=int32,
    protocol=st.none() | names,
    leader=st.none() | names,
    state_timestamp_ms=int64,
    members=st.lists(members, max_size=4).map(tuple),
)


@given(offsets)
def test_offset_values_round_trip(record: OffsetRecord) -> None:
    """Every offset value reads back as what was written."""
    assert read_offset_value(offset_value(record)) == record


@given(groups)
def test_group_values_round_trip(record: GroupRecord) -> None:
    """Every group value reads back as what was written."""
    assert read_group_value(group_value(record)) == record


@given(names, names, int32)
def test_keys_round_trip(group_id: str, topic: str, partition: int) -> None:
    """Every key reads back as what was written."""
    assert read_key(offset_key(group_id, topic, partition)) == OffsetKey(group_id, topic, partition)
    assert read_key(group_key(group_id)) == GroupKey(group_id)


@given(groups, offsets, st.data())
def test_cut_short_or_lengthened_is_corrupt(group: GroupRecord, offset: OffsetRecord, data: st.DataObject) -> None:
    """A record that lost bytes at its end, or has some too many, is an error."""
    for whole, read in ((group_value(group), read_group_value), (offset_value(offset), read_offset_value)):
        cut = data.draw(st.integers(0, len(whole) - 1))
        with pytest.raises(Corrupt):
            read(whole[:cut])
        with pytest.raises(Corrupt):
            read(whole + b"\0")


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_corrupt(data: bytes) -> None:
    """Random bytes never give another error than Corrupt, and never much memory."""
    for read in (read_key, read_offset_value, read_group_value):
        try:
            read(data)
        except Corrupt:
            pass
    subscribed_topics(data)


# --- golden bytes, put together by hand from Kafka's format descriptions ---------------------------------------------


def test_offset_key_layout() -> None:
    """OffsetCommitKey v1: version, group, topic, partition."""
    assert offset_key("grp", "top", 7) == bytes.fromhex("0001 0003 677270 0003 746f70 00000007")


def test_group_key_layout() -> None:
    """GroupMetadataKey v2: version, group."""
    assert group_key("grp") == bytes.fromhex("0002 0003 677270")


def test_offset_value_layout_without_topic_id() -> None:
    """OffsetCommitValue v3: version, offset, leader epoch, metadata, commit timestamp."""
    record = OffsetRecord(offset=258, leader_epoch=5, metadata="hi", commit_timestamp_ms=1_700_000_000_000)
    assert offset_value(record) == bytes.fromhex("0003 0000000000000102 00000005 0002 6869 0000018bcfe56800")


def test_offset_value_layout_with_topic_id() -> None:
    """OffsetCommitValue v4 is flexible: compact metadata, and the topic id as tagged field 0 of 16 bytes."""
    topic_id = bytes(range(16))
    record = OffsetRecord(
        offset=258, leader_epoch=-1, metadata="hi", commit_timestamp_ms=1_700_000_000_000, topic_id=topic_id
    )
    expected = bytes.fromhex("0004 0000000000000102 ffffffff 03 6869 0000018bcfe56800 01 00 10") + topic_id
    assert offset_value(record) == expected


def test_group_value_layout() -> None:
    """GroupMetadataValue v3, with a static and a dynamic member."""
    record = GroupRecord(
        protocol_type="consumer",
        generation=4,
        protocol="range",
        leader="m-1",
        state_timestamp_ms=1_700_000_000_000,
        members=(
            MemberRecord(
                member_id="m-1",
                instance_id="i",
                client_id="c",
                client_host="/h",
                rebalance_timeout_ms=300_000,
                session_timeout_ms=45_000,
                subscription=b"\x01\x02",
                assignment=b"\x03",
            ),
            MemberRecord(
                member_id="m-2",
                client_id="c",
                client_host="/h",
                rebalance_timeout_ms=300_000,
                session_timeout_ms=45_000,
                subscription=b"",
                assignment=b"",
            ),
        ),
    )
    assert group_value(record) == bytes.fromhex(
        "0003 0008 636f6e73756d6572 00000004 0005 72616e6765 0003 6d2d31 0000018bcfe56800 00000002"
        "0003 6d2d31 0001 69 0001 63 0002 2f68 000493e0 0000afc8 00000002 0102 00000001 03"
        "0003 6d2d32 ffff 0001 63 0002 2f68 000493e0 0000afc8 00000000 00000000"
    )


@pytest.mark.parametrize(
    ("version", "body"),
    [
        (0, "0000000000000102 0002 6869 0000018bcfe56800"),
        (1, "0000000000000102 0002 6869 0000018bcfe56800 0000018bcfe56801"),
        (2, "0000000000000102 0002 6869 0000018bcfe56800"),
        (3, "0000000000000102 ffffffff 0002 6869 0000018bcfe56800"),
        (4, "0000000000000102 ffffffff 03 6869 0000018bcfe56800 00"),
    ],
)
def test_every_version_of_an_offset_is_read(version: int, body: str) -> None:
    """What older and newer Kafkas wrote reads the same."""
    expected = OffsetRecord(offset=258, metadata="hi", commit_timestamp_ms=1_700_000_000_000)
    assert read_offset_value(version.to_bytes(2, "big") + bytes.fromhex(body)) == expected


def test_unknown_tagged_fields_are_skipped() -> None:
    """A later Kafka may add tagged fields to version 4."""
    body = "0004 0000000000000102 ffffffff 01 0000018bcfe56800 01 07 02 abcd"
    assert read_offset_value(bytes.fromhex(body)) == OffsetRecord(offset=258, commit_timestamp_ms=1_700_000_000_000)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_older_versions_of_a_group_are_read(version: int) -> None:
    """Version 0 has one timeout, 1 adds the rebalance timeout, 2 the time of the state, 3 the instance id."""
    state_time = "0000018bcfe56800" if version >= 2 else ""
    rebalance = "000493e0" if version >= 1 else ""
    body = (
        f"0008 636f6e73756d6572 00000004 0005 72616e6765 0003 6d2d31 {state_time} 00000001"
        f"0003 6d2d31 0001 63 0002 2f68 {rebalance} 0000afc8 00000002 0102 00000001 03"
    )
    record = read_group_value(version.to_bytes(2, "big") + bytes.fromhex(body))
    assert record.state_timestamp_ms == (1_700_000_000_000 if version >= 2 else -1)
    assert record.members == (
        MemberRecord(
            member_id="m-1",
            client_id="c",
            client_host="/h",
            rebalance_timeout_ms=300_000 if version >= 1 else 45_000,
            session_timeout_ms=45_000,
            subscription=b"\x01\x02",
            assignment=b"\x03",
        ),
    )


@pytest.mark.parametrize("data", ["0003 0003 677270", "000f", "ffff 0001 61"])
def test_unknown_kinds_of_key_are_corrupt(data: str) -> None:
    """A record of a kind that this release doesn't know is never passed over."""
    with pytest.raises(Corrupt):
        read_key(bytes.fromhex(data))


@pytest.mark.parametrize("read", [read_offset_value, read_group_value])
def test_unknown_versions_of_a_value_are_corrupt(read: object) -> None:
    """A value of a later version is never guessed at."""
    with pytest.raises(Corrupt):
        read(bytes.fromhex("0005") + bytes(40))  # type: ignore[operator]


def test_subscriptions_are_read() -> None:
    """Topics come out of a consumer's subscription of any version; what is none gives None."""
    assert subscribed_topics(bytes.fromhex("0000 00000002 0001 61 0001 62 ffffffff")) == {"a", "b"}
    assert subscribed_topics(bytes.fromhex("0003 00000001 0001 61 ffffffff 00000000 00000001 ffff")) == {"a"}
    assert subscribed_topics(b"") is None
    assert subscribed_topics(bytes.fromhex("ffff 00000000")) is None
    assert subscribed_topics(bytes.fromhex("0000 7fffffff 0001 61")) is None

"""SyncGroup, Heartbeat and LeaveGroup: each answer that Kafka gives, and what it takes to get it."""

from __future__ import annotations

from typing import Any

import pytest

from kafscale.coordination.groups.events import (
    GroupConfig,
    HeartbeatRequest,
    LeaveGroupRequest,
    LeavingMember,
    SyncGroupRequest,
)
from kafscale.protocol.error_codes import ErrorCode
from tests.unit.coordination.groups.driver import GROUP, Driver


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"group_id": ""}, ErrorCode.INVALID_GROUP_ID),
        ({"group_id": "other"}, ErrorCode.UNKNOWN_MEMBER_ID),
        ({"member_id": "other"}, ErrorCode.UNKNOWN_MEMBER_ID),
        ({"instance_id": "other"}, ErrorCode.UNKNOWN_MEMBER_ID),
        ({"generation": 0}, ErrorCode.ILLEGAL_GENERATION),
        ({"generation": 2}, ErrorCode.ILLEGAL_GENERATION),
    ],
)
def test_who_is_asking(changes: dict[str, Any], error: ErrorCode) -> None:
    """Sync and heartbeat know group, member, instance and generation, or refuse."""
    driver = Driver()
    (member,) = driver.stable()
    fields = {"group_id": GROUP, "generation": 1, "member_id": member.member_id} | changes
    assert driver.ask("sync_group", SyncGroupRequest(**fields)).error is error
    assert driver.ask("heartbeat", HeartbeatRequest(**fields)).error is error


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"protocol_type": "connect"}, ErrorCode.INCONSISTENT_GROUP_PROTOCOL),
        ({"protocol_name": "sticky"}, ErrorCode.INCONSISTENT_GROUP_PROTOCOL),
        ({"protocol_type": "consumer", "protocol_name": "range"}, ErrorCode.NONE),
        ({}, ErrorCode.NONE),
    ],
)
def test_sync_names_the_protocol(changes: dict[str, Any], error: ErrorCode) -> None:
    """KIP-559: what a client of version 5 and above names must be what the generation has."""
    driver = Driver()
    (member,) = driver.stable()
    response = driver.answer(driver.sync(member, **changes))
    assert response.error is error
    if error is ErrorCode.NONE:
        assert (response.protocol_type, response.protocol_name, response.assignment) == ("consumer", "range", b"part 0")


def test_followers_wait_for_the_leader() -> None:
    """A follower's sync is answered with the leader's; who is left out gets nothing, who isn't a member is ignored."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    tokens = [driver.join() for _ in range(3)]
    driver.advance(6_000)
    leader, second, third = (driver.answer(token) for token in tokens)
    waiting = [driver.sync(second), driver.sync(third)]
    assert all(driver.answer(token) is None for token in waiting)
    driver.sync(leader, {second.member_id: b"second", "stranger": b"?"})
    assert [driver.answer(token).assignment for token in waiting] == [b"second", b""]
    assert driver.state() == "Stable"


def test_a_followers_plan_is_not_taken() -> None:
    """Only the leader's assignments count."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    tokens = [driver.join(), driver.join()]
    driver.advance(6_000)
    leader, follower = (driver.answer(token) for token in tokens)
    waiting = driver.sync(follower, {follower.member_id: b"mine"})
    assert driver.answer(waiting) is None
    driver.sync(leader, {follower.member_id: b"yours"})
    assert driver.answer(waiting).assignment == b"yours"


def test_a_second_plan_is_not_taken() -> None:
    """A leader that syncs again in a stable group gets what it first said."""
    driver = Driver()
    (leader,) = driver.stable()
    assert driver.answer(driver.sync(leader, {leader.member_id: b"changed my mind"})).assignment == b"part 0"


def test_sync_during_a_rebalance() -> None:
    """Whoever syncs when members are being gathered must join again."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    driver.join(leader.member_id)
    assert driver.answer(driver.sync(follower)).error is ErrorCode.REBALANCE_IN_PROGRESS
    assert driver.heartbeat(follower) is ErrorCode.REBALANCE_IN_PROGRESS


def test_syncing_twice_answers_both() -> None:
    """A member that repeats a waiting SyncGroup is answered on both."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    tokens = [driver.join(), driver.join()]
    driver.advance(6_000)
    leader, follower = (driver.answer(token) for token in tokens)
    first, second = driver.sync(follower), driver.sync(follower)
    assert driver.answer(first).error is ErrorCode.REBALANCE_IN_PROGRESS
    driver.sync(leader, {follower.member_id: b"part"})
    assert driver.answer(second).assignment == b"part"


def test_a_plan_too_large_is_refused() -> None:
    """Assignments that would not fit a record fail for all, and everybody joins again."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000, group_max_assignment_bytes=100))
    tokens = [driver.join(), driver.join()]
    driver.advance(6_000)
    leader, follower = (driver.answer(token) for token in tokens)
    waiting = driver.sync(follower)
    assert driver.answer(driver.sync(leader, {leader.member_id: bytes(101)})).error is ErrorCode.UNKNOWN_SERVER_ERROR
    assert driver.answer(waiting).error is ErrorCode.UNKNOWN_SERVER_ERROR
    assert driver.state() == "PreparingRebalance"


def test_heartbeats_keep_a_member() -> None:
    """As long as it is heard of, a member stays; also while the generation completes."""
    driver = Driver()
    joined = driver.answer(driver.join())
    for _ in range(2):
        driver.advance(9_000)
        assert driver.heartbeat(joined) is ErrorCode.NONE
    driver.sync(joined, {joined.member_id: b"part"})
    for _ in range(5):
        driver.advance(9_000)
        assert driver.heartbeat(joined) is ErrorCode.NONE


def test_a_late_sync_keeps_a_member() -> None:
    """A follower that syncs when the group is already stable has been heard of."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    tokens = [driver.join(), driver.join()]
    driver.advance(6_000)
    leader, follower = (driver.answer(token) for token in tokens)
    driver.sync(leader, {follower.member_id: b"part"})
    for _ in range(2):
        driver.advance(6_000)
        assert driver.heartbeat(leader) is ErrorCode.NONE
        assert driver.answer(driver.sync(follower)).assignment == b"part"


# --- LeaveGroup ------------------------------------------------------------------------------------------------------


def test_leaving_starts_a_rebalance() -> None:
    """The others are called together at once."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    left = driver.leave(follower.member_id)
    assert (left.error, left.members[0].error) == (ErrorCode.NONE, ErrorCode.NONE)
    assert driver.heartbeat(leader) is ErrorCode.REBALANCE_IN_PROGRESS
    again = driver.answer(driver.join(leader.member_id))
    assert [told.member_id for told in again.members] == [leader.member_id]


def test_leaving_in_a_batch() -> None:
    """Version 3: several at once, static ones by their instance id alone, each with an answer of its own."""
    driver = Driver()
    left, right = driver.stable("left", "right")
    members = (
        LeavingMember(member_id="", instance_id="left"),
        LeavingMember(member_id=right.member_id, instance_id="right"),
        LeavingMember(member_id="", instance_id="nobody"),
        LeavingMember(member_id="stranger"),
        LeavingMember(member_id=left.member_id, instance_id="left"),
    )
    response = driver.ask("leave_group", LeaveGroupRequest(group_id=GROUP, members=members))
    assert [one.error for one in response.members] == [
        ErrorCode.NONE,
        ErrorCode.NONE,
        ErrorCode.UNKNOWN_MEMBER_ID,
        ErrorCode.UNKNOWN_MEMBER_ID,
        ErrorCode.UNKNOWN_MEMBER_ID,
    ]
    assert driver.state() == "Empty"
    assert len([1 for key, value in driver.log if value is None]) == 0


@pytest.mark.parametrize(
    ("group_id", "error"), [("", ErrorCode.INVALID_GROUP_ID), ("other", ErrorCode.UNKNOWN_MEMBER_ID)]
)
def test_leaving_no_group(group_id: str, error: ErrorCode) -> None:
    """A group that can't be is invalid; in one that isn't nobody is known."""
    driver = Driver()
    driver.stable()
    assert driver.leave("anyone", group_id=group_id).error is error


def test_leaving_before_joining() -> None:
    """An id that was given out and not used is given back; a rebalance that waited for it goes on."""
    driver = Driver()
    leader = driver.stable()[0]
    asked = driver.answer(driver.join(requires_known_member_id=True))
    token = driver.join(leader.member_id)
    assert driver.answer(token) is None
    assert driver.leave(asked.member_id).members[0].error is ErrorCode.NONE
    assert driver.answer(token).error is ErrorCode.NONE


def test_leaving_while_waiting() -> None:
    """What a member waits for when it is taken out is answered."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    joining = driver.join(leader.member_id)
    driver.leave(leader.member_id)
    assert driver.answer(joining).error is ErrorCode.UNKNOWN_MEMBER_ID
    joined = driver.answer(driver.join(follower.member_id))
    assert joined.leader == follower.member_id

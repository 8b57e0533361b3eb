"""JoinGroup: ids in two steps, static members, votes, limits, and the errors that Kafka gives."""

from __future__ import annotations

from typing import Any

import pytest

from kafscale.coordination.groups.events import GroupConfig, OffsetDeleteRequest, TimerKind, TopicPartitions
from kafscale.protocol.error_codes import ErrorCode
from tests.unit.coordination.groups.driver import GROUP, Driver, subscription

RANGE = ("range", subscription("t"))
STICKY = ("sticky", subscription("t", "u"))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"group_id": ""}, ErrorCode.INVALID_GROUP_ID),
        ({"group_id": "g" * 9_000}, ErrorCode.INVALID_GROUP_ID),
        ({"session_timeout_ms": 5_999}, ErrorCode.INVALID_SESSION_TIMEOUT),
        ({"session_timeout_ms": 1_800_001}, ErrorCode.INVALID_SESSION_TIMEOUT),
        ({"member_id": "made-up"}, ErrorCode.UNKNOWN_MEMBER_ID),
        ({"protocols": ()}, ErrorCode.INCONSISTENT_GROUP_PROTOCOL),
        ({"protocol_type": ""}, ErrorCode.INCONSISTENT_GROUP_PROTOCOL),
        ({"protocols": tuple((f"p{n}", b"") for n in range(101))}, ErrorCode.INCONSISTENT_GROUP_PROTOCOL),
        ({"instance_id": "i" * 9_000}, ErrorCode.INVALID_REQUEST),
        ({"protocols": (("range", bytes(4 * 1024 * 1024 + 1)),)}, ErrorCode.GROUP_MAX_SIZE_REACHED),
    ],
)
def test_refused_at_the_door(changes: dict[str, Any], error: ErrorCode) -> None:
    """A request that can't be right is refused, writes nothing and leaves no group behind."""
    driver = Driver()
    response = driver.answer(driver.join(**changes))
    assert (response.error, response.generation, response.member_id) == (error, -1, changes.get("member_id", ""))
    assert driver.log == []
    assert driver.shard.group_count() == 0


def test_member_id_comes_first() -> None:
    """KIP-394: a new member of version 4 and above is given an id and joins when it comes back with it."""
    driver = Driver()
    asked = driver.answer(driver.join(requires_known_member_id=True))
    assert (asked.error, asked.member_id) == (ErrorCode.MEMBER_ID_REQUIRED, "client-id0")
    assert driver.log == []
    joined = driver.answer(driver.join(asked.member_id, requires_known_member_id=True))
    assert (joined.error, joined.generation, joined.leader) == (ErrorCode.NONE, 1, asked.member_id)
    assert (joined.protocol_type, joined.protocol_name) == ("consumer", "range")
    assert [(told.member_id, told.metadata) for told in joined.members] == [(asked.member_id, RANGE[1])]


def test_an_id_not_used_in_time_is_forgotten() -> None:
    """A pending id lives for a session, and then nobody waits for it."""
    driver = Driver()
    asked = driver.answer(driver.join(requires_known_member_id=True))
    driver.advance(9_999)
    assert driver.shard.group_count() == 1
    driver.advance(1)
    assert driver.shard.group_count() == 0
    assert driver.answer(driver.join(asked.member_id)).error is ErrorCode.UNKNOWN_MEMBER_ID


def test_pending_ids_are_bounded() -> None:
    """Clients that only ever ask for ids meet a limit, and may try again."""
    driver = Driver(GroupConfig(group_max_pending_members=2))
    answers = [driver.answer(driver.join(requires_known_member_id=True)).error for _ in range(3)]
    assert answers == [ErrorCode.MEMBER_ID_REQUIRED] * 2 + [ErrorCode.COORDINATOR_NOT_AVAILABLE]


def test_groups_are_bounded() -> None:
    """A shard that is full of groups takes no new ones, whether joined or committed to."""
    driver = Driver(GroupConfig(shard_max_groups=1))
    driver.join()
    assert driver.answer(driver.join(group_id="other")).error is ErrorCode.COORDINATOR_NOT_AVAILABLE
    assert driver.commit(1, group_id="other") is ErrorCode.COORDINATOR_NOT_AVAILABLE


def test_group_max_size() -> None:
    """A full group takes no more members, and the members it has may rejoin."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=0, group_max_members=2))
    members = driver.stable(count=2)
    assert driver.answer(driver.join()).error is ErrorCode.GROUP_MAX_SIZE_REACHED
    assert driver.state() == "Stable"
    again = [driver.join(member.member_id) for member in members]
    assert [driver.answer(token).error for token in again] == [ErrorCode.NONE] * 2


def test_too_late_for_a_full_rebalance() -> None:
    """While members gather the first to come have the room; a member that finds none is out."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=0, group_max_members=2))
    slow, quick = driver.stable(count=2)
    driver.leave(quick.member_id)
    first, second = driver.join(), driver.join()
    assert driver.answer(driver.join(slow.member_id)).error is ErrorCode.GROUP_MAX_SIZE_REACHED
    assert [driver.answer(token).error for token in (first, second)] == [ErrorCode.NONE] * 2


def test_protocols_must_have_one_in_common() -> None:
    """A member that speaks no protocol of all the others, or of another type, is refused."""
    driver = Driver()
    driver.join(protocols=(RANGE, STICKY))
    foreign = driver.answer(driver.join(protocols=(("other", b""),)))
    assert foreign.error is ErrorCode.INCONSISTENT_GROUP_PROTOCOL
    connect = driver.answer(driver.join(protocol_type="connect", protocols=(RANGE,)))
    assert connect.error is ErrorCode.INCONSISTENT_GROUP_PROTOCOL


def test_the_protocol_is_voted_for() -> None:
    """Each member is for its first protocol that all know; most votes win, whoever leads."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    eager = ("eager", b"e")
    tokens = [
        driver.join(protocols=(RANGE, STICKY)),
        driver.join(protocols=(eager, STICKY, RANGE)),
        driver.join(protocols=(STICKY, RANGE)),
    ]
    driver.advance(30_000)
    answers = [driver.answer(token) for token in tokens]
    assert {answer.protocol_name for answer in answers} == {"sticky"}
    assert [told.metadata for told in answers[0].members] == [STICKY[1]] * 3
    assert [len(answer.members) for answer in answers] == [3, 0, 0]


# --- members that are known ------------------------------------------------------------------------------------------


def test_a_lost_reply_is_given_again() -> None:
    """A member that repeats its JoinGroup while the generation completes is told the same again."""
    driver = Driver()
    first = driver.answer(driver.join())
    writes = len(driver.log)
    assert driver.answer(driver.join(first.member_id)) == first
    assert len(driver.log) == writes


def test_a_follower_with_nothing_new_changes_nothing() -> None:
    """In a stable group an unchanged follower is told the generation; the leader calls for a new one."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    again = driver.answer(driver.join(follower.member_id))
    assert (again.error, again.generation, again.leader, again.members) == (
        ErrorCode.NONE,
        leader.generation,
        leader.member_id,
        (),
    )
    assert driver.state() == "Stable"
    driver.join(leader.member_id)
    assert driver.state() == "PreparingRebalance"


def test_a_follower_with_news_calls_for_a_generation() -> None:
    """Changed metadata (a new subscription) starts a rebalance."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    token = driver.join(follower.member_id, protocols=(("range", subscription("t", "u")),))
    assert driver.answer(token) is None
    assert driver.heartbeat(leader) is ErrorCode.REBALANCE_IN_PROGRESS
    driver.join(leader.member_id)
    assert driver.answer(token).generation == leader.generation + 1


def test_asking_again_elsewhere_answers_the_old_question() -> None:
    """A member that repeats a waiting JoinGroup is answered on both."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    first, second = driver.join(leader.member_id), driver.join(leader.member_id)
    assert driver.answer(first).error is ErrorCode.REBALANCE_IN_PROGRESS
    assert driver.answer(second) is None
    driver.join(follower.member_id)
    assert driver.answer(second).error is ErrorCode.NONE


def test_a_pending_id_of_a_static_member_is_no_id() -> None:
    """A dynamic member's pending id can't be used by a static one."""
    driver = Driver()
    asked = driver.answer(driver.join(requires_known_member_id=True))
    refused = driver.answer(driver.join(asked.member_id, instance_id="i"))
    assert refused.error is ErrorCode.UNKNOWN_MEMBER_ID


# --- static members (KIP-345) ----------------------------------------------------------------------------------------


def test_static_members_get_their_id_at_once() -> None:
    """A static member needs no second JoinGroup; its id begins with its instance id."""
    driver = Driver()
    joined = driver.answer(driver.join(instance_id="left", requires_known_member_id=True))
    assert (joined.error, joined.member_id) == (ErrorCode.NONE, "left-id0")
    assert joined.members[0].instance_id == "left"


def test_a_static_follower_returns_without_a_rebalance() -> None:
    """It gets a new id and keeps its assignment; the old id is fenced everywhere."""
    driver = Driver()
    leader, follower = driver.stable("left", "right")
    back = driver.answer(driver.join(instance_id="right"))
    assert (back.error, back.generation, back.leader) == (ErrorCode.NONE, leader.generation, leader.member_id)
    assert back.member_id != follower.member_id
    assert driver.state() == "Stable"
    assert driver.heartbeat(leader, instance_id="left") is ErrorCode.NONE
    assert driver.heartbeat(back, instance_id="right") is ErrorCode.NONE
    assert driver.heartbeat(follower, instance_id="right") is ErrorCode.FENCED_INSTANCE_ID
    assert driver.heartbeat(follower) is ErrorCode.UNKNOWN_MEMBER_ID
    assert driver.answer(driver.join(follower.member_id, instance_id="right")).error is ErrorCode.FENCED_INSTANCE_ID
    assert driver.answer(driver.sync(follower, instance_id="right")).error is ErrorCode.FENCED_INSTANCE_ID
    fenced_commit = driver.commit(1, generation=follower.generation, member_id=follower.member_id, instance_id="right")
    assert fenced_commit is ErrorCode.FENCED_INSTANCE_ID
    assert driver.leave(follower.member_id, "right").members[0].error is ErrorCode.FENCED_INSTANCE_ID
    assert driver.answer(driver.sync(back, instance_id="right")).assignment == b"part 1"


def test_a_static_leader_returns_without_a_rebalance() -> None:
    """Version 9 tells it to leave assignments alone (KIP-814); below, it is told that its old self leads."""
    driver = Driver()
    leader, follower = driver.stable("left", "right")
    back = driver.answer(driver.join(instance_id="left", skips_assignment=True))
    assert (back.leader, back.skip_assignment) == (back.member_id, True)
    assert {told.member_id for told in back.members} == {back.member_id, follower.member_id}
    older = driver.answer(driver.join(instance_id="left"))
    assert (older.leader, older.skip_assignment, older.members) == (back.member_id, False, ())
    assert older.leader != older.member_id
    assert driver.answer(driver.sync(older, instance_id="left")).assignment == b"part 0"
    assert driver.state() == "Stable"
    assert older.generation == leader.generation


def test_a_static_member_that_would_change_the_protocol_rebalances() -> None:
    """If the vote would go another way, everybody must know."""
    driver = Driver()
    both = (RANGE, STICKY)
    leader = driver.stable("left", protocols=both)[0]
    driver.answer(driver.join(instance_id="left", protocols=(STICKY, RANGE)))
    assert driver.records[GROUP].protocol == "sticky"
    assert driver.records[GROUP].generation == leader.generation + 1


def test_a_static_member_returning_with_other_topics() -> None:
    """What it now subscribes to is guarded from deletion at once."""
    driver = Driver()
    driver.stable("left")
    driver.join(instance_id="left", protocols=(("range", subscription("u")),))
    errors = {}
    for topic in ("t", "u"):
        topics = (TopicPartitions(name=topic, partitions=(0,)),)
        response = driver.ask("offset_delete", OffsetDeleteRequest(group_id=GROUP, topics=topics))
        errors[topic] = response.topics[0].partitions[0].error
    assert errors == {"t": ErrorCode.NONE, "u": ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC}


def test_a_static_member_returning_while_the_group_completes_rebalances() -> None:
    """The leader may have planned for the old id, so all join again."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    tokens = [driver.join(instance_id="left"), driver.join(instance_id="right")]
    driver.advance(6_000)
    leader, follower = (driver.answer(token) for token in tokens)
    waiting = driver.sync(follower, instance_id="right")
    token = driver.join(instance_id="right")
    assert driver.answer(waiting).error is ErrorCode.FENCED_INSTANCE_ID
    assert driver.heartbeat(leader, instance_id="left") is ErrorCode.REBALANCE_IN_PROGRESS
    driver.join(leader.member_id, instance_id="left")
    assert driver.answer(token).generation == leader.generation + 1


def test_a_static_member_returning_while_its_join_waits_is_fenced() -> None:
    """Of two clients with one instance id the later one wins."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    first, second = driver.join(instance_id="left"), driver.join(instance_id="left")
    assert driver.answer(first).error is ErrorCode.FENCED_INSTANCE_ID
    driver.advance(6_000)
    assert driver.answer(second).error is ErrorCode.NONE


def test_an_unknown_instance() -> None:
    """A member id with an instance id that the group doesn't have is unknown."""
    driver = Driver()
    (member,) = driver.stable()
    assert driver.heartbeat(member, instance_id="nobody") is ErrorCode.UNKNOWN_MEMBER_ID


def test_a_static_member_stays_when_it_misses_a_rebalance() -> None:
    """It keeps its place until its session ends."""
    driver = Driver()
    leader, _ = driver.stable("left", "right")
    driver.join(leader.member_id, instance_id="left")
    driver.heartbeat(leader, instance_id="left")
    driver.advance(9_000)
    assert driver.state() == "PreparingRebalance"
    assert driver.timer(TimerKind.JOIN) is not None
    driver.advance(1_000)  # the other's session
    assert driver.state() == "CompletingRebalance"
    assert len(driver.records[GROUP].members) == 1

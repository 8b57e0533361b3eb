"""Offsets: who may commit, what is read back, what is deleted, and when it is forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from kafscale.coordination.groups.events import (
    DeleteGroupsRequest,
    GroupConfig,
    OffsetCommitRequest,
    OffsetDeleteRequest,
    OffsetFetchRequest,
    PartitionCommit,
    TopicCommit,
    TopicPartitions,
)
from kafscale.protocol.error_codes import ErrorCode
from tests.unit.coordination.groups.driver import GROUP, WALL_START_MS, Driver, durable

DAY_MS = 24 * 3_600_000


def test_what_is_committed_is_read() -> None:
    """Offset, leader epoch and metadata come back; where nothing is committed it is -1 and an empty text."""
    driver = Driver()
    (member,) = driver.stable()
    assert driver.commit(42, member_id=member.member_id, generation=1, metadata="m", leader_epoch=3) is ErrorCode.NONE
    wanted = (TopicPartitions(name="t", partitions=(0, 1)), TopicPartitions(name="u", partitions=(0,)))
    response = driver.ask("offset_fetch", OffsetFetchRequest(group_id=GROUP, topics=wanted))
    found = [
        [(one.partition, one.offset, one.leader_epoch, one.metadata, one.error) for one in topic.partitions]
        for topic in response.topics
    ]
    nothing = (-1, -1, "", ErrorCode.NONE)
    assert found == [[(0, 42, 3, "m", ErrorCode.NONE), (1, *nothing)], [(0, *nothing)]]
    everything = driver.ask("offset_fetch", OffsetFetchRequest(group_id=GROUP))
    assert [(topic.name, [one.offset for one in topic.partitions]) for topic in everything.topics] == [("t", [42])]


def test_an_unknown_group_has_committed_nothing() -> None:
    """No error: -1 for what is asked, nothing for everything."""
    driver = Driver()
    assert driver.committed(group_id="nobody") == -1
    response = driver.ask("offset_fetch", OffsetFetchRequest(group_id="nobody"))
    assert (response.error, response.topics) == (ErrorCode.NONE, ())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"generation": 1}, ErrorCode.NONE),
        ({"generation": 0}, ErrorCode.ILLEGAL_GENERATION),
        ({"generation": 2}, ErrorCode.ILLEGAL_GENERATION),
        ({"generation": -1}, ErrorCode.ILLEGAL_GENERATION),
        ({"generation": 1, "member_id": "other"}, ErrorCode.UNKNOWN_MEMBER_ID),
        ({"generation": -1, "member_id": ""}, ErrorCode.UNKNOWN_MEMBER_ID),
        ({"generation": 1, "instance_id": "other"}, ErrorCode.UNKNOWN_MEMBER_ID),
        ({"generation": 1, "metadata": "m" * 4_096}, ErrorCode.NONE),
        ({"generation": 1, "metadata": "m" * 4_097}, ErrorCode.OFFSET_METADATA_TOO_LARGE),
        ({"group_id": "other", "generation": 1}, ErrorCode.ILLEGAL_GENERATION),
        ({"group_id": "g" * 9_000, "generation": -1}, ErrorCode.INVALID_GROUP_ID),
    ],
)
def test_who_may_commit(changes: dict[str, Any], error: ErrorCode) -> None:
    """While a group has members only they commit, in their generation, and with notes of bounded size."""
    driver = Driver()
    (member,) = driver.stable()
    assert driver.commit(7, **({"member_id": member.member_id} | changes)) is error
    assert driver.committed() == (7 if error is ErrorCode.NONE else -1)


def test_simple_consumers_commit_without_a_group() -> None:
    """A client that manages its partitions itself commits with no member and no generation; the empty id will do."""
    driver = Driver()
    for group_id in ("simple", ""):
        assert driver.commit(5, group_id=group_id) is ErrorCode.NONE
        assert driver.committed(group_id=group_id) == 5
    assert driver.state("simple") == "Empty"


def test_commits_to_a_group_between_generations() -> None:
    """Members may commit while others gather, and not between JoinGroup and SyncGroup."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    driver.join(leader.member_id)
    assert driver.commit(3, member_id=follower.member_id, generation=follower.generation) is ErrorCode.NONE
    again = driver.answer(driver.join(follower.member_id))
    assert driver.commit(4, member_id=again.member_id, generation=again.generation) is ErrorCode.REBALANCE_IN_PROGRESS
    assert driver.committed() == 3


def test_an_empty_group_takes_commits_from_anyone() -> None:
    """As kafka-consumer-groups --reset-offsets makes them; a member of old is unknown."""
    driver = Driver()
    (member,) = driver.stable()
    driver.leave(member.member_id)
    assert driver.commit(9) is ErrorCode.NONE
    late = driver.commit(8, member_id=member.member_id, generation=member.generation)
    assert late is ErrorCode.UNKNOWN_MEMBER_ID
    assert driver.committed() == 9


def test_a_commit_keeps_the_session() -> None:
    """A member that commits is alive."""
    driver = Driver()
    (member,) = driver.stable()
    for offset in range(5):
        driver.advance(9_000)
        assert driver.commit(offset, member_id=member.member_id, generation=1) is ErrorCode.NONE


def test_each_partition_has_its_answer() -> None:
    """One bad note spoils its own partition only."""
    driver = Driver()
    partitions = (PartitionCommit(partition=0, offset=1, metadata="m" * 5_000), PartitionCommit(partition=1, offset=2))
    request = OffsetCommitRequest(group_id=GROUP, topics=(TopicCommit(name="t", partitions=partitions),))
    response = driver.ask("offset_commit", request)
    errors = [one.error for one in response.topics[0].partitions]
    assert errors == [ErrorCode.OFFSET_METADATA_TOO_LARGE, ErrorCode.NONE]
    assert [driver.committed(partition=number) for number in (0, 1)] == [-1, 2]


def test_offsets_of_a_group_are_bounded() -> None:
    """A group that has as many offsets as it may takes no new partitions, and still updates the ones it has."""
    driver = Driver(GroupConfig(group_max_offsets=2))
    assert [driver.commit(1, partition=number) for number in range(3)] == [
        ErrorCode.NONE,
        ErrorCode.NONE,
        ErrorCode.INVALID_COMMIT_OFFSET_SIZE,
    ]
    assert driver.commit(2, partition=0) is ErrorCode.NONE


# --- topics that are created anew ------------------------------------------------------------------------------------


def test_a_topic_created_anew_has_no_commits() -> None:
    """A commit for an earlier topic of the name reads as -1, by name or by id, and is left out of everything."""
    old, new = b"o" * 16, b"n" * 16
    driver = Driver(topic_ids={"t": old})
    driver.commit(5, topic_id=old)
    driver.commit(6, topic="u", topic_id=old)
    assert driver.committed() == 5
    driver.topic_ids["t"] = new
    assert driver.committed() == -1
    by_id = (TopicPartitions(name="t", topic_id=new, partitions=(0,)),)
    response = driver.ask("offset_fetch", OffsetFetchRequest(group_id=GROUP, topics=by_id))
    assert (response.topics[0].topic_id, response.topics[0].partitions[0].offset) == (new, -1)
    everything = driver.ask("offset_fetch", OffsetFetchRequest(group_id=GROUP))
    assert [topic.name for topic in everything.topics] == ["u"]  # of no topic that is known now: kept
    driver.commit(1, topic_id=new)
    assert driver.committed() == 1


def test_deleting_a_topic_deletes_its_commits() -> None:
    """Those of a later topic of the name stay; doing it twice is harmless."""
    old, new = b"o" * 16, b"n" * 16
    driver = Driver()
    driver.commit(5, partition=0, topic_id=old)
    driver.commit(6, partition=1, topic_id=new)
    driver.commit(7, partition=2)
    driver.commit(8, topic="u", topic_id=old)
    for expected in (2, 0):
        outcome = driver.run(lambda now, wall: driver.shard.on_topic_deleted("t", old, now, wall))
        assert [value for _, value in outcome.writes] == [None] * expected
    assert [driver.committed(partition=number) for number in range(3)] == [-1, 6, -1]
    assert driver.committed("u") == 8


# --- OffsetDelete ----------------------------------------------------------------------------------------------------


def delete(driver: Driver, topic: str = "t", group_id: str = GROUP) -> tuple[ErrorCode, list[ErrorCode]]:
    topics = (TopicPartitions(name=topic, partitions=(0, 9)),)
    response = driver.ask("offset_delete", OffsetDeleteRequest(group_id=group_id, topics=topics))
    return response.error, [one.error for topic_result in response.topics for one in topic_result.partitions]


def test_deleting_offsets_of_an_empty_group() -> None:
    """What was there is gone; what wasn't is no error."""
    driver = Driver()
    driver.commit(1)
    driver.commit(2, partition=1)
    assert delete(driver) == (ErrorCode.NONE, [ErrorCode.NONE] * 2)
    assert [driver.committed(partition=number) for number in (0, 1)] == [-1, 2]


@pytest.mark.parametrize(
    ("group_id", "error"), [("", ErrorCode.INVALID_GROUP_ID), ("other", ErrorCode.GROUP_ID_NOT_FOUND)]
)
def test_deleting_offsets_of_no_group(group_id: str, error: ErrorCode) -> None:
    """A group that isn't there is an error here."""
    assert delete(Driver(), group_id=group_id) == (error, [])


def test_deleting_offsets_of_a_group_in_use() -> None:
    """KIP-496: consumers keep the topics that a member subscribes to, and other kinds of group keep everything."""
    driver = Driver()
    (member,) = driver.stable()
    for topic in ("t", "u"):
        driver.commit(1, topic, member_id=member.member_id, generation=1)
    assert delete(driver, "t") == (ErrorCode.NONE, [ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC] * 2)
    assert delete(driver, "u") == (ErrorCode.NONE, [ErrorCode.NONE] * 2)
    assert (driver.committed("t"), driver.committed("u")) == (1, -1)
    driver.join(group_id="workers", protocol_type="connect")
    assert delete(driver, group_id="workers") == (ErrorCode.NON_EMPTY_GROUP, [])


def test_a_subscription_that_cannot_be_read_covers_all() -> None:
    """Where members' words make no sense, nothing is taken from under them."""
    driver = Driver()
    driver.join(protocols=(("range", b"\xff"),))
    assert delete(driver, "u")[1] == [ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC] * 2


# --- retention -------------------------------------------------------------------------------------------------------


def test_offsets_of_a_simple_group_expire_by_their_own_age() -> None:
    """Seven days after the last commit, and the group goes with its last offset."""
    driver = Driver()
    driver.commit(1, partition=0)
    driver.advance(3 * DAY_MS)
    driver.commit(2, partition=1)
    driver.advance(4 * DAY_MS + 600_000)
    assert [driver.committed(partition=number) for number in (0, 1)] == [-1, 2]
    driver.advance(3 * DAY_MS)
    assert driver.shard.group_count() == 0
    assert durable(driver.mirror)["offsets"] == {}


def test_offsets_of_an_empty_group_expire_after_it_was_left() -> None:
    """KIP-211: the clock starts when the last member goes, or with a later commit."""
    driver = Driver()
    (member,) = driver.stable()
    driver.commit(1, member_id=member.member_id, generation=1)
    for _ in range(20):
        driver.advance(9_000)
        driver.heartbeat(member)
    driver.leave(member.member_id)
    left_ms = driver.now_ms
    driver.advance(DAY_MS)
    driver.commit(2, partition=1)
    driver.advance(left_ms + 7 * DAY_MS - 1 - driver.now_ms)
    assert driver.committed() == 1
    driver.advance(600_001)
    assert [driver.committed(partition=number) for number in (0, 1)] == [-1, 2]
    assert driver.records[GROUP].generation == 2
    driver.advance(DAY_MS)
    assert driver.shard.group_count() == 0
    assert GROUP not in driver.records


def test_offsets_in_use_never_expire() -> None:
    """Consumers keep what they subscribe to however old it is, and lose what nobody reads any more."""
    hour = 3_600_000
    driver = Driver(
        GroupConfig(initial_rebalance_delay_ms=0, offsets_retention_ms=hour, offsets_check_interval_ms=hour)
    )
    (member,) = driver.stable(session_timeout_ms=1_800_000)
    for topic in ("t", "u"):
        driver.commit(1, topic, member_id=member.member_id, generation=1)
    for _ in range(10):
        driver.advance(1_000_000)
        assert driver.heartbeat(member) is ErrorCode.NONE
    assert (driver.committed("t"), driver.committed("u")) == (1, -1)


def test_a_long_sweep_yields() -> None:
    """Looking through many groups is done in pieces, and gets to all of them."""
    driver = Driver(GroupConfig(offsets_retention_ms=1_000, offsets_check_interval_ms=2_000))
    for number in range(2_500):
        driver.shard.offset_commit(
            OffsetCommitRequest(
                group_id=f"g{number}",
                topics=(TopicCommit(name="t", partitions=(PartitionCommit(partition=0, offset=1),)),),
            ),
            None,
            driver.now_ms,
            driver.wall_ms,
        )
    (key,) = driver.timers
    counts = []
    for now_ms in (7_000, 7_010, 7_020, 9_020):
        driver.shard.on_timer(key, now_ms, WALL_START_MS + now_ms)
        counts.append(driver.shard.group_count())
    assert counts == [1_500, 500, 0, 0]


# --- DeleteGroups ----------------------------------------------------------------------------------------------------


def test_deleting_groups() -> None:
    """Only groups without members go, with all that they committed."""
    driver = Driver()
    driver.stable()
    driver.commit(1, group_id="simple")
    request = DeleteGroupsRequest(group_ids=(GROUP, "simple", "other"))
    response = driver.ask("delete_groups", request)
    assert [(one.group_id, one.error) for one in response.groups] == [
        (GROUP, ErrorCode.NON_EMPTY_GROUP),
        ("simple", ErrorCode.NONE),
        ("other", ErrorCode.GROUP_ID_NOT_FOUND),
    ]
    assert driver.committed(group_id="simple") == -1
    assert list(durable(driver.mirror)["groups"]) == [GROUP]

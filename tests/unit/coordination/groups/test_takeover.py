"""A group on another worker: what is loaded, what goes on as if nothing had happened, and what must be asked again."""

from __future__ import annotations

import msgspec
import pytest

from kafscale.coordination.groups.events import GroupConfig, TimerKind
from kafscale.coordination.groups.records import group_key
from kafscale.coordination.groups.shard import GroupShard
from kafscale.errors import Corrupt
from kafscale.protocol.error_codes import ErrorCode
from tests.unit.coordination.groups.driver import GROUP, Driver, durable


def test_a_stable_group_goes_on() -> None:
    """Members keep id, generation, assignment and offsets, and have a whole session to be heard of."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    driver.commit(5, member_id=leader.member_id, generation=leader.generation)
    driver.advance(9_999)
    driver.restart()
    assert driver.state() == "Stable"
    driver.advance(9_998)
    assert driver.heartbeat(leader) is ErrorCode.NONE
    assert driver.answer(driver.sync(follower)).assignment == b"part 1"
    assert driver.commit(6, member_id=leader.member_id, generation=leader.generation) is ErrorCode.NONE
    assert driver.committed() == 6


def test_silent_members_of_a_loaded_group_are_out() -> None:
    """Those who don't find the new coordinator in time are missed."""
    driver = Driver()
    driver.stable(count=2)
    driver.restart()
    driver.advance(10_000)
    assert driver.state() == "Empty"


def test_a_static_member_of_a_loaded_group_returns() -> None:
    """It is still known by its instance id."""
    driver = Driver()
    driver.stable("left", "right")
    driver.restart()
    back = driver.answer(driver.join(instance_id="right"))
    assert back.error is ErrorCode.NONE
    assert driver.answer(driver.sync(back, instance_id="right")).assignment == b"part 1"


def test_a_generation_without_a_plan_waits_for_its_leader() -> None:
    """A takeover between JoinGroup and SyncGroup: nobody is taken to have been assigned nothing."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    tokens = [driver.join(), driver.join()]
    driver.advance(6_000)
    leader, follower = (driver.answer(token) for token in tokens)
    driver.restart()
    assert driver.state() == "CompletingRebalance"
    waiting = driver.sync(follower)
    assert driver.answer(waiting) is None
    driver.sync(leader, {follower.member_id: b"part"})
    assert driver.answer(waiting).assignment == b"part"
    assert driver.state() == "Stable"


def test_a_new_generation_has_nothing_of_the_old_plan() -> None:
    """A takeover before the leader's word must not bring back what the last generation was assigned."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    joined = [driver.answer(driver.join(member.member_id)) for member in (leader, follower)][1]
    driver.restart()
    assert driver.state() == "CompletingRebalance"
    assert driver.answer(driver.sync(joined)) is None


def test_a_generation_whose_leader_is_gone_is_given_up() -> None:
    """After a takeover too, members that don't sync in time are out and the others join again."""
    driver = Driver()
    joined = driver.answer(driver.join())
    driver.restart()
    assert driver.timer(TimerKind.SYNC) == driver.now_ms + 30_000
    for _ in range(6):
        driver.advance(5_000)
        driver.heartbeat(joined)
    assert driver.state() == "Empty"


def test_a_rebalance_under_way_is_forgotten() -> None:
    """Members that were gathering find the old generation; those who were new join anew."""
    driver = Driver()
    leader, _ = driver.stable(count=2)
    asked = driver.answer(driver.join(requires_known_member_id=True))
    driver.join(asked.member_id)
    driver.restart()
    assert driver.state() == "Stable"
    assert driver.heartbeat(leader) is ErrorCode.NONE
    assert driver.answer(driver.join(asked.member_id)).error is ErrorCode.UNKNOWN_MEMBER_ID


def test_a_loaded_group_that_is_too_large_sheds_members() -> None:
    """When the limit was lowered, members may commit and then gather for the places there are."""
    driver = Driver()
    members = driver.stable(count=3)
    driver.config = GroupConfig(initial_rebalance_delay_ms=0, group_max_members=2)
    driver.restart()
    assert driver.state() == "PreparingRebalance"
    assert driver.commit(1, member_id=members[2].member_id, generation=members[2].generation) is ErrorCode.NONE
    answers = [driver.answer(driver.join(member.member_id)) for member in members]
    assert [answer and answer.error for answer in answers] == [None, None, ErrorCode.GROUP_MAX_SIZE_REACHED]
    assert len(driver.records[GROUP].members) == 2


def test_a_coordinator_that_stops_sends_its_callers_on() -> None:
    """Whoever waits is told that the coordinator is elsewhere; no timer is left behind."""
    driver = Driver()
    leader, _ = driver.stable(count=2)
    joining = driver.join(leader.member_id)
    driver.run(lambda now, wall: driver.shard.deactivate(now, wall))
    assert driver.answer(joining).error is ErrorCode.NOT_COORDINATOR
    assert driver.timers == {}


def test_a_snapshot_stands_for_the_log() -> None:
    """Snapshot and the records since, with some replayed twice, give what the whole log gives."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    driver.commit(1, member_id=leader.member_id, generation=leader.generation, topic_id=b"t" * 16, metadata="näher")
    snapshot, position = driver.shard.snapshot(), len(driver.log)
    driver.commit(2, member_id=leader.member_id, generation=leader.generation)
    driver.leave(follower.member_id)
    driver.join(leader.member_id)
    expected = durable(driver.shard)
    for since in (position, position - 2, 0):
        driver.restart(snapshot, since)
        assert durable(driver.shard) == expected
        assert driver.committed() == 2
    driver.restart()
    assert durable(driver.shard) == expected


def test_a_deleted_group_stays_deleted() -> None:
    """Tombstones are replayed too, in any state of the shard."""
    driver = Driver()
    (member,) = driver.stable()
    snapshot = driver.shard.snapshot()
    position = len(driver.log)
    driver.leave(member.member_id)
    driver.commit(1)
    driver.advance(8 * 24 * 3_600_000)
    assert driver.shard.group_count() == 0
    driver.restart(snapshot, position)
    assert driver.shard.group_count() == 0


def test_a_group_buried_before_its_offsets() -> None:
    """In a log that Kafka wrote, a group's tombstone may come first: its offsets are still there."""
    driver = Driver()
    (member,) = driver.stable()
    driver.commit(3, member_id=member.member_id, generation=1)
    driver.log.append((group_key(GROUP), None))
    driver.mirror.replay(*driver.log[-1])
    driver.restart()
    assert driver.state() == "Empty"
    assert driver.committed() == 3


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"version": 2, "groups": {}, "offsets": {}}),
        msgspec.msgpack.encode({"version": 1, "groups": {"g": [1]}, "offsets": {}}),
        msgspec.msgpack.encode({"version": 1}),
    ],
)
def test_a_snapshot_that_is_none_is_corrupt(data: bytes) -> None:
    """Never an empty shard."""
    with pytest.raises(Corrupt):
        GroupShard.restore(data, GroupConfig(), new_id=str)

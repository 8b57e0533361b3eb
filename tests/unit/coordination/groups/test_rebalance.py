"""Generations: when one begins, who is in it, and who is out when time is up."""

from __future__ import annotations

from kafscale.coordination.groups.events import GroupConfig, TimerKey, TimerKind
from kafscale.coordination.groups.group import TRANSITIONS, GroupState
from kafscale.protocol.error_codes import ErrorCode
from tests.unit.coordination.groups.driver import GROUP, Driver


def test_the_transition_table() -> None:
    """Every state may die but Dead; only a completed rebalance is stable; nothing skips its preparation."""
    assert set(TRANSITIONS) == set(GroupState)
    assert all((GroupState.DEAD in after) == (state is not GroupState.DEAD) for state, after in TRANSITIONS.items())
    before_stable = {state for state, after in TRANSITIONS.items() if GroupState.STABLE in after}
    assert before_stable == {GroupState.COMPLETING_REBALANCE}
    before_completing = {state for state, after in TRANSITIONS.items() if GroupState.COMPLETING_REBALANCE in after}
    assert before_completing == {GroupState.PREPARING_REBALANCE}


def test_the_first_rebalance_waits_for_more_members() -> None:
    """KIP-134: as long as members keep coming, up to the rebalance timeout."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    tokens = [driver.join(rebalance_timeout_ms=8_000)]
    for _ in range(3):
        driver.advance(2_000)
        tokens.append(driver.join(rebalance_timeout_ms=8_000))
    driver.advance(1_999)
    assert all(driver.answer(token) is None for token in tokens)
    driver.advance(1)
    assert {driver.answer(token).generation for token in tokens} == {1}
    assert len(driver.answer(tokens[0]).members) == len(tokens) == 4


def test_the_first_rebalance_ends_early_when_nobody_comes() -> None:
    """One delay is enough if it brought no one new."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    token = driver.join()
    driver.advance(2_999)
    assert driver.answer(token) is None
    driver.advance(1)
    assert driver.answer(token).generation == 1


def test_dynamic_members_that_miss_the_rebalance_are_out() -> None:
    """At the rebalance timeout those who joined go on without the others, and a new leader is found."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    token = driver.join(follower.member_id, protocols=(("range", b"\0\0\0\0\0\0\xff\xff\xff\xff"),))
    for _ in range(5):
        driver.advance(6_000)
        if driver.answer(token) is None:
            assert driver.heartbeat(leader) is ErrorCode.REBALANCE_IN_PROGRESS
    answer = driver.answer(token)
    assert (answer.error, answer.leader) == (ErrorCode.NONE, follower.member_id)
    assert [told.member_id for told in answer.members] == [follower.member_id]
    assert driver.heartbeat(leader) is ErrorCode.UNKNOWN_MEMBER_ID


def test_a_silent_member_is_out() -> None:
    """A session that ends starts a rebalance without the member."""
    driver = Driver()
    leader, follower = driver.stable(count=2)
    driver.advance(6_000)
    assert driver.heartbeat(leader) is ErrorCode.NONE
    driver.advance(4_000)
    assert driver.heartbeat(leader) is ErrorCode.REBALANCE_IN_PROGRESS
    assert driver.heartbeat(follower) is ErrorCode.UNKNOWN_MEMBER_ID


def test_a_member_that_is_told_its_generation_must_be_heard_of() -> None:
    """Its session begins with the reply to its JoinGroup; the longer time for new members is over."""
    driver = Driver()
    driver.join()
    driver.advance(9_999)
    assert driver.state() == "CompletingRebalance"
    driver.advance(1)
    assert driver.state() == "Empty"


def test_the_last_member_leaves_the_group_empty() -> None:
    """Empty is a generation too, and is written."""
    driver = Driver()
    (member,) = driver.stable()
    driver.advance(10_000)
    assert driver.state() == "Empty"
    assert driver.records[GROUP].generation == member.generation + 1
    assert driver.records[GROUP].members == ()
    assert driver.records[GROUP].leader is None


def test_members_that_never_sync_are_out() -> None:
    """A member that took its generation and never asked for its assignment is dropped at the rebalance timeout."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    tokens = [driver.join(), driver.join()]
    driver.advance(6_000)
    leader, follower = (driver.answer(token) for token in tokens)
    plan = {leader.member_id: b"all", follower.member_id: b"none"}
    assert driver.answer(driver.sync(leader, plan)).assignment == b"all"
    for _ in range(6):
        driver.advance(5_000)
        driver.heartbeat(leader)
        driver.heartbeat(follower)
    assert driver.heartbeat(leader) is ErrorCode.REBALANCE_IN_PROGRESS
    assert driver.heartbeat(follower) is ErrorCode.UNKNOWN_MEMBER_ID


def test_a_leader_that_never_syncs_holds_nobody_up() -> None:
    """Followers that wait are told to join again when the leader's time is up."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=3_000))
    tokens = [driver.join(), driver.join()]
    driver.advance(6_000)
    leader, follower = (driver.answer(token) for token in tokens)
    waiting = driver.sync(follower)
    for _ in range(6):
        driver.advance(5_000)
        driver.heartbeat(leader)
    assert driver.answer(waiting).error is ErrorCode.REBALANCE_IN_PROGRESS
    assert driver.heartbeat(leader) is ErrorCode.UNKNOWN_MEMBER_ID


def test_a_new_member_whose_client_is_gone_does_not_wait_for_ever() -> None:
    """A JoinGroup without a known id ends after its own timeout, even when the rebalance takes longer."""
    driver = Driver(GroupConfig(initial_rebalance_delay_ms=0, new_member_join_timeout_ms=20_000))
    (leader,) = driver.stable()
    token = driver.join()
    for _ in range(4):
        driver.advance(5_000)
        driver.heartbeat(leader)
    assert driver.answer(token).error is ErrorCode.UNKNOWN_MEMBER_ID


def test_static_members_of_whom_none_returns() -> None:
    """With nobody to lead, the group waits on, until their sessions end."""
    driver = Driver()
    left, _ = driver.stable("left", "right", session_timeout_ms=60_000, rebalance_timeout_ms=5_000)
    driver.leave(left.member_id, "left")
    assert driver.state() == "PreparingRebalance"
    driver.advance(20_000)
    assert driver.state() == "PreparingRebalance"
    driver.advance(40_000)
    assert driver.state() == "Empty"


def test_a_zero_rebalance_timeout_does_not_spin() -> None:
    """The wait for static members is never a busy one, whatever timeout they asked for."""
    driver = Driver()
    left, right = driver.stable("left", "right", session_timeout_ms=60_000)
    for member, instance in ((left, "left"), (right, "right")):
        driver.join(member.member_id, instance_id=instance, session_timeout_ms=60_000, rebalance_timeout_ms=0)
    driver.advance(1)  # neither syncs in the no time there is, so both are out and come anew
    assert driver.state() == "Empty"
    first, _ = driver.stable("left", "right", session_timeout_ms=60_000, rebalance_timeout_ms=1)
    driver.leave(first.member_id, "left")
    driver.advance(1)
    deadline = driver.timer(TimerKind.JOIN)
    assert deadline is not None and deadline >= driver.now_ms + 999


def test_a_generation_is_written_before_anyone_is_told() -> None:
    """The same outcome that tells a member its generation carries the record; another follows with the plan."""
    driver = Driver()
    joined = driver.answer(driver.join())
    assert [record.assignment for record in driver.records[GROUP].members] == [b""]
    assert driver.records[GROUP].generation == joined.generation
    driver.sync(joined, {joined.member_id: b"plan"})
    assert [record.assignment for record in driver.records[GROUP].members] == [b"plan"]
    assert len(driver.log) == 2


def test_a_late_timer_does_nothing() -> None:
    """A timer that was put off, cancelled or is unknown has no effect when it fires all the same."""
    driver = Driver()
    (member,) = driver.stable()
    for key in (
        TimerKey(TimerKind.SESSION, GROUP, member.member_id),
        TimerKey(TimerKind.SYNC, GROUP),
        TimerKey(TimerKind.JOIN, "nowhere"),
    ):
        outcome = driver.shard.on_timer(key, driver.now_ms, driver.wall_ms)
        assert (outcome.writes, outcome.replies, outcome.timers) == ([], [], [])
    assert driver.state() == "Stable"

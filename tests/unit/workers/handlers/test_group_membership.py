"""Goal: JoinGroup, SyncGroup, Heartbeat and LeaveGroup say in each version what Kafka says, and wait as it does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kafscale.coordination.groups.records import GroupKey, GroupRecord, read_group_value, read_key
from kafscale.metrics import REBALANCES
from kafscale.protocol.api import APIS, ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.describe_groups import DescribeGroupsRequest
from kafscale.protocol.messages.heartbeat import HeartbeatRequest
from kafscale.protocol.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from kafscale.protocol.messages.leave_group import LeaveGroupRequest, MemberIdentity
from kafscale.protocol.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment
from kafscale.protocol.schema import Message
from tests.unit.workers.handlers.group_node import ELSEWHERE, GroupNode, run

JOIN, SYNC, HEARTBEAT, LEAVE = ApiKey.JOIN_GROUP, ApiKey.SYNC_GROUP, ApiKey.HEARTBEAT, ApiKey.LEAVE_GROUP


def versions(key: ApiKey) -> range:
    return range(APIS[key].min_version, APIS[key].max_version + 1)


def join(group_id: str, *, metadata: bytes = b"wants", **fields: Any) -> JoinGroupRequest:
    given: dict[str, Any] = {
        "session_timeout_ms": 10_000,
        "rebalance_timeout_ms": 60_000,
        "protocol_type": "consumer",
        "protocols": [JoinGroupRequestProtocol(name="range", metadata=metadata)],
    }
    return JoinGroupRequest(group_id=group_id, **(given | fields))


def sync(group_id: str, member_id: str, generation: int = 1, **fields: Any) -> SyncGroupRequest:
    given = {"protocol_type": "consumer", "protocol_name": "range"} | fields
    return SyncGroupRequest(group_id=group_id, member_id=member_id, generation_id=generation, **given)


def assigning(**parts: bytes) -> list[SyncGroupRequestAssignment]:
    return [SyncGroupRequestAssignment(member_id=name, assignment=part) for name, part in parts.items()]


async def joined(node: GroupNode, group_id: str, version: int = 9, **fields: Any) -> Any:
    """The answer to a member that joins as clients do, asking again with the id it is told."""
    answer = await node.ask(JOIN, version, join(group_id, **fields))
    if answer.error_code == ErrorCode.MEMBER_ID_REQUIRED:
        answer = await node.ask(JOIN, version, join(group_id, **(fields | {"member_id": answer.member_id})))
    assert answer.error_code == 0
    return answer


async def stable(node: GroupNode, group_id: str, **fields: Any) -> str:
    """A group of one member in its first generation; its id."""
    member_id = str((await joined(node, group_id, **fields)).member_id)
    parts = assigning(**{member_id: b"all"})
    protocol_type = fields.get("protocol_type", "consumer")
    answer = await node.ask(SYNC, 5, sync(group_id, member_id, protocol_type=protocol_type, assignments=parts))
    assert answer.error_code == 0
    return member_id


async def last_group_record(node: GroupNode, group_id: str) -> GroupRecord:
    found = [v for k, v in await node.records() if v is not None and read_key(k) == GroupKey(group_id)]
    return read_group_value(found[-1])


@pytest.mark.parametrize("version", versions(JOIN))
def test_join_in_every_version(version: int) -> None:
    """A first member leads the first generation, and is told what its version can say."""

    async def test() -> None:
        node = GroupNode()
        group_id = node.name()
        answer = await node.ask(JOIN, version, join(group_id))
        if version >= 4:
            assert (answer.error_code, answer.generation_id) == (ErrorCode.MEMBER_ID_REQUIRED, -1)
            assert answer.protocol_name == (None if version >= 7 else "")
            answer = await node.ask(JOIN, version, join(group_id, member_id=answer.member_id))
        assert (answer.error_code, answer.generation_id, answer.protocol_name) == (0, 1, "range")
        assert answer.protocol_type == ("consumer" if version >= 7 else None)
        assert answer.leader == answer.member_id
        assert answer.member_id.startswith("tester-")
        assert not answer.skip_assignment
        assert [(m.member_id, m.group_instance_id, m.metadata) for m in answer.members] == [
            (answer.member_id, None, b"wants")
        ]
        (member,) = (await last_group_record(node, group_id)).members
        # Version 0 knows no rebalance timeout: it is the session's.
        assert (member.session_timeout_ms, member.rebalance_timeout_ms) == (10_000, 60_000 if version else 10_000)
        assert (member.client_id, member.client_host) == ("tester", "/10.9.8.7")

    run(test())


def test_join_without_a_client_id() -> None:
    """A client without an id gets a member id all the same."""

    async def test() -> None:
        node = GroupNode()
        answer = await node.begin(JOIN, 3, join(node.name()), client_id=None)
        assert answer.error_code == 0
        assert answer.member_id.startswith("-")

    run(test())


@pytest.mark.parametrize("version", [5, 9])
def test_two_members_share_a_group(version: int) -> None:
    """A second member makes the first join again; both wait for the generation, and each gets its own part."""

    async def test() -> None:
        node = GroupNode()
        group_id = node.name()
        first = await stable(node, group_id)
        told = await node.ask(JOIN, version, join(group_id))
        second = told.member_id
        waiting = node.begin(JOIN, version, join(group_id, member_id=second))
        beat = await node.ask(HEARTBEAT, 4, HeartbeatRequest(group_id=group_id, generation_id=1, member_id=first))
        assert beat.error_code == ErrorCode.REBALANCE_IN_PROGRESS
        assert not waiting.done()
        leader = await node.ask(JOIN, version, join(group_id, member_id=first))
        follower = await waiting
        assert leader.generation_id == follower.generation_id == 2
        assert leader.leader == follower.leader == first
        assert ({m.member_id for m in leader.members}, list(follower.members)) == ({first, second}, [])
        waiting = node.begin(SYNC, min(version, 5), sync(group_id, second, 2))
        parts = assigning(**{first: b"left", second: b"right"})
        mine = await node.ask(SYNC, min(version, 5), sync(group_id, first, 2, assignments=parts))
        assert (mine.assignment, (await waiting).assignment) == (b"left", b"right")
        assert node.metrics.cells[REBALANCES] == 2

    run(test())


@pytest.mark.parametrize("version", versions(SYNC))
def test_sync_in_every_version(version: int) -> None:
    """The leader gets its part of its own assignment; from v5 on with the protocol, which it must name."""

    async def test() -> None:
        node = GroupNode()
        group_id = node.name()
        member_id = (await joined(node, group_id)).member_id
        for lacking in ({"protocol_type": None}, {"protocol_name": None}):
            request = sync(group_id, "nobody", **lacking)
            expected = ErrorCode.INCONSISTENT_GROUP_PROTOCOL if version >= 5 else ErrorCode.UNKNOWN_MEMBER_ID
            assert (await node.ask(SYNC, version, request)).error_code == expected
        request = sync(group_id, member_id, assignments=assigning(**{member_id: b"all"}))
        answer = await node.ask(SYNC, version, request)
        assert (answer.error_code, answer.assignment) == (0, b"all")
        named = ("consumer", "range") if version >= 5 else (None, None)
        assert (answer.protocol_type, answer.protocol_name) == named
        assert (await node.ask(SYNC, version, sync(group_id, member_id, 7))).error_code == ErrorCode.ILLEGAL_GENERATION

    run(test())


@pytest.mark.parametrize("version", versions(HEARTBEAT))
def test_heartbeat_in_every_version(version: int) -> None:
    """A member of this generation lives; others are told what is wrong."""

    async def test() -> None:
        node = GroupNode()
        group_id = node.name()
        member_id = await stable(node, group_id)

        async def beat(**fields: Any) -> int:
            given = {"group_id": group_id, "generation_id": 1, "member_id": member_id} | fields
            return int((await node.ask(HEARTBEAT, version, HeartbeatRequest(**given))).error_code)

        assert await beat() == 0
        assert await beat(generation_id=2) == ErrorCode.ILLEGAL_GENERATION
        assert await beat(member_id="x") == ErrorCode.UNKNOWN_MEMBER_ID
        assert await beat(group_id=node.name(prefix="never")) == ErrorCode.UNKNOWN_MEMBER_ID
        expected = ErrorCode.UNKNOWN_MEMBER_ID if version >= 3 else ErrorCode.NONE
        assert await beat(group_instance_id="unknown") == expected

    run(test())


@pytest.mark.parametrize("version", versions(LEAVE))
def test_leave_in_every_version(version: int) -> None:
    """A member goes; who is no member is told so, at the top below v3 and of each member from then on."""

    async def test() -> None:
        node = GroupNode()
        group_id = node.name()
        member_id = await stable(node, group_id)

        async def leave(group_id: str, *member_ids: str) -> list[int]:
            if version < 3:
                codes = []
                for name in member_ids:
                    request = LeaveGroupRequest(group_id=group_id, member_id=name)
                    codes.append((await node.ask(LEAVE, version, request)).error_code)
                return codes
            members = [MemberIdentity(member_id=name) for name in member_ids]
            answer = await node.ask(LEAVE, version, LeaveGroupRequest(group_id=group_id, members=members))
            assert answer.error_code == 0
            assert [m.member_id for m in answer.members] == list(member_ids)
            return [m.error_code for m in answer.members]

        unknown = ErrorCode.UNKNOWN_MEMBER_ID
        assert await leave(group_id, "x", member_id) == [unknown, 0]
        assert await leave(group_id, member_id) == [unknown]
        assert await leave(node.name(prefix="never"), "a", "b") == [unknown, unknown]
        (group,) = (await node.ask(ApiKey.DESCRIBE_GROUPS, 6, DescribeGroupsRequest(groups=[group_id]))).groups
        assert (group.group_state, list(group.members)) == ("Empty", [])

    run(test())


def test_static_members_leave_by_instance() -> None:
    """An administrator removes a static member without knowing its id; the answer says whom it was asked for."""

    async def test() -> None:
        node = GroupNode()
        group_id = node.name()
        await stable(node, group_id, group_instance_id="i1")
        members = [MemberIdentity(group_instance_id=name) for name in ("i1", "i2")]
        answer = await node.ask(LEAVE, 5, LeaveGroupRequest(group_id=group_id, members=members))
        assert [(m.member_id, m.group_instance_id, m.error_code) for m in answer.members] == [
            ("", "i1", 0),
            ("", "i2", ErrorCode.UNKNOWN_MEMBER_ID),
        ]

    run(test())


@pytest.mark.parametrize("version", range(5, 10))
def test_a_static_leader_that_restarts(version: int) -> None:
    """It must not assign anew: from v9 on it is told so, below that another is named as leader (KIP-814)."""

    async def test() -> None:
        node = GroupNode()
        group_id = node.name()
        old_id = await stable(node, group_id, group_instance_id="i1")
        answer = await node.ask(JOIN, version, join(group_id, group_instance_id="i1"))
        assert (answer.error_code, answer.generation_id) == (0, 1)
        assert answer.member_id != old_id
        assert answer.skip_assignment is (version >= 9)
        assert answer.leader == (answer.member_id if version >= 9 else old_id)
        assert [m.group_instance_id for m in answer.members] == (["i1"] if version >= 9 else [])
        beat = HeartbeatRequest(group_id=group_id, generation_id=1, member_id=old_id, group_instance_id="i1")
        assert (await node.ask(HEARTBEAT, 4, beat)).error_code == ErrorCode.FENCED_INSTANCE_ID

    run(test())


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"session_timeout_ms": 5_999}, ErrorCode.INVALID_SESSION_TIMEOUT),
        ({"session_timeout_ms": 1_800_001}, ErrorCode.INVALID_SESSION_TIMEOUT),
        ({"protocols": []}, ErrorCode.INCONSISTENT_GROUP_PROTOCOL),
        ({"protocol_type": "connect"}, ErrorCode.INCONSISTENT_GROUP_PROTOCOL),
        ({"member_id": "guessed"}, ErrorCode.UNKNOWN_MEMBER_ID),
    ],
)
@pytest.mark.parametrize("version", [0, 6, 7, 9])
def test_joins_that_are_refused(version: int, fields: dict[str, Any], code: ErrorCode) -> None:
    """A join that can't be is refused with Kafka's code, and the member id that was sent comes back."""

    async def test() -> None:
        node = GroupNode()
        group_id = node.name()
        await stable(node, group_id)
        answer = await node.ask(JOIN, version, join(group_id, **fields))
        assert (answer.error_code, answer.generation_id) == (code, -1)
        assert answer.member_id == fields.get("member_id", "")
        assert answer.protocol_name == (None if version >= 7 else "")

    run(test())


def requests(group_id: str) -> list[tuple[ApiKey, Message]]:
    return [
        (JOIN, join(group_id, member_id="m")),
        (SYNC, sync(group_id, "m")),
        (HEARTBEAT, HeartbeatRequest(group_id=group_id, generation_id=1, member_id="m")),
        (LEAVE, LeaveGroupRequest(group_id=group_id, member_id="m", members=[MemberIdentity(member_id="m")])),
    ]


def test_groups_without_an_id_or_coordinated_elsewhere() -> None:
    """INVALID_GROUP_ID for the empty id, NOT_COORDINATOR for another node's group: in every version, at the top."""

    async def test() -> None:
        node = GroupNode()
        assert node.groups.is_served("")
        for group_id, code in ("", ErrorCode.INVALID_GROUP_ID), (node.name(ELSEWHERE), ErrorCode.NOT_COORDINATOR):
            for key, message in requests(group_id):
                for version in versions(key):
                    answer = await node.ask(key, version, message)
                    assert answer.error_code == code, (key, version)
                    if key is JOIN:
                        assert answer.member_id == "m"

    run(test())


def test_while_groups_are_loaded() -> None:
    """Members are asked for patience until then; a heartbeat is simply taken, as Kafka does."""

    async def test() -> None:
        node = GroupNode(is_loaded=False)
        for key, message in requests(node.name()):
            for version in versions(key):
                expected = ErrorCode.NONE if key is HEARTBEAT else ErrorCode.COORDINATOR_LOAD_IN_PROGRESS
                assert (await node.ask(key, version, message)).error_code == expected, (key, version)
        for key, message in requests(node.name(ELSEWHERE)):
            assert (await node.ask(key, 0, message)).error_code == ErrorCode.NOT_COORDINATOR

    run(test())


def test_no_generation_before_it_is_durable() -> None:
    """A member hears of its generation when the record of it is durable, not before."""

    async def test() -> None:
        node = GroupNode()
        node.store.gate.clear()
        waiting = node.begin(JOIN, 3, join(node.name()))
        await asyncio.wait_for(node.store.was_asked.wait(), 10)
        assert not waiting.done()
        assert await node.records() == []
        node.store.gate.set()
        assert (await waiting).generation_id == 1
        assert len(await node.records()) == 1

    run(test())

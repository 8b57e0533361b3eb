"""Goal: FindCoordinator, DescribeGroups, ListGroups and DeleteGroups answer for each group as its own coordinator
would; and every group API says in every version that it can't, or that the client may not.
"""

from __future__ import annotations

from typing import Any

import pytest

from kafscale.config import Settings
from kafscale.protocol.acls import ResourceType
from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.delete_groups import DeleteGroupsRequest
from kafscale.protocol.messages.describe_groups import DescribeGroupsRequest
from kafscale.protocol.messages.find_coordinator import FindCoordinatorRequest
from kafscale.protocol.messages.heartbeat import HeartbeatRequest
from kafscale.protocol.messages.list_groups import ListGroupsRequest
from kafscale.protocol.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from kafscale.protocol.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)
from kafscale.protocol.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
)
from kafscale.protocol.schema import Message
from kafscale.security.needs import SUPPORTED_BITS
from tests.unit.workers.handlers.group_node import (
    ELSEWHERE,
    HERE,
    PLANES,
    GroupNode,
    run,
)
from tests.unit.workers.handlers.test_group_membership import join, requests, stable, versions
from tests.unit.workers.handlers.test_group_offsets import commit, fetch
from workers.authorization import NOT_ASKED_FOR
from workers.errors import error_codes_in

FIND, DESCRIBE, LIST, DELETE = (
    ApiKey.FIND_COORDINATOR,
    ApiKey.DESCRIBE_GROUPS,
    ApiKey.LIST_GROUPS,
    ApiKey.DELETE_GROUPS,
)
GROUP, TRANSACTION, SHARE = 0, 1, 2


async def find(node: GroupNode, version: int, *keys: str, key_type: int = GROUP) -> list[tuple[int, int, str, int]]:
    """(error, node id, host, port) of each key."""
    if version >= 4:
        message = FindCoordinatorRequest(coordinator_keys=keys, key_type=key_type)
        answer = await node.ask(FIND, version, message)
        assert [c.key for c in answer.coordinators] == list(keys)
        found = list(answer.coordinators)
    else:
        found = [
            await node.ask(FIND, version, FindCoordinatorRequest(key=key, key_type=key_type if version else 0))
            for key in keys
        ]
    for one in found:
        # An error explains itself, where the version has room for that.
        assert bool(one.error_message) is bool(one.error_code and version)
    return [(one.error_code, one.node_id, one.host, one.port) for one in found]


@pytest.mark.parametrize("version", versions(FIND))
def test_coordinators_are_found(version: int) -> None:
    """The node that is named coordinates the group, and the other one does not."""

    async def test() -> None:
        node = GroupNode()
        names = [f"g{number}" for number in range(40)]
        found = await find(node, version, *names)
        assert {one[1] for one in found} == {HERE, ELSEWHERE}
        for name, (error, node_id, host, port) in zip(names, found, strict=True):
            assert (error, host, port) == (0, f"host{node_id}", 19092 + node_id)
            beat = await node.ask(ApiKey.HEARTBEAT, 4, HeartbeatRequest(group_id=name, member_id="x"))
            served = ErrorCode.UNKNOWN_MEMBER_ID if node_id == HERE else ErrorCode.NOT_COORDINATOR
            assert beat.error_code == served
        if version >= 4:
            assert await find(node, version) == []

    run(test())


@pytest.mark.parametrize("version", versions(FIND))
def test_coordinators_that_are_not_known(version: int) -> None:
    """COORDINATOR_NOT_AVAILABLE while the node is down or there is no place for groups yet."""

    async def test() -> None:
        node = GroupNode()
        here, elsewhere = node.name(HERE), node.name(ELSEWHERE)
        nowhere = (ErrorCode.COORDINATOR_NOT_AVAILABLE, -1, "", -1)
        node.cluster.nodes = {HERE: node.cluster.nodes[HERE]}
        assert await find(node, version, here, elsewhere) == [(0, HERE, "host0", 19092), nowhere]
        node.set_topics({})
        assert await find(node, version, here, elsewhere) == [nowhere, nowhere]

    run(test())


@pytest.mark.parametrize("version", range(1, 7))
@pytest.mark.parametrize("key_type", [TRANSACTION, SHARE, 3, -1])
def test_coordinators_of_other_things(version: int, key_type: int) -> None:
    """What isn't served is refused for good, so that a transactional producer fails at once with a reason."""

    async def test() -> None:
        found = await find(GroupNode(), version, "a", "b", key_type=key_type)
        assert found == [(ErrorCode.INVALID_REQUEST, -1, "", -1)] * 2

    run(test())


async def describe(node: GroupNode, version: int, *names: str, **fields: Any) -> list[Any]:
    return list((await node.ask(DESCRIBE, version, DescribeGroupsRequest(groups=names, **fields))).groups)


@pytest.mark.parametrize("version", versions(DESCRIBE))
def test_groups_are_described(version: int) -> None:
    """Each by its own coordinator, in the order asked: a stable one, a simple one, none at all, another node's."""

    async def test() -> None:
        node = GroupNode()
        here = node.names()
        names = [node.name(ELSEWHERE), *(next(here) for _ in range(12))]
        member_id = await stable(node, names[3], group_instance_id="i1")
        await commit(node, 9, names[5], {PLANES.name: {0: (1, -1, "")}})
        groups = await describe(node, version, *names)
        assert [group.group_id for group in groups] == names
        assert {group.authorized_operations for group in groups} == {NOT_ASKED_FOR}
        missing = ErrorCode.GROUP_ID_NOT_FOUND if version >= 6 else 0
        for position, group in enumerate(groups):
            if position == 0:
                assert (group.error_code, group.group_state) == (ErrorCode.NOT_COORDINATOR, "")
            elif position == 3:
                assert (group.error_code, group.group_state) == (0, "Stable")
                assert (group.protocol_type, group.protocol_data) == ("consumer", "range")
            elif position == 5:
                assert (group.error_code, group.group_state, group.protocol_type) == (0, "Empty", "")
            else:
                assert (group.error_code, group.group_state) == (missing, "Dead")
                assert bool(group.error_message) is (version >= 6)
        (member,) = groups[3].members
        assert (member.member_id, member.client_id, member.client_host) == (member_id, "tester", "/10.9.8.7")
        assert (member.member_metadata, member.member_assignment) == (b"wants", b"all")
        assert member.group_instance_id == ("i1" if version >= 4 else None)

    run(test())


@pytest.mark.parametrize("version", range(3, 7))
def test_what_may_be_done_with_a_group(version: int) -> None:
    """Told where it was asked for and the group is there to be told of."""

    async def test() -> None:
        node = GroupNode()
        names = [node.name(), node.name(ELSEWHERE), node.name(prefix="never")]
        await stable(node, names[0])
        groups = await describe(node, version, *names, include_authorized_operations=True)
        allowed = SUPPORTED_BITS[ResourceType.GROUP]
        missing = NOT_ASKED_FOR if version >= 6 else allowed
        assert [group.authorized_operations for group in groups] == [allowed, NOT_ASKED_FOR, missing]

    run(test())


def test_a_group_is_described_once() -> None:
    """However often it is named, since an answer can be a million times as long as a name."""

    async def test() -> None:
        node = GroupNode()
        names = [node.name(), node.name(prefix="other")]
        groups = await describe(node, 5, names[0], names[1], names[0])
        assert [group.group_id for group in groups] == names

    run(test())


async def listed(node: GroupNode, version: int, **fields: Any) -> set[tuple[str, str, str, str]]:
    answer = await node.ask(LIST, version, ListGroupsRequest(**fields))
    assert answer.error_code == 0
    assert len(answer.groups) == len({group.group_id for group in answer.groups})
    return {(group.group_id, group.protocol_type, group.group_state, group.group_type) for group in answer.groups}


@pytest.mark.parametrize("version", versions(LIST))
def test_groups_are_listed(version: int) -> None:
    """All groups of all partitions that are coordinated here, by state from v4 on and by type from v5 on."""

    async def test() -> None:
        node = GroupNode()
        here = node.names()
        names = [next(here) for _ in range(12)]
        assert len({node.groups.partition_of(name) for name in names}) == 2
        for name in names[1:]:
            await commit(node, 9, name, {PLANES.name: {0: (1, -1, "")}})
        await stable(node, names[0])

        def row(name: str, protocol_type: str, state: str) -> tuple[str, str, str, str]:
            return name, protocol_type, state if version >= 4 else "", "classic" if version >= 5 else ""

        active = {row(names[0], "consumer", "Stable")}
        simple = {row(name, "", "Empty") for name in names[1:]}
        assert await listed(node, version) == active | simple
        if version >= 4:
            assert await listed(node, version, states_filter=["stable", "Dead"]) == active
            assert await listed(node, version, states_filter=["EMPTY", "none such"]) == simple
            assert await listed(node, version, states_filter=["none such"]) == set()
        if version >= 5:
            assert await listed(node, version, types_filter=["Classic"], states_filter=["Empty"]) == simple
            assert await listed(node, version, types_filter=["consumer"]) == set()

    run(test())


@pytest.mark.parametrize("version", versions(LIST))
def test_no_list_that_lacks_groups(version: int) -> None:
    """While groups are being loaded the list is refused, as it would be incomplete."""

    async def test() -> None:
        node = GroupNode(is_loaded=False)
        answer = await node.ask(LIST, version, ListGroupsRequest())
        assert (answer.error_code, list(answer.groups)) == (ErrorCode.COORDINATOR_LOAD_IN_PROGRESS, [])

    run(test())


@pytest.mark.parametrize("version", versions(DELETE))
def test_groups_are_deleted(version: int) -> None:
    """Only those without members, each answered once; their offsets are gone with them."""

    async def test() -> None:
        node = GroupNode()
        here = node.names()
        simple, active, missing = (next(here) for _ in range(3))
        elsewhere = node.name(ELSEWHERE)
        await commit(node, 9, simple, {PLANES.name: {0: (1, -1, "")}})
        await stable(node, active)
        request = DeleteGroupsRequest(groups_names=[simple, active, missing, elsewhere, simple])
        answer = await node.ask(DELETE, version, request)
        assert [(result.group_id, result.error_code) for result in answer.results] == [
            (simple, 0),
            (active, ErrorCode.NON_EMPTY_GROUP),
            (missing, ErrorCode.GROUP_ID_NOT_FOUND),
            (elsewhere, ErrorCode.NOT_COORDINATOR),
        ]
        assert await fetch(node, 9, simple, None) == {}
        assert {row[0] for row in await listed(node, 5)} == {active}

    run(test())


def group_requests(group_id: str) -> list[tuple[ApiKey, Message]]:
    """One request of each group API but ListGroups, each of which has a place for an error in every version."""
    return [
        *requests(group_id),
        (
            ApiKey.OFFSET_COMMIT,
            OffsetCommitRequest(
                group_id=group_id,
                topics=[
                    OffsetCommitRequestTopic(
                        name=PLANES.name, topic_id=PLANES.topic_id, partitions=[OffsetCommitRequestPartition()]
                    )
                ],
            ),
        ),
        (
            ApiKey.OFFSET_FETCH,
            OffsetFetchRequest(
                group_id=group_id,
                topics=[OffsetFetchRequestTopic(name=PLANES.name, partition_indexes=[0])],
                groups=[OffsetFetchRequestGroup(group_id=group_id, topics=None)],
            ),
        ),
        (DESCRIBE, DescribeGroupsRequest(groups=[group_id])),
        (DELETE, DeleteGroupsRequest(groups_names=[group_id])),
        (
            ApiKey.OFFSET_DELETE,
            OffsetDeleteRequest(
                group_id=group_id,
                topics=[OffsetDeleteRequestTopic(name=PLANES.name, partitions=[OffsetDeleteRequestPartition()])],
            ),
        ),
    ]


def test_every_api_says_that_groups_are_elsewhere_or_nowhere() -> None:
    """NOT_COORDINATOR, or COORDINATOR_NOT_AVAILABLE before there is a place for groups, in every version."""

    async def test() -> None:
        node = GroupNode()
        name = node.name(ELSEWHERE)
        asked = [(key, message, version) for key, message in group_requests(name) for version in versions(key)]
        for key, message, version in asked:
            answer = await node.ask(key, version, message)
            assert list(error_codes_in(answer)) == [ErrorCode.NOT_COORDINATOR], (key, version)
        node.set_topics({PLANES.name: PLANES})
        for key, message, version in asked:
            answer = await node.ask(key, version, message)
            assert list(error_codes_in(answer)) == [ErrorCode.COORDINATOR_NOT_AVAILABLE], (key, version)

    run(test())


def test_every_api_says_that_it_is_not_allowed() -> None:
    """GROUP_AUTHORIZATION_FAILED wherever the answer's version has a place for it, and nothing is done."""

    async def test() -> None:
        node = GroupNode(is_authorization_on=True)
        find_requests: list[tuple[ApiKey, Message]] = [
            (FIND, FindCoordinatorRequest(key=node.name(), coordinator_keys=[node.name()]))
        ]
        for key, message in [*group_requests(node.name()), *find_requests]:
            for version in versions(key):
                codes = set(error_codes_in(await node.ask(key, version, message)))
                assert codes == {ErrorCode.GROUP_AUTHORIZATION_FAILED}, (key, version)
        assert node.groups.group_count() == 0

    run(test())


def test_admin_apis_can_be_switched_off() -> None:
    """With allow_admin_apis off groups and offsets can't be deleted; all else goes on."""

    async def test() -> None:
        node = GroupNode(Settings(group_initial_rebalance_delay_ms=0, allow_admin_apis=False))
        await commit(node, 9, node.name(), {PLANES.name: {0: (1, -1, "")}})
        for key, message in group_requests(node.name()):
            if key in (DELETE, ApiKey.OFFSET_DELETE):
                codes = set(error_codes_in(await node.ask(key, 0, message)))
                assert codes == {ErrorCode.GROUP_AUTHORIZATION_FAILED}
        assert await fetch(node, 9, node.name(), None) == {PLANES.name: {0: (1, -1, "", 0)}}

    run(test())


def test_joining_makes_a_group_known_everywhere() -> None:
    """A group is listed and described from its first JoinGroup's generation on, while it waits for its leader too."""

    async def test() -> None:
        node = GroupNode()
        name = node.name()
        assert (await node.ask(ApiKey.JOIN_GROUP, 3, join(name))).error_code == 0
        assert await listed(node, 5) == {(name, "consumer", "CompletingRebalance", "classic")}
        (group,) = await describe(node, 6, name)
        assert (group.group_state, group.protocol_data, len(group.members)) == ("CompletingRebalance", "", 1)

    run(test())

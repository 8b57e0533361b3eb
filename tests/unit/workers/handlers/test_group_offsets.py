"""Goal: what is committed is what is fetched, in every version, and errors stand where Kafka's clients look."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.coordination.cluster import Topic
from kafscale.metrics import OFFSET_COMMITS
from kafscale.protocol.api import APIS, ApiKey
from kafscale.protocol.error_codes import ErrorCode
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
    OffsetFetchRequestTopics,
)
from kafscale.protocol.schema import ZERO_UUID
from tests.unit.workers.handlers.group_node import ELSEWHERE, FLIGHTS, OFFSETS, PLANES, GroupNode, run
from tests.unit.workers.handlers.test_group_membership import join, joined, stable
from workers.handlers.offset_fetch import GROUPS_AT_ONCE

COMMIT, FETCH, DELETE = ApiKey.OFFSET_COMMIT, ApiKey.OFFSET_FETCH, ApiKey.OFFSET_DELETE
COMMITS = range(APIS[COMMIT].min_version, APIS[COMMIT].max_version + 1)
FETCHES = range(APIS[FETCH].min_version, APIS[FETCH].max_version + 1)
GONE = Topic("gone", b"\x0f" * 16, 9)
IDS = {topic.name: topic.topic_id for topic in (FLIGHTS, PLANES, OFFSETS, GONE)}
NAMES = {topic_id: name for name, topic_id in IDS.items()}

# topic → partition → (offset, leader epoch, metadata)
Offsets = dict[str, dict[int, tuple[int, int, str]]]
# topic → partition → (offset, leader epoch, metadata, error)
Fetched = dict[str, dict[int, tuple[int, int, str, int]]]
NOTHING = (-1, -1, "")


async def commit(node: GroupNode, version: int, group_id: str, offsets: Offsets, **fields: Any) -> dict[Any, int]:
    """(topic, partition) → error code."""
    topics = [
        OffsetCommitRequestTopic(
            name=name,
            topic_id=IDS[name],
            partitions=[
                OffsetCommitRequestPartition(
                    partition_index=index,
                    committed_offset=offset,
                    committed_leader_epoch=epoch,
                    committed_metadata=metadata,
                )
                for index, (offset, epoch, metadata) in partitions.items()
            ],
        )
        for name, partitions in offsets.items()
    ]
    answer = await node.ask(COMMIT, version, OffsetCommitRequest(group_id=group_id, topics=topics, **fields))
    asked = [(name, list(partitions)) for name, partitions in offsets.items()]
    named = [(NAMES[t.topic_id] if version >= 10 else t.name, t) for t in answer.topics]
    assert [(name, [p.partition_index for p in t.partitions]) for name, t in named] == asked
    return {(name, p.partition_index): p.error_code for name, t in named for p in t.partitions}


async def fetch(node: GroupNode, version: int, group_id: str, wanted: dict[str, list[int]] | None) -> Fetched | int:
    """What the group has committed, or its error."""
    if version < 8:
        topics = None
        if wanted is not None:
            topics = [OffsetFetchRequestTopic(name=name, partition_indexes=ps) for name, ps in wanted.items()]
        answer = await node.ask(FETCH, version, OffsetFetchRequest(group_id=group_id, topics=topics))
        assert not answer.groups
        group = answer
    else:
        (group,) = (await fetch_groups(node, version, {group_id: wanted})).groups
        assert group.group_id == group_id
    if group.error_code:
        assert not group.topics
        return int(group.error_code)
    return {
        NAMES[topic.topic_id] if version >= 10 else topic.name: {
            p.partition_index: (p.committed_offset, p.committed_leader_epoch, p.metadata, p.error_code)
            for p in topic.partitions
        }
        for topic in group.topics
    }


async def fetch_groups(node: GroupNode, version: int, groups: dict[str, dict[str, list[int]] | None]) -> Any:
    asked = [
        OffsetFetchRequestGroup(
            group_id=group_id,
            topics=None
            if wanted is None
            else [
                OffsetFetchRequestTopics(name=name, topic_id=IDS[name], partition_indexes=ps)
                for name, ps in wanted.items()
            ],
        )
        for group_id, wanted in groups.items()
    ]
    return await node.ask(FETCH, version, OffsetFetchRequest(groups=asked))


some_offsets = st.dictionaries(
    st.sampled_from([FLIGHTS.name, PLANES.name, OFFSETS.name, GONE.name]),
    st.dictionaries(
        st.integers(-1, 4),
        st.tuples(st.integers(0, 2**63 - 1), st.integers(-1, 2**31 - 1), st.text(max_size=20)),
        max_size=4,
    ),
    max_size=4,
)


@settings(max_examples=60)
@given(
    commits=st.lists(st.tuples(st.sampled_from(COMMITS), st.integers(0, 2), some_offsets), max_size=5),
    version=st.sampled_from(FETCHES),
)
def test_what_is_committed_is_what_is_fetched(commits: list[tuple[int, int, Offsets]], version: int) -> None:
    """Commits of simple groups, in any versions, are read back by any version; unknown partitions are refused."""

    async def test() -> None:
        node = GroupNode()
        names = [name for name, _ in zip(node.names(), range(3), strict=False)]
        counts = {topic.name: topic.partitions for topic in (FLIGHTS, PLANES, OFFSETS)}
        model: dict[str, dict[tuple[str, int], tuple[int, int, str]]] = {name: {} for name in names}
        for commit_version, number, offsets in commits:
            codes = await commit(node, commit_version, names[number], offsets)
            for (topic, index), code in codes.items():
                expected = ErrorCode.NONE
                if topic not in counts and commit_version >= 10:
                    expected = ErrorCode.UNKNOWN_TOPIC_ID
                elif not 0 <= index < counts.get(topic, 0):
                    expected = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
                assert code == expected
                if code == 0:
                    offset, epoch, metadata = offsets[topic][index]
                    model[names[number]][topic, index] = (offset, epoch if commit_version >= 6 else -1, metadata)
        wanted = {topic: list(range(count + 1)) for topic, count in counts.items()}
        for name in names:
            found = await fetch(node, version, name, wanted)
            expected_all = {
                topic: {index: model[name].get((topic, index), NOTHING) for index in indexes}
                for topic, indexes in wanted.items()
            }
            assert found == with_errors(expected_all, version)
            if version >= 2:
                everything: Offsets = {}
                for (topic, index), value in model[name].items():
                    everything.setdefault(topic, {})[index] = value
                assert await fetch(node, version, name, None) == with_errors(everything, version)

    run(test())


def with_errors(offsets: Offsets, version: int) -> Fetched:
    """As an answer of this version has it, with no error."""
    return {
        topic: {
            index: (offset, epoch if version >= 5 else -1, metadata, 0)
            for index, (offset, epoch, metadata) in partitions.items()
        }
        for topic, partitions in offsets.items()
    }


@pytest.mark.parametrize("version", COMMITS)
def test_commits_of_members(version: int) -> None:
    """Only members of the generation commit while there are any; the group's error stands at every partition."""

    async def test() -> None:
        node = GroupNode()
        group_id = node.name()
        member_id = await stable(node, group_id)
        offsets: Offsets = {FLIGHTS.name: {0: (5, 0, ""), 9: (5, 0, ""), 1: (6, 0, "")}}

        async def codes(group_id: str = group_id, **fields: Any) -> set[int]:
            found = await commit(node, version, group_id, offsets, **fields)
            assert found.pop((FLIGHTS.name, 9)) == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            return set(found.values())

        assert await codes(generation_id_or_member_epoch=1, member_id=member_id) == {0}
        assert await codes(generation_id_or_member_epoch=2, member_id=member_id) == {ErrorCode.ILLEGAL_GENERATION}
        assert await codes(generation_id_or_member_epoch=1, member_id="x") == {ErrorCode.UNKNOWN_MEMBER_ID}
        assert await codes() == {ErrorCode.UNKNOWN_MEMBER_ID}
        missing = ErrorCode.GROUP_ID_NOT_FOUND if version >= 9 else ErrorCode.ILLEGAL_GENERATION
        assert await codes(node.name(prefix="never"), generation_id_or_member_epoch=1, member_id="x") == {missing}
        assert await codes(node.name(ELSEWHERE)) == {ErrorCode.NOT_COORDINATOR}
        await node.ask(ApiKey.JOIN_GROUP, 5, join(group_id))
        waiting = node.begin(ApiKey.JOIN_GROUP, 3, join(group_id))  # a rebalance: they may still commit
        assert await codes(generation_id_or_member_epoch=1, member_id=member_id) == {0}
        assert node.metrics.cells[OFFSET_COMMITS] == 4
        assert not waiting.done()
        waiting.cancel()

    run(test())


def test_commits_while_the_leader_decides() -> None:
    """Between JoinGroup and SyncGroup nothing may be committed: REBALANCE_IN_PROGRESS."""

    async def test() -> None:
        node = GroupNode()
        member_id = (await joined(node, node.name())).member_id
        fields = {"generation_id_or_member_epoch": 1, "member_id": member_id}
        codes = await commit(node, 7, node.name(), {PLANES.name: {0: (1, -1, "")}}, **fields)
        assert codes == {(PLANES.name, 0): ErrorCode.REBALANCE_IN_PROGRESS}

    run(test())


def test_commits_of_a_static_member() -> None:
    """From v7 on a commit names its instance, and an instance's old member is fenced."""

    async def test() -> None:
        node = GroupNode()
        group_id = node.name()
        old_id = await stable(node, group_id, group_instance_id="i1")
        new_id = (await node.ask(ApiKey.JOIN_GROUP, 9, join(group_id, group_instance_id="i1"))).member_id
        for member_id, code in (old_id, ErrorCode.FENCED_INSTANCE_ID), (new_id, 0):
            fields = {"generation_id_or_member_epoch": 1, "member_id": member_id, "group_instance_id": "i1"}
            codes = await commit(node, 7, group_id, {PLANES.name: {0: (1, -1, "")}}, **fields)
            assert codes == {(PLANES.name, 0): code}

    run(test())


def test_commits_with_much_or_no_metadata() -> None:
    """Metadata that is too long is refused for its partition alone; null is read back as empty."""

    async def test() -> None:
        node = GroupNode()
        name = node.name()
        offsets: Any = {FLIGHTS.name: {0: (1, -1, "x" * 4097), 1: (2, -1, "x" * 4096), 2: (3, -1, None)}}
        codes = await commit(node, 9, name, offsets)
        assert list(codes.values()) == [ErrorCode.OFFSET_METADATA_TOO_LARGE, 0, 0]
        found = await fetch(node, 7, name, {FLIGHTS.name: [0, 1, 2]})
        expected = {0: (-1, -1, "", 0), 1: (2, -1, "x" * 4096, 0), 2: (3, -1, "", 0)}
        assert found == {FLIGHTS.name: expected}

    run(test())


def test_a_commit_of_nothing_that_exists_makes_no_group() -> None:
    """As in Kafka, the group isn't looked at when no partition is left to commit for."""

    async def test() -> None:
        node = GroupNode()
        await commit(node, 8, node.name(), {GONE.name: {0: (1, -1, "")}, FLIGHTS.name: {3: (1, -1, "")}})
        await commit(node, 8, node.name(), {})
        assert not (await node.ask(ApiKey.LIST_GROUPS, 5, ListGroupsRequest())).groups
        assert await node.records() == []

    run(test())


def test_a_topic_named_twice_in_a_commit() -> None:
    """Each mention gets its own answer, in its place, and the last one holds."""

    async def test() -> None:
        node = GroupNode()
        topics = [
            OffsetCommitRequestTopic(
                name=PLANES.name,
                partitions=[
                    OffsetCommitRequestPartition(partition_index=index, committed_offset=offset)
                    for index in (0, 1)  # the second does not exist
                ],
            )
            for offset in (5, 6)
        ]
        answer = await node.ask(COMMIT, 5, OffsetCommitRequest(group_id=node.name(), topics=topics))
        unknown = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert [[p.error_code for p in t.partitions] for t in answer.topics] == [[0, unknown], [0, unknown]]
        assert await fetch(node, 1, node.name(), {PLANES.name: [0]}) == {PLANES.name: {0: (6, -1, "", 0)}}

    run(test())


def test_groups_without_an_id_keep_offsets() -> None:
    """For the sake of old clients offsets can be kept under the empty group id (not so members)."""

    async def test() -> None:
        node = GroupNode()
        assert set((await commit(node, 9, "", {PLANES.name: {0: (4, -1, "")}})).values()) == {0}
        assert await fetch(node, 9, "", None) == {PLANES.name: {0: (4, -1, "", 0)}}

    run(test())


def test_no_commit_is_acknowledged_or_told_before_it_is_durable() -> None:
    """The commit's answer waits for the store; so does the answer to who reads the offset meanwhile."""

    async def test() -> None:
        node = GroupNode()
        node.store.gate.clear()
        writing = asyncio.ensure_future(commit(node, 8, node.name(), {PLANES.name: {0: (4, -1, "")}}))
        await asyncio.wait_for(node.store.was_asked.wait(), 10)
        reading = asyncio.ensure_future(fetch(node, 8, node.name(), {PLANES.name: [0]}))
        other = asyncio.ensure_future(fetch(node, 8, node.name(ELSEWHERE), None))
        assert await other == ErrorCode.NOT_COORDINATOR
        assert not writing.done()
        assert not reading.done()
        node.store.gate.set()
        assert await writing == {(PLANES.name, 0): 0}
        assert await reading == {PLANES.name: {0: (4, -1, "", 0)}}

    run(test())


@pytest.mark.parametrize("version", FETCHES)
def test_where_the_error_of_a_group_stands(version: int) -> None:
    """At each partition in v1, at the top from v2 on, at its group from v8 on."""

    async def test() -> None:
        loading = GroupNode(is_loaded=False)
        wanted = {FLIGHTS.name: [0, 2]}
        for name, code in (
            (loading.name(), ErrorCode.COORDINATOR_LOAD_IN_PROGRESS),
            (loading.name(ELSEWHERE), ErrorCode.NOT_COORDINATOR),
        ):
            found = await fetch(loading, version, name, wanted)
            if version == 1:
                assert found == {FLIGHTS.name: dict.fromkeys((0, 2), (-1, -1, "", code))}
            else:
                assert found == code
        loading.set_topics({})
        found = await fetch(loading, version, "any", wanted if version == 1 else None)
        lacking = ErrorCode.COORDINATOR_NOT_AVAILABLE
        assert found == (lacking if version > 1 else {FLIGHTS.name: dict.fromkeys((0, 2), (-1, -1, "", lacking))})

    run(test())


@pytest.mark.parametrize("version", [8, 9, 10])
def test_several_groups_at_once(version: int) -> None:
    """Each group has its own answer, in the order asked, more of them than are asked for at once too."""

    async def test() -> None:
        node = GroupNode()
        here = node.names()
        names = [next(here) for _ in range(GROUPS_AT_ONCE + 7)]
        for name in names[-3:]:
            await commit(node, 9, name, {PLANES.name: {0: (names.index(name), -1, "")}})
        names.insert(1, node.name(ELSEWHERE))
        answer = await fetch_groups(node, version, {name: {PLANES.name: [0]} for name in names})
        assert [group.group_id for group in answer.groups] == names
        assert [group.error_code for group in answer.groups] == [
            ErrorCode.NOT_COORDINATOR if position == 1 else 0 for position in range(len(names))
        ]
        offsets = [group.topics[0].partitions[0].committed_offset for group in answer.groups if not group.error_code]
        assert offsets == [-1] * (GROUPS_AT_ONCE + 4) + [GROUPS_AT_ONCE + 4, GROUPS_AT_ONCE + 5, GROUPS_AT_ONCE + 6]

    run(test())


def test_a_group_named_twice_in_a_fetch() -> None:
    """It is refused, as all that a group has committed could be asked for a million times in one request."""

    async def test() -> None:
        node = GroupNode()
        group = OffsetFetchRequestGroup(group_id=node.name(), topics=None)
        answer = await node.ask(FETCH, 9, OffsetFetchRequest(groups=[group, group]))
        assert [g.error_code for g in answer.groups] == [ErrorCode.INVALID_REQUEST] * 2

    run(test())


def test_fetching_by_topic_ids() -> None:
    """An id that no topic has is UNKNOWN_TOPIC_ID; the commits of a topic that is gone have no id to be told by."""

    async def test() -> None:
        node = GroupNode()
        name = node.name()
        await commit(node, 8, name, {FLIGHTS.name: {0: (4, -1, "")}, PLANES.name: {0: (5, -1, "")}})
        node.set_topics({topic.name: topic for topic in (OFFSETS, PLANES)})
        found = await fetch(node, 10, name, {FLIGHTS.name: [0, 1], PLANES.name: [0]})
        unknown = (-1, -1, "", ErrorCode.UNKNOWN_TOPIC_ID)
        assert found == {PLANES.name: {0: (5, -1, "", 0)}, FLIGHTS.name: {0: unknown, 1: unknown}}
        assert await fetch(node, 10, name, None) == {PLANES.name: {0: (5, -1, "", 0)}}
        zero = OffsetFetchRequestTopics(topic_id=ZERO_UUID, partition_indexes=[0])
        groups = [OffsetFetchRequestGroup(group_id=name, topics=[zero])]
        (group,) = (await node.ask(FETCH, 10, OffsetFetchRequest(groups=groups))).groups
        assert group.topics[0].partitions[0].error_code == ErrorCode.UNKNOWN_TOPIC_ID

    run(test())


@pytest.mark.parametrize("version", [2, 7, 8, 9, 10])
def test_commits_for_a_topic_that_was_created_anew(version: int) -> None:
    """What was committed for an earlier topic of the same name reads as nothing."""

    async def test() -> None:
        node = GroupNode()
        name = node.name()
        await commit(node, 9, name, {PLANES.name: {0: (5, -1, "")}})
        anew = Topic(PLANES.name, GONE.topic_id, 1)
        node.set_topics({topic.name: topic for topic in (OFFSETS, anew)})
        wanted = {GONE.name if version >= 10 else PLANES.name: [0]}
        found = await fetch(node, version, name, wanted)
        assert isinstance(found, dict)
        assert list(found.values()) == [{0: (-1, -1, "", 0)}]
        assert await fetch(node, version, name, None) == {}

    run(test())


async def delete(node: GroupNode, group_id: str, wanted: dict[str, list[int]]) -> Any:
    """The group's error, or topic → partition → error."""
    topics = [
        OffsetDeleteRequestTopic(name=name, partitions=[OffsetDeleteRequestPartition(partition_index=i) for i in ps])
        for name, ps in wanted.items()
    ]
    answer = await node.ask(DELETE, 0, OffsetDeleteRequest(group_id=group_id, topics=topics))
    if answer.error_code:
        assert not answer.topics
        return answer.error_code
    return {t.name: {p.partition_index: p.error_code for p in t.partitions} for t in answer.topics}


def test_offsets_that_are_deleted() -> None:
    """They read as -1 from then on; what does not exist is said of its partition."""

    async def test() -> None:
        node = GroupNode()
        name = node.name()
        await commit(node, 9, name, {FLIGHTS.name: {0: (1, -1, ""), 1: (2, -1, "")}, PLANES.name: {0: (3, -1, "")}})
        unknown = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert await delete(node, name, {FLIGHTS.name: [3, 0, -1], GONE.name: [0]}) == {
            FLIGHTS.name: {3: unknown, 0: 0, -1: unknown},
            GONE.name: {0: unknown},
        }
        left = {FLIGHTS.name: {1: (2, -1, "", 0)}, PLANES.name: {0: (3, -1, "", 0)}}
        assert await fetch(node, 9, name, None) == left

    run(test())


def test_offsets_that_may_not_be_deleted() -> None:
    """Errors of the group stand at the top, those of topics that are being read at their partitions (KIP-496)."""

    async def test() -> None:
        node = GroupNode()
        wanted = {PLANES.name: [0]}
        assert await delete(node, "", wanted) == ErrorCode.INVALID_GROUP_ID
        assert await delete(node, node.name(), wanted) == ErrorCode.GROUP_ID_NOT_FOUND
        assert await delete(node, node.name(ELSEWHERE), wanted) == ErrorCode.NOT_COORDINATOR
        # Nothing is left to be asked for, so the group isn't looked at.
        unknown = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert await delete(node, node.name(), {GONE.name: [0]}) == {GONE.name: {0: unknown}}
        await stable(node, node.name(), protocol_type="connect")
        assert await delete(node, node.name(), wanted) == ErrorCode.NON_EMPTY_GROUP
        readers = node.name(prefix="readers")
        subscription = b"\0\0\0\0\0\1" + len(PLANES.name).to_bytes(2, "big") + PLANES.name.encode() + b"\xff" * 4
        await stable(node, readers, metadata=subscription)
        subscribed = ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC
        assert await delete(node, readers, {PLANES.name: [0], FLIGHTS.name: [0]}) == {
            PLANES.name: {0: subscribed},
            FLIGHTS.name: {0: 0},
        }

    run(test())

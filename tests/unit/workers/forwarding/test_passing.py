"""Goal: what is passed on is served as its owner would serve it, for whom it is, no longer than someone waits for it.

Long polls, groups, order, identity, failures of every kind, slow clients, held producers, drains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from kafscale.coordination.cluster import Assign, Assignment
from kafscale.metrics import PASSED_FAILED
from kafscale.protocol.api import ApiKey
from kafscale.protocol.batches import read_header
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.describe_groups import DescribeGroupsRequest
from kafscale.protocol.messages.heartbeat import HeartbeatRequest
from kafscale.protocol.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from kafscale.protocol.messages.leave_group import LeaveGroupRequest, MemberIdentity
from kafscale.protocol.messages.list_groups import ListGroupsRequest
from kafscale.protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from kafscale.protocol.messages.sync_group import SyncGroupRequest, SyncGroupRequestAssignment
from tests.unit.storage.rig import log_id
from tests.unit.workers.forwarding.many_workers import NODE_IDS, SLOTS, Cluster, settings_of
from tests.unit.workers.guarded_worker import binding, snapshot_of
from tests.unit.workers.whole_worker import EPOCH, batch_of, fetch_request, produce_request, run
from workers.peers.outgoing import ANSWER_WINDOW_BYTES

# Partition p of the topic is led by the p-th worker, going round.
LED_BY = dict(enumerate((*NODE_IDS, *NODE_IDS)))
REMOTE = (1, 2)
REMOTE_NODES = NODE_IDS[1:]


async def begun(**changes: Any) -> Cluster:
    cluster = await Cluster(settings=settings_of(**changes)).start()
    cluster.create("t", SLOTS, 6)
    cluster.create_offsets_topic()
    return cluster


def records_of(answer: Any) -> dict[int, int]:
    """Partition → records, of those that have any."""
    return {
        p.partition_index: sum(read_header(batch).record_count for batch in _batches(p.records))
        for topic in answer.responses
        for p in topic.partitions
        if p.records is not None and len(p.records)
    }


def _batches(records: memoryview) -> Iterator[memoryview]:
    while len(records):
        length = 12 + int.from_bytes(records[8:12], "big")
        yield records[:length]
        records = records[length:]


def codes_of(answer: Any) -> dict[int, int]:
    return {p.partition_index: p.error_code for topic in answer.responses for p in topic.partitions}


# Fetch


@pytest.mark.parametrize("led", range(3))
def test_a_fetch_of_several_owners_ends_with_the_first_record_anywhere(led: int) -> None:
    """All wait; whoever gets a record answers, and the others are hurried, long before their time is over."""

    async def main() -> None:
        cluster = await begun()
        client, clock = cluster.connect(), cluster.front.clock
        began = clock.monotonic()
        wanted = fetch_request(*(("t", index, 0) for index in range(6)), max_wait_ms=60_000)
        cluster.send(client, ApiKey.FETCH, 12, wanted)
        await asyncio.sleep(5)
        assert not client.has_answers
        await cluster.front.produce("t", batch_of(b"x"), index=led)
        answer = await client.answer(ApiKey.FETCH, 12)
        assert records_of(answer) == {led: 1}
        assert codes_of(answer) == dict.fromkeys(range(6), 0)
        assert clock.monotonic() - began < 6
        cluster.stop()

    run(main())


def test_min_bytes_are_counted_over_all_owners() -> None:
    """None has enough alone; together they have, and then the answer comes, with everything."""

    async def main() -> None:
        cluster = await begun()
        batch = batch_of(b"x" * 500)
        client = cluster.connect()
        wanted = [("t", index, 0) for index in range(3)]
        cluster.send(
            client, ApiKey.FETCH, 12, fetch_request(*wanted, max_wait_ms=60_000, min_bytes=3 * len(batch) - 10)
        )
        for index in range(3):
            await asyncio.sleep(1)
            assert not client.has_answers
            await cluster.front.produce("t", bytearray(batch), index=index)
        answer = await client.answer(ApiKey.FETCH, 12)
        assert records_of(answer) == {0: 1, 1: 1, 2: 1}
        cluster.stop()

    run(main())


def test_what_is_there_already_counts_too() -> None:
    """Two have had half of it all along, and the time is not waited out."""

    async def main() -> None:
        cluster = await begun()
        batch = batch_of(b"x" * 500)
        for index in (1, 2):
            await cluster.front.produce("t", bytearray(batch), index=index)
        began = cluster.front.clock.monotonic()
        wanted = fetch_request(*(("t", i, 0) for i in range(3)), max_wait_ms=60_000, min_bytes=2 * len(batch))
        answer = await cluster.call(ApiKey.FETCH, 12, wanted)
        assert records_of(answer) == {1: 1, 2: 1}
        assert cluster.front.clock.monotonic() - began < 1
        cluster.stop()

    run(main())


def test_a_fetch_that_finds_too_little_waits_its_time_and_no_longer() -> None:
    """Then it says what there is."""

    async def main() -> None:
        cluster = await begun()
        await cluster.front.produce("t", batch_of(b"x"), index=1)
        clock = cluster.front.clock
        began = clock.monotonic()
        wanted = fetch_request(*(("t", index, 0) for index in range(6)), max_wait_ms=3000, min_bytes=10_000)
        answer = await cluster.call(ApiKey.FETCH, 12, wanted)
        assert records_of(answer) == {1: 1}
        assert 3 <= clock.monotonic() - began < 3.5
        cluster.stop()

    run(main())


def test_an_error_anywhere_ends_the_wait() -> None:
    """As with one owner: whoever has an error does not let the client wait for records."""

    async def main() -> None:
        cluster = await begun()
        clock = cluster.front.clock
        await cluster.front.produce("t", batch_of(), index=1)
        for wrong in (("t", 1, 99), ("nothing", 0, 0)):
            began = clock.monotonic()
            answer = await cluster.call(
                ApiKey.FETCH, 12, fetch_request(("t", 0, 0), ("t", 2, 0), wrong, max_wait_ms=60_000, min_bytes=10_000)
            )
            assert sorted(codes_of(answer).values())[-1] in (
                ErrorCode.OFFSET_OUT_OF_RANGE,
                ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
            )
            assert clock.monotonic() - began < 1
        cluster.stop()

    run(main())


def test_each_owner_sends_a_batch_that_is_over_the_limits() -> None:
    """So that a consumer with small limits gets on, whoever it reads from."""

    async def main() -> None:
        cluster = await begun()
        for index in range(3):
            await cluster.front.produce("t", batch_of(b"x" * 9000), batch_of(b"y"), index=index)
        wanted = fetch_request(*(("t", index, 0) for index in range(3)), max_bytes=100, partition_max_bytes=100)
        answer = await cluster.call(ApiKey.FETCH, 12, wanted)
        assert records_of(answer) == {0: 1, 1: 1, 2: 1}
        cluster.stop()

    run(main())


@pytest.mark.parametrize("piece_bytes", [1 << 20, 4096, 100])
def test_large_answers_arrive_whole_in_any_pieces(piece_bytes: int) -> None:
    """Far larger than a window, of one owner and of several, byte for byte what was produced."""

    async def main() -> None:
        cluster = await Cluster(piece_bytes=piece_bytes).start()
        cluster.create("t", SLOTS, 6)
        many = 6 if piece_bytes > 4096 else 2
        values = {index: [bytes([65 + index]) * 300_000 for _ in range(many)] for index in range(3)}
        for index, each in values.items():
            await cluster.front.produce("t", *(batch_of(value) for value in each), index=index)
        for indexes in ([1], [0, 1, 2], [2, 1]):
            client = cluster.connect()
            wanted = fetch_request(*(("t", i, 0) for i in indexes), partition_max_bytes=50 << 20)
            answer = await cluster.call(ApiKey.FETCH, 11, wanted, client)
            found = {p.partition_index: bytes(p.records) for p in answer.responses[0].partitions}
            for index in indexes:
                for value in values[index]:
                    assert value in found[index]
                assert len(found[index]) > many * 300_000
        cluster.stop()

    run(main())


def test_a_slow_client_costs_a_window_and_holds_up_nobody() -> None:
    """It takes nothing of a large answer: what is passed to its worker stays bounded, and others are served."""

    async def main() -> None:
        cluster = await begun()
        for _ in range(10):
            for index in REMOTE:
                await cluster.front.produce("t", batch_of(b"x" * 900_000), index=index)
        for indexes in ((1,), REMOTE):
            slow = cluster.connect()
            slow.protocol.pause_writing()
            slow.protocol.resume_writing()
            wanted = fetch_request(*(("t", i, 0) for i in indexes), partition_max_bytes=50 << 20)
            before = {node: len(cluster.wires[0, node][0].received) for node in NODE_IDS[1:]}
            cluster.send(slow, ApiKey.FETCH, 11, wanted)
            # As a transport does once its buffer is full.
            slow.protocol.pause_writing()
            await asyncio.sleep(1)
            passed = sum(len(cluster.wires[0, node][0].received) - before[node] for node in NODE_IDS[1:])
            assert passed < 2 * ANSWER_WINDOW_BYTES, passed
            answer = await cluster.call(ApiKey.FETCH, 11, fetch_request(("t", 1, 9)))
            assert records_of(answer) == {1: 1}
            slow.protocol.resume_writing()
            answer = await slow.answer(ApiKey.FETCH, 11)
            assert records_of(answer) == dict.fromkeys(indexes, 10)
        cluster.stop()

    run(main())


@pytest.mark.parametrize("indexes", [(1,), (0, 1, 2)])
def test_nobody_goes_on_waiting_for_a_client_that_is_gone(indexes: tuple[int, ...]) -> None:
    """A long poll is called off at every owner, and its channel is closed."""

    async def main() -> None:
        cluster = await begun()
        client = cluster.connect()
        partitions = [cluster.workers[LED_BY[index]].partition("t", index) for index in indexes]
        wanted = fetch_request(*(("t", index, 0) for index in indexes), max_wait_ms=600_000)
        cluster.send(client, ApiKey.FETCH, 12, wanted)
        await asyncio.sleep(0.1)
        assert all(partition.waiters for partition in partitions)
        client.lose()
        await asyncio.sleep(0.1)
        assert not any(partition.waiters for partition in partitions)
        for node in NODE_IDS:
            peers = cluster.workers[node].worker.peers
            assert peers is not None
            assert not any(link._channels or link._streams for link in peers._incoming())
        cluster.stop()

    run(main())


# Produce


def test_pipelined_requests_are_answered_in_order_and_stored_in_order() -> None:
    """A producer's pipeline over all owners: each partition gets its batches in the order they were sent."""

    async def main() -> None:
        cluster = await begun()
        client = cluster.connect()
        for number in range(60):
            batch = batch_of(b"%d" % number, producer_id=7, producer_epoch=0, base_sequence=number // 6)
            cluster.send(client, ApiKey.PRODUCE, 9, produce_request(("t", number % 6, batch)))
        for number in range(60):
            answer = await client.answer(ApiKey.PRODUCE, 9)
            (result,) = answer.responses[0].partition_responses
            assert (result.index, result.error_code, result.base_offset) == (number % 6, 0, number // 6)
        cluster.stop()

    run(main())


def numbered(number: int, producer_id: int = 7) -> Any:
    batch = batch_of(b"%d" % number, producer_id=producer_id, producer_epoch=0, base_sequence=number)
    return produce_request(("t", 1, batch))


def moved_to(cluster: Cluster, node: int) -> Assign:
    """The slot of partition 1, given to another worker."""
    slot = cluster.workers[0].partition("t", 0).slot + 1
    return Assign({slot: [Assignment(EPOCH + 1, node, log_id(NODE_IDS.index(node) + 1))]})


@pytest.mark.parametrize("node", [0, 100])
def test_a_batch_is_not_taken_by_a_new_owner_before_an_earlier_one(node: int) -> None:
    """The owner changes, to whom the producer is unknown, while a batch is at the old one: what follows is refused
    until that one has been answered and has come again. What has nothing before it goes on."""

    async def main() -> None:
        cluster = await begun()
        first, others = cluster.connect(), cluster.connect()
        await cluster.front.produce("t", batch_of(), index=1)
        old = cluster.workers[1]
        cluster.store.held = f"/log/{old.log_id}/"
        cluster.store.gate.clear()
        cluster.send(first, ApiKey.PRODUCE, 9, numbered(0))
        await asyncio.sleep(0.1)
        cluster.front.decide(moved_to(cluster, node))
        await asyncio.sleep(1)
        asked = cluster.workers[node].worker.ownership
        taken: list[int] = []
        real = asked.partition

        def partition(topic: str | bytes, index: int) -> Any:
            if (topic, index) == ("t", 1):
                taken.append(index)
            return real(topic, index)

        asked.partition = partition  # type: ignore[method-assign]
        # The second, behind one that is at the old owner.
        cluster.send(first, ApiKey.PRODUCE, 9, numbered(1))
        await asyncio.sleep(0.1)
        assert not taken
        cluster.wires[0, 1][0].cut()
        codes = [(await first.answer(ApiKey.PRODUCE, 9)).responses[0].partition_responses[0].error_code for _ in "12"]
        assert codes == [ErrorCode.REQUEST_TIMED_OUT, ErrorCode.NOT_LEADER_OR_FOLLOWER]
        # Again, before the first has come again.
        answer = await cluster.call(ApiKey.PRODUCE, 9, numbered(1), first)
        assert error_codes(ApiKey.PRODUCE, answer) == {ErrorCode.NOT_LEADER_OR_FOLLOWER} and not taken
        # Another producer, on this connection and on another.
        await cluster.call(ApiKey.PRODUCE, 9, numbered(5, producer_id=8), first)
        await cluster.call(ApiKey.PRODUCE, 9, numbered(5, producer_id=9), others)
        assert len(taken) >= 2
        taken.clear()
        answer = await cluster.call(ApiKey.PRODUCE, 9, numbered(0), first)
        assert taken and error_codes(ApiKey.PRODUCE, answer) == {0 if node == 0 else ErrorCode.NOT_LEADER_OR_FOLLOWER}
        cluster.store.gate.set()
        cluster.stop()

    run(main())


def test_what_an_owner_refused_comes_before_what_was_sent_behind_it() -> None:
    """A batch that the owner refuses, alone or in a request of several partitions, is waited for at the front, too."""

    async def main() -> None:
        cluster = await begun()
        client = cluster.connect()
        for others in ((), (("t", 2, batch_of()), ("t", 0, batch_of()))):
            cluster.front.decide(moved_to(cluster, 100))
            batch = batch_of(b"x", producer_id=7, producer_epoch=0, base_sequence=0)
            answer = await cluster.call(ApiKey.PRODUCE, 9, produce_request(("t", 1, batch), *others), client)
            codes = {p.index: p.error_code for t in answer.responses for p in t.partition_responses}
            assert codes.pop(1) == ErrorCode.NOT_LEADER_OR_FOLLOWER and not any(codes.values())
            cluster.front.decide(moved_to(cluster, 1))
            for number, code in ((1, ErrorCode.NOT_LEADER_OR_FOLLOWER), (0, 0), (1, 0)):
                answer = await cluster.call(ApiKey.PRODUCE, 9, numbered(number), client)
                assert error_codes(ApiKey.PRODUCE, answer) == {code}, number
        cluster.stop()

    run(main())


def test_producers_wait_while_the_owner_has_no_room_and_go_on_in_order() -> None:
    """The owner's store is silent: no more is taken than its window, clients are not read, and nothing is lost."""

    async def main() -> None:
        cluster = await begun(produce_buffer_bytes=100 << 20, flush_bytes=1 << 20, max_in_flight_flushes=1)
        owner = cluster.workers[1]
        peers = owner.worker.peers
        assert peers is not None
        cluster.store.held = f"/log/{owner.log_id}/"
        cluster.store.gate.clear()
        client = cluster.connect()
        value = b"x" * 900_000
        total = 150
        for number in range(total):
            batch = batch_of(value, producer_id=7, producer_epoch=0, base_sequence=number)
            cluster.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 1, batch), timeout_ms=3_600_000))
            await asyncio.sleep(0)
        await asyncio.sleep(5)
        assert owner.worker.flusher.is_full and client.unread, "the client is still read"
        waiting = sum(len(c.waiting) for link in peers._incoming() for c in link._channels.values())
        assert 0 < waiting < 80, waiting
        # Others of the front's own partitions are served meanwhile.
        assert await cluster.front.produce("t", batch_of(b"light"), index=0) == [0]
        cluster.store.gate.set()
        client.send()
        for number in range(total):
            answer = await client.answer(ApiKey.PRODUCE, 9)
            (result,) = answer.responses[0].partition_responses
            assert (result.error_code, result.base_offset) == (0, number)
        cluster.stop()

    run(main())


def test_a_malformed_request_closes_its_own_connection_only() -> None:
    """Bytes that the owner can't read cost the client its connection, not the link that others use."""

    async def main() -> None:
        cluster = await begun()
        bad, good = cluster.connect(), cluster.connect()
        await cluster.front.produce("t", batch_of(), index=1, client=good)
        cluster.send(bad, ApiKey.PRODUCE, 9, produce_request(("t", 1, b""), acks=0))
        assert await bad.frame() is None
        assert await cluster.front.produce("t", batch_of(), index=1, client=good) == [1]
        cluster.stop()

    run(main())


# Groups


def test_a_group_lives_at_its_coordinator_whoever_is_asked() -> None:
    """Two members join by the same front, sync, beat, are described and leave; at each coordinator in turn."""

    async def main() -> None:
        cluster = await begun()
        for node in NODE_IDS:
            group = cluster.group_of(node)
            clients = [cluster.connect(), cluster.connect()]
            protocol = [JoinGroupRequestProtocol(name="range", metadata=b"m")]

            def join(member_id: str, group: str = group, protocol: Any = protocol) -> JoinGroupRequest:
                return JoinGroupRequest(
                    group_id=group,
                    session_timeout_ms=10_000,
                    rebalance_timeout_ms=10_000,
                    member_id=member_id,
                    protocol_type="consumer",
                    protocols=protocol,
                )

            members = []
            for client in clients:
                answer = await cluster.call(ApiKey.JOIN_GROUP, 7, join(""), client)
                assert answer.error_code == ErrorCode.MEMBER_ID_REQUIRED
                members.append(answer.member_id)
            # The first is a generation by itself; the second waits until the first comes again.
            await cluster.call(ApiKey.JOIN_GROUP, 7, join(members[0]), clients[0])
            for number in (1, 0):
                cluster.send(clients[number], ApiKey.JOIN_GROUP, 7, join(members[number]))
                await asyncio.sleep(0.1)
            joined = [await client.answer(ApiKey.JOIN_GROUP, 7) for client in clients]
            assert [answer.generation_id for answer in joined] == [2, 2]
            generation, leader = 2, members.index(joined[0].leader)
            for number in (1 - leader, leader):
                assignments = [SyncGroupRequestAssignment(member_id=m, assignment=m.encode()) for m in members]
                sync = SyncGroupRequest(
                    group_id=group,
                    generation_id=generation,
                    member_id=members[number],
                    assignments=assignments if number == leader else [],
                )
                cluster.send(clients[number], ApiKey.SYNC_GROUP, 3, sync)
            for client, member in zip(clients, members, strict=True):
                assert (await client.answer(ApiKey.SYNC_GROUP, 3)).assignment == member.encode()
                beat = HeartbeatRequest(group_id=group, generation_id=generation, member_id=member)
                assert (await cluster.call(ApiKey.HEARTBEAT, 4, beat, client)).error_code == 0
            described = await cluster.call(ApiKey.DESCRIBE_GROUPS, 5, DescribeGroupsRequest(groups=[group]))
            hosts = {member.client_host for member in described.groups[0].members}
            assert hosts == {"/10.1.2.3"}, "the client's own address"
            assert {member.client_id for member in described.groups[0].members} == {"tester"}
            leave = LeaveGroupRequest(group_id=group, members=[MemberIdentity(member_id=m) for m in members])
            assert (await cluster.call(ApiKey.LEAVE_GROUP, 4, leave)).error_code == 0
        cluster.stop()

    run(main())


# Identity


def watched(cluster: Cluster) -> dict[int, list[tuple[str, str]]]:
    """Alice may describe the topic; the principal and address of whoever is asked about, by node."""
    asked: dict[int, list[tuple[str, str]]] = {node: [] for node in NODE_IDS}
    for node, worker in cluster.workers.items():
        authority = worker.worker.authority
        authority.replace(snapshot_of([binding("allow describe topic t", "User:alice")]))
        real = authority.access

        def access(principal: str, host: str, real: Any = real, node: int = node) -> Any:
            asked[node].append((principal, host))
            return real(principal, host)

        authority.access = access  # type: ignore[method-assign]
    return asked


def test_the_owner_decides_for_the_client_itself() -> None:
    """Principal and address are the client's, at the owner as at the front, whole and in parts."""

    async def main() -> None:
        cluster = await begun(acl_enabled=True)
        asked = watched(cluster)
        for user, code in (("User:alice", 0), ("User:mallory", ErrorCode.TOPIC_AUTHORIZATION_FAILED)):
            for indexes in ((1,), (0, 1, 2)):
                for witness in asked.values():
                    witness.clear()
                client = cluster.connect()
                client.protocol.principal = user
                answer = await cluster.call(ApiKey.LIST_OFFSETS, 5, latest(*indexes), client)
                assert {p.error_code for t in answer.topics for p in t.partitions} == {code}
                for index in indexes:
                    assert set(asked[LED_BY[index]]) == {(user, "10.1.2.3")}
        cluster.stop()

    run(main())


def test_a_client_that_becomes_another_is_known_as_that_one() -> None:
    """A channel speaks for one principal: what is asked after a login is not asked as who it was before."""

    async def main() -> None:
        cluster = await begun(acl_enabled=True)
        asked = watched(cluster)
        client = cluster.connect()
        codes = []
        for user in ("User:ANONYMOUS", "User:alice"):
            client.protocol.principal = user
            answer = await cluster.call(ApiKey.LIST_OFFSETS, 5, latest(1), client)
            codes.append(answer.topics[0].partitions[0].error_code)
        assert codes == [ErrorCode.TOPIC_AUTHORIZATION_FAILED, 0]
        assert [principal for principal, _ in asked[1]] == ["User:ANONYMOUS", "User:alice"]
        cluster.stop()

    run(main())


def test_an_owner_that_is_away_discloses_nothing() -> None:
    """Who may not see a topic is told so, whether its owner can be asked or not."""

    async def main() -> None:
        cluster = await begun(acl_enabled=True)
        watched(cluster)
        cluster.unreachable.update(REMOTE_NODES)
        for indexes in ((1,), (0, 1, 2)):
            client = cluster.connect()
            client.protocol.principal = "User:mallory"
            requests: list[tuple[ApiKey, int, Any]] = [
                (ApiKey.LIST_OFFSETS, 5, latest(*indexes)),
                (ApiKey.FETCH, 12, fetch_request(*(("t", i, 0) for i in indexes), max_wait_ms=1000)),
                (ApiKey.PRODUCE, 9, produce_request(*(("t", i, batch_of()) for i in indexes))),
            ]
            for key, version, request in requests:
                answer = await cluster.call(key, version, request, client)
                assert error_codes(key, answer) == {ErrorCode.TOPIC_AUTHORIZATION_FAILED}, key
        cluster.stop()

    run(main())


def latest(*indexes: int) -> ListOffsetsRequest:
    partitions = [ListOffsetsPartition(partition_index=index, timestamp=-1) for index in indexes]
    return ListOffsetsRequest(topics=[ListOffsetsTopic(name="t", partitions=partitions)])


# Failures


FAILED_WHOLE = {
    ApiKey.PRODUCE: (9, lambda: produce_request(("t", 1, batch_of()))),
    ApiKey.FETCH: (12, lambda: fetch_request(("t", 1, 0), max_wait_ms=60_000)),
    ApiKey.LIST_OFFSETS: (5, lambda: latest(1)),
}


def error_codes(key: ApiKey, answer: Any) -> set[int]:
    match key:
        case ApiKey.PRODUCE:
            return {p.error_code for t in answer.responses for p in t.partition_responses}
        case ApiKey.FETCH:
            return {p.error_code for t in answer.responses for p in t.partitions}
        case _:
            return {p.error_code for t in answer.topics for p in t.partitions}


@pytest.mark.parametrize("key", FAILED_WHOLE)
def test_an_owner_that_cannot_be_reached_is_an_error_to_retry(key: ApiKey) -> None:
    """Nothing was sent, so nothing was stored: clients ask for metadata and come again. And they find it when it is
    back."""

    async def main() -> None:
        cluster = await begun()
        version, make = FAILED_WHOLE[key]
        cluster.unreachable.add(1)
        began = cluster.front.clock.monotonic()
        answer = await cluster.call(key, version, make())
        assert error_codes(key, answer) == {ErrorCode.NOT_LEADER_OR_FOLLOWER}
        assert cluster.front.clock.monotonic() - began < 1
        assert cluster.front.metrics.cells[PASSED_FAILED.at("unsent")] == 1
        cluster.unreachable.clear()
        await asyncio.sleep(1)
        await cluster.front.produce("t", batch_of(), index=1)
        answer = await cluster.call(key, version, make())
        assert error_codes(key, answer) == {0}
        cluster.stop()

    run(main())


@pytest.mark.parametrize("key", FAILED_WHOLE)
@pytest.mark.parametrize("indexes", [(1,), (0, 1, 2)])
def test_a_link_that_breaks_leaves_nobody_waiting(key: ApiKey, indexes: tuple[int, ...]) -> None:
    """A request that was being served is answered with an error to retry, for a Produce one that says that it may have
    been stored. What other owners serve is not touched by it."""

    async def main() -> None:
        cluster = await begun()
        await cluster.front.produce("t", batch_of(), index=1)
        cluster.store.held = f"/log/{cluster.workers[1].log_id}/"
        cluster.store.gate.clear()
        cluster.wires[0, 1][1].hold() if key is ApiKey.LIST_OFFSETS else None
        client = cluster.connect()
        match key:
            case ApiKey.PRODUCE:
                cluster.send(client, key, 9, produce_request(*(("t", index, batch_of()) for index in indexes)))
            case ApiKey.FETCH:
                wanted = fetch_request(*(("t", i, int(i == 1)) for i in indexes), max_wait_ms=600_000)
                cluster.send(client, key, 12, wanted)
            case _:
                cluster.send(client, key, 5, latest(*indexes))
        await asyncio.sleep(1)
        assert not client.has_answers
        cluster.wires[0, 1][0].cut()
        answer = await client.answer(key, FAILED_WHOLE[key][0])
        lost = ErrorCode.REQUEST_TIMED_OUT if key is ApiKey.PRODUCE else ErrorCode.NOT_LEADER_OR_FOLLOWER
        assert error_codes(key, answer) == ({lost} if len(indexes) == 1 else {0, lost})
        cluster.store.gate.set()
        assert (await cluster.front.produce("t", batch_of(), index=1))[0] >= 1
        cluster.stop()

    run(main())


def test_a_link_that_breaks_in_the_middle_of_an_answer_closes_the_connection() -> None:
    """Half an answer can't be taken back; the client connects again and asks again."""

    async def main() -> None:
        cluster = await begun()
        for index in REMOTE:
            for _ in range(4):
                await cluster.front.produce("t", batch_of(b"x" * 900_000), index=index)
        for indexes in ((1,), REMOTE):
            client = cluster.connect()
            cluster.send(client, ApiKey.FETCH, 11, fetch_request(*(("t", i, 0) for i in indexes)))
            client.protocol.pause_writing()
            await asyncio.sleep(1)
            cluster.wires[0, 1][0].cut()
            client.protocol.resume_writing()
            assert await client.frame() is None
            await cluster.front.produce("t", batch_of(), index=1)
        cluster.stop()

    run(main())


def test_no_answer_where_none_is_expected_but_a_closed_connection() -> None:
    """acks=0: whoever can't be reached costs the connection, as an error does in Kafka."""

    async def main() -> None:
        cluster = await begun()
        cluster.unreachable.add(1)
        for indexes in ((1,), (0, 1)):
            client = cluster.connect()
            request = produce_request(*(("t", index, batch_of()) for index in indexes), acks=0)
            cluster.send(client, ApiKey.PRODUCE, 9, request)
            assert await client.frame() is None
        cluster.stop()

    run(main())


def test_listings_are_whole_or_an_error() -> None:
    """A coordinator that is away makes ListGroups fail, retriably: a list without its groups would be a lie."""

    async def main() -> None:
        cluster = await begun()
        cluster.unreachable.add(100)
        answer = await cluster.call(ApiKey.LIST_GROUPS, 4, ListGroupsRequest())
        assert answer.error_code == ErrorCode.COORDINATOR_NOT_AVAILABLE
        described = await cluster.call(
            ApiKey.DESCRIBE_GROUPS, 5, DescribeGroupsRequest(groups=[cluster.group_of(node) for node in NODE_IDS])
        )
        assert [group.error_code for group in described.groups] == [0, 0, ErrorCode.NOT_COORDINATOR]
        cluster.stop()

    run(main())


def test_a_replaced_owner_is_an_error_to_retry_and_keeps_the_connection() -> None:
    """Its lease is over and its log ended: the client hears NOT_LEADER_OR_FOLLOWER, not a closed connection."""

    async def main() -> None:
        cluster = await begun()
        await cluster.front.produce("t", batch_of(), index=1)
        owner = cluster.workers[1]
        owner.worker.lease.is_fresh = lambda now: False  # type: ignore[method-assign]
        client = cluster.connect()
        answer = await cluster.call(ApiKey.LIST_OFFSETS, 5, latest(0, 1), client)
        assert [p.error_code for p in answer.topics[0].partitions] == [0, ErrorCode.NOT_LEADER_OR_FOLLOWER]
        assert not client.is_closing
        cluster.stop()

    run(main())


# Draining


def test_a_front_that_drains_answers_everyone_at_once() -> None:
    """Clients that wait at another worker (a long poll, a rebalance) don't hold up the end; what is being stored is
    answered."""

    async def main() -> None:
        cluster = await begun()
        clock = cluster.front.clock
        waiting, joining, producing = (cluster.connect() for _ in range(3))
        cluster.send(waiting, ApiKey.FETCH, 12, fetch_request(("t", 1, 0), max_wait_ms=600_000))
        cluster.send(producing, ApiKey.PRODUCE, 9, produce_request(("t", 2, batch_of())))
        beat = HeartbeatRequest(group_id=cluster.group_of(100), generation_id=1, member_id="m")
        cluster.wires.clear()
        cluster.send(joining, ApiKey.HEARTBEAT, 4, beat)
        began = clock.monotonic()
        await cluster.front.worker.drain()
        assert clock.monotonic() - began < 1
        assert error_codes(ApiKey.PRODUCE, await producing.answer(ApiKey.PRODUCE, 9)) == {0}
        assert await waiting.answer(ApiKey.FETCH, 12) is not None
        assert (await joining.answer(ApiKey.HEARTBEAT, 4)).error_code in (
            ErrorCode.NOT_COORDINATOR,
            ErrorCode.UNKNOWN_MEMBER_ID,
        )
        cluster.stop()

    run(main())


def test_an_owner_that_drains_serves_what_it_has_and_takes_no_more() -> None:
    """A batch on its way is answered; what comes later is an error to retry, and goes to its next life."""

    async def main() -> None:
        cluster = await begun()
        await cluster.front.produce("t", batch_of(), index=1)
        owner = cluster.workers[1]
        cluster.store.held = f"/log/{owner.log_id}/"
        cluster.store.gate.clear()
        client = cluster.connect()
        cluster.send(client, ApiKey.PRODUCE, 9, produce_request(("t", 1, batch_of())))
        await asyncio.sleep(0.1)
        drained = asyncio.ensure_future(owner.worker.drain())
        await asyncio.sleep(0.1)
        late = await cluster.call(ApiKey.PRODUCE, 9, produce_request(("t", 1, batch_of())))
        assert error_codes(ApiKey.PRODUCE, late) == {ErrorCode.NOT_LEADER_OR_FOLLOWER}
        cluster.store.gate.set()
        answer = await client.answer(ApiKey.PRODUCE, 9)
        assert answer.responses[0].partition_responses[0].base_offset == 1
        await drained
        cluster.stop()

    run(main())

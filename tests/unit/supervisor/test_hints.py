"""Goal: a release is told to who waits for it and to nobody else, and no datagram can make the supervisor stumble."""

from __future__ import annotations

import asyncio

import pytest

from kafscale.clock import SystemClock
from kafscale.control import PeerReleased
from kafscale.coordination.cluster import Assignment, ClusterState
from kafscale.security.cluster_secret import ClusterSecret
from supervisor.hints import SLOTS_PER_DATAGRAM, Hints, awaited

MOVING = [Assignment(1, 0, "a"), Assignment(2, 100, "b")]
STATE = ClusterState(version=1, cluster_id="c", slot_count=4, slots=[MOVING, MOVING, [Assignment(1, 0, "a")], []])


def test_only_what_is_awaited_is_handed_on() -> None:
    hint = PeerReleased("a", {0: 1, 1: 7, 2: 1, 3: 1, 4: 1, -1: 1}, 9)
    assert awaited(STATE, hint, ["b", "z"]) == {"b": PeerReleased("a", {0: 1}, 9)}
    assert awaited(STATE, hint, ["a"]) == {}
    assert awaited(STATE, PeerReleased("b", {0: 2}, 9), ["b"]) == {}


def test_hints_arrive_whole_and_rubbish_does_not() -> None:
    async def scenario() -> None:
        heard: list[PeerReleased] = []
        complete = asyncio.Event()
        slots = {slot: slot + 1 for slot in range(2 * SLOTS_PER_DATAGRAM + 1)}

        def deliver(hint: PeerReleased) -> None:
            heard.append(hint)
            if sum(len(part.slots) for part in heard) == len(slots):
                complete.set()

        receiver, sender = Hints(deliver, SystemClock()), Hints(heard.append, SystemClock())
        await receiver.start("127.0.0.1", 0)
        await sender.start("127.0.0.1", 0)
        assert receiver._transport is not None and sender._transport is not None
        host, port = receiver._transport.get_extra_info("sockname")[:2]
        for rubbish in (b"", b"\x00", b"x" * 5000, b"\x94\x01\x02\x03\x04"):
            sender._transport.sendto(rubbish, (host, port))
        await sender.send(f"{host}:{port}", PeerReleased("a" * 32, slots, 2**40))
        await sender.send("no port", PeerReleased("a", {0: 1}, 0))
        async with asyncio.timeout(20):
            await complete.wait()
        assert {slot: epoch for part in heard for slot, epoch in part.slots.items()} == slots
        assert {(part.log_id, part.sequence) for part in heard} == {("a" * 32, 2**40)}
        receiver.close()
        sender.close()

    asyncio.run(scenario())


def test_a_port_that_is_taken_only_costs_the_hints(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        first, second = Hints(lambda hint: None, SystemClock()), Hints(lambda hint: None, SystemClock())
        await first.start("127.0.0.1", 0)
        assert first._transport is not None
        await second.start("127.0.0.1", first._transport.get_extra_info("sockname")[1])
        await second.send("127.0.0.1:9", PeerReleased("a", {0: 1}, 0))
        first.close()
        second.close()

    asyncio.run(scenario())
    assert "no hints between brokers" in caplog.text


def test_with_a_secret_only_who_knows_it_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    """Plain hints, those sealed with another secret and broken ones are dropped, and said to be; ours arrive."""

    async def scenario() -> None:
        heard: list[PeerReleased] = []
        complete = asyncio.Event()

        def deliver(hint: PeerReleased) -> None:
            heard.append(hint)
            complete.set()

        clock = SystemClock()
        ours, others = ClusterSecret(["the secret of this cluster"]), ClusterSecret(["the secret of another one"])
        receiver = Hints(deliver, clock, ours)
        await receiver.start("127.0.0.1", 0)
        assert receiver._transport is not None
        host, port = receiver._transport.get_extra_info("sockname")[:2]
        hint = PeerReleased("a" * 32, {1: 1}, 7)
        for secret in (None, others, ours):
            sender = Hints(heard.append, clock, secret)
            await sender.start("127.0.0.1", 0)
            if secret is ours:
                assert sender._transport is not None
                sender._transport.sendto(ours.seal(b"another use", b"\x93"), (host, port))
                sender._transport.sendto(ours.seal(b"a slot was released", b"\xc1\xff"), (host, port))
            await sender.send(f"{host}:{port}", hint)
            sender.close()
        async with asyncio.timeout(20):
            await complete.wait()
        assert heard == [hint]
        receiver.close()

    asyncio.run(scenario())
    assert "not sealed with the cluster's secret" in caplog.text

"""Goal: a release is told to who waits for it and to nobody else, and no datagram can make the supervisor stumble."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from kafscale.clock import SystemClock
from kafscale.config import Endpoint
from kafscale.control import PeerReleased
from kafscale.coordination.cluster import Assignment, ClusterState
from kafscale.security.cluster_secret import ClusterSecret
from supervisor.background import Background
from supervisor.hints import SLOTS_PER_DATAGRAM, Hints, awaited

MOVING = [Assignment(1, 0, "a"), Assignment(2, 100, "b")]
STATE = ClusterState(version=1, cluster_id="c", slot_count=4, slots=[MOVING, MOVING, [Assignment(1, 0, "a")], []])


HINT = PeerReleased("a" * 32, {1: 1}, 7)


async def listening(
    deliver: Callable[[PeerReleased], None], secret: ClusterSecret | None = None, host: str = "127.0.0.1"
) -> tuple[Hints, int]:
    """Hints at a free port of the host, and that port."""
    hints = Hints(deliver, SystemClock(), secret)
    await hints.start(Endpoint(host, 0))
    assert hints._transport is not None
    return hints, hints._transport.get_extra_info("sockname")[1]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


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

        host = "127.0.0.1"
        receiver, port = await listening(deliver)
        sender = Hints(heard.append, SystemClock())
        for rubbish in (b"", b"\x00", b"x" * 5000, b"\x94\x01\x02\x03\x04"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.sendto(rubbish, (host, port))
        await sender.send(f"{host}:{port}", PeerReleased("a" * 32, slots, 2**40))
        async with asyncio.timeout(20):
            await complete.wait()
        assert {slot: epoch for part in heard for slot, epoch in part.slots.items()} == slots
        assert {(part.log_id, part.sequence) for part in heard} == {("a" * 32, 2**40)}
        receiver.close()

    asyncio.run(scenario())


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("own", ["127.0.0.1", "::1", "::"])
def test_hints_arrive_over_ipv4_and_ipv6_whatever_the_sender_listens_on(
    run: Callable[[Coroutine[Any, Any, None]], None], own: str
) -> None:
    async def scenario() -> None:
        sender, _ = await listening(lambda hint: None, host=own)
        for host, reached_at in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1"), ("::", "::1")]:
            heard: asyncio.Queue[PeerReleased] = asyncio.Queue()
            receiver, port = await listening(heard.put_nowait, host=host)
            await sender.send(str(Endpoint(reached_at, port)), HINT)
            async with asyncio.timeout(20):
                assert await heard.get() == HINT
            receiver.close()
        sender.close()

    run(scenario())


def test_every_address_of_a_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that can't be sent to spoils nothing."""

    async def scenario() -> None:
        heard: list[str] = []
        complete = asyncio.Event()

        def deliver_to(host: str) -> Callable[[PeerReleased], None]:
            def deliver(hint: PeerReleased) -> None:
                heard.append(host)
                if len(heard) == 2:
                    complete.set()

            return deliver

        first, port = await listening(deliver_to("127.0.0.1"))
        second = Hints(deliver_to("127.0.0.2"), SystemClock())
        await second.start(Endpoint("127.0.0.2", port))
        unreachable = (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port))
        addresses = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (host, port)) for host in ("127.0.0.1", "127.0.0.2")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [unreachable, *addresses])
        await Hints(lambda hint: None, SystemClock()).send(f"broker.example.com:{port}", HINT)
        async with asyncio.timeout(20):
            await complete.wait()
        assert sorted(heard) == ["127.0.0.1", "127.0.0.2"]
        first.close()
        second.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize(
    "peer",
    [
        "",
        "no port",
        "127.0.0.1:70000",
        "127.0.0.1:-1",
        "127.0.0.1:0",
        "255.255.255.255:9404",
        f"{'a' * 300}:9404",
        "\ud800:9404",
    ],
)
def test_a_hint_that_cannot_be_sent_costs_a_line_in_the_log(
    run: Callable[[Coroutine[Any, Any, None]], None], peer: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is sent in the background of a broker, which what fails there would end."""

    async def scenario() -> None:
        failures: list[BaseException] = []
        background, hints = Background(failures.append), Hints(lambda hint: None, SystemClock())
        for _ in range(3):
            background.spawn_task(hints.send(peer, HINT), "hint")
        while background._tasks:
            await asyncio.wait(background._tasks)
        assert failures == []

    run(scenario())
    assert caplog.text.count("a hint could not be sent") == 1


def test_a_port_that_is_taken_only_costs_the_hints(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        first, port = await listening(lambda hint: None)
        second = Hints(lambda hint: None, SystemClock())
        await second.start(Endpoint("127.0.0.1", port))
        await second.send(f"127.0.0.1:{port}", HINT)
        first.close()
        second.close()

    asyncio.run(scenario())
    assert "no hints from other brokers" in caplog.text


def test_with_a_secret_only_who_knows_it_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    """Plain hints, those sealed with another secret and broken ones are dropped, and said to be; ours arrive."""

    async def scenario() -> None:
        heard: list[PeerReleased] = []
        complete = asyncio.Event()

        def deliver(hint: PeerReleased) -> None:
            heard.append(hint)
            complete.set()

        ours, others = ClusterSecret(["the secret of this cluster"]), ClusterSecret(["the secret of another one"])
        receiver, port = await listening(deliver, ours)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(ours.seal(b"another use", b"\x93"), ("127.0.0.1", port))
            stranger.sendto(ours.seal(b"a slot was released", b"\xc1\xff"), ("127.0.0.1", port))
        for secret in (None, others, ours):
            await Hints(heard.append, SystemClock(), secret).send(f"127.0.0.1:{port}", HINT)
        async with asyncio.timeout(20):
            await complete.wait()
        assert heard == [HINT]
        receiver.close()

    asyncio.run(scenario())
    assert "not sealed with the cluster's secret" in caplog.text

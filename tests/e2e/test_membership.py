"""Goal: brokers join, die, leave and come back, with real workers on one store; coordination is in this process, so
that it can be stopped and can forget at will."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from kafscale.clock import SystemClock
from kafscale.config import Endpoint, Settings
from kafscale.control import PeerReleased
from kafscale.coordination.assignment import unsettled_logs
from kafscale.coordination.commands import CreateAcls, CreateTopic, DeleteAcls
from kafscale.errors import Retry, StartError
from kafscale.protocol.acls import AclBinding, AclFilter
from kafscale.storage.bundle_files import FOLDER
from kafscale.storage.directory import check_format
from kafscale.storage.local import OBJECTS
from supervisor import control_plane
from supervisor.control_plane import ControlPlane
from supervisor.supervisor import Supervisor
from tests.e2e.acl_probe import Probe
from tests.unit.supervisor.hub import Hub, HubCoordination

PATIENCE_SECONDS = 30.0


class Broker:
    """A supervisor in this process, its workers processes of their own. Brokers of one `root` share their objects."""

    def __init__(self, root: Path, hub: Hub, broker_id: int, **changes: Any) -> None:
        data = root / f"broker-{broker_id}-{len(hub.clients)}"
        data.mkdir()
        check_format(data)
        for shared in (OBJECTS, FOLDER):
            (root / shared).mkdir(exist_ok=True)
            (data / shared).symlink_to(root / shared)
        settings = Settings(
            **{
                "data_dir": str(data),
                "listen": Endpoint("127.0.0.1", 0),
                "metrics_addr": Endpoint("127.0.0.1", 0),
                "workers": 2,
                "slots": 24,
                "broker_id": broker_id,
                **changes,
            }
        )
        self.broker_id = broker_id
        self.hub = hub
        self.coordination = HubCoordination(hub)
        self.supervisor = Supervisor(
            settings, SystemClock(), random.Random(), announce=lambda line: None, coordination=self.coordination
        )
        self.life = asyncio.create_task(self.supervisor.run())

    @property
    def state(self) -> Any:
        return self.controller.state

    @property
    def controller(self) -> Any:
        assert self.supervisor._control_plane is not None
        return self.supervisor._control_plane.controller

    @property
    def posts(self) -> list[Any]:
        """None before the broker has any."""
        return self.supervisor._control_plane.posts if self.supervisor._control_plane is not None else []

    async def served(self) -> Broker:
        """Wait until all its workers serve."""
        await until(lambda: self.life.done() or (self.posts and all(p.serving for p in self.posts)))
        if self.life.done():
            self.life.result()
        return self

    async def kill(self) -> None:
        """End it as SIGKILL would: nothing is said to anybody."""
        for post in self.posts:
            if post.child is not None:
                os.kill(post.child.pid, signal.SIGKILL)
        self.coordination.on_change = lambda: None
        self.coordination.close = _nothing  # type: ignore[method-assign]
        self.life.cancel()
        await asyncio.gather(self.life, return_exceptions=True)

    async def stop(self) -> int:
        self.supervisor.ask_to_stop()
        return await self.life


async def _nothing() -> None:
    return


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)


def loads(broker: Broker) -> dict[int, int]:
    return dict(sorted(Counter(entries[-1].node_id for entries in broker.state.slots).items()))


def is_even(broker: Broker, *nodes: int) -> bool:
    """Whether these nodes have all slots, evenly, and have taken them over."""
    counts = loads(broker)
    return (
        set(counts) == set(nodes)
        and max(counts.values()) - min(counts.values()) <= 1
        and not unsettled_logs(broker.state)
    )


def run(scenario: Callable[[Hub, Callable[..., Broker]], Coroutine[None, None, None]], root: Path) -> None:
    async def whole() -> None:
        made: list[Broker] = []
        hub = Hub()

        def make(broker_id: int, **changes: Any) -> Broker:
            made.append(Broker(root, hub, broker_id, **changes))
            return made[-1]

        try:
            await scenario(hub, make)
        finally:
            for broker in made:
                broker.supervisor.ask_to_stop()
                broker.supervisor.ask_to_stop()
            await asyncio.gather(*(broker.life for broker in made), return_exceptions=True)

    asyncio.run(whole())


def test_brokers_join_and_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And tell each other of releases where each is reached, /metrics being at 127.0.0.1 and they elsewhere."""
    told: set[tuple[int, str]] = set()
    on_hint = ControlPlane.on_hint

    def noted(self: ControlPlane, hint: PeerReleased) -> None:
        told.add((self._settings.broker_id, hint.log_id))
        on_hint(self, hint)

    monkeypatch.setattr(ControlPlane, "on_hint", noted)

    async def scenario(hub: Hub, make: Callable[..., Broker]) -> None:
        first = await make(0, listen=Endpoint("127.0.0.2", 0)).served()
        second = await make(1, listen=Endpoint("127.0.0.3", 0)).served()
        assert [member.peer.partition(":")[0] for member in hub.members.values()] == ["127.0.0.2", "127.0.0.3"]
        await until(lambda: is_even(first, 0, 1, 100, 101))
        await until(lambda: second.state.version == first.state.version)
        assert second.state == first.state
        await until(lambda: {(1, post.log_id) for post in first.posts} <= told)
        assert await second.stop() == 0
        assert is_even(first, 0, 1)
        assert {(0, post.log_id) for post in second.posts} <= told
        assert not any(post.restart_count for post in first.posts)

    run(scenario, tmp_path)


def test_a_lost_broker_is_replaced_and_comes_back(tmp_path: Path) -> None:
    async def scenario(hub: Hub, make: Callable[..., Broker]) -> None:
        first = await make(0).served()
        second = await make(1).served()
        await until(lambda: is_even(first, 0, 1, 100, 101))
        await first.kill()
        await asyncio.sleep(0)
        hub.lose(0)
        await until(lambda: is_even(second, 100, 101))
        again = await make(0).served()
        await until(lambda: is_even(again, 0, 1, 100, 101))

    run(scenario, tmp_path)


def test_without_coordination_workers_are_replaced_and_nothing_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what others decide meanwhile is heard of from the bucket, whatever wait had begun before."""
    monkeypatch.setattr(control_plane, "LOOK_SECONDS", 3600.0)

    async def scenario(hub: Hub, make: Callable[..., Broker]) -> None:
        first = await make(0).served()
        second = await make(1).served()
        await until(lambda: is_even(first, 0, 1, 100, 101))
        before = loads(first)
        hub.set_up(False)
        post = second.posts[0]
        old = post.log_id
        assert post.child is not None
        os.kill(post.child.pid, signal.SIGKILL)
        await until(lambda: post.serving and post.log_id != old)
        with pytest.raises(Retry):
            await second.controller.submit([CreateTopic(name="t")])
        # The other hears of it from the bucket.
        await until(lambda: any(entries[-1].log_id == post.log_id for entries in first.state.slots))
        assert loads(first) == before
        hub.set_up(True)
        await second.controller.submit([CreateTopic(name="t")])
        await until(lambda: is_even(first, 0, 1, 100, 101) and "t" in first.state.topics)
        assert loads(first) == before

    run(scenario, tmp_path)


def test_acls_made_at_one_broker_are_in_force_at_the_other(tmp_path: Path) -> None:
    """Given and taken away, for a connection that is open there; without coordination nothing changes, and the rules
    that were in force stay."""

    async def scenario(hub: Hub, make: Callable[..., Broker]) -> None:
        settings = {"acl_enabled": True, "super_users": "User:admin"}
        first = await make(0, **settings).served()
        second = await make(1, **settings).served()
        assert second.supervisor._control_plane is not None
        nodes = {node.node_id: node for node in second.supervisor._control_plane.membership.nodes()}
        given = CreateAcls(bindings=[AclBinding(2, 3, "t", "User:alice", "*", 8, 3)])
        taken = DeleteAcls(filter=AclFilter(principal="User:alice"))
        with Probe(nodes[100].port, "alice") as one, Probe(nodes[101].port, "alice") as other:

            async def all_say(code: int) -> None:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    for probe in (one, other):
                        while await asyncio.to_thread(probe.codes, "t") != [code]:
                            pass

            for _ in range(3):
                await all_say(29)
                await first.controller.submit([given])
                await all_say(3)
                await first.controller.submit([taken])
            await all_say(29)
            hub.set_up(False)
            with pytest.raises(Retry):
                await first.controller.submit([given])
            await all_say(29)

    run(scenario, tmp_path)


def test_a_second_broker_of_the_same_number_is_refused(tmp_path: Path) -> None:
    async def scenario(hub: Hub, make: Callable[..., Broker]) -> None:
        first = await make(0).served()
        with pytest.raises(StartError, match="broker id 0 belongs to a living broker"):
            await make(0).served()
        assert first.posts[0].serving and first.posts[0].restart_count == 0

    run(scenario, tmp_path)

"""Goal: brokers find each other through a real etcd, and lose nothing when it stops, forgets or goes back in time."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import etcd3
import msgspec
import pytest
import trustme

from kafscale.clock import SystemClock
from kafscale.control import NodeAddress
from kafscale.coordination.assignment import Incarnation
from kafscale.coordination.etcd import EtcdCoordination
from kafscale.coordination.etcd_client import Address, EtcdServers, open_client
from kafscale.coordination.store import ClusterIdentity, Member
from kafscale.errors import CoordinationUnavailable, StartError
from loadtest.etcd_server import EtcdServer
from loadtest.proxy import CUT, HANG, PASS, Proxy

IDENTITY = ClusterIdentity("a-cluster", 256, 1)
TTL_SECONDS = 2.0
PATIENCE_SECONDS = 40.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path / "etcd") as running:
        yield running


def member(number: int, leaving: bool = False) -> Member:
    return Member(
        number,
        (NodeAddress(number * 100, "127.0.0.1", 19092 + number, "zone-a"),),
        (Incarnation(number * 100, f"{number:032x}"),),
        f"127.0.0.1:{9404 + number}",
        leaving,
        "zone-a",
    )


class Broker:
    """A coordination under test, and a way to wait for what it knows."""

    def __init__(
        self, servers: EtcdServers, ttl_seconds: float = TTL_SECONDS, woken: asyncio.Event | None = None
    ) -> None:
        self.coordination = EtcdCoordination(
            servers, "ns", ttl_seconds, SystemClock(), random.Random(1), self._open_client
        )
        self._loop = asyncio.get_running_loop()
        # The endpoints at which clients were opened, those at which watches were set, and those that rang.
        self.asked: list[Address] = []
        self.watched: list[Address] = []
        self.rung: list[Address] = []
        # One that ends the stream of a lease without an answer.
        self.mute: Address | None = None
        # Set by whichever broker of a test has news.
        self._woken = woken or asyncio.Event()
        self.coordination.on_change = self._changed

    def _changed(self) -> None:
        self._woken.set()

    def _open_client(self, servers: EtcdServers, endpoint: Address, call_seconds: float) -> Any:
        """In a thread."""
        self.asked.append(endpoint)
        client = open_client(servers, endpoint, call_seconds)
        refresh = client.refresh_lease
        client.refresh_lease = lambda lease: iter(()) if endpoint == self.mute else refresh(lease)
        add = client.add_watch_prefix_callback

        def watch(prefix: str, ring: Callable[[object], None], **options: Any) -> None:
            def rings(event: object) -> None:
                if not isinstance(event, Exception):
                    self.rung.append(endpoint)
                    self._loop.call_soon_threadsafe(self._woken.set)
                ring(event)

            add(prefix, rings, **options)
            self.watched.append(endpoint)
            self._loop.call_soon_threadsafe(self._woken.set)

        client.add_watch_prefix_callback = watch
        return client

    async def until(self, condition: Callable[[EtcdCoordination], object], what: str) -> None:
        """Wait until a condition holds; it is looked at when `on_change` was called, or a watch was set or rang."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not condition(self.coordination):
                    self._woken.clear()
                    await self._woken.wait()
        except TimeoutError:
            raise AssertionError(f"never came about: {what}") from None

    @property
    def ids(self) -> list[int]:
        return [member.broker_id for member in self.coordination.members()]


@asynccontextmanager
async def brokers(
    server: EtcdServer, *numbers: int, endpoints: tuple[Address, ...] = (), ttl_seconds: float = TTL_SECONDS
) -> AsyncIterator[list[Broker]]:
    """Registered brokers that campaign. `endpoints`: where they reach the server, if not directly."""
    made = []
    woken = asyncio.Event()
    try:
        for number in numbers:
            broker = Broker(EtcdServers(endpoints=endpoints or (server.endpoint,)), ttl_seconds, woken)
            made.append(broker)
            await broker.coordination.open(IDENTITY)
            await broker.coordination.join(member(number))
            await broker.coordination.campaign()
        for broker in made:
            await broker.until(lambda _, broker=broker: broker.ids == sorted(numbers), "everyone is known")
        yield made
    finally:
        for broker in made:
            await broker.coordination.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(scenario())  # type: ignore[arg-type]


def test_brokers_know_each_other_and_one_leads(server: EtcdServer) -> None:
    """Goal: registrations and what changes in them reach everyone; one leads, another takes over when it goes; who goes
    is gone at once."""

    async def scenario() -> None:
        async with brokers(server, 1, 2, 3) as made:
            first = made[0]
            await first.until(lambda c: c.is_leader, "the first leads")
            assert [broker.coordination.is_leader for broker in made] == [True, False, False]
            assert first.coordination.members() == [member(1), member(2), member(3)]
            assert all(broker.coordination.is_available for broker in made)
            await made[2].coordination.join(member(3, leaving=True))
            await made[1].until(lambda c: c.members()[2].leaving, "the change arrives")
            await first.coordination.close()
            await made[1].until(lambda c: 1 not in [m.broker_id for m in c.members()], "the first is gone")
            for broker in made[1:]:
                await broker.until(
                    lambda _: made[1].coordination.is_leader != made[2].coordination.is_leader, "one of them leads"
                )

    run(scenario)


def test_a_registration_that_was_overtaken_is_made_again(server: EtcdServer) -> None:
    """Goal: where an older registration of this broker arrives after a newer one, or none is there any more, the newest
    comes to stand all the same."""

    key, newest = "/kafscale/ns/members/1", member(1, leaving=True)

    async def scenario() -> None:
        client = etcd3.client(*server.endpoint)

        async def until_the_newest_stands() -> None:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (await asyncio.to_thread(client.get, key))[0] != msgspec.json.encode(newest):
                    pass

        async with brokers(server, 1, 2) as (one, other):
            await one.coordination.join(newest)
            await until_the_newest_stands()
            await asyncio.to_thread(client.put, key, msgspec.json.encode(member(1)))
            await until_the_newest_stands()
            await asyncio.to_thread(client.delete, key)
            await until_the_newest_stands()
            await other.until(lambda c: c.members() == [newest, member(2)], "everyone knows")
        client.close()

    run(scenario)


def test_versions_only_rise(server: EtcdServer) -> None:
    """Goal: news of a version reaches everyone, in whatever order versions are published; a large one too."""

    async def scenario() -> None:
        async with brokers(server, 1, 2) as (one, other):
            await one.coordination.publish(7, b"seven")
            await other.until(lambda c: c.newest_version == 7, "version 7 is heard of")
            await one.coordination.publish(12, bytes(3 << 20))
            await other.until(lambda c: c.newest_version == 12, "version 12 is heard of")
            await other.coordination.publish(9, b"nine")
            await one.coordination.publish(100, b"a hundred")
            await other.until(lambda c: c.newest_version == 100, "version 100 is heard of")
            assert other.coordination.is_available

    run(scenario)


def test_etcd_stops_and_comes_back(server: EtcdServer) -> None:
    """Goal: while etcd is down everyone keeps what was known and says that it is not available; when it is back, all
    are registered anew by themselves and one leads."""

    async def scenario() -> None:
        async with brokers(server, 1, 2) as made:
            await made[0].coordination.publish(3, b"three")
            await made[1].until(lambda c: c.newest_version == 3, "the version is known")
            server.kill()
            for broker in made:
                await broker.until(lambda c: not c.is_available and not c.is_leader, "the loss is noticed")
                assert broker.ids == [1, 2]
                with pytest.raises(CoordinationUnavailable):
                    await broker.coordination.publish(4, b"four")
            server.start()
            for broker in made:
                # Both know of version 4, which etcd doesn't: it is behind.
                await broker.until(lambda c: c.newest_version == 3, "etcd answers again")
            assert not made[0].coordination.is_available
            await _published(made[0], 4)
            for broker in made:
                await broker.until(lambda c: c.is_available, "it has caught up")
                await broker.until(lambda _, broker=broker: broker.ids == [1, 2], "both are registered")
            await made[0].until(
                lambda _: made[0].coordination.is_leader != made[1].coordination.is_leader, "one of them leads"
            )

    run(scenario)


@pytest.mark.parametrize("backup", [False, True])
def test_etcd_is_lost_or_restored(server: EtcdServer, tmp_path: Path, backup: bool) -> None:
    """Goal: an empty etcd in its place, or one of yesterday, is not believed before it has caught up, and is filled."""

    async def scenario() -> None:
        async with brokers(server, 1, 2) as made:
            await _published(made[0], 5)
            await made[1].until(lambda c: c.newest_version == 5, "the version is known")
            server.kill()
            shutil.copytree(server.data, tmp_path / "backup")
            server.start()
            await _published(made[0], 6)
            await _published(made[1], 6)
            server.kill()
            for broker in made:
                await broker.until(lambda c: not c.is_available, "the loss is noticed")
            server.data = tmp_path / ("backup" if backup else "empty")
            server.start()
            for broker in made:
                await broker.until(lambda c: c.newest_version < 6, "etcd answers again")
                assert not broker.coordination.is_available
            await _published(made[1], 6)
            for broker in made:
                await broker.until(lambda c: c.is_available and c.newest_version == 6, "it has caught up")
                await broker.until(lambda _, broker=broker: broker.ids == [1, 2], "both are registered")

    run(scenario)


def test_a_stopped_etcd_blocks_nobody(server: EtcdServer) -> None:
    """Goal: an etcd that takes requests and answers none is noticed by the local clock within the time to live, and the
    loop runs on meanwhile."""

    async def scenario() -> None:
        async with brokers(server, 1) as (broker,):
            assert server.process is not None
            loop = asyncio.get_running_loop()
            os.kill(server.process.pid, signal.SIGSTOP)
            try:
                stopped = loop.time()
                await broker.until(lambda c: not c.is_available, "the silence is noticed")
                assert loop.time() - stopped < TTL_SECONDS + 2
                assert broker.ids == [1]
            finally:
                os.kill(server.process.pid, signal.SIGCONT)
            await broker.until(lambda c: c.is_available and c.is_leader, "it goes on")

    run(scenario)


class Links:
    """Three ways to one etcd, each of which can be made silent (HANG) or refusing (CUT), as endpoints of a client."""

    def __init__(self, server: EtcdServer) -> None:
        self._proxy = Proxy({name: ("tcp", "{}:{}".format(*server.endpoint)) for name in "abc"})
        self._names = {("127.0.0.1", port): name for name, port in self._proxy.ports.items()}
        self.endpoints = tuple(self._names)

    def set(self, endpoint: Address, mode: str) -> None:
        self._proxy.set(self._names[endpoint], mode=mode)

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.close()


def leases(client: Any) -> dict[str, tuple[int, int]]:
    """Of every registration and the leadership: when it was made, and its lease. Another session has another lease."""
    found = client.get_prefix_response("/kafscale/ns/").kvs
    return {entry.key.decode(): (entry.create_revision, entry.lease) for entry in found if entry.lease}


# Long enough for a busy machine to answer within a quarter of it.
LONGER_TTL_SECONDS = 10.0


@pytest.mark.parametrize("mode", [HANG, CUT])
def test_an_endpoint_goes_and_no_registration_does(server: EtcdServer, mode: str) -> None:
    """Goal: when the endpoint that everyone uses falls silent or refuses, then the next one too, all keep their lease
    through another, hear of what changes by a watch there, and are taken for lost by nobody; what comes back is used
    again."""

    async def scenario(links: Links) -> None:
        client = etcd3.client(*server.endpoint)
        async with brokers(server, 1, 2, endpoints=links.endpoints, ttl_seconds=LONGER_TTL_SECONDS) as made:
            await made[0].until(lambda c: c.is_leader, "the first leads")
            before = await asyncio.to_thread(leases, client)
            assert len(before) == 3
            gone: list[Address] = []
            for version in (1, 2, 3):
                used = made[0].watched[-1]
                assert all(broker.watched[-1] == used for broker in made)
                links.set(used, mode)
                gone.append(used)
                if version == 3:
                    links.set(gone[0], PASS)
                await _published(made[0], version)
                await made[1].until(lambda c, version=version: c.newest_version == version, "the news arrive")
                for broker in made:
                    await broker.until(lambda _, b=broker, used=used: b.watched[-1] != used, "the watch is moved")
                    heard = len(broker.rung)
                    await asyncio.to_thread(client.put, "/kafscale/ns/noise", "ring")
                    await broker.until(lambda _, b=broker, heard=heard: len(b.rung) > heard, "the watch rings")
                    assert broker.rung[-1] == broker.watched[-1]
            assert made[0].watched[-1] == gone[0]
            assert await asyncio.to_thread(leases, client) == before
            assert all(broker.coordination.is_available for broker in made)
        client.close()

    with Links(server) as links:
        run(lambda: scenario(links))


def test_silence_about_a_lease_is_not_its_end(server: EtcdServer) -> None:
    """Goal: an endpoint that says nothing when a lease is to be renewed is passed over, and the lease is kept through
    another."""

    async def scenario(links: Links) -> None:
        client = etcd3.client(*server.endpoint)
        async with brokers(server, 1, endpoints=links.endpoints, ttl_seconds=LONGER_TTL_SECONDS) as (broker,):
            before = await asyncio.to_thread(leases, client)
            used = broker.mute = broker.watched[-1]
            await broker.until(lambda _: broker.watched[-1] != used, "another is used")
            assert await asyncio.to_thread(leases, client) == before
            assert broker.coordination.is_available
        client.close()

    with Links(server) as links:
        run(lambda: scenario(links))


@pytest.mark.parametrize("mode", [HANG, CUT])
def test_a_start_with_one_endpoint_of_three(server: EtcdServer, mode: str) -> None:
    """Goal: a broker starts where one endpoint, or two, are silent or refusing: each is asked once, until one answers,
    and no other from then on."""

    async def scenario(links: Links) -> None:
        gone: list[Address] = []
        for _ in links.endpoints:
            async with brokers(server, 1, endpoints=links.endpoints, ttl_seconds=LONGER_TTL_SECONDS) as (broker,):
                assert broker.asked[:-1] == gone
            gone = broker.asked
            links.set(gone[-1], mode)
        assert set(gone) == set(links.endpoints)

    with Links(server) as links:
        run(lambda: scenario(links))


def test_a_compaction_harms_no_watch(server: EtcdServer) -> None:
    """Goal: history that is gone from etcd is not missed."""

    async def scenario() -> None:
        async with brokers(server, 1, 2) as made:
            client = etcd3.client(*server.endpoint)
            for number in range(20):
                client.put("/kafscale/ns/noise", str(number))
            client.compact(client.get_prefix_response("/kafscale/ns/").header.revision)
            client.close()
            await made[0].coordination.join(member(1, leaving=True))
            await made[1].until(lambda c: c.members()[0].leaving, "the change arrives")

    run(scenario)


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        (ClusterIdentity("another", 256, 1), "cluster id is 'a-cluster', that of the bucket is 'another'"),
        (ClusterIdentity("a-cluster", 64, 1), "slot count is 256, that of the bucket is 64"),
    ],
)
def test_anothers_etcd_is_refused(server: EtcdServer, identity: ClusterIdentity, named: str) -> None:
    """Goal: who comes with another bucket is told what differs."""

    async def scenario() -> None:
        async with brokers(server, 1):
            stranger = Broker(EtcdServers(endpoints=(server.endpoint,)))
            with pytest.raises(StartError, match=named):
                await stranger.coordination.open(identity)
            await stranger.coordination.close()

    run(scenario)


def test_nobody_listens() -> None:
    """Goal: a clear line where there is no etcd at all."""

    async def scenario() -> None:
        broker = Broker(EtcdServers(endpoints=(("127.0.0.1", 1),)), ttl_seconds=1.0)
        with pytest.raises(StartError, match=r"etcd at 127\.0\.0\.1:1 gives no answer"):
            await broker.coordination.open(IDENTITY)
        await broker.coordination.close()

    run(scenario)


def test_rubbish_in_a_key_is_passed_over(server: EtcdServer) -> None:
    """Goal: what others wrote below our prefix stops nobody."""

    async def scenario() -> None:
        client = etcd3.client(*server.endpoint)
        client.put("/kafscale/ns/members/9", b"\xff{")
        client.put("/kafscale/ns/members/8", msgspec.json.encode({"broker_id": "eight"}))
        client.close()
        async with brokers(server, 1) as (broker,):
            await broker.coordination.publish(2, b"two")
            await broker.until(lambda c: c.newest_version == 2, "the version is known")
            assert broker.ids == [1]

    run(scenario)


def test_tls_and_a_password(tmp_path: Path) -> None:
    """Goal: certificates both ways, and a user that etcd asks for, at the one of several endpoints that is there;
    without either one is not let in."""
    ca = trustme.CA()
    files = {}
    for name, issued in (("server", ca.issue_cert("127.0.0.1")), ("client", ca.issue_cert("broker.test"))):
        files[name] = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(files[name][0])
        issued.private_key_pem.write_to_path(files[name][1])
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    with EtcdServer(tmp_path / "etcd", (*files["server"], tmp_path / "ca.pem")) as server:
        secure = EtcdServers(
            endpoints=(server.endpoint,),
            username="root",
            password="sesame",
            ca_file=str(tmp_path / "ca.pem"),
            cert_file=str(files["client"][0]),
            key_file=str(files["client"][1]),
        )
        _ask_for_passwords(secure)
        secure = msgspec.structs.replace(secure, endpoints=(server.endpoint, ("127.0.0.1", 1), ("127.0.0.1", 2)))

        async def scenario() -> None:
            broker = Broker(secure)
            await broker.coordination.open(IDENTITY)
            await broker.coordination.join(member(1))
            await broker.until(lambda _: broker.ids == [1], "it is registered")
            assert broker.asked[0] != broker.asked[-1] == server.endpoint
            await broker.coordination.close()
            for wrong in (
                msgspec.structs.replace(secure, password="abracadabra"),
                msgspec.structs.replace(secure, ca_file=None, cert_file=None, key_file=None),
            ):
                stranger = Broker(wrong, ttl_seconds=1.0)
                with pytest.raises(StartError, match="gives no answer"):
                    await stranger.coordination.open(IDENTITY)
                await stranger.coordination.close()

        run(scenario)


def _ask_for_passwords(servers: EtcdServers) -> None:
    """Have etcd ask everyone who they are."""
    (endpoint,) = servers.endpoints
    client = etcd3.client(
        *endpoint, ca_cert=servers.ca_file, cert_cert=servers.cert_file, cert_key=servers.key_file, timeout=10
    )
    messages = etcd3.etcdrpc
    client.authstub.UserAdd(messages.AuthUserAddRequest(name="root", password=servers.password))
    client.authstub.UserGrantRole(messages.AuthUserGrantRoleRequest(user="root", role="root"))
    client.authstub.AuthEnable(messages.AuthEnableRequest())
    client.close()


async def _published(broker: Broker, version: int) -> None:
    """Publish, as often as it takes: as the supervisor does when coordination has news."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await broker.coordination.publish(version, b"payload")
                return
            except CoordinationUnavailable:
                await asyncio.sleep(0.05)

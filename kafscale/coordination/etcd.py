"""Coordination by etcd.

What is in etcd, below `/kafscale/{namespace}/`, and what it may be used for: docs/adr/0009-etcd.md. In short: nothing
that anyone would miss. A session is a lease and what hangs on it: this broker's registration and, perhaps, the
leadership. It outlives the endpoint that it began at: its connection makes a call that gets no answer at the others
too. Only what fails at all of them, or is refused, ends the session, and another begins, with a new lease, as soon as
etcd answers again.

Who is alive, who leads and how far the cluster log is comes from listings alone: after every event, and every second.
A watch is no more than a doorbell, so that events that come twice, late, in another order or never do no harm. A
listing of an earlier revision than the one before ends the session: etcd was restored from a backup, perhaps while we
slept, and what we held may be another's.

It owns two threads for etcd's blocking calls, and what was listed last. `is_available` turns false by the local clock
when the lease has not been renewed for its time to live, whatever etcd's own clock says, and while etcd knows an older
version of the cluster log than this broker does (it was restored from a backup, or lost).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import secrets
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

from kafscale.clock import Clock
from kafscale.coordination.etcd_client import (
    FAILURES,
    Address,
    EtcdConnection,
    EtcdServers,
    NoAnswer,
    open_client,
    text_of,
)
from kafscale.coordination.store import ClusterIdentity, Member
from kafscale.errors import CoordinationUnavailable, StartError

log = logging.getLogger(__name__)

# How long an endpoint is waited for at most.
CALL_SECONDS = 3.0
LOOK_SECONDS = 1.0
# etcd takes requests of 1.5 MiB; a larger version is only named, and read from the bucket by all.
COPY_BYTES_MAX = 1 << 20
# A lease is renewed so often in its time to live, and one of several endpoints is waited for no longer than for one of
# these: so two may be silent, one after the other, and the lease is still renewed in time through a third.
_RENEWALS_PER_TTL = 4
_BACKOFF_SECONDS = (0.2, 5.0)

_Result = TypeVar("_Result")


class _View(msgspec.Struct, frozen=True):
    """What a listing said."""

    revision: int = 0
    members: tuple[Member, ...] = ()
    leader: str = ""
    version: int = 0


class _Session(msgspec.Struct):
    """One lease, by etcd's number for it, and the connection to keep it by. `nonce` names it to others."""

    connection: EtcdConnection
    lease: int
    nonce: str
    registered: Member | None = None
    # When the keeper last did so.
    registered_at: float = 0.0
    # Until when the lease lasts at least (monotonic seconds), and when it was last renewed.
    deadline: float = 0.0
    renewed_at: float = 0.0
    # The client whose watch rings; it is silent where the connection uses another by now.
    watcher: Any = None
    # The newest version that etcd has confirmed since the last listing began; 0 for none.
    published: int = 0


class EtcdCoordination:
    """A `CoordinationStore` over etcd. Built on a running loop; `open` begins. `open_client` is called in a thread with
    the servers, one of their endpoints and the seconds that a call waits; what it returns is used as etcd3's client is.
    """

    def __init__(
        self,
        servers: EtcdServers,
        namespace: str,
        ttl_seconds: float,
        clock: Clock,
        random_source: random.Random,
        open_client: Callable[[EtcdServers, Address, float], Any] = open_client,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._servers = servers
        self._open_client = open_client
        self._prefix = f"/kafscale/{namespace}/"
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._random = random_source
        # Brokers begin at different ones, and share the load.
        order = list(servers.endpoints)
        random_source.shuffle(order)
        self._order = deque(order)
        self._threads = ThreadPoolExecutor(2, "etcd")
        self._identity: ClusterIdentity | None = None
        self._member: Member | None = None
        self._campaigns = False
        self._session: _Session | None = None
        self._view = _View()
        # The newest version of the cluster log that this broker published or would publish.
        self._known_version = 0
        self._told: tuple[object, ...] = ()
        self._rung = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._observer: asyncio.Task[None] | None = None

    # CoordinationStore

    @property
    def ttl_seconds(self) -> float:
        return self._ttl_seconds

    async def open(self, identity: ClusterIdentity) -> None:
        """Raises StartError where etcd belongs to another cluster or gives no answer for one time to live."""
        self._identity = identity
        deadline = self._clock.monotonic() + self._ttl_seconds
        while True:
            try:
                self._session = await self._begin()
                break
            except FAILURES as error:
                if self._clock.monotonic() >= deadline:
                    raise StartError(f"etcd at {self._servers} gives no answer: {text_of(error)}") from error
            await self._clock.sleep(_BACKOFF_SECONDS[0])
        self._keeper = asyncio.create_task(self._keep(), name="etcd session")
        self._observer = asyncio.create_task(self._observe(), name="etcd observer")

    async def join(self, member: Member) -> None:
        """Raises CoordinationUnavailable; it is registered as soon as etcd is back all the same."""
        self._member = member
        await self._try(self._register)
        self._rung.set()

    async def campaign(self) -> None:
        self._campaigns = True
        self._rung.set()

    @property
    def is_leader(self) -> bool:
        session = self._session
        return session is not None and self._view.leader == session.nonce and self._clock.monotonic() < session.deadline

    @property
    def is_available(self) -> bool:
        session = self._session
        return (
            session is not None
            and self._clock.monotonic() < session.deadline
            and self.newest_version >= self._known_version
        )

    @property
    def newest_version(self) -> int:
        return max(self._view.version, 0 if self._session is None else self._session.published)

    def members(self) -> list[Member]:
        return list(self._view.members)

    async def publish(self, version: int, payload: bytes) -> None:
        """Raises CoordinationUnavailable."""
        try:
            await self._try(lambda session: self._raise_version(session, version, payload))
        finally:
            # Not before: a version that is on its way doesn't make etcd count as behind.
            self._known_version = max(self._known_version, version)
            self._rung.set()
            self._tell()

    async def close(self) -> None:
        tasks = [task for task in (self._keeper, self._observer) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            with suppress(*FAILURES):
                await self._ask(session, lambda client: client.revoke_lease(session.lease))
            await self._end(session)
        self._threads.shutdown(wait=False)

    # Sessions

    async def _keep(self) -> None:
        """Keep a session, and the view up to date, for ever."""
        failures = 0
        while True:
            try:
                if self._session is None:
                    self._session = await self._begin()
                    log.info("coordination is back", extra={"etcd": str(self._servers)})
                failures = 0
                await self._keep_session(self._session)
            except (*FAILURES, StartError) as error:
                if not failures:
                    log.warning(
                        "coordination is lost; what is owned is served on",
                        extra={"etcd": str(self._servers), "cause": text_of(error)},
                    )
                failures += 1
            session, self._session = self._session, None
            if session is not None:
                await self._end(session)
            self._tell()
            least, most = _BACKOFF_SECONDS
            bound = min(least * 2 ** min(failures, 10), most, self._ttl_seconds / 2)
            await self._clock.sleep(bound * (0.5 + self._random.random() / 2))

    async def _begin(self) -> _Session:
        """A session in which this broker is registered. Raises StartError where etcd is another cluster's."""
        session = await self._call(self._grant)
        try:
            await self._call(lambda: self._check_identity(session))
            if self._member is not None:
                await self._call(lambda: self._register(session))
            await self._look(session)
        except BaseException:
            await self._end(session)
            raise
        return session

    async def _keep_session(self, session: _Session) -> None:
        while True:
            self._rung.clear()
            now = self._clock.monotonic()
            if now - session.renewed_at >= self._ttl_seconds / _RENEWALS_PER_TTL:
                await self._call(lambda: self._renew(session))
            if session.watcher is None or session.watcher is not session.connection.client:
                await self._watch(session)
            if self._member is not session.registered or self._is_overtaken(session, now):
                await self._call(lambda: self._register(session))
                session.registered_at = now
            await self._look(session)
            if self._campaigns and not self._view.leader:
                await self._call(lambda: self._take_lead(session))
                await self._look(session)
            renews_in = session.renewed_at + self._ttl_seconds / _RENEWALS_PER_TTL - self._clock.monotonic()
            timer = self._clock.call_later(max(0.0, min(LOOK_SECONDS, renews_in)), self._rung.set)
            try:
                await self._rung.wait()
            finally:
                timer.cancel()

    def _is_overtaken(self, session: _Session, now: float) -> bool:
        """Whether the last listing lacks what we last said of ourselves: calls overtake each other, and one that was
        given up may arrive later. Not asked all the time, so that two brokers of one number don't outshout each other.
        """
        if self._member is None or now - session.registered_at < LOOK_SECONDS:
            return False
        return self._member not in self._view.members

    async def _watch(self, session: _Session) -> None:
        loop = asyncio.get_running_loop()

        def ring(client: Any, event: object) -> None:
            """In a thread of the client's. A watch whose stream failed or ended falls silent: another must be set."""
            if (event is None or isinstance(event, Exception)) and session.watcher is client:
                session.watcher = None
            with suppress(RuntimeError):  # The loop may be closed already.
                loop.call_soon_threadsafe(self._rung.set)

        revision = self._view.revision + 1

        def watch(client: Any) -> None:
            session.watcher = client
            client.add_watch_prefix_callback(self._prefix, functools.partial(ring, client), start_revision=revision)

        await self._ask(session, watch)

    async def _look(self, session: _Session) -> None:
        published = session.published
        view = await self._call(lambda: self._list(session))
        if session.published == published:
            # This listing began afterwards: it says what etcd still knows of it.
            session.published = 0
        # Listings of a session come one after the other, and each says all that etcd knows at that moment.
        if session is self._session and view.revision < self._view.revision:
            raise OSError("etcd has gone back to an earlier state: it was restored, or emptied")
        self._view = view
        self._tell()

    async def _observe(self) -> None:
        """Notice what changes by time alone."""
        while True:
            await self._clock.sleep(min(LOOK_SECONDS, self._ttl_seconds / _RENEWALS_PER_TTL))
            self._tell()

    def _tell(self) -> None:
        now = (self.members(), self.is_leader, self.is_available, self.newest_version)
        if now != self._told:
            self._told = now
            self.on_change()

    async def _try(self, work: Callable[[_Session], None]) -> None:
        """Do something in the session that there is. Raises CoordinationUnavailable."""
        session = self._session
        if session is None:
            raise CoordinationUnavailable(f"etcd at {self._servers} does not answer")
        try:
            await self._call(lambda: work(session))
        except (*FAILURES, StartError) as error:
            raise CoordinationUnavailable(f"etcd at {self._servers} failed: {text_of(error)}") from error

    async def _ask(self, session: _Session, call: Callable[[Any], _Result]) -> _Result:
        return await self._call(lambda: session.connection.ask(call))

    async def _call(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def _end(self, session: _Session) -> None:
        with suppress(*FAILURES):
            await self._call(session.connection.close)

    # In threads

    def _grant(self) -> _Session:
        """A session that holds nothing yet but its lease."""
        is_only = len(self._order) == 1
        call_seconds = CALL_SECONDS if is_only else min(CALL_SECONDS, self._ttl_seconds / _RENEWALS_PER_TTL)
        connection = EtcdConnection(self._servers, self._order, call_seconds, self._open_client)

        def grant(client: Any) -> _Session:
            now = self._clock.monotonic()
            lease: int = client.lease(max(1, round(self._ttl_seconds))).id
            deadline = now + self._ttl_seconds
            return _Session(connection, lease, secrets.token_hex(16), deadline=deadline, renewed_at=now)

        try:
            return connection.ask(grant)
        except BaseException:
            connection.close()
            raise

    def _renew(self, session: _Session) -> None:
        def renew(client: Any) -> float:
            now = self._clock.monotonic()
            answers = list(client.refresh_lease(session.lease))
            if not answers:
                raise NoAnswer("the lease's stream ended without an answer")
            if answers[-1].TTL <= 0:
                raise OSError("the lease has run out")
            return now

        session.renewed_at = session.connection.ask(renew)
        session.deadline = session.renewed_at + self._ttl_seconds

    def _check_identity(self, session: _Session) -> None:
        key = self._prefix + "identity"
        ours = msgspec.json.encode(self._identity)

        def ask(client: Any) -> bytes | None:
            client.transaction(
                compare=[client.transactions.create(key) == 0], success=[client.transactions.put(key, ours)], failure=[]
            )
            found: bytes | None = client.get(key)[0]
            return found

        found = session.connection.ask(ask)
        if found is None:
            raise OSError("what was written is not there")
        theirs = msgspec.json.decode(found, type=ClusterIdentity)
        for name in ClusterIdentity.__struct_fields__:
            here, there = getattr(self._identity, name), getattr(theirs, name)
            if here != there:
                raise StartError(
                    f"etcd at {self._servers} belongs to another cluster: its {name.replace('_', ' ')} is {there!r},"
                    f" that of the bucket is {here!r}. Give every cluster a namespace of its own"
                    f" (KAFSCALE_CLUSTER_NAMESPACE), or delete {key} if that cluster is gone"
                )

    def _register(self, session: _Session) -> None:
        member = self._member
        assert member is not None
        key, value = f"{self._prefix}members/{member.broker_id}", msgspec.json.encode(member)
        session.connection.ask(lambda client: client.put(key, value, lease=session.lease))
        session.registered = member

    def _take_lead(self, session: _Session) -> None:
        key = self._prefix + "leader"

        def take(client: Any) -> None:
            put = client.transactions.put(key, session.nonce, lease=session.lease)
            client.transaction(compare=[client.transactions.create(key) == 0], success=[put], failure=[])

        session.connection.ask(take)

    def _raise_version(self, session: _Session, version: int, payload: bytes) -> None:
        """Never lowers it. Numbers have as many digits all, so that they compare as texts."""
        key, copy = self._prefix + "version", self._prefix + "copy"
        number = f"{version:020d}"

        def write(client: Any) -> None:
            writes = [client.transactions.put(key, number)]
            if len(payload) <= COPY_BYTES_MAX:
                writes.append(client.transactions.put(copy, payload))
            else:
                writes.append(client.transactions.delete(copy))
            is_first, _ = client.transaction(
                compare=[client.transactions.create(key) == 0], success=list(writes), failure=[]
            )
            if not is_first:
                client.transaction(compare=[client.transactions.value(key) < number], success=list(writes), failure=[])

        session.connection.ask(write)
        session.published = max(session.published, version)

    def _list(self, session: _Session) -> _View:
        answer = session.connection.ask(lambda client: client.get_prefix_response(self._prefix))
        members: list[Member] = []
        leader, version = "", 0
        for entry in answer.kvs:
            name = entry.key.decode(errors="replace").removeprefix(self._prefix)
            try:
                if name.startswith("members/"):
                    members.append(msgspec.json.decode(entry.value, type=Member))
                elif name == "leader":
                    leader = entry.value.decode()
                elif name == "version":
                    version = int(entry.value)
            except (msgspec.MsgspecError, ValueError) as error:
                log.error("a key in etcd makes no sense", extra={"key": name, "cause": str(error)})
        members.sort(key=lambda member: member.broker_id)
        return _View(answer.header.revision, tuple(members), leader, version)

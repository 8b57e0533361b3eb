"""Coordination by etcd. The one file that knows etcd3.

What is in etcd, below `/kafscale/{namespace}/`, and what it may be used for: docs/adr/0009-etcd.md. In short: nothing
that anyone would miss. A session is a client, a lease, and what hangs on it: this broker's registration and, perhaps,
the leadership. Whatever fails ends the session, and another begins, with a new lease, as soon as etcd answers again.

Who is alive, who leads and how far the cluster log is comes from listings alone: after every event, and every second.
A watch is no more than a doorbell, so that events that come twice, late, in another order or never do no harm.

It owns two threads for etcd's blocking calls, and what was listed last. `is_available` turns false by the local clock
when the lease has not been renewed for its time to live, whatever etcd's own clock says, and while etcd knows an older
version of the cluster log than this broker does (it was restored from a backup, or lost).
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import etcd3
import grpc
import msgspec
from etcd3.exceptions import Etcd3Exception

from kafscale.clock import Clock
from kafscale.coordination.store import ClusterIdentity, Member
from kafscale.errors import CoordinationUnavailable, StartError

log = logging.getLogger(__name__)

CALL_SECONDS = 3.0
LOOK_SECONDS = 1.0
# etcd takes requests of 1.5 MiB; a larger version is only named, and read from the bucket by all.
COPY_BYTES_MAX = 1 << 20
_RENEWALS_PER_TTL = 4
_BACKOFF_SECONDS = (0.2, 5.0)
_FAILURES = (Etcd3Exception, grpc.RpcError, ValueError, OSError)

_Result = TypeVar("_Result")


class EtcdServers(msgspec.Struct, frozen=True, kw_only=True):
    """Where etcd is and how to be let in. With a CA, or a certificate, connections are TLS ones in any case."""

    endpoints: tuple[tuple[str, int], ...]
    tls: bool = False
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @property
    def is_secure(self) -> bool:
        return self.tls or self.ca_file is not None or self.cert_file is not None

    def __str__(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self.endpoints)


class _View(msgspec.Struct, frozen=True):
    """What a listing said."""

    revision: int = 0
    members: tuple[Member, ...] = ()
    leader: str = ""
    version: int = 0


class _Session(msgspec.Struct):
    """One lease and the client that it was granted to. `nonce` names it to others."""

    client: Any
    lease: Any
    nonce: str
    registered: Member | None = None
    # When the keeper last did so.
    registered_at: float = 0.0
    # Until when the lease lasts at least (monotonic seconds), and when it was last renewed.
    deadline: float = 0.0
    renewed_at: float = 0.0
    is_watching: bool = False
    # The newest version that etcd has confirmed since the last listing began; 0 for none.
    published: int = 0


def open_client(servers: EtcdServers) -> Any:
    """An etcd3 client; it connects with its first call."""
    credentials = None
    if servers.is_secure:
        credentials = grpc.ssl_channel_credentials(
            _content(servers.ca_file), _content(servers.key_file), _content(servers.cert_file)
        )
    endpoints = [
        etcd3.Endpoint(host, port, secure=servers.is_secure, creds=credentials, time_retry=1.0)
        for host, port in servers.endpoints
    ]
    client = etcd3.MultiEndpointEtcd3Client(
        endpoints, timeout=CALL_SECONDS, user=servers.username, password=servers.password, failover=True
    )
    if not servers.is_secure:
        # gRPC lets nobody send these in the clear; the token goes along as metadata anyway.
        client.call_credentials = None
    return client


class EtcdCoordination:
    """A `CoordinationStore` over etcd. Built on a running loop; `open` begins. `open_client` is called in a thread, and
    what it returns is used as etcd3's client is."""

    def __init__(
        self,
        servers: EtcdServers,
        namespace: str,
        ttl_seconds: float,
        clock: Clock,
        random_source: random.Random,
        open_client: Callable[[EtcdServers], Any] = open_client,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._servers = servers
        self._open_client = open_client
        self._prefix = f"/kafscale/{namespace}/"
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._random = random_source
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
            except _FAILURES as error:
                if self._clock.monotonic() >= deadline:
                    raise StartError(f"etcd at {self._servers} gives no answer: {_text(error)}") from error
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
            with suppress(*_FAILURES):
                await self._call(session.lease.revoke)
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
            except (*_FAILURES, StartError) as error:
                if not failures:
                    log.warning(
                        "coordination is lost; what is owned is served on",
                        extra={"etcd": str(self._servers), "cause": _text(error)},
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
        began = self._clock.monotonic()
        session = await self._call(self._connect)
        session.deadline = began + self._ttl_seconds
        session.renewed_at = began
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
                answers = await self._call(session.lease.refresh)
                if not answers or answers[-1].TTL <= 0:
                    raise OSError("the lease has run out")
                session.renewed_at = now
                session.deadline = now + self._ttl_seconds
            if not session.is_watching:
                await self._watch(session)
            if self._member is not session.registered or self._is_overtaken(session, now):
                await self._call(lambda: self._register(session))
                session.registered_at = now
            await self._look(session)
            if self._campaigns and not self._view.leader:
                await self._call(lambda: self._take_lead(session))
                await self._look(session)
            timer = self._clock.call_later(min(LOOK_SECONDS, self._ttl_seconds / _RENEWALS_PER_TTL), self._rung.set)
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

        def ring(event: object) -> None:
            """In a thread of the client's. A watch that failed falls silent: another must be set."""
            if isinstance(event, Exception):
                session.is_watching = False
            with suppress(RuntimeError):  # The loop may be closed already.
                loop.call_soon_threadsafe(self._rung.set)

        session.is_watching = True
        revision = self._view.revision + 1
        await self._call(lambda: session.client.add_watch_prefix_callback(self._prefix, ring, start_revision=revision))

    async def _look(self, session: _Session) -> None:
        published = session.published
        view = await self._call(lambda: self._list(session))
        if session.published == published:
            # This listing began afterwards: it says what etcd still knows of it.
            session.published = 0
        # Two calls may overtake each other.
        if view.revision >= self._view.revision or session is not self._session:
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
        except _FAILURES as error:
            raise CoordinationUnavailable(f"etcd at {self._servers} failed: {_text(error)}") from error

    async def _call(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def _end(self, session: _Session) -> None:
        with suppress(*_FAILURES):
            await self._call(session.client.close)

    # In threads

    def _connect(self) -> _Session:
        client = self._open_client(self._servers)
        try:
            lease = client.lease(max(1, round(self._ttl_seconds)))
        except BaseException:
            client.close()
            raise
        return _Session(client, lease, secrets.token_hex(16))

    def _check_identity(self, session: _Session) -> None:
        assert self._identity is not None
        client, key = session.client, self._prefix + "identity"
        ours = msgspec.json.encode(self._identity)
        client.transaction(
            compare=[client.transactions.create(key) == 0], success=[client.transactions.put(key, ours)], failure=[]
        )
        found, _ = client.get(key)
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
        session.client.put(
            f"{self._prefix}members/{member.broker_id}", msgspec.json.encode(member), lease=session.lease
        )
        session.registered = member

    def _take_lead(self, session: _Session) -> None:
        client, key = session.client, self._prefix + "leader"
        put = client.transactions.put(key, session.nonce, lease=session.lease)
        client.transaction(compare=[client.transactions.create(key) == 0], success=[put], failure=[])

    def _raise_version(self, session: _Session, version: int, payload: bytes) -> None:
        """Never lowers it. Numbers have as many digits all, so that they compare as texts."""
        client, key, copy = session.client, self._prefix + "version", self._prefix + "copy"
        number = f"{version:020d}"
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
        session.published = max(session.published, version)

    def _list(self, session: _Session) -> _View:
        answer = session.client.get_prefix_response(self._prefix)
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


def _content(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()


def _text(error: BaseException) -> str:
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error) or type(error).__name__

"""A simulated etcd: as small as `kafscale/coordination/etcd.py` needs it, and as bad as its promises allow.

One server for all brokers of a world; each session uses it through a client of its own, whose methods block (in the
world's threads) and answer as etcd3's do. Keys have revisions, leases run out by etcd's own time, and transactions are
atomic. Calls take time there and back; an answer may be lost, with the call applied or not. Events of a watch come
late, twice, in another order, or not at all; a watch dies of compaction or with the server, with a word or without.
The server may give no answers for a while, be started anew, lose everything, or be restored from an old backup; a
machine may be cut off from it. What is never allowed happens in no case: a read that lacks what was confirmed, unless
the data were lost, and a key that outlives its lease.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from etcd3 import Transactions, etcdrpc
from etcd3.exceptions import (
    ConnectionFailedError,
    ConnectionTimeoutError,
    Etcd3Exception,
    RevisionCompactedError,
)
from etcd3.transactions import Create, Delete, Put, Value

from tests.sim.threads import Settle, wait
from tests.sim.world import Process, World

CALL_SECONDS = 3.0
# etcd looks for leases that have run out every half second.
EXPIRY_SECONDS = 0.5


class EtcdFaults(msgspec.Struct, kw_only=True):
    """How bad: probabilities per call and per event, times in seconds."""

    delay_least: float = 0.0003
    delay_usual: float = 0.002
    slow: float = 0.01
    slow_seconds: float = 0.4
    answer_lost_applied: float = 0.0
    answer_lost_not_applied: float = 0.0
    event_lost: float = 0.02
    event_twice: float = 0.05
    event_late: float = 0.1
    event_late_seconds: float = 2.0


@dataclass(frozen=True)
class _Entry:
    value: bytes
    create_revision: int
    lease: int


@dataclass
class _Grant:
    ttl: float
    expires_at: float


@dataclass
class _Data:
    """What a backup holds."""

    revision: int = 1
    keys: dict[str, _Entry] = field(default_factory=dict)
    leases: dict[int, float] = field(default_factory=dict)


@dataclass(eq=False)
class _Watch:
    process: Process
    prefix: str
    callback: Callable[[object], None]


class SimEtcd:
    """The server."""

    def __init__(self, world: World, faults: EtcdFaults | None = None) -> None:
        self.world = world
        self.faults = faults or EtcdFaults()
        self.random: random.Random = world.stream("etcd")
        self.unavailable_until = 0.0
        # Names of machines.
        self.cut_off: set[str] = set()
        self.revision = 1
        self.keys: dict[str, _Entry] = {}
        self._compacted = 0
        self._grants: dict[int, _Grant] = {}
        self._watches: list[_Watch] = []
        self._lease_numbers = 7_000
        # Data were lost since the last leader was chosen: two may believe to lead.
        self.lost_at = -1e9
        self._tick()

    def client(self, process: Process) -> EtcdClient:
        return EtcdClient(self, process)

    # Faults

    def refuses(self, process: Process) -> bool:
        return self.world.loop.time() < self.unavailable_until or process.machine.name in self.cut_off

    def fail_for(self, seconds: float) -> None:
        """No quorum: nothing is answered, and no lease runs out; then a new leader gives every lease its whole time
        again."""
        self.unavailable_until = max(self.unavailable_until, self.world.loop.time() + seconds)
        self._end_watches()
        self._later(seconds, self._extend)

    def compact(self) -> None:
        self._compacted = self.revision
        for watch in self._watches[:]:
            if self.random.random() < 0.7:
                self._end_watch(watch, RevisionCompactedError(self._compacted))

    def backup(self) -> _Data:
        return _Data(self.revision, dict(self.keys), {number: grant.ttl for number, grant in self._grants.items()})

    def restore(self, data: _Data | None, seconds: float) -> None:
        """Give no answers for a while, then come back with what the backup holds, or with nothing."""
        self.fail_for(seconds)
        held = data or _Data()
        now = self.world.loop.time()
        self.revision = held.revision
        self.keys = dict(held.keys)
        self._compacted = 0
        self._grants = {number: _Grant(ttl, now + seconds + ttl) for number, ttl in held.leases.items()}
        self.lost_at = now + seconds

    def _extend(self) -> None:
        now = self.world.loop.time()
        if now < self.unavailable_until:
            return
        for grant in self._grants.values():
            grant.expires_at = max(grant.expires_at, now + grant.ttl)

    # What clients ask for, at the moment at which it arrives

    def grant(self, ttl: float) -> int:
        self._lease_numbers += self.random.randint(1, 1000)
        self._grants[self._lease_numbers] = _Grant(ttl, self.world.loop.time() + ttl)
        return self._lease_numbers

    def keep_alive(self, lease: int) -> int:
        """Its time to live; 0 if there is no such lease."""
        grant = self._grants.get(lease)
        if grant is None:
            return 0
        grant.expires_at = self.world.loop.time() + grant.ttl
        return round(grant.ttl)

    def revoke(self, lease: int) -> None:
        if self._grants.pop(lease, None) is None:
            raise Etcd3Exception("etcdserver: requested lease not found")
        gone = [key for key, entry in self.keys.items() if entry.lease == lease]
        if gone:
            self.revision += 1
        for key in gone:
            del self.keys[key]
            self._changed(key)

    def transact(
        self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any]
    ) -> tuple[bool, list[object]]:
        holds = all(self._holds(each) for each in compare)
        self.write(success if holds else failure)
        return holds, []

    def write(self, operations: Sequence[Any]) -> None:
        for operation in operations:
            lease: int = getattr(operation, "lease", None) or 0
            if lease and lease not in self._grants:
                raise Etcd3Exception("etcdserver: requested lease not found")
        if operations:
            self.revision += 1
        for operation in operations:
            key = operation.key
            if isinstance(operation, Put):
                before = self.keys.get(key)
                created = before.create_revision if before is not None else self.revision
                value = operation.value.encode() if isinstance(operation.value, str) else bytes(operation.value)
                self.keys[key] = _Entry(value, created, operation.lease or 0)
            elif isinstance(operation, Delete):
                self.keys.pop(key, None)
            else:
                raise TypeError(f"{operation!r} is not simulated")
            self._changed(key)

    def _holds(self, compare: Any) -> bool:
        entry = self.keys.get(compare.key)
        if isinstance(compare, Create):
            found: Any = entry.create_revision if entry is not None else 0
            wanted: Any = compare.value
        elif isinstance(compare, Value):
            if entry is None:
                return False
            found, wanted = entry.value, compare.value.encode()
        else:
            raise TypeError(f"{compare!r} is not simulated")
        if compare.op == etcdrpc.Compare.EQUAL:
            return bool(found == wanted)
        if compare.op == etcdrpc.Compare.LESS:
            return bool(found < wanted)
        raise TypeError(f"{compare!r} is not simulated")

    def watch(self, watch: _Watch, start_revision: int) -> None:
        if start_revision <= self._compacted:
            raise RevisionCompactedError(self._compacted)
        self._watches.append(watch)
        if start_revision <= self.revision:
            self._tell(watch, "what came before")

    # What goes on by itself

    def _tick(self) -> None:
        now = self.world.loop.time()
        if now >= self.unavailable_until:
            for lease in [number for number, grant in self._grants.items() if grant.expires_at <= now]:
                self.world.trace(f"etcd lease {lease} has run out")
                self.revoke(lease)
        self._later(EXPIRY_SECONDS, self._tick)

    def _changed(self, key: str) -> None:
        self.world.trace(f"etcd {key} is {self.keys[key].value[:300]!r}" if key in self.keys else f"etcd {key} is gone")
        self._watches = [watch for watch in self._watches if not watch.process.is_dead]
        for watch in self._watches:
            if key.startswith(watch.prefix):
                self._tell(watch, key)

    def _tell(self, watch: _Watch, what: str) -> None:
        faults, chance = self.faults, self.random
        fate = chance.random()
        if fate < faults.event_lost:
            self.world.counts["lost events"] += 1
            return
        times = 2 if fate < faults.event_lost + faults.event_twice else 1
        for _ in range(times):
            seconds = self.delay()
            if chance.random() < faults.event_late:
                self.world.counts["late events"] += 1
                seconds += chance.expovariate(1 / faults.event_late_seconds)
            self._later(seconds, self._deliver, watch, what)
        self.world.counts["repeated events"] += times - 1

    def _deliver(self, watch: _Watch, what: object) -> None:
        if not self.refuses(watch.process):
            watch.process.deliver(watch.callback, what)

    def _end_watches(self) -> None:
        for watch in self._watches[:]:
            self._end_watch(watch, ConnectionFailedError())

    def _end_watch(self, watch: _Watch, error: Exception) -> None:
        """With a word or without."""
        self._watches.remove(watch)
        if self.random.random() < 0.5:
            self._later(self.delay(), self._deliver, watch, error)
        else:
            self.world.counts["silent watches"] += 1

    def unwatch(self, watch: _Watch) -> None:
        if watch in self._watches:
            self._watches.remove(watch)

    # Calls

    def delay(self) -> float:
        faults = self.faults
        if self.random.random() < faults.slow:
            return faults.delay_least + self.random.expovariate(1 / faults.slow_seconds)
        return faults.delay_least + self.random.expovariate(1 / faults.delay_usual)

    def call(self, process: Process, operation: Callable[[], Any]) -> Callable[[Settle], None]:
        """A call of a client: when it arrives, what becomes of it, and when the answer comes."""

        def ask(settle: Settle) -> None:
            faults, chance = self.faults, self.random

            def reply(seconds: float, result: Any, error: BaseException | None) -> None:
                self._later(seconds, settle, result, error)

            def arrive() -> None:
                if process.is_dead:
                    return
                if self.refuses(process):
                    if chance.random() < 0.5:
                        reply(self.delay(), None, ConnectionFailedError())
                    else:
                        reply(CALL_SECONDS, None, ConnectionTimeoutError())
                    return
                fate = chance.random()
                if fate < faults.answer_lost_not_applied:
                    reply(CALL_SECONDS, None, ConnectionTimeoutError())
                    return
                try:
                    outcome: tuple[Any, BaseException | None] = (operation(), None)
                except Etcd3Exception as error:
                    outcome = (None, error)
                if fate < faults.answer_lost_not_applied + faults.answer_lost_applied:
                    reply(CALL_SECONDS, None, ConnectionTimeoutError())
                else:
                    reply(self.delay(), *outcome)

            self._later(self.delay(), arrive)

        return ask

    def _later(self, seconds: float, callback: Callable[..., Any], *arguments: Any) -> asyncio.TimerHandle:
        return self.world.loop.call_later(seconds, callback, *arguments, context=contextvars.Context())


@dataclass(frozen=True)
class _Lease:
    id: int


@dataclass(frozen=True)
class _KeptAlive:
    TTL: int


@dataclass(frozen=True)
class _Header:
    revision: int


@dataclass(frozen=True)
class _KeyValue:
    key: bytes
    value: bytes


@dataclass(frozen=True)
class _Range:
    header: _Header
    kvs: list[_KeyValue]


class EtcdClient:
    """A client in one process: of `etcd3.MultiEndpointEtcd3Client` what production code uses."""

    def __init__(self, etcd: SimEtcd, process: Process) -> None:
        self.transactions = Transactions()
        self._etcd = etcd
        self._process = process
        self._is_closed = False
        self._watches: list[_Watch] = []

    def ask(self, operation: Callable[[SimEtcd], Any]) -> Any:
        return wait(self._etcd.call(self._process, lambda: operation(self._etcd)))

    def lease(self, ttl: int) -> _Lease:
        return _Lease(self.ask(lambda etcd: etcd.grant(float(ttl))))

    def refresh_lease(self, lease: int) -> Iterator[_KeptAlive]:
        yield _KeptAlive(self.ask(lambda etcd: etcd.keep_alive(lease)))

    def revoke_lease(self, lease: int) -> None:
        self.ask(lambda etcd: etcd.revoke(lease))

    def put(self, key: str, value: bytes | str, lease: int = 0) -> None:
        self.ask(lambda etcd: etcd.write([Put(key, value, lease)]))

    def get(self, key: str) -> tuple[bytes | None, object]:
        entry = self.ask(lambda etcd: etcd.keys.get(key))
        return (entry.value, entry) if entry is not None else (None, None)

    def get_prefix_response(self, prefix: str) -> _Range:
        def operation(etcd: SimEtcd) -> _Range:
            found = [_KeyValue(key.encode(), entry.value) for key, entry in etcd.keys.items() if key.startswith(prefix)]
            return _Range(_Header(etcd.revision), found)

        found: _Range = self.ask(operation)
        return found

    def transaction(
        self, compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any]
    ) -> tuple[bool, list[object]]:
        answer: tuple[bool, list[object]] = self.ask(lambda etcd: etcd.transact(compare, success, failure))
        return answer

    def add_watch_prefix_callback(self, prefix: str, callback: Callable[[object], None], start_revision: int) -> int:
        def heard(event: object) -> None:
            if not self._is_closed:
                callback(event)

        watch = _Watch(self._process, prefix, heard)
        self._watches.append(watch)
        self.ask(lambda etcd: etcd.watch(watch, start_revision))
        return 1

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            for watch in self._watches:
                self._etcd.unwatch(watch)

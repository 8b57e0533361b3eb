"""What clients are charged for, and for how long who has used up its quota is not read.

A client's quota is a bucket that fills at the quota's rate and holds a second's worth. A request is served, and charged
as soon as it is known for how much: a Produce's bytes when it begins, a Fetch's when it is answered, and of every
request the time that it kept the loop busy. If the bucket then owes something the answer, which goes out at once, says
for how long; until that is paid nothing more is begun for the connection, nor read from it (KIP-219). Buckets are
shared by all workers of a broker through `QuotaUse`; brokers share nothing, as in Kafka. A Fetch is given no more than
its bucket holds, or a tenth of what it holds when full.

Owns which quotas count for whom, as the catalogue has them, and who is charged for a request under way. Where nobody
has set a quota, all that a request costs is the question whether somebody has. Knows answers only as bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from kafscale.clock import Clock
from kafscale.coordination.quotas import ClientQuota, Limit, QuotaRules
from kafscale.metrics import THROTTLED, THROTTLED_US, MetricsBlock
from kafscale.protocol.api import ApiKey
from kafscale.protocol.headers import RequestHeader
from kafscale.protocol.schema import Buffer
from kafscale.protocol.throttling import throttled
from kafscale.quota_use import QuotaUse

if TYPE_CHECKING:
    from workers.connection import Connection

# What a bucket holds, in seconds of its rate.
BUCKET_SECONDS: Final = 1.0
# Of what a bucket holds when full, what a Fetch may have of an empty one: more than a batch at a time.
FETCH_SHARE_MIN: Final = 0.1
# However much a client owes, it is asked again after so long.
MUTED_SECONDS_MAX: Final = 3600.0
# Clients (by user and client id) of which it is remembered what counts for them.
CLIENTS_MAX: Final = 10_000

# Of a Fetch's body: bytes at least, bytes at most. Before v15 the replica's id comes first.
_FETCH_BYTES: Final = struct.Struct(">ii")
_FETCH_WITHOUT_REPLICA: Final = 15
_SIZE: Final = struct.Struct(">i")
_THROTTLED_BY_PRODUCE, _THROTTLED_BY_FETCH, _THROTTLED_BY_REQUEST = (
    THROTTLED.at(kind) for kind in ("produce", "fetch", "request")
)


class Bucket:
    """One quota as it counts for one client. It has no state of its own: that is the use which workers share."""

    __slots__ = ("_tag", "_use", "rate")

    def __init__(self, limit: Limit, use: QuotaUse) -> None:
        self.rate = limit.rate
        self._use = use
        self._tag = use.tag_of(limit.shared_by)

    def charge(self, amount: float, now: float) -> float:
        """Take so much out of it; returns when it no longer owes anything, which may be long past."""
        full_at = now - BUCKET_SECONDS
        paid_at = max(self._use.paid_at(self._tag), full_at) + amount / self.rate
        self._use.set_paid_at(self._tag, paid_at, full_at)
        return paid_at

    def left(self, now: float) -> float:
        """What is in it; negative where it owes."""
        return min(now - self._use.paid_at(self._tag), BUCKET_SECONDS) * self.rate


class ClientLimits(NamedTuple):
    """What limits a client; at least one is there. `request` is of seconds, in hundredths."""

    produce: Bucket | None
    fetch: Bucket | None
    request: Bucket | None


class Quotas:
    """One worker's. `follow` is to be called with the quotas of every new state of the cluster that has others."""

    def __init__(self, clock: Clock, metrics: MetricsBlock, use: QuotaUse, quotas: Sequence[ClientQuota] = ()) -> None:
        self.clock = clock
        self.cells = metrics.cells
        self._use = use
        # By user and client id; None for who is not limited. The oldest goes first.
        self._clients: dict[tuple[str, str], ClientLimits | None] = {}
        self.follow(quotas)

    def follow(self, quotas: Sequence[ClientQuota]) -> None:
        """From now on go by these. What was used stays used."""
        self._rules = QuotaRules(quotas)
        self._clients = {}
        self.are_set = self._rules.are_set

    def limits_of(self, principal: str, client_id: str | None) -> ClientLimits | None:
        """What counts for a client; None where nothing does."""
        if not self.are_set:
            return None
        client = (principal.removeprefix("User:"), client_id or "")
        try:
            return self._clients[client]
        except KeyError:
            pass
        if len(self._clients) >= CLIENTS_MAX:
            del self._clients[next(iter(self._clients))]
        found = self._rules.limits_of(*client)
        limits = None
        if any(found):
            produce, fetch, request = (None if limit is None else Bucket(limit, self._use) for limit in found)
            if request is not None:
                request.rate /= 100
            limits = ClientLimits(produce, fetch, request)
        self._clients[client] = limits
        return limits

    def charge(self, principal: str, header: RequestHeader, request_bytes: int, now: float) -> Charge | None:
        """What a request that begins now is to be charged for; None where nothing limits its client."""
        limits = self.limits_of(principal, header.client_id)
        if limits is None:
            return None
        return Charge(self, limits, header.api_key, header.api_version, request_bytes, now)


class Charge:
    """What one request under way is charged for. `began_at`: monotonic seconds."""

    __slots__ = (
        "_began_at",
        "_is_begun",
        "_key",
        "_limits",
        "_owed_until",
        "_quotas",
        "_request_bytes",
        "_spent",
        "_version",
    )

    def __init__(
        self, quotas: Quotas, limits: ClientLimits, key: int, version: int, request_bytes: int, began_at: float
    ) -> None:
        self._quotas = quotas
        self._limits = limits
        self._key = key
        self._version = version
        self._request_bytes = request_bytes
        self._began_at = began_at
        # When all is paid for that it was charged to; 0.0 where nothing was owed.
        self._owed_until = 0.0
        # Seconds that the loop was busy with it, once it is left to others.
        self._spent: float | None = None
        self._is_begun = False

    def begin(self, connection: Connection) -> None:
        """Charge for what is known already. Where that leaves something owed, nothing more is begun for the client."""
        self._is_begun = True
        produce = self._limits.produce
        if produce is not None and self._key == ApiKey.PRODUCE:
            self._take(produce, self._request_bytes, self._began_at, _THROTTLED_BY_PRODUCE)
            self._mute(connection, self._began_at)

    def narrow(self, buffer: bytearray | memoryview, position: int, end: int) -> None:
        """Make a Fetch with its body at `position` ask for no more than it may have."""
        fetch = self._limits.fetch
        if not self._is_begun or fetch is None or self._key != ApiKey.FETCH:
            return
        at = position + (4 if self._version >= _FETCH_WITHOUT_REPLICA else 8)
        if at + _FETCH_BYTES.size > end:
            return  # which is an error, and found to be one
        least, most = _FETCH_BYTES.unpack_from(buffer, at)
        most = min(most, max(1, int(max(fetch.left(self._began_at), fetch.rate * BUCKET_SECONDS * FETCH_SHARE_MIN))))
        _FETCH_BYTES.pack_into(buffer, at, min(least, most), most)

    def left_to_others(self) -> None:
        """The request has been begun, and is answered later."""
        self._spent = self._quotas.clock.monotonic() - self._began_at

    def settle(self, connection: Connection, answer: Buffer | list[Buffer] | None) -> Buffer | list[Buffer] | None:
        """Charge for the rest, now that the answer is there; returns the answer to send. The connection is not read
        until what is owed is paid."""
        buffers = [] if answer is None else answer if isinstance(answer, list) else [answer]
        throttle_ms = self._settle(connection, sum(map(len, buffers)))
        if answer is None or not throttle_ms:
            return answer
        return throttled(self._key, self._version, buffers, throttle_ms)

    def settle_parts(self, connection: Connection, first: Buffer) -> Buffer:
        """The same for an answer in parts, of which this is the first: it begins with the size of all."""
        throttle_ms = self._settle(connection, _SIZE.size + int(_SIZE.unpack_from(first)[0]))
        return throttled(self._key, self._version, [first], throttle_ms)[0] if throttle_ms else first

    def _settle(self, connection: Connection, answer_bytes: int) -> int:
        """What the client is to be told."""
        now = self._quotas.clock.monotonic()
        _, fetch, request = self._limits
        if fetch is not None and self._key == ApiKey.FETCH:
            self._take(fetch, answer_bytes, now, _THROTTLED_BY_FETCH)
        if request is not None:
            spent = now - self._began_at if self._spent is None else self._spent
            self._take(request, spent, now, _THROTTLED_BY_REQUEST)
        if not self._owed_until:
            return 0
        self._mute(connection, now)
        # Rounded up: who comes sooner would wait unread. And that it was throttled is told where it is over by now.
        return max(1, math.ceil((self._owed_until - now) * 1000))

    def _take(self, bucket: Bucket, amount: float, now: float, cell: int) -> None:
        paid_at = min(bucket.charge(amount, now), now + MUTED_SECONDS_MAX)
        if paid_at > now:
            self._owed_until = max(self._owed_until, paid_at)
            cells = self._quotas.cells
            cells[cell] += 1
            cells[THROTTLED_US] += int((paid_at - now) * 1e6)

    def _mute(self, connection: Connection, now: float) -> None:
        if self._owed_until > now:
            connection.mute(self._owed_until - now)

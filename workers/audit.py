"""What a worker puts on record: logins, denials, changes, and allowed requests of the kinds that were asked for.

Makes events of what dispatch, handlers and the authenticator tell, and hands them to the outbox. What is the same as
something of the last seconds is counted, and told once, so that no client can fill the audit log by trying again.
Which rule decided is looked up for the first of these alone, and only so often. Decides one thing itself: what becomes
of a request whose record would have no room, as the settings say. Nothing here waits but for that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from kafscale.clock import Clock, Timer
from kafscale.config import Settings
from kafscale.control import AuditBatch, AuditWritten
from kafscale.errors import Invalid, KafscaleError
from kafscale.metrics import API_NAMES, AUDIT_REFUSED, MetricsBlock
from kafscale.protocol.api import Api, ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.headers import RequestHeader
from kafscale.protocol.schema import Message
from kafscale.security.access import Access, NoAccess, SnapshotAccess
from kafscale.security.audit_event import AuditEvent, Kind, Resource, Severity, capped
from kafscale.security.needs import Need
from workers.audit_outbox import Outbox
from workers.audited_access import AuditedAccess
from workers.audited_changes import resources_of
from workers.authentication import Login
from workers.caller import Caller
from workers.context import Request
from workers.errors import code_of, error_codes_in
from workers.pending import Pending

# What is alike is told once in so long.
WINDOW_SECONDS: Final = 10.0
# Different things that are counted so at the same time; beyond, the oldest are told early.
WINDOWS_MAX: Final = 4096
# What one request may put on record name by name; all that it names beyond is counted as one.
TOLD_PER_REQUEST_MAX: Final = 64
MORE: Final = "(more than are named)"
# Of a name or client id, what tells things from each other.
KEY_CHARS_MAX: Final = 256
# How often a second the rule that decided is looked up.
EXPLANATIONS_PER_SECOND: Final = 100
# How long the answer to a change waits for its record, where the sink is failing.
WRITTEN_SECONDS_MAX: Final = 5.0

KINDS_OF_REQUESTS: Final = {
    "produce": frozenset({ApiKey.PRODUCE, ApiKey.INIT_PRODUCER_ID}),
    "consume": frozenset({ApiKey.FETCH, ApiKey.LIST_OFFSETS, ApiKey.OFFSET_FOR_LEADER_EPOCH}),
    "describe": frozenset(
        {
            ApiKey.METADATA,
            ApiKey.FIND_COORDINATOR,
            ApiKey.DESCRIBE_GROUPS,
            ApiKey.LIST_GROUPS,
            ApiKey.DESCRIBE_ACLS,
            ApiKey.DESCRIBE_CONFIGS,
            ApiKey.DESCRIBE_LOG_DIRS,
            ApiKey.DESCRIBE_CLIENT_QUOTAS,
            ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS,
            ApiKey.DESCRIBE_CLUSTER,
        }
    ),
    "group": frozenset(
        {
            ApiKey.JOIN_GROUP,
            ApiKey.SYNC_GROUP,
            ApiKey.HEARTBEAT,
            ApiKey.LEAVE_GROUP,
            ApiKey.OFFSET_COMMIT,
            ApiKey.OFFSET_FETCH,
        }
    ),
}


class _Window:
    """Alike events since the first of them, which was told."""

    __slots__ = ("count", "event", "last_ms", "opened_at")

    def __init__(self, event: AuditEvent, opened_at: float) -> None:
        self.event = event
        self.opened_at = opened_at
        self.count = 0
        self.last_ms = event.time_ms


class Recorder:
    """One worker's. `receive` is to be called with every `AuditWritten`, `close` before the worker ends."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        metrics: MetricsBlock,
        node_id: int,
        send: Callable[[AuditBatch], None],
    ) -> None:
        self._clock = clock
        self._cells = metrics.cells
        self._node_id = node_id
        self._when_full = settings.audit_when_full
        self.outbox = Outbox(clock, metrics, send, settings.audit_queue_bytes)
        kinds = () if settings.audit_requests is None else settings.audit_requests.split(",")
        self._allowed: frozenset[int] = frozenset().union(*(KINDS_OF_REQUESTS[kind] for kind in kinds))
        # Begin no more Produce requests, and begin them again.
        self.hold_produce: Callable[[], None] = lambda: None
        self.release_produce: Callable[[], None] = lambda: None
        self._windows: OrderedDict[object, _Window] = OrderedDict()
        self._timer: Timer | None = None
        self._explained_in = 0
        self._explained = 0

    def records_allowed(self, key: int) -> bool:
        """Whether allowed requests of this API are put on record."""
        return key in self._allowed

    def receive(self, written: AuditWritten) -> None:
        """The supervisor has written some of it."""
        self.outbox.on_written(written.number)

    def close(self) -> None:
        """Tell of everything that was counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for window in self._windows.values():
            self._tell(window)
        self._windows.clear()
        self.outbox.flush()

    # Decisions

    def watch(self, access: Access, header: RequestHeader, caller: Caller) -> AuditedAccess:
        """The access of one request, whose decisions are told here."""
        return AuditedAccess(self, access, header, caller, records_allowed=header.api_key in self._allowed)

    def decided(self, access: AuditedAccess, need: Need, name: str, is_allowed: bool) -> None:
        """Something was allowed or denied."""
        header = access.header
        if access.told > TOLD_PER_REQUEST_MAX:
            name = MORE
        client_id = header.client_id or ""
        asked = (header.api_key, need.index, is_allowed, _short(name), _short(client_id))
        key = (asked, access.principal, access.host, access.listener)
        if self._count(key):
            return
        rule, source = self._explain(access.inner, need, name)
        self._open(
            key,
            AuditEvent(
                kind=Kind.ACCESS,
                time_ms=self._clock.wall_ms(),
                action=API_NAMES[header.api_key],
                is_success=is_allowed,
                severity=Severity.INFORMATIONAL if is_allowed else Severity.LOW,
                resources=[Resource(need.resource.name.lower(), capped(name))],
                decision="allowed" if is_allowed else "denied",
                operation=need.operation.name,
                rule=rule,
                rule_source=source,
                **self._asker(header, access.principal, access.host, access.listener),
            ),
        )

    def _explain(self, access: Access, need: Need, name: str) -> tuple[str, str]:
        """Which rule decided, and where it stands; nothing where that was looked up too often of late."""
        if isinstance(access, NoAccess):
            return "there are no rules yet", ""
        if not isinstance(access, SnapshotAccess):
            return "", ""
        second = int(self._clock.monotonic())
        if second != self._explained_in:
            self._explained_in, self._explained = second, 0
        self._explained += 1
        if self._explained > EXPLANATIONS_PER_SECOND:
            return "", ""
        found = access.explain(need, name)
        return found.rule or found.reason, found.source

    def _asker(self, header: RequestHeader, principal: str, host: str, listener: str) -> dict[str, Any]:
        return {
            "principal": capped(principal),
            "client_host": host,
            "client_id": None if header.client_id is None else capped(header.client_id),
            "listener": listener,
            "api_version": header.api_version,
            "correlation_id": header.correlation_id,
            "node_id": self._node_id,
        }

    # Logins

    def logged_in(self, login: Login) -> None:
        """A client has shown who it is, or could not."""
        key = (login.is_granted, login.principal, login.mechanism, login.client_host, login.listener, login.reason)
        if self._count(key):
            return
        self._open(
            key,
            AuditEvent(
                kind=Kind.AUTHENTICATION,
                time_ms=self._clock.wall_ms(),
                action="Log in again" if login.is_repeated else "Log in",
                is_success=login.is_granted,
                severity=Severity.INFORMATIONAL if login.is_granted else Severity.MEDIUM,
                principal=capped(login.principal),
                client_host=login.client_host,
                listener=login.listener,
                mechanism=capped(login.mechanism),
                reason=capped(login.reason, 512),
                node_id=self._node_id,
            ),
        )

    @property
    def admits(self) -> bool:
        """Whether anybody may log in: not while nobody would know of it."""
        if self._when_full == "drop" or not self.outbox.is_full:
            return True
        self._cells[AUDIT_REFUSED] += 1
        return False

    # Changes

    async def change(
        self, api: Api, request: Request, message: Message, make: Callable[[], Message | Awaitable[Message]]
    ) -> Message:
        """Have a change made, and put on record what came of it; the answer comes once that is written, or its sink has
        failed for a while. Raises what `make` does, and Invalid where the record has no room and that is refused."""
        await self.until_room(api.name)
        try:
            result = make()
            response = result if isinstance(result, Message) else await result
        except Exception as error:
            code, text = code_of(error)
            self._record_change(api, request, message, None, code, text if isinstance(error, KafscaleError) else "")
            await self._until_written()
            raise
        self._record_change(api, request, message, response, next(error_codes_in(response), 0), "")
        await self._until_written()
        return response

    async def _until_written(self) -> None:
        if self._when_full != "drop":
            await self.outbox.until_written(WRITTEN_SECONDS_MAX)

    async def until_room(self, what: str) -> None:
        """Return when there is room for one more record. Raises Invalid where requests are refused instead."""
        if not self.outbox.is_full or self._when_full == "drop":
            return
        self._cells[AUDIT_REFUSED] += 1
        if self._when_full == "deny":
            raise refusal(what)
        await self.outbox.until_room()

    def is_stopped(self, key: int) -> bool:
        """Whether requests of this API, which would be put on record, may not go on now."""
        return key in self._allowed and self.outbox.is_full and self._when_full != "drop"

    def stop(self, pending: Pending, go_on: Callable[[], None]) -> None:
        """Refuse such a request, by closing its connection, or call `go_on` when there is room."""
        self._cells[AUDIT_REFUSED] += 1
        if self._when_full == "deny":
            pending.close_connection("audit")
            return
        self.hold_produce()
        self.outbox.call_when_room(go_on)
        self.outbox.call_when_room(self.release_produce)

    def _record_change(
        self, api: Api, request: Request, message: Message, response: Message | None, code: int, reason: str
    ) -> None:
        resources, omitted = resources_of(api.key, message, response)
        details: dict[str, str | int | bool] = {"validate_only": True} if getattr(message, "validate_only", 0) else {}
        header = request.header
        self.outbox.put(
            AuditEvent(
                kind=Kind.CHANGE,
                time_ms=self._clock.wall_ms(),
                action=api.name,
                is_success=code == 0,
                severity=Severity.LOW,
                resources=[_capped(resource) for resource in resources],
                resources_omitted=omitted,
                error_code=code,
                reason=capped(reason, 512),
                details=details,
                **self._asker(header, request.principal, request.client_host, request.listener.name),
            )
        )

    def made_by_use(self, request: Request, topics: Sequence[Resource]) -> None:
        """Topics were created because a client asked for them."""
        failed = next((topic.error_code for topic in topics if topic.error_code), 0)
        header = request.header
        self.outbox.put(
            AuditEvent(
                kind=Kind.CHANGE,
                time_ms=self._clock.wall_ms(),
                action="CreateTopics",
                is_success=not failed,
                resources=[_capped(topic) for topic in topics],
                error_code=failed,
                details={"by_use": True},
                **self._asker(header, request.principal, request.client_host, request.listener.name),
            )
        )

    # What is alike

    def _count(self, key: object) -> bool:
        """Count one more of what was told a moment ago; False if it was not."""
        window = self._windows.get(key)
        if window is None:
            return False
        window.count += 1
        window.last_ms = self._clock.wall_ms()
        return True

    def _open(self, key: object, event: AuditEvent) -> None:
        self.outbox.put(event, is_strangers=True)
        self._windows[key] = _Window(event, self._clock.monotonic())
        if len(self._windows) > WINDOWS_MAX:
            _, oldest = self._windows.popitem(last=False)
            self._tell(oldest)
        if self._timer is None:
            self._timer = self._clock.call_later(WINDOW_SECONDS, self._close_windows)

    def _close_windows(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        while self._windows:
            key, window = next(iter(self._windows.items()))
            left = window.opened_at + WINDOW_SECONDS - now
            if left > 0:
                self._timer = self._clock.call_later(left, self._close_windows)
                return
            del self._windows[key]
            self._tell(window)

    def _tell(self, window: _Window) -> None:
        if window.count:
            event = msgspec.structs.replace(window.event, count=window.count, end_ms=window.last_ms)
            self.outbox.put(event, is_strangers=True)


def refusal(what: str) -> Invalid:
    """What a client is told whose request would go unrecorded."""
    return Invalid(ErrorCode.POLICY_VIOLATION, f"{what} is refused: the audit log can't be written (audit_when_full)")


def _short(text: str) -> object:
    """What stands for a text that a stranger sent, in little memory."""
    return text if len(text) <= KEY_CHARS_MAX else (text[:KEY_CHARS_MAX], len(text), hash(text))


def _capped(resource: Resource) -> Resource:
    return Resource(capped(resource.kind), capped(resource.name), capped(resource.detail), resource.error_code)

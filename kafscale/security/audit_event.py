"""One thing that goes on record: what it is, who did it, from where, to what, and what came of it.

An `AuditEvent` is made where something is decided, travels as bytes, and becomes the body of a record by `body_of`: a
form after OCSF 1.3 (classes 3002 Authentication, 6002 Application Lifecycle, 6003 API Activity), with what OCSF has no
place for under `unmapped`. It holds no payload and no secret: whoever makes one leaves them out. Whatever texts it
holds, the body is bounded in length and can be written as one line (`audit_chain.py` does). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, Final

import msgspec

import kafscale
from kafscale.errors import Corrupt
from kafscale.logs import bounded

# What is repeated of a name that a client sent, of a reason, and of each thing a request names.
NAME_CHARS_MAX: Final = 256
REASON_CHARS_MAX: Final = 512
RESOURCES_MAX: Final = 64
DETAILS_MAX: Final = 32
OCSF_VERSION: Final = "1.3.0"
_INT64: Final = 2**63


class Kind(IntEnum):
    """What an event is about."""

    AUTHENTICATION = 1
    # A request, or a part of one, that was allowed or denied by the rules.
    ACCESS = 2
    # A change that an administrator asked for, whatever came of it.
    CHANGE = 3
    # The broker and its workers come and go.
    LIFECYCLE = 4
    # Rules, certificates, keys and credentials read anew, or refused.
    RELOAD = 5
    # The record itself: what was lost of it, where it goes on.
    RECORD = 6


class Severity(IntEnum):
    """OCSF's severity_id."""

    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4


class Resource(msgspec.Struct, frozen=True, array_like=True):
    """One thing that a request names: `kind` in Kafka's words (topic, group, ...), what was to be done with it, and
    Kafka's error code for it."""

    kind: str
    name: str
    detail: str = ""
    error_code: int = 0


class AuditEvent(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """`action` is the API's name for what a client asked, else a word of ours. `count` alike ones happened between
    `time_ms` and `end_ms`. `rule` and `rule_source` say what decided; `decision` is empty where nothing was."""

    kind: Kind
    time_ms: int
    action: str
    is_success: bool = True
    severity: Severity = Severity.INFORMATIONAL
    principal: str = ""
    client_host: str = ""
    client_id: str | None = None
    listener: str = ""
    mechanism: str = ""
    api_version: int = -1
    correlation_id: int = 0
    resources: Sequence[Resource] = ()
    resources_omitted: int = 0
    error_code: int = 0
    reason: str = ""
    decision: str = ""
    operation: str = ""
    rule: str = ""
    rule_source: str = ""
    count: int = 1
    end_ms: int = 0
    node_id: int = -1
    details: dict[str, str | int | bool] = {}


class Origin(msgspec.Struct, frozen=True):
    """Whose record it is."""

    cluster_id: str
    broker_id: int

    @property
    def chain(self) -> str:
        """The name of this broker's chain of records."""
        return f"{self.cluster_id}/{self.broker_id}"


# (class_uid, class_name, category_uid, category_name)
_CLASSES: Final = {
    Kind.AUTHENTICATION: (3002, "Authentication", 3, "Identity & Access Management"),
    Kind.ACCESS: (6003, "API Activity", 6, "Application Activity"),
    Kind.CHANGE: (6003, "API Activity", 6, "Application Activity"),
    Kind.LIFECYCLE: (6002, "Application Lifecycle", 6, "Application Activity"),
    Kind.RELOAD: (6002, "Application Lifecycle", 6, "Application Activity"),
    Kind.RECORD: (6002, "Application Lifecycle", 6, "Application Activity"),
}
_OTHER: Final = 99
_LOGON: Final = 1
# By the first word of the API's name: OCSF's Create, Read, Update, Delete.
_API_ACTIVITIES: Final = {
    1: ("Create", "Init"),
    2: ("Describe", "List", "Fetch", "Metadata", "Find", "Offset", "Get"),
    3: ("Alter", "Incremental", "Produce", "Update", "Elect", "Add", "End", "Txn"),
    4: ("Delete",),
}
_EXCEPTIONS: Final = {"OffsetCommit": 3, "OffsetDelete": 4}
_LIFECYCLE_ACTIVITIES: Final = {"Start": 3, "Stop": 4, "Restart": 5, "Reload": 8, "Refuse": _OTHER}


def encode_events(events: Sequence[AuditEvent]) -> bytes:
    return _encoder.encode(events)


def encode_event(event: AuditEvent) -> msgspec.Raw:
    """One of the events that `join_events` makes a batch of."""
    return msgspec.Raw(_encoder.encode(event))


def join_events(events: Sequence[msgspec.Raw]) -> bytes:
    return _encoder.encode(events)


def decode_events(data: bytes) -> list[AuditEvent]:
    """Raises Corrupt."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Corrupt(f"audit events can't be read: {error}") from error


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[AuditEvent])


def capped(text: str, most: int = NAME_CHARS_MAX) -> str:
    """The text as an event holds it: not too long, and such that it has a UTF-8 form."""
    return bounded(text, most)


def body_of(event: AuditEvent, origin: Origin) -> dict[str, Any]:
    """The event as a JSON object, less what makes it a record of a chain. Bounded, whatever the event holds."""
    class_uid, class_name, category_uid, category_name = _CLASSES[event.kind]
    activity = _activity(event)
    body: dict[str, Any] = {
        "time": _number(event.time_ms),
        "time_dt": _moment(event.time_ms),
        "category_uid": category_uid,
        "category_name": category_name,
        "class_uid": class_uid,
        "class_name": class_name,
        "activity_id": activity,
        "type_uid": class_uid * 100 + activity,
        "severity_id": int(event.severity),
        "status_id": 1 if event.is_success else 2,
        "status": "Success" if event.is_success else "Failure",
    }
    if event.error_code:
        body["status_code"] = str(_number(event.error_code))
    if event.reason:
        body["status_detail"] = capped(event.reason, REASON_CHARS_MAX)
    if event.count != 1:
        body["count"] = _number(event.count)
        body["start_time"] = _number(event.time_ms)
        body["end_time"] = _number(event.end_ms)
    body["metadata"] = _metadata(origin)
    body |= _who(event)
    body |= _what(event)
    unmapped = _unmapped(event)
    if unmapped:
        body["unmapped"] = unmapped
    return body


def _activity(event: AuditEvent) -> int:
    if event.kind is Kind.AUTHENTICATION:
        return _LOGON
    if event.kind in (Kind.ACCESS, Kind.CHANGE):
        if event.action in _EXCEPTIONS:
            return _EXCEPTIONS[event.action]
        return next((number for number, words in _API_ACTIVITIES.items() if event.action.startswith(words)), _OTHER)
    return next((number for word, number in _LIFECYCLE_ACTIVITIES.items() if event.action.startswith(word)), _OTHER)


def _metadata(origin: Origin) -> dict[str, Any]:
    return {
        "version": OCSF_VERSION,
        "product": {
            "name": "Kafscale",
            "vendor_name": "Kafscale",
            "version": kafscale.__version__,
            "uid": str(origin.broker_id),
            "instance_uid": origin.cluster_id,
        },
    }


def _who(event: AuditEvent) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kind, _, name = event.principal.partition(":")
    user = {"type": capped(kind), "name": capped(name)} if name else {"name": capped(event.principal)}
    if event.kind is Kind.AUTHENTICATION:
        found["user"] = user
        found["auth_protocol"] = capped(event.mechanism)
    elif event.principal:
        found["actor"] = {"user": user}
        if event.decision:
            found["actor"]["authorizations"] = [_authorization(event)]
    if event.client_host:
        found["src_endpoint"] = {"ip": capped(event.client_host)}
    return found


def _authorization(event: AuditEvent) -> dict[str, Any]:
    policy: dict[str, Any] = {}
    if event.rule:
        policy["desc"] = capped(event.rule, REASON_CHARS_MAX)
    if event.rule_source:
        policy["name"] = capped(event.rule_source)
    return {"decision": capped(event.decision), **({"policy": policy} if policy else {})}


def _what(event: AuditEvent) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if event.kind in (Kind.ACCESS, Kind.CHANGE):
        api: dict[str, Any] = {"operation": capped(event.action), "service": {"name": "kafka"}}
        if event.api_version >= 0:
            api["version"] = str(_number(event.api_version))
            api["request"] = {"uid": str(_number(event.correlation_id))}
        if event.error_code:
            api["response"] = {"code": _number(event.error_code)}
        found["api"] = api
        found["resources"] = [_resource(one) for one in event.resources[:RESOURCES_MAX]]
    elif event.kind is not Kind.AUTHENTICATION:
        found["app"] = {"name": "Kafscale"}
    return found


def _resource(resource: Resource) -> dict[str, Any]:
    found: dict[str, Any] = {"type": capped(resource.kind), "name": capped(resource.name)}
    if resource.detail or resource.error_code:
        found["data"] = {}
        if resource.detail:
            found["data"]["detail"] = capped(resource.detail)
        if resource.error_code:
            found["data"]["error_code"] = _number(resource.error_code)
    return found


def _unmapped(event: AuditEvent) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if event.kind not in (Kind.ACCESS, Kind.CHANGE, Kind.AUTHENTICATION):
        found["action"] = capped(event.action)
    if event.kind is Kind.CHANGE:
        found["is_change"] = True
    if event.client_id is not None:
        found["client_id"] = capped(event.client_id)
    if event.listener:
        found["listener"] = capped(event.listener)
    if event.operation:
        found["operation"] = capped(event.operation)
    if event.node_id >= 0:
        found["node_id"] = _number(event.node_id)
    omitted = event.resources_omitted + max(0, len(event.resources) - RESOURCES_MAX)
    if omitted:
        found["resources_omitted"] = _number(omitted)
    for name, value in list(event.details.items())[:DETAILS_MAX]:
        plain = value if isinstance(value, bool) else _number(value) if isinstance(value, int) else capped(value)
        found.setdefault(capped(name, 64), plain)
    return found


def _number(value: int) -> int:
    """The number as JSON can hold it."""
    return max(-_INT64, min(value, _INT64 - 1))


def _moment(time_ms: int) -> str:
    """RFC 3339, UTC; empty for a time that no calendar has."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return ""

"""What goes into a group shard and what comes out of it: requests, responses, timers, limits.

These are the shard's own small messages. They know nothing of Kafka's wire versions (handlers translate) and nothing
of how a record becomes durable or a timer fires.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from msgspec import Struct, field

from kafscale.protocol.error_codes import ErrorCode

Token = Any
"""Opaque: given with a request, handed back with its reply, never looked into."""

NO_TOPIC_ID = bytes(16)
"""A topic id of sixteen zero bytes: unknown."""


class GroupConfig(Struct, frozen=True, kw_only=True):
    """Settings and bounds of a shard. Everything a client can make grow has its maximum here."""

    session_timeout_min_ms: int = 6_000
    session_timeout_max_ms: int = 1_800_000
    initial_rebalance_delay_ms: int = 3_000
    # A JoinGroup of a member that doesn't know its id yet is dropped after this long: if its client is still there, it
    # has asked again by then.
    new_member_join_timeout_ms: int = 300_000
    offset_metadata_max_chars: int = 4_096
    offsets_retention_ms: int = 7 * 24 * 3_600_000
    offsets_check_interval_ms: int = 600_000
    group_max_members: int = 10_000
    group_max_pending_members: int = 1_000
    group_max_subscription_bytes: int = 4 * 1024 * 1024
    group_max_assignment_bytes: int = 4 * 1024 * 1024
    group_max_offsets: int = 100_000
    shard_max_groups: int = 100_000
    member_max_protocols: int = 100


class TimerKind(StrEnum):
    SESSION = "session"
    """A member, or a member id given out and not yet used, was not heard of in time. Has a member id."""
    JOIN = "join"
    """The time for members to join the next generation is over."""
    SYNC = "sync"
    """The time for members of a new generation to send SyncGroup is over."""
    RETENTION = "retention"
    """Look for offsets that are past their retention. One per shard; group id and member id are empty."""


class TimerKey(NamedTuple):
    kind: TimerKind
    group_id: str = ""
    member_id: str = ""


class Outcome(Struct, kw_only=True):
    """What a call decided. The runtime makes `writes` durable in order, then lets `replies` go.

    The shard has already taken the step in memory, so a reply must also wait for the writes of all earlier outcomes.
    """

    writes: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    """Key and value of records for the shard's `__consumer_offsets` partition; a value of None is a tombstone."""
    replies: list[tuple[Token, Any]] = field(default_factory=list)
    """Token and response; may answer requests of earlier calls."""
    timers: list[tuple[TimerKey, int | None]] = field(default_factory=list)
    """Deadline in the milliseconds of `now_ms`, replacing any earlier one of that key; None cancels."""
    rebalances: int = 0
    """Rebalances that this completed, to be counted."""


# --- membership ---------------------------------------------------------------------------------------------------


class JoinGroupRequest(Struct, frozen=True, kw_only=True):
    group_id: str
    member_id: str = ""
    instance_id: str | None = None
    client_id: str = ""
    client_host: str = ""
    session_timeout_ms: int
    rebalance_timeout_ms: int
    """Version 0 has none: the handler gives the session timeout."""
    protocol_type: str
    protocols: tuple[tuple[str, bytes], ...]
    """Name and metadata, most wanted first."""
    requires_known_member_id: bool = False
    """Version 4 and above (KIP-394)."""
    skips_assignment: bool = False
    """Version 9 and above (KIP-814)."""


class JoinedMember(Struct, frozen=True, kw_only=True):
    member_id: str
    instance_id: str | None
    metadata: bytes


class JoinGroupResponse(Struct, frozen=True, kw_only=True):
    error: ErrorCode = ErrorCode.NONE
    generation: int = -1
    protocol_type: str | None = None
    protocol_name: str | None = None
    leader: str = ""
    member_id: str = ""
    members: tuple[JoinedMember, ...] = ()
    skip_assignment: bool = False


class SyncGroupRequest(Struct, frozen=True, kw_only=True):
    group_id: str
    generation: int
    member_id: str
    instance_id: str | None = None
    protocol_type: str | None = None
    protocol_name: str | None = None
    assignments: tuple[tuple[str, bytes], ...] = ()
    """Member id and assignment; empty but for the leader."""


class SyncGroupResponse(Struct, frozen=True, kw_only=True):
    error: ErrorCode = ErrorCode.NONE
    protocol_type: str | None = None
    protocol_name: str | None = None
    assignment: bytes = b""


class HeartbeatRequest(Struct, frozen=True, kw_only=True):
    group_id: str
    generation: int
    member_id: str
    instance_id: str | None = None


class HeartbeatResponse(Struct, frozen=True, kw_only=True):
    error: ErrorCode = ErrorCode.NONE


class LeavingMember(Struct, frozen=True, kw_only=True):
    member_id: str
    instance_id: str | None = None


class LeaveGroupRequest(Struct, frozen=True, kw_only=True):
    group_id: str
    members: tuple[LeavingMember, ...]
    """Versions 0-2 name one: the handler makes it a batch of one, and its error the response's."""


class LeftMember(Struct, frozen=True, kw_only=True):
    member_id: str
    instance_id: str | None
    error: ErrorCode


class LeaveGroupResponse(Struct, frozen=True, kw_only=True):
    error: ErrorCode = ErrorCode.NONE
    members: tuple[LeftMember, ...] = ()


# --- offsets ------------------------------------------------------------------------------------------------------


class PartitionCommit(Struct, frozen=True, kw_only=True):
    partition: int
    offset: int
    leader_epoch: int = -1
    metadata: str | None = None


class TopicCommit(Struct, frozen=True, kw_only=True):
    name: str
    topic_id: bytes = NO_TOPIC_ID
    partitions: tuple[PartitionCommit, ...]


class OffsetCommitRequest(Struct, frozen=True, kw_only=True):
    """Topics that exist and that the caller may read; the handler answers for the others itself."""

    group_id: str
    generation: int = -1
    member_id: str = ""
    instance_id: str | None = None
    knows_missing_groups: bool = False
    """Version 9 and above: a member of a group that is no more hears GROUP_ID_NOT_FOUND (KIP-848)."""
    topics: tuple[TopicCommit, ...]


class PartitionResult(Struct, frozen=True, kw_only=True):
    partition: int
    error: ErrorCode


class TopicResult(Struct, frozen=True, kw_only=True):
    name: str
    topic_id: bytes = NO_TOPIC_ID
    partitions: tuple[PartitionResult, ...]


class OffsetCommitResponse(Struct, frozen=True, kw_only=True):
    topics: tuple[TopicResult, ...]


class TopicPartitions(Struct, frozen=True, kw_only=True):
    name: str
    topic_id: bytes = NO_TOPIC_ID
    partitions: tuple[int, ...]


class OffsetFetchRequest(Struct, frozen=True, kw_only=True):
    """One group: of a request for several (version 8 and above) the handler asks each group's shard."""

    group_id: str
    topics: tuple[TopicPartitions, ...] | None = None
    """None: all that is committed."""
    require_stable: bool = False
    """No transactional commits yet, so nothing is ever unstable."""


class PartitionOffset(Struct, frozen=True, kw_only=True):
    partition: int
    offset: int = -1
    leader_epoch: int = -1
    metadata: str = ""
    error: ErrorCode = ErrorCode.NONE


class TopicOffsets(Struct, frozen=True, kw_only=True):
    name: str
    topic_id: bytes = NO_TOPIC_ID
    partitions: tuple[PartitionOffset, ...]


class OffsetFetchResponse(Struct, frozen=True, kw_only=True):
    group_id: str
    error: ErrorCode = ErrorCode.NONE
    topics: tuple[TopicOffsets, ...] = ()


class OffsetDeleteRequest(Struct, frozen=True, kw_only=True):
    group_id: str
    topics: tuple[TopicPartitions, ...]


class OffsetDeleteResponse(Struct, frozen=True, kw_only=True):
    error: ErrorCode = ErrorCode.NONE
    topics: tuple[TopicResult, ...] = ()


# --- administration -----------------------------------------------------------------------------------------------


class DescribeGroupsRequest(Struct, frozen=True, kw_only=True):
    group_ids: tuple[str, ...]
    """Groups of this shard."""


class DescribedMember(Struct, frozen=True, kw_only=True):
    member_id: str
    instance_id: str | None
    client_id: str
    client_host: str
    metadata: bytes
    assignment: bytes


class DescribedGroup(Struct, frozen=True, kw_only=True):
    group_id: str
    error: ErrorCode = ErrorCode.NONE
    """GROUP_ID_NOT_FOUND is for version 6 and above; below, the handler says NONE and lets the state "Dead" speak."""
    error_message: str | None = None
    state: str = ""
    protocol_type: str = ""
    protocol: str = ""
    members: tuple[DescribedMember, ...] = ()


class DescribeGroupsResponse(Struct, frozen=True, kw_only=True):
    groups: tuple[DescribedGroup, ...]


class ListGroupsRequest(Struct, frozen=True, kw_only=True):
    states: tuple[str, ...] = ()
    """Names of states, upper and lower case alike; empty: all (KIP-518)."""
    types: tuple[str, ...] = ()
    """Names of group types; empty: all (KIP-848). Ours is "classic"."""


class ListedGroup(Struct, frozen=True, kw_only=True):
    group_id: str
    protocol_type: str
    state: str
    group_type: str = "classic"


class ListGroupsResponse(Struct, frozen=True, kw_only=True):
    groups: tuple[ListedGroup, ...]


class DeleteGroupsRequest(Struct, frozen=True, kw_only=True):
    group_ids: tuple[str, ...]
    """Groups of this shard."""


class DeletedGroup(Struct, frozen=True, kw_only=True):
    group_id: str
    error: ErrorCode


class DeleteGroupsResponse(Struct, frozen=True, kw_only=True):
    groups: tuple[DeletedGroup, ...]

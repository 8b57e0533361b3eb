"""Fetch (key 1): read record batches.

v5 log start offset; v7 sessions (KIP-227); v9 leader epoch of the reader; v11 rack (KIP-392); v12 flexible, with
epochs to find divergence by; v13 topic ids (KIP-516); v15 replica state as a tagged field (KIP-903); v16 node
endpoints (KIP-951); v17 directory ids; v18 the follower's high watermark. The hot path does not come here: see
`kafscale/protocol/fetch.py`.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import (
    ZERO_UUID,
    Message,
    Records,
    array,
    batches,
    int8,
    int16,
    int32,
    int64,
    string,
    struct,
    uuid,
)


class ReplicaState(Message, frozen=True, kw_only=True):
    replica_id: Annotated[int, int32("15+")] = -1
    replica_epoch: Annotated[int, int64("15+")] = -1


class FetchPartition(Message, frozen=True, kw_only=True):
    partition: Annotated[int, int32("0+")] = 0
    current_leader_epoch: Annotated[int, int32("9+")] = -1
    fetch_offset: Annotated[int, int64("0+")] = 0
    last_fetched_epoch: Annotated[int, int32("12+")] = -1
    log_start_offset: Annotated[int, int64("5+")] = -1
    partition_max_bytes: Annotated[int, int32("0+")] = 0
    replica_directory_id: Annotated[bytes, uuid("17+", tag=0)] = ZERO_UUID
    high_watermark: Annotated[int, int64("18+", tag=1)] = 2**63 - 1


class FetchTopic(Message, frozen=True, kw_only=True):
    topic: Annotated[str, string("0-12")] = ""
    topic_id: Annotated[bytes, uuid("13+")] = ZERO_UUID
    partitions: Annotated[Sequence[FetchPartition], array("0+")] = ()


class ForgottenTopic(Message, frozen=True, kw_only=True):
    topic: Annotated[str, string("7-12")] = ""
    topic_id: Annotated[bytes, uuid("13+")] = ZERO_UUID
    partitions: Annotated[Sequence[int], array("7+", of="int32")] = ()


class FetchRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    cluster_id: Annotated[str | None, string("12+", nullable="12+", tag=0)] = None
    replica_id: Annotated[int, int32("0-14")] = -1
    replica_state: Annotated[ReplicaState, struct("15+", tag=1)] = ReplicaState()
    max_wait_ms: Annotated[int, int32("0+")] = 0
    min_bytes: Annotated[int, int32("0+")] = 0
    max_bytes: Annotated[int, int32("0+")] = 2**31 - 1
    isolation_level: Annotated[int, int8("0+")] = 0
    session_id: Annotated[int, int32("7+")] = 0
    session_epoch: Annotated[int, int32("7+")] = -1
    topics: Annotated[Sequence[FetchTopic], array("0+")] = ()
    forgotten_topics_data: Annotated[Sequence[ForgottenTopic], array("7+")] = ()
    rack_id: Annotated[str, string("11+")] = ""


class EpochEndOffset(Message, frozen=True, kw_only=True):
    epoch: Annotated[int, int32("12+")] = -1
    end_offset: Annotated[int, int64("12+")] = -1


class LeaderIdAndEpoch(Message, frozen=True, kw_only=True):
    leader_id: Annotated[int, int32("12+")] = -1
    leader_epoch: Annotated[int, int32("12+")] = -1


class SnapshotId(Message, frozen=True, kw_only=True):
    end_offset: Annotated[int, int64("0+")] = -1
    epoch: Annotated[int, int32("0+")] = -1


class AbortedTransaction(Message, frozen=True, kw_only=True):
    producer_id: Annotated[int, int64("0+")] = 0
    first_offset: Annotated[int, int64("0+")] = 0


class PartitionData(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0+")] = 0
    error_code: Annotated[int, int16("0+")] = 0
    high_watermark: Annotated[int, int64("0+")] = 0
    last_stable_offset: Annotated[int, int64("0+")] = -1
    log_start_offset: Annotated[int, int64("5+")] = -1
    diverging_epoch: Annotated[EpochEndOffset, struct("12+", tag=0)] = EpochEndOffset()
    current_leader: Annotated[LeaderIdAndEpoch, struct("12+", tag=1)] = LeaderIdAndEpoch()
    snapshot_id: Annotated[SnapshotId, struct("12+", tag=2)] = SnapshotId()
    aborted_transactions: Annotated[Sequence[AbortedTransaction] | None, array("0+", nullable="0+")] = ()
    preferred_read_replica: Annotated[int, int32("11+")] = -1
    records: Annotated[Records | None, batches("0+", nullable="0+")] = None


class FetchableTopicResponse(Message, frozen=True, kw_only=True):
    topic: Annotated[str, string("0-12")] = ""
    topic_id: Annotated[bytes, uuid("13+")] = ZERO_UUID
    partitions: Annotated[Sequence[PartitionData], array("0+")] = ()


class NodeEndpoint(Message, frozen=True, kw_only=True):
    node_id: Annotated[int, int32("16+")] = 0
    host: Annotated[str, string("16+")] = ""
    port: Annotated[int, int32("16+")] = 0
    rack: Annotated[str | None, string("16+", nullable="16+")] = None


class FetchResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    error_code: Annotated[int, int16("7+")] = 0
    session_id: Annotated[int, int32("7+")] = 0
    responses: Annotated[Sequence[FetchableTopicResponse], array("0+")] = ()
    node_endpoints: Annotated[Sequence[NodeEndpoint], array("16+", tag=0)] = ()

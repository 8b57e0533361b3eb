"""Produce (key 0): append record batches.

v3 transactional id and batch format 2; v5 log start offset; v8 errors per record (KIP-467); v9 flexible; v10 current
leader and node endpoints (KIP-951); v13 topic ids instead of names (KIP-516). Versions 0 to 2 are advertised and
never served. The hot path does not come here: see `kafscale/protocol/produce.py`.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import (
    ZERO_UUID,
    Message,
    Records,
    array,
    batches,
    int16,
    int32,
    int64,
    string,
    struct,
    uuid,
)


class PartitionProduceData(Message, frozen=True, kw_only=True):
    index: Annotated[int, int32("0+")] = 0
    records: Annotated[Records | None, batches("0+", nullable="0+")] = None


class TopicProduceData(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0-12")] = ""
    topic_id: Annotated[bytes, uuid("13+")] = ZERO_UUID
    partition_data: Annotated[Sequence[PartitionProduceData], array("0+")] = ()


class ProduceRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    transactional_id: Annotated[str | None, string("0+", nullable="0+")] = None
    acks: Annotated[int, int16("0+")] = 0
    timeout_ms: Annotated[int, int32("0+")] = 0
    topic_data: Annotated[Sequence[TopicProduceData], array("0+")] = ()


class BatchIndexAndErrorMessage(Message, frozen=True, kw_only=True):
    batch_index: Annotated[int, int32("8+")] = 0
    batch_index_error_message: Annotated[str | None, string("8+", nullable="8+")] = None


class LeaderIdAndEpoch(Message, frozen=True, kw_only=True):
    leader_id: Annotated[int, int32("10+")] = -1
    leader_epoch: Annotated[int, int32("10+")] = -1


class PartitionProduceResponse(Message, frozen=True, kw_only=True):
    index: Annotated[int, int32("0+")] = 0
    error_code: Annotated[int, int16("0+")] = 0
    base_offset: Annotated[int, int64("0+")] = 0
    log_append_time_ms: Annotated[int, int64("0+")] = -1
    log_start_offset: Annotated[int, int64("5+")] = -1
    record_errors: Annotated[Sequence[BatchIndexAndErrorMessage], array("8+")] = ()
    error_message: Annotated[str | None, string("8+", nullable="8+")] = None
    current_leader: Annotated[LeaderIdAndEpoch, struct("10+", tag=0)] = LeaderIdAndEpoch()


class TopicProduceResponse(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0-12")] = ""
    topic_id: Annotated[bytes, uuid("13+")] = ZERO_UUID
    partition_responses: Annotated[Sequence[PartitionProduceResponse], array("0+")] = ()


class NodeEndpoint(Message, frozen=True, kw_only=True):
    node_id: Annotated[int, int32("10+")] = 0
    host: Annotated[str, string("10+")] = ""
    port: Annotated[int, int32("10+")] = 0
    rack: Annotated[str | None, string("10+", nullable="10+")] = None


class ProduceResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    responses: Annotated[Sequence[TopicProduceResponse], array("0+")] = ()
    throttle_time_ms: Annotated[int, int32("0+")] = 0
    node_endpoints: Annotated[Sequence[NodeEndpoint], array("10+", tag=0)] = ()

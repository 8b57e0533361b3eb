"""Metadata (key 3): brokers, topics, partitions and their leaders.

v1 racks, controller and null for all topics; v2 cluster id; v4 auto-creation asked for; v5 offline replicas; v7
leader epochs; v8 authorized operations; v9 flexible; v10 topic ids (KIP-516), usable in requests from v12 on; v13 a
top-level error (KIP-1102).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import ZERO_UUID, Message, array, boolean, int16, int32, string, uuid


class MetadataRequestTopic(Message, frozen=True, kw_only=True):
    topic_id: Annotated[bytes, uuid("10+")] = ZERO_UUID
    name: Annotated[str | None, string("0+", nullable="10+")] = ""


class MetadataRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    topics: Annotated[Sequence[MetadataRequestTopic] | None, array("0+", nullable="1+")] = ()
    allow_auto_topic_creation: Annotated[bool, boolean("4+")] = True
    include_cluster_authorized_operations: Annotated[bool, boolean("8-10")] = False
    include_topic_authorized_operations: Annotated[bool, boolean("8+")] = False


class MetadataResponseBroker(Message, frozen=True, kw_only=True):
    node_id: Annotated[int, int32("0+")] = 0
    host: Annotated[str, string("0+")] = ""
    port: Annotated[int, int32("0+")] = 0
    rack: Annotated[str | None, string("1+", nullable="1+")] = None


class MetadataResponsePartition(Message, frozen=True, kw_only=True):
    error_code: Annotated[int, int16("0+")] = 0
    partition_index: Annotated[int, int32("0+")] = 0
    leader_id: Annotated[int, int32("0+")] = 0
    leader_epoch: Annotated[int, int32("7+")] = -1
    replica_nodes: Annotated[Sequence[int], array("0+", of="int32")] = ()
    isr_nodes: Annotated[Sequence[int], array("0+", of="int32")] = ()
    offline_replicas: Annotated[Sequence[int], array("5+", of="int32")] = ()


class MetadataResponseTopic(Message, frozen=True, kw_only=True):
    error_code: Annotated[int, int16("0+")] = 0
    name: Annotated[str | None, string("0+", nullable="12+")] = ""
    topic_id: Annotated[bytes, uuid("10+")] = ZERO_UUID
    is_internal: Annotated[bool, boolean("1+")] = False
    partitions: Annotated[Sequence[MetadataResponsePartition], array("0+")] = ()
    topic_authorized_operations: Annotated[int, int32("8+")] = -(2**31)


class MetadataResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("3+")] = 0
    brokers: Annotated[Sequence[MetadataResponseBroker], array("0+")] = ()
    cluster_id: Annotated[str | None, string("2+", nullable="2+")] = None
    controller_id: Annotated[int, int32("1+")] = -1
    topics: Annotated[Sequence[MetadataResponseTopic], array("0+")] = ()
    cluster_authorized_operations: Annotated[int, int32("8-10")] = -(2**31)
    error_code: Annotated[int, int16("13+")] = 0

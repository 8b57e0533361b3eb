"""DescribeCluster (key 60): cluster id, controller and brokers (KIP-700).

v1 kind of endpoints (KIP-919); v2 fenced brokers (KIP-1073).
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, boolean, int8, int16, int32, string


class DescribeClusterRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    include_cluster_authorized_operations: Annotated[bool, boolean("0+")] = False
    endpoint_type: Annotated[int, int8("1+")] = 1
    include_fenced_brokers: Annotated[bool, boolean("2+")] = False


class DescribeClusterBroker(Message, frozen=True, kw_only=True):
    broker_id: Annotated[int, int32("0+")] = 0
    host: Annotated[str, string("0+")] = ""
    port: Annotated[int, int32("0+")] = 0
    rack: Annotated[str | None, string("0+", nullable="0+")] = None
    is_fenced: Annotated[bool, boolean("2+")] = False


class DescribeClusterResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = None
    endpoint_type: Annotated[int, int8("1+")] = 1
    cluster_id: Annotated[str, string("0+")] = ""
    controller_id: Annotated[int, int32("0+")] = -1
    brokers: Annotated[Sequence[DescribeClusterBroker], array("0+")] = ()
    cluster_authorized_operations: Annotated[int, int32("0+")] = -(2**31)

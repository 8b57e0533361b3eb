"""DescribeCluster (key 60), v0-2: the cluster's id, its nodes, and the one to send admin requests to.

There are no controllers to talk to apart from brokers: asking for them is MISMATCHED_ENDPOINT_TYPE, as from a Kafka
broker (KIP-919). Left out: fenced brokers (a node that is not alive is not listed).
"""

from __future__ import annotations

from typing import Final

from kafscale.errors import Invalid
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.describe_cluster import (
    DescribeClusterBroker,
    DescribeClusterRequest,
    DescribeClusterResponse,
)
from workers.authorization import NOT_ASKED_FOR
from workers.context import Context, Request
from workers.handlers.metadata import operations_on_cluster

BROKERS: Final = 1
CONTROLLERS: Final = 2


def handle(context: Context, request: Request, message: DescribeClusterRequest) -> DescribeClusterResponse:
    if message.endpoint_type == CONTROLLERS:
        raise Invalid(ErrorCode.MISMATCHED_ENDPOINT_TYPE, "this is a broker; it has no controller endpoints")
    if message.endpoint_type != BROKERS:
        raise Invalid(ErrorCode.UNSUPPORTED_ENDPOINT_TYPE, f"there are no endpoints of type {message.endpoint_type}")
    cluster = context.cluster
    asked = message.include_cluster_authorized_operations
    return DescribeClusterResponse(
        cluster_id=cluster.state.cluster_id,
        controller_id=request.listener.controller(cluster),
        brokers=[
            DescribeClusterBroker(broker_id=node.node_id, host=node.host, port=node.port, rack=node.rack)
            for node in request.listener.nodes(cluster)
        ],
        cluster_authorized_operations=operations_on_cluster(request.access) if asked else NOT_ASKED_FOR,
    )

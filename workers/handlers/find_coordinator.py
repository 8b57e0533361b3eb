"""FindCoordinator (key 10), versions 0 to 6: the node that coordinates a group, by Kafka's rule.

Any node answers, from the cluster's state. Left out: coordinators of transactional ids and of share groups, which don't
exist here; who asks for one is told INVALID_REQUEST, which clients take as final, rather than made to try for ever.
"""

from __future__ import annotations

from typing import Final

from kafscale.errors import Invalid, KafscaleError, Retry
from kafscale.protocol.acls import CLUSTER_NAME
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.find_coordinator import Coordinator, FindCoordinatorRequest, FindCoordinatorResponse
from kafscale.security.needs import CLUSTER_ACTION, DESCRIBE_TRANSACTION, FIND_GROUP, Need
from workers.context import Context, Request
from workers.errors import code_of

# From this version on a request names several keys (KIP-699).
FIRST_WITH_KEYS: Final = 4

GROUP, TRANSACTION, SHARE = 0, 1, 2
_NOT_SERVED: Final = {
    TRANSACTION: "transactions are not supported yet",
    SHARE: "share groups are not supported",
}
# What each takes, the name that is asked for where it is not the key, and what is said of one that may not.
_NEEDS: Final[dict[int, tuple[Need, str | None, ErrorCode]]] = {
    GROUP: (FIND_GROUP, None, ErrorCode.GROUP_AUTHORIZATION_FAILED),
    TRANSACTION: (DESCRIBE_TRANSACTION, None, ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED),
    SHARE: (CLUSTER_ACTION, CLUSTER_NAME, ErrorCode.CLUSTER_AUTHORIZATION_FAILED),
}
# Kafka's Node.noNode().
_NO_NODE: Final = (-1, "", -1)


def handle(context: Context, request: Request, message: FindCoordinatorRequest) -> FindCoordinatorResponse:
    if request.header.api_version >= FIRST_WITH_KEYS:
        keys = message.coordinator_keys
        found_of = [_find(context, request, message.key_type, key) for key in keys]
        return FindCoordinatorResponse(coordinators=found_of)
    found = _find(context, request, message.key_type, message.key)
    return FindCoordinatorResponse(
        error_code=found.error_code,
        error_message=found.error_message,
        node_id=found.node_id,
        host=found.host,
        port=found.port,
    )


def failed(message: FindCoordinatorRequest, code: int, text: str) -> FindCoordinatorResponse:
    """The error for the request (below v4) and for each key (v4 and above)."""
    node_id, host, port = _NO_NODE
    return FindCoordinatorResponse(
        error_code=code,
        error_message=text,
        node_id=node_id,
        host=host,
        port=port,
        coordinators=[_refused(key, code, text) for key in message.coordinator_keys],
    )


def _find(context: Context, request: Request, key_type: int, key: str) -> Coordinator:
    try:
        need, name, code = _NEEDS.get(key_type, (None, None, 0))
        if need is not None and not request.access.allows(need, key if name is None else name):
            raise Invalid(code, "not authorized")
        if key_type != GROUP:
            raise Invalid(ErrorCode.INVALID_REQUEST, _NOT_SERVED.get(key_type, f"there is no key type {key_type}"))
        assignment = context.groups.coordinator(key)
        node = None if assignment is None else request.listener.address(context.cluster, assignment.node_id)
        if node is None:
            raise Retry(ErrorCode.COORDINATOR_NOT_AVAILABLE, f"nobody coordinates group {key!r} at the moment")
    except KafscaleError as error:
        return _refused(key, *code_of(error))
    return Coordinator(key=key, node_id=node.node_id, host=node.host, port=node.port, error_message=None)


def _refused(key: str, code: int, text: str) -> Coordinator:
    node_id, host, port = _NO_NODE
    return Coordinator(key=key, node_id=node_id, host=host, port=port, error_code=code, error_message=text)

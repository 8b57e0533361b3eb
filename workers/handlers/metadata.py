"""Metadata (key 3), v0-13: nodes, topics by name or id or all of them, and who leads each partition. Creates topics.

A topic asked for by name that does not exist is created, where the client (v4+) and `auto_create_topics` allow it; the
answer waits for that, for a while, and says LEADER_NOT_AVAILABLE if it takes longer. A partition's replicas are its
leader and, where brokers state their zones, a node for each other zone, which reads older data for the clients there:
what is durable is durable in the object store. The controller named is the node that answers, since every node
takes admin requests. Answers are kept and given again, as bytes, until the cluster or the rules change. Who may not
describe a topic is told the same whether it exists or not, and is not told of it among all. Left out: nothing.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Final, NamedTuple

import msgspec

from kafscale.control import NodeAddress
from kafscale.coordination.cluster import INTERNAL_TOPICS, OFFSETS_TOPIC, Topic, slot_of, topic_name_error
from kafscale.coordination.commands import CreateTopic
from kafscale.errors import Invalid, Retry
from kafscale.protocol.acls import CLUSTER_NAME, ResourceType
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.metadata import (
    MetadataRequest,
    MetadataResponse,
    MetadataResponseBroker,
    MetadataResponsePartition,
    MetadataResponseTopic,
)
from kafscale.protocol.schema import ZERO_UUID
from kafscale.security.access import Access
from kafscale.security.audit_event import Resource
from kafscale.security.needs import CREATE_BY_USE, DESCRIBE_CLUSTER, DESCRIBE_TOPIC
from workers.authorization import NOT_ASKED_FOR
from workers.context import ClusterView, Context, Request
from workers.listener import Listener

# Topics that one request may have created; the client asks again for the rest.
AUTO_CREATE_MAX: Final = 100
AUTO_CREATE_SECONDS: Final = 5.0
# From this version on a topic may be asked for by its id.
IDS_FROM: Final = 12


def handle(
    context: Context, request: Request, message: MetadataRequest
) -> MetadataResponse | Coroutine[None, None, MetadataResponse]:
    version = request.header.api_version
    if version == 0 and not message.topics:
        message = msgspec.structs.replace(message, topics=None)
    if message.topics is not None:
        if version < IDS_FROM and any(topic.name is None or topic.topic_id != ZERO_UUID for topic in message.topics):
            raise Invalid(ErrorCode.INVALID_REQUEST, f"a topic without a name, or with an id, in Metadata v{version}")
        if message.allow_auto_topic_creation and context.settings.auto_create_topics:
            known = context.cluster.state.topics
            names = dict.fromkeys(t.name for t in message.topics if t.name is not None and t.topic_id == ZERO_UUID)
            missing = [
                name
                for name in names
                if name not in known and topic_name_error(name) is None and request.access.shows(DESCRIBE_TOPIC, name)
            ]
            allowed = [name for name in missing if request.access.allows(CREATE_BY_USE, name)]
            errors: dict[str, int] = dict.fromkeys(missing, ErrorCode.TOPIC_AUTHORIZATION_FAILED)
            if allowed:
                return _create_and_answer(context, request, message, allowed, errors)
            return _answer(context, request, message, errors)
    return _answer(context, request, message, {})


async def _create_and_answer(
    context: Context, request: Request, message: MetadataRequest, missing: list[str], errors: dict[str, int]
) -> MetadataResponse:
    """Create the topics, then answer. `errors` are those of topics that are not created."""
    now, later = missing[:AUTO_CREATE_MAX], missing[AUTO_CREATE_MAX:]
    errors.update(dict.fromkeys(later, ErrorCode.LEADER_NOT_AVAILABLE))
    commands = [CreateTopic(name=name, partitions=_partitions_of_new(context, name)) for name in now]
    try:
        results = await context.admin.submit(commands, AUTO_CREATE_SECONDS)
    except Retry:
        errors.update(dict.fromkeys(now, ErrorCode.LEADER_NOT_AVAILABLE))
    else:
        for name, result in zip(now, results, strict=True):
            # Another client may have been quicker.
            taken = result.error_code in (ErrorCode.NONE, ErrorCode.TOPIC_ALREADY_EXISTS)
            errors[name] = ErrorCode.LEADER_NOT_AVAILABLE if taken else result.error_code
        if context.audit is not None:
            made = [
                Resource("topic", name, f"partitions={command.partitions}", result.error_code)
                for name, command, result in zip(now, commands, results, strict=True)
            ]
            context.audit.made_by_use(request, made)
    return _answer(context, request, message, errors)


def _partitions_of_new(context: Context, name: str) -> int:
    settings = context.settings
    return settings.offsets_topic_partitions if name == OFFSETS_TOPIC else settings.auto_create_partitions


def failed(message: MetadataRequest, code: int, text: str) -> MetadataResponse:
    """The error for each topic asked for, and (v13) for all."""
    topics = [
        MetadataResponseTopic(error_code=code, name=topic.name or "", topic_id=topic.topic_id)
        for topic in message.topics or ()
    ]
    return MetadataResponse(error_code=code, topics=topics)


def _answer(context: Context, request: Request, message: MetadataRequest, errors: dict[str, int]) -> MetadataResponse:
    cluster = context.cluster
    listener, access = request.listener, request.access
    leaders = _Leaders(cluster, listener, access if message.include_topic_authorized_operations else None)
    if message.topics is None:
        shown = (topic for name, topic in cluster.state.topics.items() if access.shows(DESCRIBE_TOPIC, name))
        topics = [leaders.described(topic) for topic in shown]
    else:
        topics = []
        for name, topic_id in dict.fromkeys((topic.name, topic.topic_id) for topic in message.topics):
            is_named = topic_id == ZERO_UUID and name is not None
            found = cluster.topic(name) if is_named and name is not None else cluster.topic_by_id(topic_id)
            asked = name if is_named else None if found is None else found.name
            if asked is not None and not access.allows(DESCRIBE_TOPIC, asked):
                topics.append(_hidden(name if is_named else None, topic_id))
            elif found is not None:
                topics.append(leaders.described(found))
            else:
                topics.append(_missing(name, topic_id, errors))
    return MetadataResponse(
        brokers=_brokers(listener.nodes(cluster)),
        cluster_id=cluster.state.cluster_id,
        controller_id=listener.controller(cluster),
        topics=topics,
        cluster_authorized_operations=(
            operations_on_cluster(access) if message.include_cluster_authorized_operations else NOT_ASKED_FOR
        ),
    )


def operations_on_cluster(access: Access) -> int:
    """What the client may do to the cluster, as it is told: nothing, if it may not describe it."""
    may_ask = access.shows(DESCRIBE_CLUSTER, CLUSTER_NAME)
    return access.operations(ResourceType.CLUSTER, CLUSTER_NAME) if may_ask else 0


def _hidden(name: str | None, topic_id: bytes) -> MetadataResponseTopic:
    """A topic that the client may not describe, named as the client did: ids are no secret, names are."""
    return MetadataResponseTopic(error_code=ErrorCode.TOPIC_AUTHORIZATION_FAILED, name=name, topic_id=topic_id)


def _missing(name: str | None, topic_id: bytes, errors: dict[str, int]) -> MetadataResponseTopic:
    if topic_id != ZERO_UUID or name is None:
        return MetadataResponseTopic(error_code=ErrorCode.UNKNOWN_TOPIC_ID, name=None, topic_id=topic_id)
    if topic_name_error(name) is not None:
        return MetadataResponseTopic(error_code=ErrorCode.INVALID_TOPIC_EXCEPTION, name=name)
    return MetadataResponseTopic(error_code=errors.get(name, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION), name=name)


def _brokers(nodes: list[NodeAddress]) -> list[MetadataResponseBroker]:
    return [
        MetadataResponseBroker(node_id=node.node_id, host=node.host, port=node.port, rack=node.rack) for node in nodes
    ]


class _Leader(NamedTuple):
    """What is said of a partition, but for its number."""

    error_code: int
    node_id: int
    epoch: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]
    offline: tuple[int, ...]


class _Leaders:
    """Who leads, by slot: looked up once for each slot, as an answer may name many thousand partitions."""

    def __init__(self, cluster: ClusterView, listener: Listener, access: Access | None) -> None:
        """`access`: of whom to say what he may do to each topic."""
        self._cluster = cluster
        self._listener = listener
        self._access = access
        self._by_slot: dict[int, _Leader] = {}

    def described(self, topic: Topic) -> MetadataResponseTopic:
        slot_count = self._cluster.state.slot_count
        partitions = []
        for index in range(topic.partitions):
            slot = slot_of(topic.topic_id, index, slot_count)
            code, leader, epoch, replicas, in_sync, offline = self._by_slot.get(slot) or self._look_up(slot)
            partitions.append(
                MetadataResponsePartition(
                    error_code=code,
                    partition_index=index,
                    leader_id=leader,
                    leader_epoch=epoch,
                    replica_nodes=replicas,
                    isr_nodes=in_sync,
                    offline_replicas=offline,
                )
            )
        return MetadataResponseTopic(
            name=topic.name,
            topic_id=topic.topic_id,
            is_internal=topic.name in INTERNAL_TOPICS,
            partitions=partitions,
            topic_authorized_operations=(
                NOT_ASKED_FOR if self._access is None else self._access.operations(ResourceType.TOPIC, topic.name)
            ),
        )

    def _look_up(self, slot: int) -> _Leader:
        owner = self._cluster.state.owner(slot)
        if owner is None:
            found = _Leader(ErrorCode.LEADER_NOT_AVAILABLE, -1, -1, (), (), ())
        else:
            node = (self._listener.told(owner.node_id),)
            readers = self._listener.readers(self._cluster, slot, owner.node_id)
            if self._listener.address(self._cluster, owner.node_id) is None:
                found = _Leader(ErrorCode.LEADER_NOT_AVAILABLE, -1, owner.epoch, node + readers, readers, node)
            else:
                found = _Leader(ErrorCode.NONE, node[0], owner.epoch, node + readers, node + readers, ())
        self._by_slot[slot] = found
        return found

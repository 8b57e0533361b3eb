"""What each API takes, written out anew from Kafka's table and KafScale's: requests, the rights that let them pass, and
what is said to one who lacks them. `test_authorization.py` drives all of it through a whole worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kafscale.protocol.api import ApiKey
from kafscale.protocol.messages.alter_client_quotas import AlterClientQuotasRequest, EntityData, EntryData, OpData
from kafscale.protocol.messages.alter_configs import AlterConfigsRequest, AlterConfigsResource
from kafscale.protocol.messages.alter_user_scram_credentials import (
    AlterUserScramCredentialsRequest,
    ScramCredentialUpsertion,
)
from kafscale.protocol.messages.create_acls import AclCreation, CreateAclsRequest
from kafscale.protocol.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsTopic
from kafscale.protocol.messages.create_topics import CreatableTopic, CreateTopicsRequest
from kafscale.protocol.messages.delete_acls import DeleteAclsFilter, DeleteAclsRequest
from kafscale.protocol.messages.delete_groups import DeleteGroupsRequest
from kafscale.protocol.messages.delete_records import DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsTopic
from kafscale.protocol.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from kafscale.protocol.messages.describe_acls import DescribeAclsRequest
from kafscale.protocol.messages.describe_client_quotas import DescribeClientQuotasRequest
from kafscale.protocol.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResource
from kafscale.protocol.messages.describe_groups import DescribeGroupsRequest
from kafscale.protocol.messages.describe_log_dirs import DescribeLogDirsRequest
from kafscale.protocol.messages.describe_user_scram_credentials import DescribeUserScramCredentialsRequest
from kafscale.protocol.messages.find_coordinator import FindCoordinatorRequest
from kafscale.protocol.messages.heartbeat import HeartbeatRequest
from kafscale.protocol.messages.incremental_alter_configs import (
    AlterConfigsResource as IncrementalResource,
)
from kafscale.protocol.messages.incremental_alter_configs import IncrementalAlterConfigsRequest
from kafscale.protocol.messages.init_producer_id import InitProducerIdRequest
from kafscale.protocol.messages.join_group import JoinGroupRequest, JoinGroupRequestProtocol
from kafscale.protocol.messages.leave_group import LeaveGroupRequest, MemberIdentity
from kafscale.protocol.messages.list_groups import ListGroupsRequest
from kafscale.protocol.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from kafscale.protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from kafscale.protocol.messages.offset_commit import (
    OffsetCommitRequest,
    OffsetCommitRequestPartition,
    OffsetCommitRequestTopic,
)
from kafscale.protocol.messages.offset_delete import (
    OffsetDeleteRequest,
    OffsetDeleteRequestPartition,
    OffsetDeleteRequestTopic,
)
from kafscale.protocol.messages.offset_fetch import (
    OffsetFetchRequest,
    OffsetFetchRequestGroup,
    OffsetFetchRequestTopic,
    OffsetFetchRequestTopics,
)
from kafscale.protocol.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochRequest,
    OffsetForLeaderPartition,
    OffsetForLeaderTopic,
)
from kafscale.protocol.messages.sync_group import SyncGroupRequest
from kafscale.protocol.schema import Message
from tests.unit.workers.whole_worker import batch_of, fetch_request, id_of, produce_request

T_ID = id_of(4)
NOTHING_SAID: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Case:
    """One right that an API takes. `has` are others that it takes as well, held throughout; `kafka` and `document` are
    the right itself, in either's words (any one of `kafka` will do, as will any of `document`); `denied` are the codes,
    all there are, that one without it is told."""

    name: str
    api: ApiKey
    request: Callable[[int], Message]
    kafka: Sequence[str]
    document: Sequence[str]
    denied: frozenset[int]
    has: Sequence[str] = ()
    has_document: Sequence[str] = ()
    versions: tuple[int, int] | None = None
    # Whether the answer tells of the resource, or does something to it: for one who may, and for nobody else.
    tells: Callable[[Any], bool] | None = None
    # What takes the right from one who may do everything, where that is not the right itself.
    deny: Sequence[str] = ()
    deny_document: Sequence[str] = ()


def _is_by_id(key: ApiKey, version: int) -> bool:
    return version >= {ApiKey.PRODUCE: 13, ApiKey.FETCH: 13, ApiKey.OFFSET_COMMIT: 10, ApiKey.OFFSET_FETCH: 10}[key]


def _produce(version: int) -> Message:
    topic: str | bytes = T_ID if _is_by_id(ApiKey.PRODUCE, version) else "t"
    return produce_request((topic, 0, batch_of(b"x")))


def _fetch(version: int) -> Message:
    return fetch_request((T_ID if _is_by_id(ApiKey.FETCH, version) else "t", 0, 0))


def _commit(version: int) -> Message:
    named = {"topic_id": T_ID} if _is_by_id(ApiKey.OFFSET_COMMIT, version) else {"name": "t"}
    topic = OffsetCommitRequestTopic(partitions=[OffsetCommitRequestPartition(committed_offset=1)], **named)
    return OffsetCommitRequest(group_id="g", topics=[topic])


def _fetch_offsets(version: int) -> Message:
    named = {"topic_id": T_ID} if _is_by_id(ApiKey.OFFSET_FETCH, version) else {"name": "t"}
    return OffsetFetchRequest(
        group_id="g",
        topics=[OffsetFetchRequestTopic(name="t", partition_indexes=[0])],
        groups=[
            OffsetFetchRequestGroup(group_id="g", topics=[OffsetFetchRequestTopics(partition_indexes=[0], **named)])
        ],
    )


def _metadata(*names: str, create: bool = False) -> Callable[[int], Message]:
    topics = [MetadataRequestTopic(name=name) for name in names]
    return lambda version: MetadataRequest(topics=topics, allow_auto_topic_creation=create)


def _describe_configs(kind: int, name: str) -> Callable[[int], Message]:
    resource = DescribeConfigsResource(resource_type=kind, resource_name=name, configuration_keys=None)
    return lambda version: DescribeConfigsRequest(resources=[resource])


def _delete_topics(version: int) -> Message:
    if version >= 6:
        return DeleteTopicsRequest(topics=[DeleteTopicState(name="t")], timeout_ms=1000)
    return DeleteTopicsRequest(topic_names=["t"], timeout_ms=1000)


def _create_topics(version: int) -> Message:
    topic = CreatableTopic(name="new", num_partitions=1, replication_factor=1)
    return CreateTopicsRequest(topics=[topic], timeout_ms=1000)


def _alter(kind: int, name: str) -> Callable[[int], Message]:
    return lambda version: AlterConfigsRequest(
        resources=[AlterConfigsResource(resource_type=kind, resource_name=name, configs=[])]
    )


def _alter_incrementally(kind: int, name: str) -> Callable[[int], Message]:
    return lambda version: IncrementalAlterConfigsRequest(
        resources=[IncrementalResource(resource_type=kind, resource_name=name, configs=[])]
    )


def _join(version: int) -> Message:
    return JoinGroupRequest(
        group_id="g",
        session_timeout_ms=10_000,
        rebalance_timeout_ms=10_000,
        protocol_type="consumer",
        protocols=[JoinGroupRequestProtocol(name="range", metadata=b"")],
    )


def _list_offsets(version: int) -> Message:
    partitions = [ListOffsetsPartition(partition_index=0, timestamp=-1)]
    return ListOffsetsRequest(replica_id=-1, topics=[ListOffsetsTopic(name="t", partitions=partitions)])


def _epochs(version: int) -> Message:
    partitions = [OffsetForLeaderPartition(partition=0, leader_epoch=3)]
    return OffsetForLeaderEpochRequest(replica_id=-1, topics=[OffsetForLeaderTopic(topic="t", partitions=partitions)])


def _delete_records(version: int) -> Message:
    partitions = [DeleteRecordsPartition(partition_index=0, offset=0)]
    return DeleteRecordsRequest(topics=[DeleteRecordsTopic(name="t", partitions=partitions)], timeout_ms=1000)


def _delete_offsets(version: int) -> Message:
    topic = OffsetDeleteRequestTopic(name="t", partitions=[OffsetDeleteRequestPartition()])
    return OffsetDeleteRequest(group_id="g", topics=[topic])


def _describe_acls() -> Message:
    return DescribeAclsRequest(
        resource_type_filter=1,
        resource_name_filter=None,
        pattern_type_filter=1,
        principal_filter=None,
        host_filter=None,
        operation=1,
        permission_type=1,
    )


_CREATION = AclCreation(
    resource_type=2, resource_name="t", principal="User:bob", host="*", operation=3, permission_type=3
)
_FILTER = DeleteAclsFilter(
    resource_type_filter=2,
    resource_name_filter="t",
    principal_filter="User:bob",
    host_filter=None,
    operation=1,
    permission_type=1,
)

_CREDENTIAL = ScramCredentialUpsertion(
    name="bob", mechanism=1, iterations=4096, salt=b"salt", salted_password=bytes(32)
)

_QUOTA = EntryData(
    entity=[EntityData(entity_type="user", entity_name="bob")], ops=[OpData(key="producer_byte_rate", value=1e6)]
)

TOPIC, GROUP, CLUSTER, TRANSACTION = (frozenset({code}) for code in (29, 30, 31, 53))
_USES_TOPIC = ("fetch topic t", "produce topic t", "admin cluster *")
_ADMINISTERS = ("admin cluster *", "admin topic t")
_KNOWS_GROUP = ("group_read group g", "group_write group g", "group_admin group g")

key = ApiKey
# fmt: off
CASES: tuple[Case, ...] = (
    Case("produce", key.PRODUCE, _produce, ["write topic t"], ["produce topic t"], TOPIC),
    Case("produce in a transaction", key.PRODUCE,
         lambda version: produce_request((T_ID if version >= 13 else "t", 0, batch_of(b"x")), transactional_id="x"),
         ["write transactional_id x"], ["produce transactional_id x"], TRANSACTION,
         ["write topic t"], ["produce topic t"]),
    Case("fetch", key.FETCH, _fetch, ["read topic t"], ["fetch topic t"], TOPIC),
    Case("list offsets", key.LIST_OFFSETS, _list_offsets, ["describe topic t", "read topic t"], ["fetch topic t"],
         TOPIC),
    Case("metadata by name", key.METADATA, _metadata("t"), ["describe topic t", "write topic t", "alter topic t"],
         _USES_TOPIC, TOPIC, tells=lambda answer: bool(answer.topics[0].partitions)),
    Case("metadata by id", key.METADATA,
         lambda version: MetadataRequest(topics=[MetadataRequestTopic(name=None, topic_id=T_ID)]),
         ["describe topic t"], _USES_TOPIC, TOPIC, versions=(12, 13),
         tells=lambda answer: answer.topics[0].name == "t"),
    Case("metadata of all", key.METADATA,
         lambda version: MetadataRequest(topics=() if version == 0 else None),
         ["describe topic t"], _USES_TOPIC, NOTHING_SAID,
         tells=lambda answer: "t" in [topic.name for topic in answer.topics]),
    Case("create by use", key.METADATA, _metadata("new", create=True),
         ["create topic new", "create cluster kafka-cluster"], ["produce topic new", "admin cluster *"], TOPIC,
         ["describe topic new"], ["fetch topic new"], (4, 13),
         tells=lambda answer: answer.topics[0].error_code in (0, 5)),
    Case("commit: the group", key.OFFSET_COMMIT, _commit, ["read group g"], ["group_write group g"], GROUP,
         ["read topic t"], ["fetch topic t"]),
    Case("commit: the topic", key.OFFSET_COMMIT, _commit, ["read topic t"], ["fetch topic t"], TOPIC,
         ["read group g"], ["group_write group g"]),
    Case("offsets: the group", key.OFFSET_FETCH, _fetch_offsets, ["describe group g", "read group g"],
         ["group_read group g"], GROUP, ["describe topic t"], ["fetch topic t"]),
    Case("offsets: the topic", key.OFFSET_FETCH, _fetch_offsets, ["describe topic t"], _USES_TOPIC, TOPIC,
         ["describe group g"], ["group_read group g"]),
    Case("find the coordinator of a group", key.FIND_COORDINATOR,
         lambda version: FindCoordinatorRequest(key="g", key_type=0, coordinator_keys=["g"]),
         ["describe group g", "read group g"], _KNOWS_GROUP, GROUP),
    Case("find the coordinator of a transaction", key.FIND_COORDINATOR,
         lambda version: FindCoordinatorRequest(key="x", key_type=1, coordinator_keys=["x"]),
         ["describe transactional_id x"], ["produce transactional_id x"], TRANSACTION, versions=(1, 6)),
    Case("find the coordinator of a share", key.FIND_COORDINATOR,
         lambda version: FindCoordinatorRequest(key="x", key_type=2, coordinator_keys=["x"]),
         ["cluster_action cluster kafka-cluster"], [], CLUSTER, versions=(6, 6)),
    Case("join", key.JOIN_GROUP, _join, ["read group g"], ["group_write group g"], GROUP),
    Case("sync", key.SYNC_GROUP,
         lambda version: SyncGroupRequest(group_id="g", member_id="m", protocol_type="consumer", protocol_name="range"),
         ["read group g"], ["group_write group g"], GROUP),
    Case("heartbeat", key.HEARTBEAT, lambda version: HeartbeatRequest(group_id="g", member_id="m"),
         ["read group g"], ["group_write group g"], GROUP),
    Case("leave", key.LEAVE_GROUP,
         lambda version: LeaveGroupRequest(group_id="g", member_id="m", members=[MemberIdentity(member_id="m")]),
         ["read group g"], ["group_write group g"], GROUP),
    Case("describe groups", key.DESCRIBE_GROUPS, lambda version: DescribeGroupsRequest(groups=["g"]),
         ["describe group g", "delete group g"], ["group_read group g"], GROUP),
    Case("list groups", key.LIST_GROUPS, lambda version: ListGroupsRequest(),
         ["describe group g", "describe cluster kafka-cluster"], ["group_read group g", "group_read group *"],
         NOTHING_SAID, tells=lambda answer: "g" in [group.group_id for group in answer.groups]),
    Case("create topics", key.CREATE_TOPICS, _create_topics, ["create topic new", "create cluster kafka-cluster"],
         ["admin cluster *", "admin topic new"], TOPIC),
    Case("delete topics", key.DELETE_TOPICS, _delete_topics, ["delete topic t", "delete cluster kafka-cluster"],
         _ADMINISTERS, TOPIC),
    Case("delete topics by id", key.DELETE_TOPICS,
         lambda version: DeleteTopicsRequest(topics=[DeleteTopicState(name=None, topic_id=T_ID)], timeout_ms=1000),
         ["delete topic t", "delete cluster kafka-cluster"], _ADMINISTERS, TOPIC, versions=(6, 6)),
    Case("delete records", key.DELETE_RECORDS, _delete_records, ["delete topic t"], _ADMINISTERS, TOPIC),
    Case("a producer id", key.INIT_PRODUCER_ID, lambda version: InitProducerIdRequest(transactional_id=None),
         ["idempotent_write cluster kafka-cluster", "write topic t", "write topic x*"], ["produce topic t"], CLUSTER,
         deny=["idempotent_write cluster kafka-cluster", "write topic *"], deny_document=["produce topic *"]),
    Case("a producer id for transactions", key.INIT_PRODUCER_ID,
         lambda version: InitProducerIdRequest(transactional_id="x"),
         ["write transactional_id x"], ["produce transactional_id x"], TRANSACTION),
    Case("epochs", key.OFFSET_FOR_LEADER_EPOCH, _epochs, ["describe topic t", "cluster_action cluster kafka-cluster"],
         ["fetch topic t"], TOPIC),
    Case("describe ACLs", key.DESCRIBE_ACLS, lambda version: _describe_acls(), ["describe cluster kafka-cluster"],
         ["admin cluster *"], CLUSTER),
    Case("create ACLs", key.CREATE_ACLS, lambda version: CreateAclsRequest(creations=[_CREATION]),
         ["alter cluster kafka-cluster"], ["admin cluster *"], CLUSTER),
    Case("delete ACLs", key.DELETE_ACLS, lambda version: DeleteAclsRequest(filters=[_FILTER]),
         ["alter cluster kafka-cluster"], ["admin cluster *"], CLUSTER),
    Case("describe quotas", key.DESCRIBE_CLIENT_QUOTAS, lambda version: DescribeClientQuotasRequest(),
         ["describe_configs cluster kafka-cluster", "alter_configs cluster kafka-cluster"], ["admin cluster *"],
         CLUSTER),
    Case("alter quotas", key.ALTER_CLIENT_QUOTAS, lambda version: AlterClientQuotasRequest(entries=[_QUOTA]),
         ["alter_configs cluster kafka-cluster"], ["admin cluster *"], CLUSTER),
    Case("describe a topic's settings", key.DESCRIBE_CONFIGS, _describe_configs(2, "t"),
         ["describe_configs topic t", "alter_configs topic t"], ["fetch topic t"], TOPIC,
         tells=lambda answer: bool(answer.results[0].configs)),
    Case("describe a broker's settings", key.DESCRIBE_CONFIGS, _describe_configs(4, "0"),
         ["describe_configs cluster kafka-cluster"], ["admin cluster *"], CLUSTER,
         tells=lambda answer: bool(answer.results[0].configs)),
    Case("describe a group's settings", key.DESCRIBE_CONFIGS, _describe_configs(32, "g"),
         ["describe_configs group g"], ["group_read group g"], GROUP),
    Case("alter a topic's settings", key.ALTER_CONFIGS, _alter(2, "t"), ["alter_configs topic t"], _ADMINISTERS, TOPIC),
    Case("alter a broker's settings", key.ALTER_CONFIGS, _alter(4, "0"), ["alter_configs cluster kafka-cluster"],
         ["admin cluster *"], CLUSTER),
    Case("alter a group's settings", key.ALTER_CONFIGS, _alter(32, "g"), ["alter_configs group g"],
         ["group_admin group g"], GROUP),
    Case("alter single settings of a topic", key.INCREMENTAL_ALTER_CONFIGS, _alter_incrementally(2, "t"),
         ["alter_configs topic t"], _ADMINISTERS, TOPIC),
    Case("alter single settings of a broker", key.INCREMENTAL_ALTER_CONFIGS, _alter_incrementally(4, "0"),
         ["alter_configs cluster kafka-cluster"], ["admin cluster *"], CLUSTER),
    Case("alter single settings of a group", key.INCREMENTAL_ALTER_CONFIGS, _alter_incrementally(32, "g"),
         ["alter_configs group g"], ["group_admin group g"], GROUP),
    Case("describe log directories", key.DESCRIBE_LOG_DIRS, lambda version: DescribeLogDirsRequest(topics=None),
         ["describe cluster kafka-cluster"], ["admin cluster *"], CLUSTER, versions=(3, 5),
         tells=lambda answer: bool(answer.results)),
    Case("describe log directories of old", key.DESCRIBE_LOG_DIRS, lambda version: DescribeLogDirsRequest(topics=None),
         ["describe cluster kafka-cluster"], ["admin cluster *"], NOTHING_SAID, versions=(1, 2),
         tells=lambda answer: bool(answer.results)),
    Case("create partitions", key.CREATE_PARTITIONS,
         lambda version: CreatePartitionsRequest(topics=[CreatePartitionsTopic(name="t", count=2)], timeout_ms=1000),
         ["alter topic t"], _ADMINISTERS, TOPIC),
    Case("delete groups", key.DELETE_GROUPS, lambda version: DeleteGroupsRequest(groups_names=["g"]),
         ["delete group g"], ["group_admin group g"], GROUP),
    Case("delete offsets: the group", key.OFFSET_DELETE, _delete_offsets, ["delete group g"], ["group_admin group g"],
         GROUP, ["read topic t"], ["fetch topic t"]),
    Case("delete offsets: the topic", key.OFFSET_DELETE, _delete_offsets, ["read topic t"], ["fetch topic t"],
         TOPIC, ["delete group g"], ["group_admin group g"]),
    Case("describe passwords", key.DESCRIBE_USER_SCRAM_CREDENTIALS,
         lambda version: DescribeUserScramCredentialsRequest(), ["describe cluster kafka-cluster"],
         ["admin cluster *"], CLUSTER),
    Case("alter passwords", key.ALTER_USER_SCRAM_CREDENTIALS,
         lambda version: AlterUserScramCredentialsRequest(upsertions=[_CREDENTIAL]), ["alter cluster kafka-cluster"],
         ["admin cluster *"], CLUSTER),
)
# fmt: on

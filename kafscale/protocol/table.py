"""The one table of APIs: number, name, message types, the versions that can be decoded, and where they turn flexible.

Everything that differs by API and not by field is said here, once. It knows no bytes and no handler; what is served,
authorized or advertised is decided by those who read the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from kafscale.protocol.messages.alter_client_quotas import AlterClientQuotasRequest, AlterClientQuotasResponse
from kafscale.protocol.messages.alter_configs import AlterConfigsRequest, AlterConfigsResponse
from kafscale.protocol.messages.alter_user_scram_credentials import (
    AlterUserScramCredentialsRequest,
    AlterUserScramCredentialsResponse,
)
from kafscale.protocol.messages.api_versions import ApiVersionsRequest, ApiVersionsResponse
from kafscale.protocol.messages.create_acls import CreateAclsRequest, CreateAclsResponse
from kafscale.protocol.messages.create_partitions import CreatePartitionsRequest, CreatePartitionsResponse
from kafscale.protocol.messages.create_topics import CreateTopicsRequest, CreateTopicsResponse
from kafscale.protocol.messages.delete_acls import DeleteAclsRequest, DeleteAclsResponse
from kafscale.protocol.messages.delete_groups import DeleteGroupsRequest, DeleteGroupsResponse
from kafscale.protocol.messages.delete_records import DeleteRecordsRequest, DeleteRecordsResponse
from kafscale.protocol.messages.delete_topics import DeleteTopicsRequest, DeleteTopicsResponse
from kafscale.protocol.messages.describe_acls import DescribeAclsRequest, DescribeAclsResponse
from kafscale.protocol.messages.describe_client_quotas import (
    DescribeClientQuotasRequest,
    DescribeClientQuotasResponse,
)
from kafscale.protocol.messages.describe_cluster import DescribeClusterRequest, DescribeClusterResponse
from kafscale.protocol.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResponse
from kafscale.protocol.messages.describe_groups import DescribeGroupsRequest, DescribeGroupsResponse
from kafscale.protocol.messages.describe_log_dirs import DescribeLogDirsRequest, DescribeLogDirsResponse
from kafscale.protocol.messages.describe_user_scram_credentials import (
    DescribeUserScramCredentialsRequest,
    DescribeUserScramCredentialsResponse,
)
from kafscale.protocol.messages.fetch import FetchRequest, FetchResponse
from kafscale.protocol.messages.find_coordinator import FindCoordinatorRequest, FindCoordinatorResponse
from kafscale.protocol.messages.heartbeat import HeartbeatRequest, HeartbeatResponse
from kafscale.protocol.messages.incremental_alter_configs import (
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
)
from kafscale.protocol.messages.init_producer_id import InitProducerIdRequest, InitProducerIdResponse
from kafscale.protocol.messages.join_group import JoinGroupRequest, JoinGroupResponse
from kafscale.protocol.messages.leave_group import LeaveGroupRequest, LeaveGroupResponse
from kafscale.protocol.messages.list_groups import ListGroupsRequest, ListGroupsResponse
from kafscale.protocol.messages.list_offsets import ListOffsetsRequest, ListOffsetsResponse
from kafscale.protocol.messages.metadata import MetadataRequest, MetadataResponse
from kafscale.protocol.messages.offset_commit import OffsetCommitRequest, OffsetCommitResponse
from kafscale.protocol.messages.offset_delete import OffsetDeleteRequest, OffsetDeleteResponse
from kafscale.protocol.messages.offset_fetch import OffsetFetchRequest, OffsetFetchResponse
from kafscale.protocol.messages.offset_for_leader_epoch import OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse
from kafscale.protocol.messages.produce import ProduceRequest, ProduceResponse
from kafscale.protocol.messages.sasl_authenticate import SaslAuthenticateRequest, SaslAuthenticateResponse
from kafscale.protocol.messages.sasl_handshake import SaslHandshakeRequest, SaslHandshakeResponse
from kafscale.protocol.messages.sync_group import SyncGroupRequest, SyncGroupResponse
from kafscale.protocol.schema import Message

NEVER: Final = 0x7FFF
"""`flexible_from` of an API that has no flexible version."""


class ApiKey(IntEnum):
    """Numbers of the APIs that Kafscale has messages for."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    DESCRIBE_GROUPS = 15
    LIST_GROUPS = 16
    SASL_HANDSHAKE = 17
    API_VERSIONS = 18
    CREATE_TOPICS = 19
    DELETE_TOPICS = 20
    DELETE_RECORDS = 21
    INIT_PRODUCER_ID = 22
    OFFSET_FOR_LEADER_EPOCH = 23
    DESCRIBE_ACLS = 29
    CREATE_ACLS = 30
    DELETE_ACLS = 31
    DESCRIBE_CONFIGS = 32
    ALTER_CONFIGS = 33
    DESCRIBE_LOG_DIRS = 35
    SASL_AUTHENTICATE = 36
    CREATE_PARTITIONS = 37
    DELETE_GROUPS = 42
    INCREMENTAL_ALTER_CONFIGS = 44
    OFFSET_DELETE = 47
    DESCRIBE_CLIENT_QUOTAS = 48
    ALTER_CLIENT_QUOTAS = 49
    DESCRIBE_USER_SCRAM_CREDENTIALS = 50
    ALTER_USER_SCRAM_CREDENTIALS = 51
    DESCRIBE_CLUSTER = 60


@dataclass(frozen=True, slots=True)
class Api:
    """One row. Versions from `min_version` to `max_version` can be decoded and encoded, both ways."""

    key: ApiKey
    name: str
    request: type[Message]
    response: type[Message]
    min_version: int
    max_version: int
    flexible_from: int

    def is_flexible(self, version: int) -> bool:
        """Whether `version` has compact lengths and tagged fields (KIP-482). Holds for versions not known here too."""
        return version >= self.flexible_from

    def has_flexible_response_header(self, version: int) -> bool:
        """ApiVersions answers with the old header always: its reader can't know yet what is spoken (KIP-511)."""
        return version >= self.flexible_from and self.key != ApiKey.API_VERSIONS


def _rows() -> list[Api]:
    # Versions are those of Kafka 4.3. Produce 0 to 2 are advertised (KAFKA-18659) and have no messages.
    return [
        Api(ApiKey.PRODUCE, "Produce", ProduceRequest, ProduceResponse, 3, 13, 9),
        Api(ApiKey.FETCH, "Fetch", FetchRequest, FetchResponse, 4, 18, 12),
        Api(ApiKey.LIST_OFFSETS, "ListOffsets", ListOffsetsRequest, ListOffsetsResponse, 1, 11, 6),
        Api(ApiKey.METADATA, "Metadata", MetadataRequest, MetadataResponse, 0, 13, 9),
        Api(ApiKey.OFFSET_COMMIT, "OffsetCommit", OffsetCommitRequest, OffsetCommitResponse, 2, 10, 8),
        Api(ApiKey.OFFSET_FETCH, "OffsetFetch", OffsetFetchRequest, OffsetFetchResponse, 1, 10, 6),
        Api(ApiKey.FIND_COORDINATOR, "FindCoordinator", FindCoordinatorRequest, FindCoordinatorResponse, 0, 6, 3),
        Api(ApiKey.JOIN_GROUP, "JoinGroup", JoinGroupRequest, JoinGroupResponse, 0, 9, 6),
        Api(ApiKey.HEARTBEAT, "Heartbeat", HeartbeatRequest, HeartbeatResponse, 0, 4, 4),
        Api(ApiKey.LEAVE_GROUP, "LeaveGroup", LeaveGroupRequest, LeaveGroupResponse, 0, 5, 4),
        Api(ApiKey.SYNC_GROUP, "SyncGroup", SyncGroupRequest, SyncGroupResponse, 0, 5, 4),
        Api(ApiKey.DESCRIBE_GROUPS, "DescribeGroups", DescribeGroupsRequest, DescribeGroupsResponse, 0, 6, 5),
        Api(ApiKey.LIST_GROUPS, "ListGroups", ListGroupsRequest, ListGroupsResponse, 0, 5, 3),
        Api(ApiKey.SASL_HANDSHAKE, "SaslHandshake", SaslHandshakeRequest, SaslHandshakeResponse, 0, 1, NEVER),
        Api(ApiKey.SASL_AUTHENTICATE, "SaslAuthenticate", SaslAuthenticateRequest, SaslAuthenticateResponse, 0, 2, 2),
        Api(ApiKey.API_VERSIONS, "ApiVersions", ApiVersionsRequest, ApiVersionsResponse, 0, 4, 3),
        Api(ApiKey.CREATE_TOPICS, "CreateTopics", CreateTopicsRequest, CreateTopicsResponse, 2, 7, 5),
        Api(ApiKey.DELETE_TOPICS, "DeleteTopics", DeleteTopicsRequest, DeleteTopicsResponse, 1, 6, 4),
        Api(ApiKey.DELETE_RECORDS, "DeleteRecords", DeleteRecordsRequest, DeleteRecordsResponse, 0, 2, 2),
        Api(ApiKey.INIT_PRODUCER_ID, "InitProducerId", InitProducerIdRequest, InitProducerIdResponse, 0, 5, 2),
        Api(
            ApiKey.OFFSET_FOR_LEADER_EPOCH,
            "OffsetForLeaderEpoch",
            OffsetForLeaderEpochRequest,
            OffsetForLeaderEpochResponse,
            2,
            4,
            4,
        ),
    ]


def _administration() -> list[Api]:
    return [
        Api(ApiKey.DESCRIBE_ACLS, "DescribeAcls", DescribeAclsRequest, DescribeAclsResponse, 1, 3, 2),
        Api(ApiKey.CREATE_ACLS, "CreateAcls", CreateAclsRequest, CreateAclsResponse, 1, 3, 2),
        Api(ApiKey.DELETE_ACLS, "DeleteAcls", DeleteAclsRequest, DeleteAclsResponse, 1, 3, 2),
        Api(ApiKey.DESCRIBE_CONFIGS, "DescribeConfigs", DescribeConfigsRequest, DescribeConfigsResponse, 1, 4, 4),
        Api(ApiKey.ALTER_CONFIGS, "AlterConfigs", AlterConfigsRequest, AlterConfigsResponse, 0, 2, 2),
        Api(ApiKey.DESCRIBE_LOG_DIRS, "DescribeLogDirs", DescribeLogDirsRequest, DescribeLogDirsResponse, 1, 5, 2),
        Api(ApiKey.CREATE_PARTITIONS, "CreatePartitions", CreatePartitionsRequest, CreatePartitionsResponse, 0, 3, 2),
        Api(ApiKey.DELETE_GROUPS, "DeleteGroups", DeleteGroupsRequest, DeleteGroupsResponse, 0, 2, 2),
        Api(
            ApiKey.INCREMENTAL_ALTER_CONFIGS,
            "IncrementalAlterConfigs",
            IncrementalAlterConfigsRequest,
            IncrementalAlterConfigsResponse,
            0,
            1,
            1,
        ),
        Api(ApiKey.OFFSET_DELETE, "OffsetDelete", OffsetDeleteRequest, OffsetDeleteResponse, 0, 0, NEVER),
        Api(
            ApiKey.DESCRIBE_CLIENT_QUOTAS,
            "DescribeClientQuotas",
            DescribeClientQuotasRequest,
            DescribeClientQuotasResponse,
            0,
            1,
            1,
        ),
        Api(
            ApiKey.ALTER_CLIENT_QUOTAS,
            "AlterClientQuotas",
            AlterClientQuotasRequest,
            AlterClientQuotasResponse,
            0,
            1,
            1,
        ),
        Api(
            ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS,
            "DescribeUserScramCredentials",
            DescribeUserScramCredentialsRequest,
            DescribeUserScramCredentialsResponse,
            0,
            0,
            0,
        ),
        Api(
            ApiKey.ALTER_USER_SCRAM_CREDENTIALS,
            "AlterUserScramCredentials",
            AlterUserScramCredentialsRequest,
            AlterUserScramCredentialsResponse,
            0,
            0,
            0,
        ),
        Api(ApiKey.DESCRIBE_CLUSTER, "DescribeCluster", DescribeClusterRequest, DescribeClusterResponse, 0, 2, 0),
    ]


APIS: Final[Mapping[int, Api]] = MappingProxyType(
    {int(api.key): api for api in sorted(_rows() + _administration(), key=lambda api: api.key)}
)
"""By API key."""

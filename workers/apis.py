"""The APIs that are served: one line each. What clients are told of versions follows from this list.

To serve another API: a row in `kafscale/protocol/table.py`, one in `workers/authorization.py`, one in
`workers/forwarding/routes.py`, a file in `workers/handlers/`, and a line here; for one that changes something also a
function in `workers/audited_changes.py`.
"""

from __future__ import annotations

from kafscale.protocol.api import ApiKey
from workers.dispatch import AnyHandler, Handler, RawHandler
from workers.handlers import (
    alter_client_quotas,
    alter_configs,
    alter_user_scram_credentials,
    create_acls,
    create_partitions,
    create_topics,
    delete_acls,
    delete_groups,
    delete_records,
    delete_topics,
    describe_acls,
    describe_client_quotas,
    describe_cluster,
    describe_configs,
    describe_groups,
    describe_log_dirs,
    describe_user_scram_credentials,
    fetch,
    find_coordinator,
    heartbeat,
    incremental_alter_configs,
    init_producer_id,
    join_group,
    leave_group,
    list_groups,
    list_offsets,
    metadata,
    offset_commit,
    offset_delete,
    offset_fetch,
    offset_for_leader_epoch,
    produce,
    sasl_authenticate,
    sasl_handshake,
    sync_group,
)
from workers.handlers.api_versions import ApiVersionsHandler


def handlers() -> list[AnyHandler]:
    """The handlers of one worker."""
    served = _served()
    ranges = [(int(h.api), h.advertised_from, h.max_version) for h in served]
    api_versions = ApiVersionsHandler([*ranges, (int(ApiKey.API_VERSIONS), 0, 4)])
    return [*served, Handler(ApiKey.API_VERSIONS, 0, 4, api_versions.handle, api_versions.failed, is_repeatable=True)]


def _served() -> list[AnyHandler]:
    key = ApiKey
    # fmt: off
    return [
        # Advertised from 0: with 3, librdkafka 2.0 silently stops compressing (KAFKA-18659).
        RawHandler(key.PRODUCE, 3, 13, produce.handle, advertised_from=0),
        RawHandler(key.FETCH, 4, 18, fetch.handle, advertised_from=4),
        Handler(key.LIST_OFFSETS, 1, 11, list_offsets.handle, list_offsets.failed),
        Handler(key.METADATA, 0, 13, metadata.handle, metadata.failed, is_repeatable=True),
        Handler(key.OFFSET_COMMIT, 2, 10, offset_commit.handle, offset_commit.failed),
        Handler(key.OFFSET_FETCH, 1, 10, offset_fetch.handle, offset_fetch.failed),
        Handler(key.FIND_COORDINATOR, 0, 6, find_coordinator.handle, find_coordinator.failed),
        Handler(key.JOIN_GROUP, 0, 9, join_group.handle),
        Handler(key.HEARTBEAT, 0, 4, heartbeat.handle),
        Handler(key.LEAVE_GROUP, 0, 5, leave_group.handle),
        Handler(key.SYNC_GROUP, 0, 5, sync_group.handle),
        Handler(key.DESCRIBE_GROUPS, 0, 6, describe_groups.handle, describe_groups.failed),
        Handler(key.LIST_GROUPS, 0, 5, list_groups.handle),
        Handler(key.SASL_HANDSHAKE, 0, 1, sasl_handshake.handle),
        Handler(key.CREATE_TOPICS, 2, 7, create_topics.handle, create_topics.failed, is_admin=True),
        Handler(key.DELETE_TOPICS, 1, 6, delete_topics.handle, delete_topics.failed, is_admin=True),
        Handler(key.DELETE_RECORDS, 0, 2, delete_records.handle, delete_records.failed, is_admin=True),
        Handler(key.INIT_PRODUCER_ID, 0, 5, init_producer_id.handle, init_producer_id.failed),
        Handler(key.OFFSET_FOR_LEADER_EPOCH, 2, 4, offset_for_leader_epoch.handle, offset_for_leader_epoch.failed),
        Handler(key.DESCRIBE_ACLS, 1, 3, describe_acls.handle),
        Handler(key.CREATE_ACLS, 1, 3, create_acls.handle, create_acls.failed, is_admin=True),
        Handler(key.DELETE_ACLS, 1, 3, delete_acls.handle, delete_acls.failed, is_admin=True),
        Handler(key.DESCRIBE_CONFIGS, 1, 4, describe_configs.handle, describe_configs.failed),
        Handler(key.ALTER_CONFIGS, 0, 2, alter_configs.handle, alter_configs.failed, is_admin=True),
        Handler(key.DESCRIBE_LOG_DIRS, 1, 5, describe_log_dirs.handle),
        Handler(key.SASL_AUTHENTICATE, 0, 2, sasl_authenticate.handle),
        Handler(key.CREATE_PARTITIONS, 0, 3, create_partitions.handle, create_partitions.failed, is_admin=True),
        Handler(key.DELETE_GROUPS, 0, 2, delete_groups.handle, delete_groups.failed, is_admin=True),
        Handler(key.INCREMENTAL_ALTER_CONFIGS, 0, 1, incremental_alter_configs.handle, incremental_alter_configs.failed,
                is_admin=True),
        Handler(key.OFFSET_DELETE, 0, 0, offset_delete.handle, is_admin=True),
        Handler(key.DESCRIBE_CLIENT_QUOTAS, 0, 1, describe_client_quotas.handle, describe_client_quotas.failed),
        Handler(key.ALTER_CLIENT_QUOTAS, 0, 1, alter_client_quotas.handle, alter_client_quotas.failed, is_admin=True),
        Handler(key.DESCRIBE_USER_SCRAM_CREDENTIALS, 0, 0, describe_user_scram_credentials.handle),
        Handler(key.ALTER_USER_SCRAM_CREDENTIALS, 0, 0, alter_user_scram_credentials.handle,
                alter_user_scram_credentials.failed, is_admin=True),
        Handler(key.DESCRIBE_CLUSTER, 0, 2, describe_cluster.handle, is_repeatable=True),
    ]
    # fmt: on

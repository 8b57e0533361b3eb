"""Whom a request concerns, for every API: any worker, a coordinator, the leaders of partitions, or everyone.

The one table that a new API needs a row in to be right behind a shared address; a test says so. Knows no connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from workers.forwarding import splitting
from workers.forwarding.splitting import Splitter


@dataclass(frozen=True, slots=True)
class Route:
    """Requests that others may have to serve, wholly or in part. `code`: what a client is told of what was lost, so
    that it tries again. `is_whole`: an answer that lacks what others know would look as if it lacked nothing; of all
    other requests this worker says rightly that it is not the owner."""

    splitter: Splitter
    code: ErrorCode
    is_whole: bool = False


class Anywhere:
    """Every worker can serve it, from what all of them know."""


ANYWHERE: Final = Anywhere()


def _rows() -> dict[ApiKey, Route | Anywhere]:
    key, code = ApiKey, ErrorCode
    one_group = Route(splitting.OneGroup(), code.NOT_COORDINATOR)
    return {
        key.PRODUCE: Route(splitting.produce(), code.NOT_LEADER_OR_FOLLOWER),
        # Its answers are large, so its parts are joined in a way of their own (`split_fetch`).
        key.FETCH: Route(splitting.OneGroup(), code.NOT_LEADER_OR_FOLLOWER),
        key.LIST_OFFSETS: Route(splitting.list_offsets(), code.NOT_LEADER_OR_FOLLOWER),
        key.METADATA: ANYWHERE,
        key.OFFSET_COMMIT: one_group,
        key.OFFSET_FETCH: Route(splitting.OffsetFetches(), code.NOT_COORDINATOR),
        key.FIND_COORDINATOR: ANYWHERE,
        key.JOIN_GROUP: one_group,
        key.HEARTBEAT: one_group,
        key.LEAVE_GROUP: one_group,
        key.SYNC_GROUP: one_group,
        key.DESCRIBE_GROUPS: Route(splitting.describe_groups(), code.NOT_COORDINATOR),
        key.LIST_GROUPS: Route(splitting.GroupListing(), code.COORDINATOR_NOT_AVAILABLE, is_whole=True),
        key.SASL_HANDSHAKE: ANYWHERE,
        key.API_VERSIONS: ANYWHERE,
        key.CREATE_TOPICS: ANYWHERE,
        key.DELETE_TOPICS: ANYWHERE,
        key.DELETE_RECORDS: Route(splitting.delete_records(), code.NOT_LEADER_OR_FOLLOWER),
        key.INIT_PRODUCER_ID: ANYWHERE,
        key.OFFSET_FOR_LEADER_EPOCH: Route(splitting.offset_for_leader_epoch(), code.NOT_LEADER_OR_FOLLOWER),
        key.DESCRIBE_ACLS: ANYWHERE,
        key.CREATE_ACLS: ANYWHERE,
        key.DELETE_ACLS: ANYWHERE,
        key.DESCRIBE_CONFIGS: Route(splitting.ConfigDescriptions(), code.BROKER_NOT_AVAILABLE, is_whole=True),
        key.ALTER_CONFIGS: ANYWHERE,
        key.DESCRIBE_LOG_DIRS: Route(splitting.LogDirs(), code.KAFKA_STORAGE_ERROR, is_whole=True),
        key.SASL_AUTHENTICATE: ANYWHERE,
        key.CREATE_PARTITIONS: ANYWHERE,
        key.DELETE_GROUPS: Route(splitting.delete_groups(), code.NOT_COORDINATOR),
        key.INCREMENTAL_ALTER_CONFIGS: ANYWHERE,
        key.OFFSET_DELETE: one_group,
        key.DESCRIBE_CLIENT_QUOTAS: ANYWHERE,
        key.ALTER_CLIENT_QUOTAS: ANYWHERE,
        key.DESCRIBE_USER_SCRAM_CREDENTIALS: ANYWHERE,
        key.ALTER_USER_SCRAM_CREDENTIALS: ANYWHERE,
        key.DESCRIBE_CLUSTER: ANYWHERE,
    }


ROUTES: Final[Mapping[ApiKey, Route | Anywhere]] = MappingProxyType(_rows())

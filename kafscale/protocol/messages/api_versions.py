"""ApiVersions (key 18): which APIs and versions are served.

v3 flexible, client software and features (KIP-511, KIP-584); v4 features may begin at 0 (KIP-1022). The answer's
header stays version 0 in every version, so that a client can read the answer to a version that the server does not
know.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, boolean, int16, int32, int64, string


class ApiVersionsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    client_software_name: Annotated[str, string("3+")] = ""
    client_software_version: Annotated[str, string("3+")] = ""


class ApiVersion(Message, frozen=True, kw_only=True):
    api_key: Annotated[int, int16("0+")] = 0
    min_version: Annotated[int, int16("0+")] = 0
    max_version: Annotated[int, int16("0+")] = 0


class SupportedFeatureKey(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("3+")] = ""
    min_version: Annotated[int, int16("3+")] = 0
    max_version: Annotated[int, int16("3+")] = 0


class FinalizedFeatureKey(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("3+")] = ""
    max_version_level: Annotated[int, int16("3+")] = 0
    min_version_level: Annotated[int, int16("3+")] = 0


class ApiVersionsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    error_code: Annotated[int, int16("0+")] = 0
    api_keys: Annotated[Sequence[ApiVersion], array("0+")] = ()
    throttle_time_ms: Annotated[int, int32("1+")] = 0
    supported_features: Annotated[Sequence[SupportedFeatureKey], array("3+", tag=0)] = ()
    finalized_features_epoch: Annotated[int, int64("3+", tag=1)] = -1
    finalized_features: Annotated[Sequence[FinalizedFeatureKey], array("3+", tag=2)] = ()
    zk_migration_ready: Annotated[bool, boolean("3+", tag=3)] = False

"""CreateTopics (key 19): create topics.

v4 defaults for partitions and replicas (KIP-464); v5 flexible, and the answer says what was created (KIP-525); v7
topic ids. From v5 on the Java Admin wants `configs` to be an array, never null.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import ZERO_UUID, Message, array, boolean, int8, int16, int32, string, uuid


class CreatableReplicaAssignment(Message, frozen=True, kw_only=True):
    partition_index: Annotated[int, int32("0+")] = 0
    broker_ids: Annotated[Sequence[int], array("0+", of="int32")] = ()


class CreatableTopicConfig(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    value: Annotated[str | None, string("0+", nullable="0+")] = ""


class CreatableTopic(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    num_partitions: Annotated[int, int32("0+")] = 0
    replication_factor: Annotated[int, int16("0+")] = 0
    assignments: Annotated[Sequence[CreatableReplicaAssignment], array("0+")] = ()
    configs: Annotated[Sequence[CreatableTopicConfig], array("0+")] = ()


class CreateTopicsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    topics: Annotated[Sequence[CreatableTopic], array("0+")] = ()
    timeout_ms: Annotated[int, int32("0+")] = 60000
    validate_only: Annotated[bool, boolean("0+")] = False


class CreatableTopicConfigs(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("5+")] = ""
    value: Annotated[str | None, string("5+", nullable="5+")] = ""
    read_only: Annotated[bool, boolean("5+")] = False
    config_source: Annotated[int, int8("5+")] = -1
    is_sensitive: Annotated[bool, boolean("5+")] = False


class CreatableTopicResult(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    topic_id: Annotated[bytes, uuid("7+")] = ZERO_UUID
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = ""
    topic_config_error_code: Annotated[int, int16("5+", tag=0)] = 0
    num_partitions: Annotated[int, int32("5+")] = -1
    replication_factor: Annotated[int, int16("5+")] = -1
    configs: Annotated[Sequence[CreatableTopicConfigs] | None, array("5+", nullable="5+")] = ()


class CreateTopicsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    topics: Annotated[Sequence[CreatableTopicResult], array("0+")] = ()

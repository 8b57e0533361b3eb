"""Goal: what a version cannot hold is refused with its name, and never sent as something else."""

from __future__ import annotations

from typing import Any

import pytest

from kafscale.protocol.api import APIS, ApiKey, encode_response
from kafscale.protocol.messages.heartbeat import HeartbeatResponse
from kafscale.protocol.messages.metadata import MetadataResponse, MetadataResponseBroker, MetadataResponseTopic
from kafscale.protocol.messages.produce import (
    LeaderIdAndEpoch,
    PartitionProduceResponse,
    ProduceResponse,
    TopicProduceResponse,
)
from tests.unit.protocol.frames import decode, encode

METADATA = APIS[ApiKey.METADATA]


def broker(**values: Any) -> MetadataResponse:
    return MetadataResponse(brokers=[MetadataResponseBroker(**values)])


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (12, broker(host=None)),
        (1, broker(host=None)),
        (12, broker(host="h" * 32_768)),
        (8, broker(host="h" * 32_768)),
        (12, broker(port=2**31)),
        (12, broker(host="\ud800")),
        (12, MetadataResponse(topics=None)),  # type: ignore[arg-type]
        (11, MetadataResponse(topics=[MetadataResponseTopic(name=None)])),
        (12, MetadataResponse(topics=[MetadataResponseTopic(topic_id=b"short")])),
        (12, MetadataResponse(topics=[MetadataResponseTopic(topic_id=bytes(17))])),
    ],
)
def test_refused(version: int, message: MetadataResponse) -> None:
    """Null, a long string, a number out of range, an id of another length: a ValueError that says which message."""
    with pytest.raises(ValueError, match=f"MetadataResponse v{version} cannot be written"):
        encode_response(METADATA, version, 1, message)


def test_fields_that_a_version_lacks_are_left_out() -> None:
    """One message serves every version: a handler fills in what it knows."""
    message = MetadataResponse(cluster_id="c", controller_id=3, throttle_time_ms=5)
    assert decode(METADATA, 0, MetadataResponse, encode(METADATA, 0, message)) == MetadataResponse()
    assert decode(METADATA, 2, MetadataResponse, encode(METADATA, 2, message)).cluster_id == "c"


def test_default_tagged_fields_take_no_space() -> None:
    """A tagged field with its default is not written, be the array empty as a list or as a tuple."""
    api = APIS[ApiKey.PRODUCE]
    answer = PartitionProduceResponse(current_leader=LeaderIdAndEpoch())
    for empty in ((), []):
        message = ProduceResponse(responses=[TopicProduceResponse(partition_responses=[answer])], node_endpoints=empty)
        assert encode(api, 10, message) == encode(api, 9, message)


def test_lists_and_tuples_are_alike() -> None:
    """Arrays may be given as either; they are read back as tuples."""
    a = MetadataResponse(topics=[MetadataResponseTopic(name="t")])
    b = MetadataResponse(topics=(MetadataResponseTopic(name="t"),))
    assert encode(METADATA, 12, a) == encode(METADATA, 12, b)
    assert decode(METADATA, 12, MetadataResponse, encode(METADATA, 12, a)) == b


def test_messages_cannot_be_changed() -> None:
    """A message is a value: handlers may share it and caches may keep it."""
    with pytest.raises(AttributeError):
        HeartbeatResponse().error_code = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        HeartbeatResponse(1, 2)  # type: ignore[misc]

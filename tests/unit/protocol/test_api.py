"""Goal: the table is complete and says what Kafka says; whole frames have the right size, header and body."""

from __future__ import annotations

import pkgutil

import pytest
from kio.index import load_request_schema

import kafscale.protocol.messages
from kafscale.errors import ProtocolError
from kafscale.protocol.api import APIS, ApiKey, decode_request, decode_response, encode_request, encode_response
from kafscale.protocol.headers import parse_request_header
from kafscale.protocol.messages.api_versions import ApiVersion, ApiVersionsRequest, ApiVersionsResponse
from kafscale.protocol.messages.fetch import FetchableTopicResponse, FetchResponse, PartitionData
from kafscale.protocol.messages.metadata import MetadataRequest, MetadataRequestTopic, MetadataResponse
from kafscale.protocol.table import NEVER


def test_every_declaration_is_in_the_table() -> None:
    """A module per API, an API per module, keyed by Kafka's number and named by Kafka's name."""
    modules = {module.name for module in pkgutil.iter_modules(kafscale.protocol.messages.__path__)}
    assert {api.request.__module__.rpartition(".")[2] for api in APIS.values()} == modules
    assert {api.key for api in APIS.values()} == set(ApiKey)
    for key, api in APIS.items():
        assert key == api.key
        assert api.request.__name__ == api.name + "Request"
        assert api.response.__name__ == api.name + "Response"
        assert load_request_schema(key, api.max_version).__name__ == api.request.__name__


def test_flexible_versions_are_reachable() -> None:
    """Every API but the two that have no flexible version turns flexible within its range."""
    for api in APIS.values():
        if api.flexible_from == NEVER:
            assert api.key in (ApiKey.SASL_HANDSHAKE, ApiKey.OFFSET_DELETE)
        else:
            assert api.flexible_from <= api.max_version


@pytest.mark.parametrize("version", [0, 8, 9, 12, 13])
def test_request_there_and_back(version: int) -> None:
    """What is sent is what arrives, size and header included."""
    api = APIS[ApiKey.METADATA]
    message = MetadataRequest(topics=(MetadataRequestTopic(name="t"),))
    frame = b"".join(encode_request(api, version, 7, "client", message))
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    header, position = parse_request_header(frame, 4, len(frame))
    assert (header.api_key, header.api_version, header.correlation_id, header.client_id) == (3, version, 7, "client")
    assert decode_request(api, version, frame, position, len(frame)) == message


@pytest.mark.parametrize("version", [0, 8, 9, 12, 13])
def test_response_there_and_back(version: int) -> None:
    """The same the other way, in one buffer."""
    api = APIS[ApiKey.METADATA]
    (frame,) = encode_response(api, version, -3, MetadataResponse())
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    assert decode_response(api, version, frame, 4, len(frame)) == (-3, MetadataResponse())


def test_records_are_passed_through() -> None:
    """Record buffers, one or several a partition, are the very objects that were given."""
    api = APIS[ApiKey.FETCH]
    several, one = [bytearray(b"aa"), memoryview(b"bbb")], b"cccc"
    partitions = [PartitionData(records=several), PartitionData(records=one), PartitionData(records=None)]
    message = FetchResponse(responses=[FetchableTopicResponse(topic="t", partitions=partitions)])
    buffers = encode_response(api, 12, 7, message)
    assert [buffer for buffer in buffers if any(buffer is given for given in (*several, one))] == [*several, one]
    frame = b"".join(buffers)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    _, read = decode_response(api, 12, frame, 4, len(frame))
    assert [partition.records for partition in read.responses[0].partitions] == [b"aabbb", b"cccc", None]


def test_api_versions_answers_with_the_old_header() -> None:
    """KIP-511: correlation id and then at once the body, in every version, else old clients could not read it."""
    api = APIS[ApiKey.API_VERSIONS]
    message = ApiVersionsResponse(api_keys=(ApiVersion(api_key=18, min_version=0, max_version=4),))
    (frame,) = encode_response(api, 3, 7, message)
    assert frame.hex() == "00000013" + "00000007" + "0000" + "02" + "0012" + "0000" + "0004" + "00" + "00000000" + "00"
    assert decode_response(api, 3, frame, 4, len(frame)) == (7, message)


@pytest.mark.parametrize("version", [-1, 5])
def test_other_versions_are_refused(version: int) -> None:
    """A version without messages is a ProtocolError that names the API and the range."""
    with pytest.raises(ProtocolError, match=f"ApiVersions v{version} is not one of 0 to 4"):
        decode_request(APIS[ApiKey.API_VERSIONS], version, b"", 0, 0)


def test_errors_name_the_message() -> None:
    """Whoever reads the log learns which message, version and field it was."""
    with pytest.raises(ProtocolError, match=r"ApiVersionsRequest v3: client_software_version says length 98"):
        decode_request(APIS[ApiKey.API_VERSIONS], 3, b"\x01\x63x", 0, 3)
    assert decode_request(APIS[ApiKey.API_VERSIONS], 0, b"", 0, 0) == ApiVersionsRequest()

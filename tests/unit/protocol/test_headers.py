"""Goal: headers are what an independent codec says they are, in the version that the API's version asks for."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kio.schema.request_header.v1.header import RequestHeader as RequestHeaderV1
from kio.schema.request_header.v2.header import RequestHeader as RequestHeaderV2
from kio.serial import entity_writer

from kafscale.errors import ProtocolError
from kafscale.protocol.api import APIS
from kafscale.protocol.headers import (
    RequestHeader,
    encode_request_header,
    encode_response_header,
    parse_request_header,
    parse_response_header,
)
from kafscale.protocol.table import Api
from tests.unit.protocol.declared import every_message, title
from tests.unit.protocol.frames import few
from tests.unit.protocol.oracle import oracle_type

int32s = st.integers(-(2**31), 2**31 - 1)
REQUESTS = [parameters for parameters in every_message() if parameters[2] is parameters[0].request]


@pytest.mark.parametrize("parameters", list(every_message()), ids=title)
def test_header_versions_are_kafkas(parameters: tuple[Api, int, type]) -> None:
    """Flexible bodies and headers begin at the versions at which they begin for kio."""
    api, version, kind = parameters
    entity = oracle_type(api, version, kind)
    assert entity.__flexible__ == api.is_flexible(version)
    if kind is api.request:
        assert entity.__header_schema__.__version__ == (2 if api.is_flexible(version) else 1)
    else:
        assert entity.__header_schema__.__version__ == (1 if api.has_flexible_response_header(version) else 0)


@few(200)
@given(st.sampled_from(REQUESTS), int32s, st.none() | st.text(max_size=5) | st.just("c" * 300), st.binary(max_size=3))
def test_request_header(parameters: tuple[Api, int, type], correlation: int, client: str | None, before: bytes) -> None:
    """Written as kio writes it, and read back from inside a larger buffer."""
    api, version, _ = parameters
    entity = RequestHeaderV2 if api.is_flexible(version) else RequestHeaderV1
    out = io.BytesIO()
    entity_writer(entity)(
        out,
        entity(  # type: ignore[arg-type]
            request_api_key=int(api.key), request_api_version=version, correlation_id=correlation, client_id=client
        ),
    )
    raw = encode_request_header(api, version, correlation, client)
    assert raw == out.getvalue()
    buffer = memoryview(before + raw + b"body")
    header, position = parse_request_header(buffer, len(before), len(buffer))
    assert header == RequestHeader(api.key, version, correlation, client)
    assert position == len(before) + len(raw)


@few(100)
@given(st.sampled_from(REQUESTS), int32s)
def test_response_header(parameters: tuple[Api, int, type], correlation: int) -> None:
    """Read back as written; cut anywhere it is refused."""
    api, version, _ = parameters
    raw = encode_response_header(api, version, correlation)
    assert parse_response_header(api, version, raw, 0, len(raw)) == (correlation, len(raw))
    for end in range(len(raw)):
        with pytest.raises(ProtocolError):
            parse_response_header(api, version, raw, 0, end)


def test_truncated_request_header() -> None:
    """Cut anywhere, with the rest lying behind or not, a request header is refused."""
    for version in (8, 9):
        raw = encode_request_header(APIS[3], version, 7, "client")
        for end in range(len(raw)):
            with pytest.raises(ProtocolError):
                parse_request_header(raw, 0, end)
            with pytest.raises(ProtocolError):
                parse_request_header(raw[:end], 0, end)


@few(200)
@given(st.binary(max_size=30))
def test_random_bytes(raw: bytes) -> None:
    """A header or a ProtocolError, whatever comes."""
    try:
        _, position = parse_request_header(raw, 0, len(raw))
    except ProtocolError:
        return
    assert 10 <= position <= len(raw)


def test_unknown_apis_and_versions() -> None:
    """An API that we lack is read as v1; too new a version of ApiVersions as flexible, to be answered with 35."""
    header, position = parse_request_header(bytes.fromhex("7fff0001000000070000ff"), 0, 11)
    assert (header.api_key, header.api_version, header.correlation_id, header.client_id) == (0x7FFF, 1, 7, "")
    assert position == 10
    header, position = parse_request_header(bytes.fromhex("00120063000000070001610001"), 0, 13)
    assert (header.api_key, header.api_version, header.client_id, position) == (18, 99, "a", 12)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("00030001000000077fff61", "says length 32767"),
        ("0003000100000007fffe61", "says length -2"),
        ("00030001000000070001ff", "UTF-8"),
        ("0003000900000007000161", "ends early"),
        ("000300090000000700016101640561", "5 bytes where 1"),
    ],
)
def test_refused(raw: str, reason: str) -> None:
    """Lengths past the end, negative ones, and what is no text."""
    data = bytes.fromhex(raw)
    with pytest.raises(ProtocolError, match=reason):
        parse_request_header(data, 0, len(data))

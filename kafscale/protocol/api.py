"""Whole requests and responses: from bytes to a typed message and back, by API and version.

The door through which everything outside this package comes, but for the hand-written paths of Produce and Fetch.
A frame is a four-byte size (not counting itself), a header and a body; encoding gives all three, decoding is handed
what lies behind the size.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from kafscale.errors import ProtocolError
from kafscale.protocol.compiler import chunk_encoder, decoder, encoder, has_records
from kafscale.protocol.headers import encode_request_header, encode_response_header, parse_response_header
from kafscale.protocol.schema import Buffer, Message
from kafscale.protocol.table import APIS, Api, ApiKey

__all__ = [
    "APIS",
    "Api",
    "ApiKey",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
]

_SIZE: Final = struct.Struct(">i")


def decode_request(api: Api, version: int, buffer: Buffer, position: int, end: int) -> Any:
    """The request whose body is at the start of `buffer[position:end]`, an `api.request`.

    Bytes and strings are copied, records are slices of `buffer`. ProtocolError where the bytes are no such request or
    the version has no messages here; nothing else, whatever the bytes are.
    """
    _check_version(api, version)
    return decoder(api.request, version, api.is_flexible(version))(buffer, position, end)


def decode_response(api: Api, version: int, buffer: Buffer, position: int, end: int) -> tuple[int, Any]:
    """(correlation id, `api.response`) of an answer whose header begins at `position`. Raises as `decode_request`."""
    _check_version(api, version)
    correlation_id, position = parse_response_header(api, version, buffer, position, end)
    return correlation_id, decoder(api.response, version, api.is_flexible(version))(buffer, position, end)


def encode_response(api: Api, version: int, correlation_id: int, message: Message) -> list[Buffer]:
    """A whole answer, size and header included, as buffers to be sent one after the other.

    One buffer, but where `message` has records: these are passed through uncopied. Fields that the version lacks are
    left out. ValueError where it cannot hold a value (null where it knows none, a number out of range).
    """
    return _frame(encode_response_header(api, version, correlation_id), api, version, message)


def encode_request(
    api: Api, version: int, correlation_id: int, client_id: str | None, message: Message
) -> list[Buffer]:
    """A whole request, likewise."""
    return _frame(encode_request_header(api, version, correlation_id, client_id), api, version, message)


def _check_version(api: Api, version: int) -> None:
    if not api.min_version <= version <= api.max_version:
        raise ProtocolError(f"{api.name} v{version} is not one of {api.min_version} to {api.max_version}")


def _frame(header: bytes, api: Api, version: int, message: Message) -> list[Buffer]:
    flexible = api.is_flexible(version)
    kind = type(message)
    if not has_records(kind):
        body = encoder(kind, version, flexible)(message)
        return [b"".join((_SIZE.pack(len(header) + len(body)), header, body))]
    chunks = chunk_encoder(kind, version, flexible)(message)
    size = len(header) + sum(map(len, chunks))
    first = b"".join((_SIZE.pack(size), header, chunks[0]))
    return [first, *chunks[1:]]

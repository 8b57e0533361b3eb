"""Request and response headers: which versions they have, how they are read and written.

A request header is v1 (api_key, api_version, correlation_id, client_id), or v2, the same and tagged fields, where the
API's version is flexible; client_id stays an old-style string in both. A response header is v0 (correlation_id) or v1
(and tagged fields). Knows the table of APIs, no message body.
"""

from __future__ import annotations

import struct
from typing import Final

from kafscale.errors import ProtocolError
from kafscale.protocol.schema import Buffer
from kafscale.protocol.table import APIS, Api
from kafscale.protocol.wire import skip_tags

_REQUEST: Final = struct.Struct(">hhih")
_INT32: Final = struct.Struct(">i")


class RequestHeader:
    """What is known of a request before its body is read. `client_id` is None where the client sent null."""

    __slots__ = ("api_key", "api_version", "client_id", "correlation_id")

    def __init__(self, api_key: int, api_version: int, correlation_id: int, client_id: str | None) -> None:
        self.api_key = api_key
        self.api_version = api_version
        self.correlation_id = correlation_id
        self.client_id = client_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RequestHeader) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return "RequestHeader(api_key={}, api_version={}, correlation_id={}, client_id={!r})".format(*self._values())

    def _values(self) -> tuple[int, int, int, str | None]:
        return self.api_key, self.api_version, self.correlation_id, self.client_id


def parse_request_header(buffer: Buffer, position: int, end: int) -> tuple[RequestHeader, int]:
    """Read the header at `position` (after the frame's size); returns it and where the body begins.

    An API that the table lacks is read as v1, so that its number can be reported. ProtocolError on anything that is
    no header.
    """
    try:
        key, version, correlation_id, length = _REQUEST.unpack_from(buffer, position)
        position += 10
        if length >= 0:
            if length > end - position:
                raise ProtocolError(f"request header: client_id says length {length}, {end - position} bytes are left")
            client_id = str(buffer[position : position + length], "utf-8")
            position += length
        elif length == -1:
            client_id = None
        else:
            raise ProtocolError(f"request header: client_id says length {length}")
        api = APIS.get(key)
        if api is not None and version >= api.flexible_from:
            count = buffer[position]
            position += 1
            if count:
                position = skip_tags(buffer, position, end, count)
    except (struct.error, IndexError):
        raise ProtocolError("request header ends early") from None
    except UnicodeDecodeError:
        raise ProtocolError("request header: client_id is not UTF-8") from None
    if position > end:
        raise ProtocolError("request header ends early")
    return RequestHeader(key, version, correlation_id, client_id), position


def encode_request_header(api: Api, version: int, correlation_id: int, client_id: str | None) -> bytes:
    """The header of a request that we send. ValueError where `client_id` is too long."""
    raw = b"" if client_id is None else client_id.encode()
    length = -1 if client_id is None else len(raw)
    if length > 0x7FFF:
        raise ValueError(f"a client id of {length} bytes")
    head = _REQUEST.pack(api.key, version, correlation_id, length)
    return b"".join((head, raw, b"\0" if api.is_flexible(version) else b""))


def encode_response_header(api: Api, version: int, correlation_id: int) -> bytes:
    """The header of an answer to a request of `version`."""
    head = _INT32.pack(correlation_id)
    return head + b"\0" if api.has_flexible_response_header(version) else head


def parse_response_header(api: Api, version: int, buffer: Buffer, position: int, end: int) -> tuple[int, int]:
    """(correlation id, where the body begins). ProtocolError on anything that is no header."""
    try:
        (correlation_id,) = _INT32.unpack_from(buffer, position)
        position += 4
        if api.has_flexible_response_header(version):
            count = buffer[position]
            position += 1
            if count:
                position = skip_tags(buffer, position, end, count)
    except (struct.error, IndexError):
        raise ProtocolError("response header ends early") from None
    if position > end:
        raise ProtocolError("response header ends early")
    return correlation_id, position

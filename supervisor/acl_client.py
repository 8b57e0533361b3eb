"""A client of one request: asks a broker for all of Kafka's ACLs that it has. Blocks; for the command line only."""

from __future__ import annotations

import socket
import struct
from typing import Final

from kafscale.config import Endpoint
from kafscale.errors import ProtocolError, UsageError
from kafscale.protocol.acls import AclBinding, Operation, PatternType, Permission, ResourceType
from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.describe_acls import DescribeAclsRequest, DescribeAclsResponse

TIMEOUT_SECONDS: Final = 10.0
CLIENT_ID: Final = "kafscale-acl-check"
ANSWER_BYTES_MAX: Final = 256 << 20
_SIZE: Final = struct.Struct(">i")
_VERSION: Final = 3
_CORRELATION_ID: Final = 1


def describe_acls(bootstrap: str, client_id: str | None = None) -> list[AclBinding]:
    """All ACLs of the broker's catalogue. Raises UsageError, a line that says why they can't be had."""
    try:
        endpoint = Endpoint.parse(bootstrap)
    except ValueError as error:
        raise UsageError(f"--bootstrap: {error}") from None
    try:
        response = _ask(endpoint, client_id or CLIENT_ID)
    except (OSError, ProtocolError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"--bootstrap: {endpoint} could not be asked for its ACLs: {cause}") from None
    if response.error_code:
        code = ErrorCode(response.error_code)
        raise UsageError(f"--bootstrap: {endpoint} does not tell its ACLs: {code.name}: {response.error_message or ''}")
    return [
        AclBinding(
            resource.resource_type,
            resource.pattern_type,
            resource.resource_name,
            acl.principal,
            acl.host,
            acl.operation,
            acl.permission_type,
        )
        for resource in response.resources
        for acl in resource.acls
    ]


def _ask(endpoint: Endpoint, client_id: str) -> DescribeAclsResponse:
    request = DescribeAclsRequest(
        resource_type_filter=ResourceType.ANY,
        resource_name_filter=None,
        pattern_type_filter=PatternType.ANY,
        principal_filter=None,
        host_filter=None,
        operation=Operation.ANY,
        permission_type=Permission.ANY,
    )
    api = APIS[ApiKey.DESCRIBE_ACLS]
    with socket.create_connection((endpoint.host, endpoint.port), TIMEOUT_SECONDS) as connection:
        connection.sendall(b"".join(encode_request(api, _VERSION, _CORRELATION_ID, client_id, request)))
        (size,) = _SIZE.unpack(_receive(connection, _SIZE.size))
        if not 0 < size <= ANSWER_BYTES_MAX:
            raise ProtocolError(f"it answered with a frame of {size} bytes")
        answer = _receive(connection, size)
    correlation_id, response = decode_response(api, _VERSION, answer, 0, len(answer))
    if correlation_id != _CORRELATION_ID:
        raise ProtocolError("it answered another question")
    found: DescribeAclsResponse = response
    return found


def _receive(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        some = connection.recv(min(count - len(data), 1 << 20))
        if not some:
            raise ProtocolError("it closed the connection; perhaps it wants TLS or a password")
        data += some
    return bytes(data)

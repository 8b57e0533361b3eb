"""A client of one request: asks a broker for all of Kafka's ACLs that it has, by TLS and SASL where it wants them.

Blocks; for the command line only. Whatever goes wrong is a UsageError, a line that says why there is no answer.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import struct
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

from kafscale.config import Endpoint
from kafscale.errors import ProtocolError, UsageError
from kafscale.protocol.acls import AclBinding, Operation, PatternType, Permission, ResourceType
from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.describe_acls import DescribeAclsRequest, DescribeAclsResponse
from kafscale.protocol.messages.sasl_authenticate import SaslAuthenticateRequest
from kafscale.protocol.messages.sasl_handshake import SaslHandshakeRequest
from kafscale.protocol.schema import Message
from kafscale.security.scram import HASH_OF
from kafscale.security.scram_client import ScramClient

TIMEOUT_SECONDS: Final = 10.0
CLIENT_ID: Final = "kafscale-acl-check"
ANSWER_BYTES_MAX: Final = 256 << 20
PLAIN: Final = "PLAIN"
MECHANISMS: Final = (*HASH_OF, PLAIN)
_SIZE: Final = struct.Struct(">i")
_EVERYTHING: Final = DescribeAclsRequest(
    resource_type_filter=ResourceType.ANY,
    resource_name_filter=None,
    pattern_type_filter=PatternType.ANY,
    principal_filter=None,
    host_filter=None,
    operation=Operation.ANY,
    permission_type=Permission.ANY,
)


class Approach(NamedTuple):
    """How the broker is come to. Paths of PEM files; a user logs in by SASL with the password."""

    bootstrap: str
    client_id: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    user: str | None = None
    password: str = ""
    mechanism: str | None = None


def describe_acls(approach: Approach) -> list[AclBinding]:
    """All ACLs of the broker's catalogue. Raises UsageError."""
    try:
        endpoint = Endpoint.parse(approach.bootstrap)
    except ValueError as error:
        raise UsageError(f"--bootstrap: {error}") from None
    try:
        with ExitStack() as stack:
            conversation = _Conversation(stack, endpoint, approach)
            if approach.user is not None:
                _log_in(conversation, approach, approach.user)
            response: DescribeAclsResponse = conversation.call(ApiKey.DESCRIBE_ACLS, 3, _EVERYTHING)
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


def _log_in(conversation: _Conversation, approach: Approach, user: str) -> None:
    mechanism = approach.mechanism or MECHANISMS[0]
    offered = conversation.call(ApiKey.SASL_HANDSHAKE, 1, SaslHandshakeRequest(mechanism=mechanism))
    if offered.error_code:
        raise ProtocolError(f"it does not offer {mechanism}, but {', '.join(offered.mechanisms) or 'nothing'}")
    if mechanism == PLAIN:
        _say(conversation, f"\0{user}\0{approach.password}".encode())
        return
    nonce = secrets.token_urlsafe(24).encode()
    client = ScramClient(mechanism, user, approach.password, nonce)
    client.verify(_say(conversation, client.final(_say(conversation, client.first()))))


def _say(conversation: _Conversation, token: bytes) -> bytes:
    answer = conversation.call(ApiKey.SASL_AUTHENTICATE, 2, SaslAuthenticateRequest(auth_bytes=token))
    if answer.error_code:
        raise ProtocolError(answer.error_message or ErrorCode(answer.error_code).name)
    return bytes(answer.auth_bytes)


class _Conversation:
    """Requests on one connection, one after the other; it ends with the stack. Raises OSError and ProtocolError."""

    def __init__(self, stack: ExitStack, endpoint: Endpoint, approach: Approach) -> None:
        self._client_id = approach.client_id or CLIENT_ID
        self._correlation_id = 0
        plain = stack.enter_context(socket.create_connection((endpoint.host, endpoint.port), TIMEOUT_SECONDS))
        self._socket = plain
        if approach.ca_file is not None:
            context = ssl.create_default_context(cafile=approach.ca_file)
            if approach.cert_file is not None:
                context.load_cert_chain(approach.cert_file, approach.key_file)
            self._socket = stack.enter_context(context.wrap_socket(plain, server_hostname=endpoint.host))

    def call(self, key: ApiKey, version: int, message: Message) -> Any:
        self._correlation_id += 1
        request = encode_request(APIS[key], version, self._correlation_id, self._client_id, message)
        self._socket.sendall(b"".join(request))
        (size,) = _SIZE.unpack(self._receive(_SIZE.size))
        if not 0 < size <= ANSWER_BYTES_MAX:
            raise ProtocolError(f"it answered with a frame of {size} bytes")
        answer = self._receive(size)
        correlation_id, response = decode_response(APIS[key], version, answer, 0, len(answer))
        if correlation_id != self._correlation_id:
            raise ProtocolError("it answered another question")
        return response

    def _receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            some = self._socket.recv(min(count - len(data), 1 << 20))
            if not some:
                raise ProtocolError(
                    "it closed the connection; perhaps it wants TLS (--ca-file) or a login (--user), or refuses these"
                )
            data += some
        return bytes(data)

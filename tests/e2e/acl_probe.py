"""One connection that asks as whoever it says it is: what a client is allowed is seen by the codes that it is told."""

from __future__ import annotations

import socket
import struct
from typing import Any, Self

from kafscale.protocol.api import APIS, ApiKey, decode_response, encode_request
from kafscale.protocol.messages.metadata import MetadataRequest, MetadataRequestTopic
from kafscale.protocol.schema import Message

TIMEOUT_S = 60.0
METADATA_VERSION = 9


class Probe:
    """`client_id` is who it is where the listener takes that for the principal; `host` where it comes from."""

    def __init__(self, port: int, client_id: str, host: str = "127.0.0.1") -> None:
        self.client_id = client_id
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S, source_address=(host, 0))
        self._correlation_id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(self, key: ApiKey, version: int, message: Message) -> Any:
        """One request and its answer. Raises ConnectionError where the broker closes the connection instead."""
        self._correlation_id += 1
        request = encode_request(APIS[key], version, self._correlation_id, self.client_id, message)
        self._socket.sendall(b"".join(request))
        (size,) = struct.unpack(">i", self._read(4))
        answer = self._read(size)
        correlation_id, response = decode_response(APIS[key], version, answer, 0, size)
        assert correlation_id == self._correlation_id
        return response

    def codes(self, *topics: str) -> list[int]:
        """What Metadata says of each topic by name: 0, 3 where there is none, 29 where that is not to be known."""
        wanted = [MetadataRequestTopic(name=topic) for topic in topics]
        request = MetadataRequest(topics=wanted, allow_auto_topic_creation=False)
        answer = self.call(ApiKey.METADATA, METADATA_VERSION, request)
        return [topic.error_code for topic in answer.topics]

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            some = self._socket.recv(min(count - len(data), 1 << 20))
            if not some:
                raise ConnectionError("the broker closed the connection")
            data += some
        return bytes(data)

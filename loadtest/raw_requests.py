"""Ready-made one-record Produce requests for raw sockets, so that the client costs little beside the broker.

The frames of a connection differ in their values; the correlation id is written into a copy. Responses to such
requests all have one length, so they can be counted without being parsed; the first of a connection is parsed.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from loadtest import wire

PRODUCE_VERSION = 9
FRAMES = 64
CORRELATION_AT = 8  # After the length, the API key and the version.


def produce_frames(topic: str, partition: int, value_bytes: int, seed: int = 0) -> list[bytearray]:
    """Frames of Produce requests, acks=all, with one record of random bytes each."""
    choose = random.Random(seed)
    return [
        bytearray(
            wire.request(
                *(wire.PRODUCE, PRODUCE_VERSION),
                client_id="loadtest",
                **wire.produce_body(topic, wire.batch([choose.randbytes(value_bytes)]), partition),
            )
        )
        for _ in range(FRAMES)
    ]


@dataclass
class Requests:
    """The requests of one connection, numbered as they are made."""

    frames: list[bytearray]
    made: int = 0

    def next(self, count: int = 1) -> bytes:
        """The next `count` requests, joined."""
        parts = []
        for _ in range(count):
            frame = self.frames[self.made % FRAMES]
            self.made += 1
            struct.pack_into(">i", frame, CORRELATION_AT, self.made)
            parts.append(bytes(frame))
        return b"".join(parts)


def response_size(port: int, requests: Requests) -> int:
    """Send one request on a connection of its own; returns the length of its response, frame length included.

    Raises:
        RuntimeError: the broker refused the record.
    """
    with wire.Connection(port) as connection:
        connection.send(requests.next())
        payload = connection.receive_frame()
    check(payload, requests.made)
    return len(payload) + 4


def check(payload: bytes, correlation_id: int) -> None:
    """Raise RuntimeError unless a response (without its length) says that the record was taken."""
    answer = wire.parse_response(payload, wire.PRODUCE, PRODUCE_VERSION, correlation_id)
    part = answer.responses[0].partition_responses[0]
    if part.error_code:
        raise RuntimeError(f"the broker refused a record: {part.error_code!r}")

"""Keeps the batches of an idempotent producer in order while the owner of their partition changes.

A producer sends up to five batches of a partition before it hears of the first. To one owner they go one behind the
other, and it tells what is out of order. Where the owner changes between two of them, the first may be lost with the
old one and the second be taken by the new one, to whom the producer is unknown, so that any number begins (KIP-360):
the first would then come again as one from long ago, and be lost. So a batch is passed on only while no earlier one is
at another owner, and none was refused that has not come again. Else it is refused, too, and comes again behind those.

Owns what of one connection's producers is being served elsewhere. What was refused is the connection's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from kafscale.protocol.batches import HEADER_BYTES
from kafscale.protocol.error_codes import ErrorCode
from workers.refused_batches import RefusedBatches

# Errors after which a producer sends the same batch again.
RETRIED: Final = frozenset(
    {
        ErrorCode.UNKNOWN_TOPIC_OR_PARTITION,
        ErrorCode.LEADER_NOT_AVAILABLE,
        ErrorCode.NOT_LEADER_OR_FOLLOWER,
        ErrorCode.REQUEST_TIMED_OUT,
        ErrorCode.NETWORK_EXCEPTION,
        ErrorCode.NOT_ENOUGH_REPLICAS,
        ErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        ErrorCode.KAFKA_STORAGE_ERROR,
        ErrorCode.FENCED_LEADER_EPOCH,
        ErrorCode.UNKNOWN_LEADER_EPOCH,
        ErrorCode.UNKNOWN_TOPIC_ID,
    }
)

# Producer id, epoch and base sequence in the header of a record batch.
_PRODUCER: Final = struct.Struct(">qhi").unpack_from
_PRODUCER_AT: Final = 43


class NumberedBatch(NamedTuple):
    """A batch of an idempotent producer, as its request names its partition."""

    topic: str | bytes
    partition: int
    producer_id: int
    epoch: int
    sequence: int


_Stream = tuple[str | bytes, int, int, int]


def numbered_batches(
    partitions: Iterable[tuple[str | bytes, int, memoryview | None]],
) -> list[NumberedBatch]:
    """Those of a Produce request that idempotent producers sent."""
    found = []
    for topic, index, records in partitions:
        if records is not None and len(records) >= HEADER_BYTES:
            producer_id, epoch, sequence = _PRODUCER(records, _PRODUCER_AT)
            if producer_id >= 0:
                found.append(NumberedBatch(topic, index, producer_id, epoch, sequence))
    return found


class ProducerOrder:
    """Of one connection, whose refused batches are `refused`."""

    __slots__ = ("_at", "_refused")

    def __init__(self, refused: RefusedBatches) -> None:
        self._refused = refused
        # Where the batches are that have no answer yet, and how many.
        self._at: dict[_Stream, list[int]] = {}

    def may_go(self, batch: NumberedBatch, node: int) -> bool:
        """Whether the batch may be passed on to the node now."""
        at = self._at.get(batch[:4])
        if at is not None and at[0] != node:
            return False
        return not (self._refused and self._refused.is_behind(*batch))

    def gone(self, batches: Iterable[NumberedBatch], node: int) -> None:
        """They are on their way to the node."""
        for batch in batches:
            at = self._at.setdefault(batch[:4], [node, 0])
            at[1] += 1

    def back(self, batches: Iterable[NumberedBatch]) -> None:
        """They are answered, whichever way."""
        for batch in batches:
            at = self._at.get(batch[:4])
            if at is not None:
                at[1] -= 1
                if at[1] <= 0:
                    del self._at[batch[:4]]

    def refused(self, batches: Sequence[NumberedBatch], codes: Iterable[tuple[str | bytes, int, int]]) -> None:
        """Of these batches some were answered with an error: (topic, partition, code)."""
        failed = {(topic, index) for topic, index, code in codes if code in RETRIED}
        for batch in batches:
            if (batch.topic, batch.partition) in failed:
                self._refused.note_number(*batch)

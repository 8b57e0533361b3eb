"""Batches of idempotent producers that were refused on a connection, so that none behind them is taken before they come
again.

A producer sends up to five batches of a partition before it hears of the first. Should the partition come to be served
between two of them, the first are refused and the next is not; and where nothing is known of a producer any sequence
number begins (KIP-360). Those that were refused then come again as numbers from long ago, are answered as duplicates,
and are lost. So what follows a refused batch is out of order until that one is back.

Owns what was refused on one connection. Must not know what a partition knows of its producers.
"""

from __future__ import annotations

from kafscale.errors import Corrupt, Invalid
from kafscale.protocol.batches import BatchHeader, read_header
from kafscale.protocol.error_codes import ErrorCode

# Partitions, times producers: a connection has one producer, or a few behind a proxy.
MAX_REMEMBERED = 10_000
_SEQUENCES = 1 << 31

_Key = tuple[int, str | bytes, int]


class RefusedBatches:
    """By producer and partition as the request names it: the first sequence number that was refused, and its epoch."""

    __slots__ = ("_first",)

    def __init__(self) -> None:
        self._first: dict[_Key, tuple[int, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._first)

    def note(self, topic: str | bytes, index: int, records: memoryview) -> None:
        """The batch is answered with an error after which its producer will send it again."""
        try:
            header = read_header(records)
        except Corrupt:
            return
        if header.producer_id >= 0:
            self.note_number(topic, index, header.producer_id, header.producer_epoch, header.base_sequence)

    def note_number(self, topic: str | bytes, index: int, producer_id: int, epoch: int, sequence: int) -> None:
        """The same for a batch of an idempotent producer whose header is no longer at hand."""
        if len(self._first) >= MAX_REMEMBERED:
            del self._first[next(iter(self._first))]
        key = (producer_id, topic, index)
        first_epoch, first = self._first.get(key, (epoch, sequence))
        if first_epoch != epoch or not _is_before(first, sequence):
            self._first[key] = (epoch, sequence)

    def is_behind(self, topic: str | bytes, index: int, producer_id: int, epoch: int, sequence: int) -> bool:
        """Whether a batch comes behind one that was refused and has not come again. That one, any before it, and one of
        another epoch, in which the producer begins anew, make it forgotten."""
        key = (producer_id, topic, index)
        found = self._first.get(key)
        if found is None:
            return False
        if found[0] == epoch and _is_before(found[1], sequence):
            return True
        del self._first[key]
        return False

    def check(self, topic: str | bytes, index: int, header: BatchHeader, *, is_known: bool) -> None:
        """Raises Invalid (OUT_OF_ORDER_SEQUENCE_NUMBER) for a batch that `is_behind` another. `is_known`: the partition
        knows the producer, and so which of its batches is next; what was refused here may have come again elsewhere
        meanwhile."""
        if is_known:
            self._first.pop((header.producer_id, topic, index), None)
        elif self.is_behind(topic, index, header.producer_id, header.producer_epoch, header.base_sequence):
            raise Invalid(
                ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
                f"producer {header.producer_id} sent sequence {header.base_sequence}; one before it was refused and "
                "comes first",
            )


def _is_before(one: int, other: int) -> bool:
    """Sequence numbers wrap."""
    return 0 < (other - one) % _SEQUENCES < _SEQUENCES // 2

"""What a partition knows of its idempotent producers: which batch comes next, which ones it has seen. Pure.

Kafka's rules (KIP-98; ProducerStateManager): a producer numbers its batches' records; the partition takes the next
number only, recognises any of the last five batches as a duplicate, and refuses older epochs. What must always hold:
the state of batches that are not durable yet never reaches a manifest, since they may never come to exist.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kafscale.errors import Invalid
from kafscale.protocol.error_codes import ErrorCode

# As many as a client may have in flight (max.in.flight.requests.per.connection of an idempotent producer).
BATCHES_REMEMBERED = 5
_SEQUENCES = 1 << 31


class ProducerBatch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A batch that a producer wrote: its epoch, sequence numbers and offsets (all inclusive), and when."""

    epoch: int
    base_sequence: int
    last_sequence: int
    base_offset: int
    last_offset: int
    timestamp: int


class ProducerSnapshot(msgspec.Struct, frozen=True, array_like=True):
    """One producer of a partition as a manifest keeps it."""

    producer_id: int
    batches: list[ProducerBatch]
    seen_ms: int


class _Producer:
    __slots__ = ("batches", "epoch", "next_sequence", "seen_ms")

    def __init__(self, epoch: int, next_sequence: int, batches: list[ProducerBatch], seen_ms: int) -> None:
        self.epoch = epoch
        self.next_sequence = next_sequence
        self.batches = batches
        self.seen_ms = seen_ms


class ProducerTable:
    """The producers of one partition."""

    __slots__ = ("_producers",)

    def __init__(self) -> None:
        self._producers: dict[int, _Producer] = {}

    def __len__(self) -> int:
        return len(self._producers)

    def knows(self, producer_id: int) -> bool:
        """Whether it is known which batch of the producer is next."""
        return producer_id in self._producers

    def duplicate_of(self, producer_id: int, epoch: int, base_sequence: int, record_count: int) -> ProducerBatch | None:
        """None if the batch is the producer's next; the earlier batch if it is a duplicate of that.

        Raises Invalid: INVALID_PRODUCER_EPOCH for an older epoch, OUT_OF_ORDER_SEQUENCE_NUMBER for a gap,
        DUPLICATE_SEQUENCE_NUMBER for one that lies too far back to be recognised.
        """
        producer = self._producers.get(producer_id)
        if producer is None:
            # Nothing known (or expired): any number begins, as in Kafka since KIP-360.
            return None
        if epoch == producer.epoch:
            if base_sequence == producer.next_sequence:
                return None
            return self._find_duplicate(producer, producer_id, base_sequence, record_count)
        if epoch < producer.epoch:
            raise Invalid(
                ErrorCode.INVALID_PRODUCER_EPOCH,
                f"producer {producer_id} has epoch {producer.epoch}; a batch of epoch {epoch} comes too late",
            )
        if base_sequence != 0:
            raise Invalid(
                ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
                f"producer {producer_id} begins epoch {epoch} at sequence {base_sequence}, not 0",
            )
        return None

    def _find_duplicate(
        self, producer: _Producer, producer_id: int, base_sequence: int, record_count: int
    ) -> ProducerBatch:
        last_sequence = (base_sequence + record_count - 1) % _SEQUENCES
        for batch in reversed(producer.batches):
            if (
                batch.base_sequence == base_sequence
                and batch.last_sequence == last_sequence
                and batch.epoch == producer.epoch
            ):
                return batch
        oldest = next((batch for batch in producer.batches if batch.epoch == producer.epoch), None)
        if oldest is not None and 0 < (oldest.base_sequence - base_sequence) % _SEQUENCES < _SEQUENCES // 2:
            raise Invalid(
                ErrorCode.DUPLICATE_SEQUENCE_NUMBER,
                f"producer {producer_id} sent sequence {base_sequence} again, too long after its first time",
            )
        raise Invalid(
            ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
            f"producer {producer_id} sent sequence {base_sequence} where {producer.next_sequence} comes next",
        )

    def add(
        self,
        producer_id: int,
        epoch: int,
        base_sequence: int,
        record_count: int,
        base_offset: int,
        timestamp: int,
        now_ms: int,
        high_watermark: int,
    ) -> None:
        """Note a batch that was appended at `base_offset`; below `high_watermark` batches are durable."""
        last_sequence = (base_sequence + record_count - 1) % _SEQUENCES
        batch = ProducerBatch(
            epoch, base_sequence, last_sequence, base_offset, base_offset + record_count - 1, timestamp
        )
        next_sequence = (last_sequence + 1) % _SEQUENCES
        producer = self._producers.get(producer_id)
        if producer is None:
            self._producers[producer_id] = _Producer(epoch, next_sequence, [batch], now_ms)
            return
        producer.epoch = epoch
        producer.next_sequence = next_sequence
        producer.seen_ms = now_ms
        batches = producer.batches
        batches.append(batch)
        # Keep the last five, one of them durable at least; more while all five are in flight, since these may yet come
        # to nothing. A client sends none again that lies further back: it has five in flight at most.
        if len(batches) > BATCHES_REMEMBERED and batches[-BATCHES_REMEMBERED].last_offset < high_watermark:
            del batches[:-BATCHES_REMEMBERED]

    def expire(self, seen_before_ms: int, high_watermark: int) -> int:
        """Forget the producers not seen since, unless they have batches in flight. Returns how many."""
        gone = [
            producer_id
            for producer_id, producer in self._producers.items()
            if producer.seen_ms < seen_before_ms and producer.batches[-1].last_offset < high_watermark
        ]
        for producer_id in gone:
            del self._producers[producer_id]
        return len(gone)

    def snapshot(self, high_watermark: int) -> list[ProducerSnapshot]:
        """What is durable of every producer."""
        snapshots = []
        for producer_id, producer in self._producers.items():
            durable = [batch for batch in producer.batches if batch.last_offset < high_watermark]
            if durable:
                snapshots.append(ProducerSnapshot(producer_id, durable[-BATCHES_REMEMBERED:], producer.seen_ms))
        return snapshots

    def restore(self, snapshots: Iterable[ProducerSnapshot]) -> None:
        for snapshot in snapshots:
            last = snapshot.batches[-1]
            self._producers[snapshot.producer_id] = _Producer(
                last.epoch, (last.last_sequence + 1) % _SEQUENCES, list(snapshot.batches), snapshot.seen_ms
            )

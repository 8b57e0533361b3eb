"""What the clients of a simulation did and saw: the events that the checker judges.

A history is a list of events in the order in which they happened; an event's place in the list is its time. Partitions
are `(topic, index)`. Values are unique: a value names the record it was produced as.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

Partition = tuple[str, int]


class ProduceInvoked(msgspec.Struct, frozen=True):
    """A client sends a batch for the first time. `number` orders a producer's batches to a partition. Where it is
    `idempotent`, the batch may be sent again and must appear once."""

    op: int
    producer: str
    partition: Partition
    number: int
    values: tuple[str, ...]
    idempotent: bool = True


class ProduceAcknowledged(msgspec.Struct, frozen=True):
    """The batch was answered without an error. `base_offset` is -1 where the answer names none (a duplicate that the
    broker knows no more of). A batch that was sent twice may be acknowledged twice."""

    op: int
    base_offset: int


class ProduceRefused(msgspec.Struct, frozen=True):
    """The batch was answered with an error that says it was not and never will be written."""

    op: int


class PositionSet(msgspec.Struct, frozen=True):
    """A reader (re)starts reading the partition at `offset`: at its start, or after a rebalance."""

    reader: str
    partition: Partition
    offset: int


class FetchInvoked(msgspec.Struct, frozen=True):
    """A reader asks. `request` names the question to its answers."""

    request: int
    reader: str


class Fetched(msgspec.Struct, frozen=True):
    """A partition in the answer to a fetch: its high watermark and the records that the reader took, in order.
    `leader_epoch` is that of the owner which answered, -1 where the reader doesn't know; `answered_by` is the log of
    the worker that answered. `unwarned`: it had been replaced as owner, had asked the store whether it had, and had got
    no answer: then it goes on with what it has in memory (docs/adr/0008-reads-while-the-store-is-silent.md).
    """

    request: int
    reader: str
    partition: Partition
    high_watermark: int
    records: tuple[tuple[int, str], ...] = ()
    leader_epoch: int = -1
    answered_by: str = ""
    unwarned: bool = False


class Assigned(msgspec.Struct, frozen=True):
    """A member of a group's generation was given these partitions."""

    group: str
    generation: int
    member: str
    partitions: tuple[Partition, ...]


class CommitInvoked(msgspec.Struct, frozen=True):
    op: int
    group: str
    partition: Partition
    offset: int


class CommitAcknowledged(msgspec.Struct, frozen=True):
    op: int


class CommitRefused(msgspec.Struct, frozen=True):
    """Answered with an error that says it did not take effect."""

    op: int


class OffsetFetchInvoked(msgspec.Struct, frozen=True):
    op: int
    group: str
    partition: Partition


class OffsetFetched(msgspec.Struct, frozen=True):
    """The committed offset; -1 for none. `unwarned` as for `Fetched`."""

    op: int
    offset: int
    unwarned: bool = False


class RecordsDeleted(msgspec.Struct, frozen=True):
    """It was acknowledged that everything below `offset` is deleted."""

    partition: Partition
    offset: int


Event = (
    ProduceInvoked
    | ProduceAcknowledged
    | ProduceRefused
    | PositionSet
    | FetchInvoked
    | Fetched
    | Assigned
    | CommitInvoked
    | CommitAcknowledged
    | CommitRefused
    | OffsetFetchInvoked
    | OffsetFetched
    | RecordsDeleted
)


class FinalLog(msgspec.Struct, frozen=True):
    """A partition, read to its end after everything has settled."""

    log_start_offset: int
    end_offset: int
    records: Sequence[tuple[int, str]]


class History(msgspec.Struct):
    """Everything that happened, and what was there in the end."""

    events: list[Event] = []
    final: dict[Partition, FinalLog] = {}

    def seen(self) -> Counter[str]:
        """How often clients did and saw what, answers that say nothing left out."""
        return Counter(type(event).__name__ for event in self.events if not _says_nothing(event))


def _says_nothing(event: Event) -> bool:
    return (isinstance(event, Fetched) and not event.records) or (isinstance(event, OffsetFetched) and event.offset < 0)

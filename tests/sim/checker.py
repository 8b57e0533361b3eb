"""The judge of a history: finds every way in which what clients saw is not what a log promises.

Pure, and as good as linear in the history. A `Violation` is a kind and a line that a person can follow. What it looks
for:

lost                  an acknowledged record that the final log lacks, though retention did not take it
duplicate             an idempotent producer's record at two offsets
two-records           an offset that held two different records
gap                   offsets missing from the final log, or passed over by a reader, not taken by retention
poll-order            a reader that goes back or sees an offset twice without setting its position anew
high-watermark        a high watermark below one that was seen before, or above the log's end
not-durable           a record that was served and is not in the final log
wrong-offset          a record acknowledged at another offset than it has
answers-differ        a batch acknowledged twice with different offsets
producer-order        a producer's records in another order than they were sent in
refused-served        a record in the log whose batch was refused for good
unknown-value         a record that nobody produced
log-start             a log that begins below what was acknowledged as deleted
committed-offset      a committed offset that was lost, went back, or was never committed
two-members           a partition that two members of one generation of a group were given
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

import msgspec

from tests.sim.history import (
    Assigned,
    CommitAcknowledged,
    CommitInvoked,
    CommitRefused,
    Fetched,
    FetchInvoked,
    FinalLog,
    History,
    OffsetFetched,
    OffsetFetchInvoked,
    Partition,
    PositionSet,
    ProduceAcknowledged,
    ProduceInvoked,
    ProduceRefused,
    RecordsDeleted,
)


class Violation(msgspec.Struct, frozen=True, order=True):
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def check(history: History) -> list[Violation]:
    """Every violation, in the order found."""
    checker = _Checker(history.final)
    for time, event in enumerate(history.events):
        checker.take(time, event)
    checker.finish()
    return checker.violations


def _name(partition: Partition) -> str:
    return f"{partition[0]}-{partition[1]}"


class _Produced:
    """A batch: what was sent, and what was said of it."""

    __slots__ = ("acknowledged", "base_offsets", "event", "refused")

    def __init__(self, event: ProduceInvoked) -> None:
        self.event = event
        self.acknowledged = False
        self.refused = False
        # Where it was acknowledged: at most one place, or several where it was sent again without idempotence.
        self.base_offsets: list[int] = []


class _Committed:
    """A group's committed offset of one partition, as a register: which values may a read return?

    A commit is out of date once another that was sent after its answer has been acknowledged. One that got no answer
    may take effect at any time.
    """

    __slots__ = ("answered", "newest_acknowledged_invoked", "open")

    def __init__(self) -> None:
        # When the latest-sent of the acknowledged commits was sent; -1 before the first.
        self.newest_acknowledged_invoked = -1
        # Offset → commits of it that have no answer, and the latest time at which one was acknowledged.
        self.open: dict[int, int] = defaultdict(int)
        self.answered: dict[int, int] = {}


class _Steps:
    """High watermarks that only rose, and when each was first answered."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[tuple[int, int]] = []

    @property
    def highest(self) -> int:
        return self._steps[-1][1] if self._steps else 0

    def reached_at(self, time: int) -> int:
        """The highest that was answered before `time`."""
        before = bisect_left(self._steps, (time, -1))
        return self._steps[before - 1][1] if before else 0

    def add(self, time: int, high_watermark: int) -> None:
        if not self._steps or high_watermark > self.highest:
            self._steps.append((time, high_watermark))


class _Checker:
    def __init__(self, final: dict[Partition, FinalLog]) -> None:
        self.violations: list[Violation] = []
        self._final = final
        self._batches: dict[int, _Produced] = {}
        # Value → its batch and place in it.
        self._values: dict[str, tuple[_Produced, int]] = {}
        # What was seen at an offset first, and by whom.
        self._seen: dict[tuple[Partition, int], tuple[str, str]] = {}
        self._positions: dict[tuple[str, Partition], int] = {}
        # High watermarks: the highest answered per reader; the lowest and the rising steps (time, value) per epoch.
        self._watermark_of_reader: dict[tuple[str, Partition], int] = {}
        self._lowest_of_epoch: dict[Partition, dict[int, int]] = defaultdict(dict)
        self._steps_of_epoch: dict[tuple[Partition, int], _Steps] = defaultdict(_Steps)
        self._steps_of_incarnation: dict[tuple[Partition, str], _Steps] = defaultdict(_Steps)
        self._asked_at: dict[int, int] = {}
        self._deleted_to: dict[Partition, int] = {}
        self._commits: dict[int, tuple[CommitInvoked, int]] = {}
        self._registers: dict[tuple[str, Partition], _Committed] = defaultdict(_Committed)
        # Who was given a partition, by group and generation.
        self._members: dict[tuple[str, int, Partition], str] = {}
        self._offset_fetches: dict[int, tuple[OffsetFetchInvoked, int]] = {}

    def take(self, time: int, event: object) -> None:
        match event:
            case ProduceInvoked():
                self._produce_invoked(event)
            case ProduceAcknowledged():
                self._produce_acknowledged(event)
            case ProduceRefused():
                self._batches[event.op].refused = True
            case PositionSet():
                self._positions[event.reader, event.partition] = event.offset
            case FetchInvoked():
                self._asked_at[event.request] = time
            case Fetched():
                self._fetched(time, event)
            case Assigned():
                self._assigned(event)
            case CommitInvoked():
                self._commits[event.op] = (event, time)
                self._registers[event.group, event.partition].open[event.offset] += 1
            case CommitAcknowledged() | CommitRefused():
                self._commit_answered(time, event)
            case OffsetFetchInvoked():
                register = self._registers[event.group, event.partition]
                self._offset_fetches[event.op] = (event, register.newest_acknowledged_invoked)
            case OffsetFetched():
                self._offset_fetched(event)
            case RecordsDeleted():
                before = self._deleted_to.get(event.partition, 0)
                self._deleted_to[event.partition] = max(before, event.offset)
            case other:
                raise TypeError(f"{other!r} is no event")

    def _found(self, kind: str, text: str) -> None:
        self.violations.append(Violation(kind, text))

    # Produce

    def _produce_invoked(self, event: ProduceInvoked) -> None:
        batch = self._batches[event.op] = _Produced(event)
        for place, value in enumerate(event.values):
            if value in self._values:
                raise ValueError(f"the history produces {value!r} twice: values must be unique")
            self._values[value] = (batch, place)

    def _produce_acknowledged(self, event: ProduceAcknowledged) -> None:
        batch = self._batches[event.op]
        what = batch.event
        batch.acknowledged = True
        if event.base_offset < 0 or event.base_offset in batch.base_offsets:
            return
        if batch.base_offsets and what.idempotent:
            self._found(
                "answers-differ",
                f"batch {what.number} of {what.producer} to {_name(what.partition)} was acknowledged at offset"
                f" {batch.base_offsets[0]}, and again at {event.base_offset}",
            )
        batch.base_offsets.append(event.base_offset)

    # Fetch

    def _fetched(self, time: int, event: Fetched) -> None:
        self._check_watermark(time, event)
        key = (event.reader, event.partition)
        position = self._positions.get(key)
        final = self._final.get(event.partition)
        for offset, value in event.records:
            if position is not None and offset < position:
                self._found(
                    "poll-order",
                    f"{event.reader} reads offset {offset} of {_name(event.partition)} after {position - 1}",
                )
            elif position is not None and offset > position and (final is None or offset > final.log_start_offset):
                self._found(
                    "gap",
                    f"{event.reader} reads offset {offset} of {_name(event.partition)} where {position} comes next;"
                    f" retention took only what lies below {final.log_start_offset if final else 0}",
                )
            if offset >= event.high_watermark >= 0:
                self._found(
                    "high-watermark",
                    f"{event.reader} was served offset {offset} of {_name(event.partition)} at or above the high"
                    f" watermark {event.high_watermark}",
                )
            self._see(event.partition, offset, value, event.reader)
            position = offset + 1
        if position is not None:
            self._positions[key] = position

    def _check_watermark(self, time: int, event: Fetched) -> None:
        """Never back for one reader, and never back in time within a leader epoch or an incarnation.

        Who asks without an epoch may be told what was true, by a replaced owner that the store could not warn.
        """
        if event.high_watermark < 0:
            return
        name = _name(event.partition)
        key = (event.reader, event.partition)
        seen = self._watermark_of_reader.get(key, 0)
        if event.high_watermark < seen and not (event.unwarned and event.leader_epoch < 0):
            self._found(
                "high-watermark", f"{event.reader} is told {event.high_watermark} for {name} after it was told {seen}"
            )
        self._watermark_of_reader[key] = max(seen, event.high_watermark)
        final = self._final.get(event.partition)
        if final is not None and event.high_watermark > final.end_offset:
            self._found(
                "high-watermark",
                f"{event.reader} is told {event.high_watermark} for {name}, which ends at {final.end_offset}",
            )
        if event.answered_by:
            steps = self._steps_of_incarnation[event.partition, event.answered_by]
            self._check_steps(time, event, steps, f"by log {event.answered_by}")
        epoch = event.leader_epoch
        if epoch < 0:
            return
        lowest = self._lowest_of_epoch[event.partition]
        lowest[epoch] = min(lowest.get(epoch, event.high_watermark), event.high_watermark)
        self._check_steps(time, event, self._steps_of_epoch[event.partition, epoch], f"by the owner of epoch {epoch}")

    def _check_steps(self, time: int, event: Fetched, steps: _Steps, by: str) -> None:
        """An answer names no less than those that had come when its question was asked."""
        reached = steps.reached_at(self._asked_at.get(event.request, -1))
        if event.high_watermark < reached:
            self._found(
                "high-watermark",
                f"{event.reader} is told {event.high_watermark} for {_name(event.partition)} {by}, which had said"
                f" {reached} before it was asked",
            )
        steps.add(time, event.high_watermark)

    def _see(self, partition: Partition, offset: int, value: str, reader: str) -> None:
        first = self._seen.get((partition, offset))
        if first is None:
            self._seen[partition, offset] = (value, reader)
            if value not in self._values:
                self._found(
                    "unknown-value", f"offset {offset} of {_name(partition)} holds {value!r}, which nobody sent"
                )
        elif first[0] != value:
            self._found(
                "two-records",
                f"offset {offset} of {_name(partition)} was {first[0]!r} for {first[1]} and {value!r} for {reader}",
            )

    # Groups

    def _assigned(self, event: Assigned) -> None:
        for partition in event.partitions:
            before = self._members.setdefault((event.group, event.generation, partition), event.member)
            if before != event.member:
                self._found(
                    "two-members",
                    f"{_name(partition)} was given to {before} and to {event.member}, both of generation"
                    f" {event.generation} of group {event.group}",
                )

    def _commit_answered(self, time: int, event: CommitAcknowledged | CommitRefused) -> None:
        commit, invoked = self._commits[event.op]
        register = self._registers[commit.group, commit.partition]
        register.open[commit.offset] -= 1
        if isinstance(event, CommitAcknowledged):
            register.newest_acknowledged_invoked = max(register.newest_acknowledged_invoked, invoked)
            register.answered[commit.offset] = time

    def _offset_fetched(self, event: OffsetFetched) -> None:
        asked, newest_invoked = self._offset_fetches[event.op]
        register = self._registers[asked.group, asked.partition]
        if event.unwarned and (event.offset < 0 or event.offset in register.answered):
            return  # What was true, from a replaced coordinator that the store could not warn.
        where = f"group {asked.group} reads {event.offset} as its committed offset of {_name(asked.partition)}"
        if event.offset < 0:
            if newest_invoked >= 0:
                self._found("committed-offset", f"{where}: none, though a commit was acknowledged before it asked")
            return
        if register.open.get(event.offset, 0) > 0:
            return
        answered = register.answered.get(event.offset)
        if answered is None:
            self._found("committed-offset", f"{where}, which was never committed")
        elif answered < newest_invoked:
            self._found("committed-offset", f"{where}, though a later commit was acknowledged before it asked")

    # The end

    def finish(self) -> None:
        places = {partition: self._check_final(partition, final) for partition, final in sorted(self._final.items())}
        self._check_seen()
        self._check_batches(places)
        self._check_epochs()

    def _check_final(self, partition: Partition, final: FinalLog) -> dict[str, int]:
        """The log itself: dense, every value known and once, each producer's in order. Returns where values lie."""
        name = _name(partition)
        deleted_to = self._deleted_to.get(partition, 0)
        if final.log_start_offset < deleted_to:
            self._found(
                "log-start", f"{name} begins at {final.log_start_offset}, though it was deleted up to {deleted_to}"
            )
        expected = final.log_start_offset
        places: dict[str, int] = {}
        newest: dict[str, tuple[int, int, str]] = {}
        for offset, value in final.records:
            if offset != expected:
                self._found("gap", f"the final log of {name} goes on at {offset} where {expected} comes next")
            expected = offset + 1
            self._see(partition, offset, value, "the final reader")
            known = self._values.get(value)
            if known is None:
                continue
            batch, place = known
            if value in places and batch.event.idempotent:
                self._found("duplicate", f"{value!r} lies at offsets {places[value]} and {offset} of {name}")
            if batch.event.partition != partition:
                self._found("wrong-offset", f"{value!r}, sent to {_name(batch.event.partition)}, lies in {name}")
            if batch.refused and not batch.acknowledged:
                self._found("refused-served", f"{value!r} at offset {offset} of {name} was refused for good")
            places.setdefault(value, offset)
            order = (batch.event.number, place, value)
            before = newest.get(batch.event.producer)
            if before is not None and before[:2] > order[:2] and batch.event.idempotent:
                self._found(
                    "producer-order",
                    f"{value!r} lies behind {before[2]!r} in {name}, though {batch.event.producer} sent it earlier",
                )
            newest[batch.event.producer] = order if before is None else max(before, order)
        if expected != final.end_offset:
            self._found("gap", f"the final log of {name} ends at {expected}, its end offset is {final.end_offset}")
        return places

    def _check_seen(self) -> None:
        for (partition, offset), (value, reader) in self._seen.items():
            final = self._final.get(partition)
            if final is not None and offset >= final.end_offset:
                self._found(
                    "not-durable",
                    f"{reader} was served {value!r} at offset {offset} of {_name(partition)}, which ends at"
                    f" {final.end_offset}",
                )

    def _check_batches(self, places: dict[Partition, dict[str, int]]) -> None:
        at = {partition: dict(final.records) for partition, final in self._final.items()}
        for batch in self._batches.values():
            event = batch.event
            if not batch.acknowledged:
                continue
            if event.partition not in self._final:
                self._found("lost", f"{_name(event.partition)} is gone, with acknowledged {event.values[0]!r}")
                continue
            for place, value in enumerate(event.values):
                found_at = places[event.partition].get(value)
                if batch.base_offsets:
                    for base_offset in batch.base_offsets:
                        self._check_record(event.partition, value, base_offset + place, at[event.partition], found_at)
                elif found_at is None and self._final[event.partition].log_start_offset == 0:
                    # A duplicate's answer may name no offset.
                    self._lost(event.partition, value, None)

    def _check_record(
        self, partition: Partition, value: str, offset: int, at: dict[int, str], found_at: int | None
    ) -> None:
        """An acknowledged record lies at its offset, unless retention took it."""
        if offset < self._final[partition].log_start_offset or at.get(offset) == value:
            return
        if found_at is None:
            self._lost(partition, value, offset)
        else:
            self._found(
                "wrong-offset",
                f"{value!r} was acknowledged at offset {offset} of {_name(partition)} and lies at {found_at}",
            )

    def _lost(self, partition: Partition, value: str, offset: int | None) -> None:
        final = self._final[partition]
        self._found(
            "lost",
            f"{value!r} was acknowledged at offset {offset} of {_name(partition)} and is not in the log from"
            f" {final.log_start_offset} to {final.end_offset}",
        )

    def _check_epochs(self) -> None:
        """A leader epoch begins where those before it ended, whoever was asked and when."""
        for partition, lowest in sorted(self._lowest_of_epoch.items()):
            final = self._final.get(partition)
            reached, by = 0, -1
            for epoch in sorted(lowest):
                if lowest[epoch] < reached:
                    self._found(
                        "high-watermark",
                        f"epoch {epoch} of {_name(partition)} showed {lowest[epoch]}, epoch {by} before it {reached}",
                    )
                highest = self._steps_of_epoch[partition, epoch].highest
                if highest > reached:
                    reached, by = highest, epoch
            if final is not None and reached > final.end_offset:
                self._found(
                    "high-watermark",
                    f"epoch {by} of {_name(partition)} showed {reached}, and the log ends at {final.end_offset}",
                )

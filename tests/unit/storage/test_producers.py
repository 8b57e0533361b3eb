"""Goal: idempotent producers meet Kafka's rules (KIP-98, KIP-360), and what is not durable never reaches a manifest."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.errors import Invalid
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.producers import BATCHES_REMEMBERED, ProducerTable

SEQUENCES = 1 << 31


class Naive:
    """Kafka's rules in the plainest words: everything a producer ever wrote, in a list."""

    def __init__(self) -> None:
        self.batches: dict[int, list[tuple[int, int, int, int]]] = {}  # epoch, first, last sequence, base offset

    def judge(self, producer: int, epoch: int, first: int, count: int) -> object:
        """None: append; an int: duplicate of the batch at that offset; else the error code."""
        history = self.batches.get(producer)
        if not history:
            return None
        current = history[-1][0]
        if epoch < current:
            return ErrorCode.INVALID_PRODUCER_EPOCH
        if epoch > current:
            return None if first == 0 else ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER
        if first == (history[-1][2] + 1) % SEQUENCES:
            return None
        last = (first + count - 1) % SEQUENCES
        remembered = [batch for batch in history[-BATCHES_REMEMBERED:] if batch[0] == epoch]
        for batch in remembered:
            if (batch[1], batch[2]) == (first, last):
                return [batch[3]]
        return "old-or-gap"


STEP = st.tuples(
    st.integers(0, 1), st.integers(0, 2), st.integers(-8, 8), st.integers(1, 3), st.sampled_from([0, 0, SEQUENCES - 5])
)


@settings(max_examples=300)
@given(steps=st.lists(STEP, max_size=40), cuts=st.sets(st.integers(0, 40)), begin=st.sampled_from([0, SEQUENCES - 4]))
def test_the_table_agrees_with_the_plain_rules(steps, cuts, begin):
    """Goal: for any sequence of batches, with wrap-around and reloads from a manifest, the verdicts are Kafka's."""
    table, naive, offset = ProducerTable(), Naive(), 0
    for number, (producer, epoch, shift, count, _) in enumerate(steps):
        if number in cuts:
            # The partition moves: a new owner knows what the manifest says.
            snapshot, table = table.snapshot(offset), ProducerTable()
            table.restore(snapshot)
        history = naive.batches.get(producer)
        expected = (history[-1][2] + 1) % SEQUENCES if history else begin
        first = (expected + shift) % SEQUENCES if shift % 2 else expected if shift else 0
        wanted = naive.judge(producer, epoch, first, count)
        try:
            found = table.duplicate_of(producer, epoch, first, count)
        except Invalid as error:
            if wanted == "old-or-gap":
                assert error.code in (ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER, ErrorCode.DUPLICATE_SEQUENCE_NUMBER)
            else:
                assert error.code == wanted
            continue
        if found is not None:
            assert wanted == [found.base_offset]
            continue
        assert wanted is None
        table.add(producer, epoch, first, count, offset, 0, 0, offset)
        naive.batches.setdefault(producer, []).append((epoch, first, (first + count - 1) % SEQUENCES, offset))
        offset += count


def verdict(table: ProducerTable, first: int, epoch: int = 0) -> int | None:
    try:
        assert table.duplicate_of(1, epoch, first, 1) is None
    except Invalid as error:
        return error.code
    return None


def test_a_sequence_too_old_is_told_from_a_gap():
    """Goal: what lies before the five remembered batches is a duplicate, what lies after the next is a gap."""
    table = ProducerTable()
    for sequence in range(10):
        table.add(1, 0, sequence, 1, sequence, 0, 0, sequence)
    assert [table.duplicate_of(1, 0, sequence, 1).base_offset for sequence in range(5, 10)] == [5, 6, 7, 8, 9]
    assert {verdict(table, sequence) for sequence in range(5)} == {ErrorCode.DUPLICATE_SEQUENCE_NUMBER}
    assert verdict(table, 10) is None
    assert verdict(table, 11) == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


@given(durable=st.integers(0, 12), appended=st.integers(0, 12))
def test_a_snapshot_holds_nothing_that_is_on_its_way(durable, appended):
    """Goal: a manifest has only durable batches, and all of those that a client with five in flight may send again."""
    table = ProducerTable()
    for sequence in range(appended):
        table.add(1, 0, sequence, 1, sequence, 0, 0, min(durable, sequence))
    below = min(durable, appended)
    snapshot = table.snapshot(durable)
    kept = [batch.base_offset for entry in snapshot for batch in entry.batches]
    assert len(kept) <= BATCHES_REMEMBERED and kept == list(range(below - len(kept), below))
    assert set(kept) >= set(range(max(0, appended - BATCHES_REMEMBERED), below))


def test_expiry_spares_what_is_in_flight():
    """Goal: an idle producer is forgotten, one with a batch on its way is not."""
    table = ProducerTable()
    table.add(1, 0, 0, 1, 0, 0, 100, 0)
    table.add(2, 0, 0, 1, 1, 0, 100, 0)
    assert table.expire(100, 10) == 0
    assert table.expire(101, 1) == 1 and len(table) == 1
    assert table.duplicate_of(1, 0, 77, 1) is None
    assert table.expire(101, 2) == 1 and len(table) == 0

"""Load that runs while a broker is being hurt, and the checks of what became of it.

`IdempotentLoad` produces numbered records with an idempotent confluent-kafka producer; `GroupReader` reads and commits
in a group. Both run in threads until told to stop and remember what they were promised; `check_records` then reads
everything back and compares.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Self, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from loadtest.broker_process import wait_for
from tests.e2e.confluent_clients import poll_records

PATIENCE_S = 120.0
OUTSTANDING_MAX = 2_000
# What may be said of partitions and groups while they move.
MOVING = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError._TRANSPORT,
)
T = TypeVar("T")


class IdempotentLoad:
    """Sends the numbers 0, 1, 2 … as values, dealt over the partitions, and notes every acknowledgement."""

    def __init__(
        self, bootstrap: str, topic: str, partitions: int, client_id: str = "rdkafka", pause_s: float = 0.01
    ) -> None:
        """`pause_s`: after every hundred records. As it is that makes some ten thousand records a second: enough to
        have many in flight, not more than can be read back."""
        self._pause_s = pause_s
        self.topic = topic
        self.partitions = partitions
        self.sent = 0
        # When an answer came last, and the longest time there was none (monotonic seconds).
        self.answered_at = time.monotonic()
        self.longest_silence_s = 0.0
        # number → (partition, offset, if librdkafka knows it) of every acknowledged record.
        self.acknowledged: dict[int, tuple[int, int | None]] = {}
        self.refused: list[str] = []
        self._settings = {
            "bootstrap.servers": bootstrap,
            "client.id": client_id,
            "enable.idempotence": True,
            "linger.ms": 2,
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)

    def finish(self) -> None:
        """Stop sending and wait until every record has an answer."""
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the producer did not come to an end"
        assert not self.refused, f"{len(self.refused)} records refused: {self.refused[0]}"
        assert len(self.acknowledged) == self.sent, f"{len(self.acknowledged)} of {self.sent} records acknowledged"

    def wait_progress(self, records: int = 500, timeout_s: float = PATIENCE_S) -> None:
        """Wait until so many more records, sent from now on, are acknowledged."""
        first = self.sent + OUTSTANDING_MAX
        goal = range(first, first + records)

        def all_there() -> bool:
            assert not self.refused, self.refused[0]
            return all(number in self.acknowledged for number in goal)

        wait_for(all_there, timeout_s, f"{records} more records acknowledged")

    def _run(self) -> None:
        producer = Producer(self._settings)
        while not self._stop.is_set():
            producer.poll(0)
            if self.sent - len(self.acknowledged) - len(self.refused) >= OUTSTANDING_MAX:
                producer.poll(0.01)
                continue
            number = self.sent
            producer.produce(
                self.topic,
                str(number).encode(),
                partition=number % self.partitions,
                on_delivery=self._delivered,
            )
            self.sent += 1
            if number % 100 == 0:
                self._stop.wait(self._pause_s)
        producer.flush(PATIENCE_S)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.refused.append(str(error))
            return
        self.acknowledged[int(message.value() or b"")] = (message.partition(), message.offset())
        now = time.monotonic()
        self.longest_silence_s = max(self.longest_silence_s, now - self.answered_at)
        self.answered_at = now


class GroupReader:
    """Reads a topic in a group and commits after every batch; notes each commit that was confirmed.

    It waits for every commit before the next: of several under way an earlier one may be repeated after a later one,
    and the group would rightly be found where the earlier one left it.

    Failures it finds while running: an offset skipped, and a start below a confirmed commit.
    """

    def __init__(self, bootstrap: str, topic: str, group: str, client_id: str = "rdkafka") -> None:
        self.topic = topic
        self.problems: list[str] = []
        self.read = 0
        # partition → next offset, as confirmed by the broker; and as seen.
        self.committed: dict[int, int] = defaultdict(int)
        self._next: dict[int, int] = defaultdict(int)
        self._settings = {
            "bootstrap.servers": bootstrap,
            "client.id": client_id,
            "group.id": group,
            "auto.offset.reset": "error",
            "enable.auto.commit": False,
            # Else it begins anew where all brokers that it knows are away at once, and may lock itself up doing so, for
            # good (librdkafka's issue 5476): a fault of its own, which would pass for one of the broker's.
            "metadata.recovery.strategy": "none",
            "reconnect.backoff.max.ms": 1_000,
            # So that a coordinator's end is noticed within a test's time.
            "session.timeout.ms": 6_000,
            "heartbeat.interval.ms": 500,
        }
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        # The group begins with commits of zero, so that a lost commit shows as an error and not as a new beginning.
        with_commits = Consumer(self._settings)
        try:
            found = with_commits.list_topics(self.topic, timeout=30).topics[self.topic].partitions
            with_commits.commit(offsets=[TopicPartition(self.topic, p, 0) for p in found], asynchronous=False)
        finally:
            with_commits.close()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)

    def wait_progress(self, records: int = 100, timeout_s: float = PATIENCE_S) -> None:
        """Wait until so many more records were read and committed."""
        goal = sum(self.committed.values()) + records
        wait_for(lambda: sum(self.committed.values()) >= goal or self.problems, timeout_s, "the group goes on")

    def finish(self) -> None:
        """Stop and check that the broker still has every commit it confirmed."""
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the consumer did not come to an end"
        assert not self.problems, self.problems[:5]
        self.check_commits()

    def check_commits(self) -> None:
        """The committed offsets are nowhere below what was confirmed."""
        confirmed = dict(self.committed)
        asker = Consumer(self._settings)
        try:
            wanted = [TopicPartition(self.topic, partition) for partition in confirmed]
            for found in _told(lambda: asker.committed(wanted, timeout=PATIENCE_S), "committed offsets"):
                assert found.error is None, found.error
                assert found.offset >= confirmed[found.partition], (
                    f"partition {found.partition}: committed {found.offset}, confirmed {confirmed[found.partition]}"
                )
        finally:
            asker.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._next[partition.partition] = -1  # The first record says where the group goes on.

    def _run(self) -> None:
        consumer = Consumer(self._settings)
        try:
            consumer.subscribe([self.topic], on_assign=self._assigned)
            while not self._stop.is_set():
                for message in consumer.consume(500, timeout=0.2):
                    self._note(message)
                if self.read:
                    self._commit(consumer)
        except KafkaException as problem:
            self.problems.append(f"the consumer failed: {problem}")
        finally:
            consumer.close()

    def _note(self, message: Message) -> None:
        if message.error():
            if not message.error().retriable() and message.error().fatal():
                self.problems.append(f"the consumer met {message.error()}")
            if message.error().code() == KafkaError._AUTO_OFFSET_RESET:
                self.problems.append(f"a commit was lost: {message.error()}")
            return
        partition, offset = message.partition(), message.offset()
        expected = self._next[partition]
        if expected < 0:
            if offset < self.committed[partition]:
                self.problems.append(f"partition {partition}: resumed at {offset}, below {self.committed[partition]}")
        elif offset != expected:
            self.problems.append(f"partition {partition}: offset {offset} where {expected} was due")
        self._next[partition] = offset + 1
        self.read += 1

    def _commit(self, consumer: Consumer) -> None:
        try:
            done = consumer.commit(asynchronous=False)
        except KafkaException:
            return  # Not confirmed: the group may go on before it.
        for partition in done or ():
            if partition.error is None:
                self.committed[partition.partition] = max(self.committed[partition.partition], partition.offset)


def _told(ask: Callable[[], T], what: str) -> T:
    """What a broker answers. Asked again while that moves: these calls of librdkafka's leave it to us."""

    def attempt() -> tuple[T] | None:
        try:
            return (ask(),)
        except KafkaException as problem:
            if problem.args[0].code() not in MOVING:
                raise
            return None

    found = wait_for(attempt, PATIENCE_S, what, pause_s=0.2)
    assert found is not None
    return found[0]


def check_records(bootstrap: str, load: IdempotentLoad, client_id: str = "rdkafka") -> float:
    """Read everything back: nothing acknowledged is missing or elsewhere, nothing is twice, offsets are dense and the
    numbers of each partition in order. Returns the seconds it took.

    Raises:
        AssertionError: with what was found.
    """
    began = time.monotonic()
    settings = {"bootstrap.servers": bootstrap, "client.id": client_id, "group.id": "checker"}
    reader = Consumer(settings | {"enable.auto.commit": False})
    found: dict[int, tuple[int, int]] = {}
    try:
        ends = {}
        for partition in range(load.partitions):
            wanted = TopicPartition(load.topic, partition)
            low, high = _told(lambda wanted=wanted: reader.get_watermark_offsets(wanted, timeout=PATIENCE_S), "bounds")
            assert low == 0, f"partition {partition} begins at {low}"
            ends[partition] = high
        reader.assign([TopicPartition(load.topic, partition, 0) for partition in range(load.partitions)])
        next_offset = dict.fromkeys(ends, 0)
        last_number = dict.fromkeys(ends, -1)
        for message in poll_records(reader, sum(ends.values()), PATIENCE_S):
            partition, offset = message.partition(), message.offset()
            number = int(message.value() or b"")
            assert offset == next_offset[partition], f"partition {partition}: {offset}, not {next_offset[partition]}"
            assert number not in found, f"number {number} at {found[number]} and at {(partition, offset)}"
            assert number > last_number[partition], f"partition {partition}: {number} after {last_number[partition]}"
            found[number] = (partition, offset)
            last_number[partition] = number
            next_offset[partition] = offset + 1
    finally:
        reader.close()
    for number, place in load.acknowledged.items():
        there = found.get(number)
        # librdkafka takes the answer to a later batch for that to an earlier one too, and knows no offset of that then.
        is_right = there == place or (place[1] is None and there is not None and there[0] == place[0])
        assert is_right, f"number {number} was acknowledged at {place}, found at {there}"
    return time.monotonic() - began

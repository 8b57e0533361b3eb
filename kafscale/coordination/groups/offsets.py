"""Committed offsets: committing, reading, deleting and expiring them.

Every commit is durable state at once, so the table here and the log's records say the same. Transactional commits will
need a second table (producer id → offsets not yet visible) beside this one; nothing here stands in their way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kafscale.coordination.groups.events import (
    NO_TOPIC_ID,
    GroupConfig,
    OffsetCommitRequest,
    OffsetDeleteRequest,
    OffsetDeleteResponse,
    OffsetFetchRequest,
    OffsetFetchResponse,
    PartitionCommit,
    PartitionOffset,
    PartitionResult,
    TopicCommit,
    TopicOffsets,
    TopicPartitions,
    TopicResult,
)
from kafscale.coordination.groups.group import Group, GroupState
from kafscale.coordination.groups.records import OffsetRecord, offset_key, offset_value
from kafscale.coordination.groups.step import Step
from kafscale.protocol.error_codes import ErrorCode

TopicTable = dict[str, dict[int, OffsetRecord]]


class OffsetTable:
    """Group → topic → partition → committed offset."""

    def __init__(self) -> None:
        self._groups: dict[str, TopicTable] = {}
        self._counts: dict[str, int] = {}

    def put(self, group_id: str, topic: str, partition: int, record: OffsetRecord) -> None:
        partitions = self._groups.setdefault(group_id, {}).setdefault(topic, {})
        if partition not in partitions:
            self._counts[group_id] = self._counts.get(group_id, 0) + 1
        partitions[partition] = record

    def remove(self, group_id: str, topic: str, partition: int) -> bool:
        """False if there was none."""
        topics = self._groups.get(group_id)
        if topics is None or topics.get(topic, {}).pop(partition, None) is None:
            return False
        if not topics[topic]:
            del topics[topic]
        self._counts[group_id] -= 1
        if not topics:
            del self._groups[group_id], self._counts[group_id]
        return True

    def get(self, group_id: str, topic: str, partition: int) -> OffsetRecord | None:
        return self._groups.get(group_id, {}).get(topic, {}).get(partition)

    def topics(self, group_id: str) -> TopicTable:
        """To be read only; empty where nothing is committed."""
        return self._groups.get(group_id, {})

    def count(self, group_id: str) -> int:
        return self._counts.get(group_id, 0)

    def group_ids(self) -> Iterator[str]:
        return iter(self._groups)


class Offsets:
    """The requests about offsets, of groups that the shard has found."""

    def __init__(self, config: GroupConfig, table: OffsetTable, topic_id_of: Callable[[str], bytes | None]) -> None:
        """`topic_id_of`: the id of the topic that has this name now, None where that isn't known."""
        self._config = config
        self._table = table
        self._topic_id_of = topic_id_of

    # --- OffsetCommit -----------------------------------------------------------------------------------------------

    def check_commit(self, group: Group | None, request: OffsetCommitRequest) -> ErrorCode:
        """May the caller commit for this group? A group of None does not exist and would be a simple one."""
        if group is None:
            # Without a generation it is a client that only stores offsets here; one with a generation is a member of
            # a group that is no more.
            if request.generation < 0:
                return ErrorCode.NONE
            return ErrorCode.GROUP_ID_NOT_FOUND if request.knows_missing_groups else ErrorCode.ILLEGAL_GENERATION
        if request.generation < 0 and group.state is GroupState.EMPTY:
            return ErrorCode.NONE
        if request.generation < 0 and not request.member_id and request.instance_id is None:
            return ErrorCode.UNKNOWN_MEMBER_ID  # while a group has members, only they commit
        error = group.check_member(request.member_id, request.instance_id)
        if error is not ErrorCode.NONE:
            return error
        if request.generation != group.generation:
            return ErrorCode.ILLEGAL_GENERATION
        if group.state is GroupState.COMPLETING_REBALANCE:
            return ErrorCode.REBALANCE_IN_PROGRESS
        return ErrorCode.NONE

    def commit(self, step: Step, group: Group, topics: tuple[TopicCommit, ...]) -> tuple[TopicResult, ...]:
        results = []
        for topic in topics:
            outcome = tuple(
                PartitionResult(partition=wanted.partition, error=self._commit_one(step, group, topic, wanted))
                for wanted in topic.partitions
            )
            results.append(TopicResult(name=topic.name, topic_id=topic.topic_id, partitions=outcome))
        return tuple(results)

    def _commit_one(self, step: Step, group: Group, topic: TopicCommit, wanted: PartitionCommit) -> ErrorCode:
        metadata = wanted.metadata or ""
        if len(metadata) > self._config.offset_metadata_max_chars:
            return ErrorCode.OFFSET_METADATA_TOO_LARGE
        group_id = group.group_id
        is_known = self._table.get(group_id, topic.name, wanted.partition) is not None
        if not is_known and self._table.count(group_id) >= self._config.group_max_offsets:
            return ErrorCode.INVALID_COMMIT_OFFSET_SIZE
        record = OffsetRecord(
            offset=wanted.offset,
            leader_epoch=wanted.leader_epoch,
            metadata=metadata,
            commit_timestamp_ms=step.wall_ms,
            topic_id=topic.topic_id,
        )
        step.write(offset_key(group_id, topic.name, wanted.partition), offset_value(record))
        self._table.put(group_id, topic.name, wanted.partition, record)
        return ErrorCode.NONE

    # --- OffsetFetch ------------------------------------------------------------------------------------------------

    def fetch(self, request: OffsetFetchRequest) -> OffsetFetchResponse:
        if request.topics is None:
            topics = self._fetch_all(request.group_id)
        else:
            topics = tuple(self._fetch_topic(request.group_id, wanted) for wanted in request.topics)
        return OffsetFetchResponse(group_id=request.group_id, topics=topics)

    def _fetch_topic(self, group_id: str, wanted: TopicPartitions) -> TopicOffsets:
        topic_id = wanted.topic_id
        if topic_id == NO_TOPIC_ID:
            topic_id = self._topic_id_of(wanted.name) or NO_TOPIC_ID
        committed = self._table.topics(group_id).get(wanted.name, {})
        return TopicOffsets(
            name=wanted.name,
            topic_id=topic_id,
            partitions=tuple(
                self._partition_offset(partition, committed.get(partition), topic_id) for partition in wanted.partitions
            ),
        )

    def _fetch_all(self, group_id: str) -> tuple[TopicOffsets, ...]:
        found = []
        for name, committed in self._table.topics(group_id).items():
            topic_id = self._topic_id_of(name) or NO_TOPIC_ID
            partitions = tuple(
                self._partition_offset(partition, record, topic_id)
                for partition, record in committed.items()
                if _is_of_topic(record, topic_id)
            )
            if partitions:
                found.append(TopicOffsets(name=name, topic_id=topic_id, partitions=partitions))
        return tuple(found)

    def _partition_offset(self, partition: int, record: OffsetRecord | None, topic_id: bytes) -> PartitionOffset:
        if record is None or not _is_of_topic(record, topic_id):
            return PartitionOffset(partition=partition)
        return PartitionOffset(
            partition=partition, offset=record.offset, leader_epoch=record.leader_epoch, metadata=record.metadata
        )

    # --- removing ---------------------------------------------------------------------------------------------------

    def delete(self, step: Step, group: Group, request: OffsetDeleteRequest) -> OffsetDeleteResponse:
        if group.state is not GroupState.EMPTY and not group.uses_consumer_protocol():
            return OffsetDeleteResponse(error=ErrorCode.NON_EMPTY_GROUP)
        results = []
        for topic in request.topics:
            # Of a group that is being read by, the offsets that nobody reads from may still go (KIP-496).
            in_use = group.is_subscribed(topic.name)
            error = ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC if in_use else ErrorCode.NONE
            for partition in topic.partitions:
                if not in_use:
                    self._remove(step, group.group_id, topic.name, partition)
            results.append(
                TopicResult(
                    name=topic.name,
                    topic_id=topic.topic_id,
                    partitions=tuple(PartitionResult(partition=number, error=error) for number in topic.partitions),
                )
            )
        return OffsetDeleteResponse(topics=tuple(results))

    def delete_all(self, step: Step, group_id: str) -> None:
        for topic, committed in list(self._table.topics(group_id).items()):
            for partition in list(committed):
                self._remove(step, group_id, topic, partition)

    def delete_topic(self, step: Step, name: str, topic_id: bytes) -> None:
        """A topic is gone: so are its commits, but not those of a later topic of that name."""
        for group_id in list(self._table.group_ids()):
            for partition, record in list(self._table.topics(group_id).get(name, {}).items()):
                if _is_of_topic(record, topic_id):
                    self._remove(step, group_id, name, partition)

    def expire(self, step: Step, group: Group) -> int:
        """Remove what is past its retention; returns how many offsets were looked at.

        KIP-211: counted from when the group became empty, or from the commit if that is later. In a stable group of
        consumers only topics that nobody subscribes to expire; in a simple group (no members ever) everything does.
        """
        group_id = group.group_id
        seen = self._table.count(group_id)
        is_empty = group.state is GroupState.EMPTY
        if not is_empty and not (
            group.state is GroupState.STABLE and group.uses_consumer_protocol() and group.subscription is not None
        ):
            return 0
        floor_ms = group.state_timestamp_ms if is_empty and group.protocol_type is not None else 0
        oldest_ms = step.wall_ms - self._config.offsets_retention_ms
        for topic, committed in list(self._table.topics(group_id).items()):
            if group.is_subscribed(topic):
                continue
            for partition, record in list(committed.items()):
                if max(record.commit_timestamp_ms, floor_ms) <= oldest_ms:
                    self._remove(step, group_id, topic, partition)
        return seen

    def _remove(self, step: Step, group_id: str, topic: str, partition: int) -> None:
        if self._table.remove(group_id, topic, partition):
            step.write(offset_key(group_id, topic, partition), None)


def _is_of_topic(record: OffsetRecord, topic_id: bytes) -> bool:
    """Was it committed for this topic, rather than for an earlier one of the same name? Unknown ids match all."""
    return record.topic_id == topic_id or NO_TOPIC_ID in (record.topic_id, topic_id)

"""Taking requests apart by who serves what they name, and putting the answers together again.

Pure: messages in, messages out. What must hold: a request that is split, served by its owners and merged gets the
answer that one owner of everything would have given, in the same order. A splitter gives the parts by node; a request
that concerns one node has one part, which is the whole. Answers come in the form of the request's version, one for each
part; a part that got none has been answered with an error in the owner's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.delete_groups import DeleteGroupsResponse
from kafscale.protocol.messages.delete_records import DeleteRecordsResponse, DeleteRecordsTopicResult
from kafscale.protocol.messages.describe_configs import DescribeConfigsResponse
from kafscale.protocol.messages.describe_groups import DescribeGroupsResponse
from kafscale.protocol.messages.describe_log_dirs import (
    DescribeLogDirsPartition,
    DescribeLogDirsResponse,
    DescribeLogDirsResult,
    DescribeLogDirsTopic,
)
from kafscale.protocol.messages.list_groups import ListGroupsResponse
from kafscale.protocol.messages.list_offsets import ListOffsetsResponse, ListOffsetsTopicResponse
from kafscale.protocol.messages.offset_fetch import OffsetFetchResponse
from kafscale.protocol.messages.offset_for_leader_epoch import (
    OffsetForLeaderEpochResponse,
    OffsetForLeaderTopicResult,
)
from kafscale.protocol.messages.produce import ProduceResponse, TopicProduceResponse
from kafscale.protocol.schema import Message
from workers.forwarding.places import Places
from workers.handlers.alter_configs import ConfigResourceType
from workers.listener import ONE_NODE_ID

# The parts of a request by node, and their answers likewise.
Parts = dict[int, Message]
Answers = Mapping[int, Any]


class Splitter:
    """How one API's requests are taken apart. Without state."""

    def split(self, places: Places, request: Any, version: int) -> Parts:
        """At least one part."""
        raise NotImplementedError

    def merge(self, places: Places, request: Any, version: int, answers: Answers) -> Message:
        """One answer for all."""
        raise NotImplementedError

    def unreachable(self, node: int) -> Message | None:
        """What to take for the answer of a node that gives none; None: the API's answer with an error."""
        return None


def throttle_of(answers: Answers) -> int:
    """The longest that any part was to be held back."""
    return max((answer.throttle_time_ms for answer in answers.values()), default=0)


class ByPartition(Splitter):
    """Requests whose topics name partitions, each of which is answered once, in order.

    `topics` and `partitions` are the names of the request's arrays, `index` that of a partition's number; `topic_of`
    reads a topic's name or id. `answered` reads an answer's topics, each a sequence of partitions' answers;
    `answer_topic` makes one, `answer` the whole. `joins`: topics that stand together in the answer are one, however
    often the request named them, and those without partitions are none.
    """

    def __init__(
        self,
        topics: str,
        partitions: str,
        index: str,
        topic_of: Callable[[Any, int], str | bytes],
        answered: Callable[[Any], Iterable[Sequence[Any]]],
        answer_topic: Callable[[Any, list[Any]], Any],
        answer: Callable[[list[Any], int], Message],
        *,
        joins: bool = False,
    ) -> None:
        self._topics = topics
        self._partitions = partitions
        self._index = index
        self._topic_of = topic_of
        self._answered = answered
        self._answer_topic = answer_topic
        self._answer = answer
        self._joins = joins

    def _nodes(self, places: Places, request: Any, version: int) -> Iterator[tuple[Any, list[int]]]:
        """Each topic of the request, with the nodes of its partitions."""
        for topic in getattr(request, self._topics):
            name = self._topic_of(topic, version)
            partitions = getattr(topic, self._partitions)
            yield topic, [places.leader(name, getattr(partition, self._index)) for partition in partitions]

    def split(self, places: Places, request: Any, version: int) -> Parts:
        by_node: dict[int, list[Any]] = {}
        for topic, nodes in self._nodes(places, request, version):
            partitions = getattr(topic, self._partitions)
            for node in dict.fromkeys(nodes):
                own = [partition for partition, at in zip(partitions, nodes, strict=True) if at == node]
                by_node.setdefault(node, []).append(msgspec.structs.replace(topic, **{self._partitions: own}))
        if len(by_node) < 2:
            return {next(iter(by_node), places.own): request}
        return {node: msgspec.structs.replace(request, **{self._topics: topics}) for node, topics in by_node.items()}

    def merge(self, places: Places, request: Any, version: int, answers: Answers) -> Message:
        left = {
            node: iter([partition for topic in self._answered(answer) for partition in topic])
            for node, answer in answers.items()
        }
        topics: list[Any] = []
        before: str | bytes | None = None
        gathered: list[Any] = []
        for topic, nodes in self._nodes(places, request, version):
            found = [next(left[node]) for node in nodes]
            name = self._topic_of(topic, version)
            if not self._joins:
                topics.append(self._answer_topic(topic, found))
            elif found and name == before:
                gathered += found
            elif found:
                before, gathered = name, found
                topics.append(self._answer_topic(topic, gathered))
        return self._answer(topics, throttle_of(answers))


class ByGroup(Splitter):
    """Requests that name several groups, each of which is answered once, where it is named first."""

    def __init__(
        self,
        groups: str,
        name_of: Callable[[Any], str],
        answered: str,
        answer: Callable[[list[Any], int], Message],
    ) -> None:
        self._groups = groups
        self._name_of = name_of
        self._answered = answered
        self._answer = answer

    def split(self, places: Places, request: Any, version: int) -> Parts:
        by_node: dict[int, list[Any]] = {}
        for group in getattr(request, self._groups):
            by_node.setdefault(places.coordinator(self._name_of(group)), []).append(group)
        if len(by_node) < 2:
            return {next(iter(by_node), places.own): request}
        return {node: msgspec.structs.replace(request, **{self._groups: groups}) for node, groups in by_node.items()}

    def merge(self, places: Places, request: Any, version: int, answers: Answers) -> Message:
        found = {group.group_id: group for answer in answers.values() for group in getattr(answer, self._answered)}
        names = dict.fromkeys(self._name_of(group) for group in getattr(request, self._groups))
        return self._answer([found[name] for name in names], throttle_of(answers))


class OffsetFetches(Splitter):
    """OffsetFetch: one group below v8, several from then on."""

    def __init__(self) -> None:
        self._several = ByGroup(
            "groups",
            lambda group: str(group.group_id),
            "groups",
            lambda groups, throttle: OffsetFetchResponse(groups=groups, throttle_time_ms=throttle),
        )

    def split(self, places: Places, request: Any, version: int) -> Parts:
        if version < 8:
            return {places.coordinator(request.group_id): request}
        if len({group.group_id for group in request.groups}) < len(request.groups):
            # Named twice, which is refused as a whole.
            return {places.own: request}
        return self._several.split(places, request, version)

    def merge(self, places: Places, request: Any, version: int, answers: Answers) -> Message:
        return self._several.merge(places, request, version, answers)


class OneGroup(Splitter):
    """Requests of one group, which its coordinator serves."""

    def split(self, places: Places, request: Any, version: int) -> Parts:
        return {places.coordinator(request.group_id): request}

    def merge(self, places: Places, request: Any, version: int, answers: Answers) -> Message:
        raise AssertionError("a request of one group has one part")


class GroupListing(Splitter):
    """ListGroups: every coordinator has some. An error of one is everyone's, as the list would lack its groups."""

    def split(self, places: Places, request: Any, version: int) -> Parts:
        return dict.fromkeys(places.coordinators() or [places.own], request)

    def merge(self, places: Places, request: Any, version: int, answers: Answers) -> Message:
        for answer in answers.values():
            if answer.error_code:
                return ListGroupsResponse(error_code=answer.error_code, throttle_time_ms=throttle_of(answers))
        groups = [group for answer in answers.values() for group in answer.groups]
        return ListGroupsResponse(groups=groups, throttle_time_ms=throttle_of(answers))


class LogDirs(Splitter):
    """DescribeLogDirs: every owner knows the sizes of what it leads. What lies in one directory is told together."""

    def split(self, places: Places, request: Any, version: int) -> Parts:
        if request.topics is None:
            return dict.fromkeys(places.owners() or [places.own], request)
        named = {places.leader(topic.topic, index) for topic in request.topics for index in topic.partitions}
        return dict.fromkeys(sorted(named) or [places.own], request)

    def merge(self, places: Places, request: Any, version: int, answers: Answers) -> Message:
        found: dict[tuple[int, str], tuple[DescribeLogDirsResult, dict[str, list[DescribeLogDirsPartition]]]] = {}
        for answer in answers.values():
            for result in answer.results:
                _, topics = found.setdefault((result.error_code, result.log_dir), (result, {}))
                for topic in result.topics:
                    topics.setdefault(topic.name, []).extend(topic.partitions)
        return DescribeLogDirsResponse(
            throttle_time_ms=throttle_of(answers),
            error_code=next((answer.error_code for answer in answers.values() if answer.error_code), 0),
            results=[
                msgspec.structs.replace(
                    result,
                    topics=[
                        DescribeLogDirsTopic(name=name, partitions=sorted(found, key=lambda p: p.partition_index))
                        for name, found in topics.items()
                    ],
                )
                for result, topics in found.values()
            ],
        )

    def unreachable(self, node: int) -> Message | None:
        # As a broker of Kafka shows a disk that failed: the list must not look whole.
        offline = DescribeLogDirsResult(error_code=ErrorCode.KAFKA_STORAGE_ERROR, log_dir=f"node {node}")
        return DescribeLogDirsResponse(results=[offline])


class ConfigDescriptions(Splitter):
    """DescribeConfigs: topics' settings are known to all, a broker's to its own workers. The one node that clients know
    is whoever answers."""

    def split(self, places: Places, request: Any, version: int) -> Parts:
        by_node: dict[int, list[Any]] = {}
        for resource in request.resources:
            by_node.setdefault(self._node(places, resource), []).append(resource)
        if len(by_node) < 2:
            return {next(iter(by_node), places.own): request}
        return {node: msgspec.structs.replace(request, resources=some) for node, some in by_node.items()}

    def _node(self, places: Places, resource: Any) -> int:
        name = resource.resource_name
        if resource.resource_type != ConfigResourceType.BROKER or not (name.isascii() and name.isdigit()):
            return places.own
        node = int(name)
        return node if node != ONE_NODE_ID and places.knows(node) else places.own

    def merge(self, places: Places, request: Any, version: int, answers: Answers) -> Message:
        found = {(r.resource_type, r.resource_name): r for answer in answers.values() for r in answer.results}
        wanted = dict.fromkeys((r.resource_type, r.resource_name) for r in request.resources)
        return DescribeConfigsResponse(
            results=[found[resource] for resource in wanted], throttle_time_ms=throttle_of(answers)
        )


def produce() -> ByPartition:
    return ByPartition(
        "topic_data",
        "partition_data",
        "index",
        lambda topic, version: topic.topic_id if version >= 13 else topic.name,
        lambda answer: [topic.partition_responses for topic in answer.responses],
        lambda topic, found: TopicProduceResponse(name=topic.name, topic_id=topic.topic_id, partition_responses=found),
        lambda topics, throttle: ProduceResponse(responses=topics, throttle_time_ms=throttle),
        joins=True,
    )


def list_offsets() -> ByPartition:
    return ByPartition(
        "topics",
        "partitions",
        "partition_index",
        lambda topic, version: str(topic.name),
        lambda answer: [topic.partitions for topic in answer.topics],
        lambda topic, found: ListOffsetsTopicResponse(name=topic.name, partitions=found),
        lambda topics, throttle: ListOffsetsResponse(topics=topics, throttle_time_ms=throttle),
    )


def offset_for_leader_epoch() -> ByPartition:
    return ByPartition(
        "topics",
        "partitions",
        "partition",
        lambda topic, version: str(topic.topic),
        lambda answer: [topic.partitions for topic in answer.topics],
        lambda topic, found: OffsetForLeaderTopicResult(topic=topic.topic, partitions=found),
        lambda topics, throttle: OffsetForLeaderEpochResponse(topics=topics, throttle_time_ms=throttle),
    )


def delete_records() -> ByPartition:
    return ByPartition(
        "topics",
        "partitions",
        "partition_index",
        lambda topic, version: str(topic.name),
        lambda answer: [topic.partitions for topic in answer.topics],
        lambda topic, found: DeleteRecordsTopicResult(name=topic.name, partitions=found),
        lambda topics, throttle: DeleteRecordsResponse(topics=topics, throttle_time_ms=throttle),
    )


def describe_groups() -> ByGroup:
    return ByGroup(
        "groups",
        str,
        "groups",
        lambda groups, throttle: DescribeGroupsResponse(groups=groups, throttle_time_ms=throttle),
    )


def delete_groups() -> ByGroup:
    return ByGroup(
        "groups_names",
        str,
        "results",
        lambda results, throttle: DeleteGroupsResponse(results=results, throttle_time_ms=throttle),
    )

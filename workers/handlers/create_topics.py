"""CreateTopics (key 19), v2-7: create topics, or say whether they could be (validate_only).

Everything that needs the present state is decided by the controller; only what is wrong in itself (bad names, a topic
named twice) is refused here. A replication factor asks for nothing: each topic has one replica, of durable objects.
`configs` of the answer is never null, which the Java Admin (4.3) does not survive. Left out: quotas on partitions.
"""

from __future__ import annotations

from collections import Counter

from kafscale.config import Settings
from kafscale.coordination import topic_configs
from kafscale.coordination.cluster import Topic, topic_name_error
from kafscale.coordination.commands import MAX_COMMANDS, CommandResult, CreateTopic
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.create_topics import (
    CreatableTopic,
    CreatableTopicConfigs,
    CreatableTopicResult,
    CreateTopicsRequest,
    CreateTopicsResponse,
)
from kafscale.security.needs import CREATE_ANY_TOPIC, DESCRIBE_CONFIGS_OF_TOPIC
from workers.context import Context, Request


async def handle(context: Context, request: Request, message: CreateTopicsRequest) -> CreateTopicsResponse:
    named = Counter(topic.name for topic in message.topics)
    wanted: dict[str, CreatableTopic] = {}
    results: dict[str, CreatableTopicResult] = {}
    for topic in message.topics:
        complaint = _complaint(request, topic.name, named[topic.name], len(wanted))
        if complaint is None:
            wanted[topic.name] = topic
        else:
            results[topic.name] = _refused(topic.name, *complaint)
    commands = [_command(topic, message.validate_only) for topic in wanted.values()]
    shown = _ShownConfigs(context.settings)
    for name, result in zip(wanted, await context.admin.submit(commands, message.timeout_ms / 1000), strict=True):
        results[name] = _result(shown if request.access.shows(DESCRIBE_CONFIGS_OF_TOPIC, name) else None, name, result)
    return CreateTopicsResponse(topics=[results[name] for name in named])


def failed(message: CreateTopicsRequest, code: int, text: str) -> CreateTopicsResponse:
    """The error for every topic."""
    names = dict.fromkeys(topic.name for topic in message.topics)
    return CreateTopicsResponse(topics=[_refused(name, code, text) for name in names])


def _complaint(request: Request, name: str, times: int, accepted: int) -> tuple[int, str] | None:
    if times > 1:
        return ErrorCode.INVALID_REQUEST, "the topic is named more than once in the request"
    if not request.access.allows(CREATE_ANY_TOPIC, name):
        return ErrorCode.TOPIC_AUTHORIZATION_FAILED, "not authorized"
    complaint = topic_name_error(name)
    if complaint is not None:
        return ErrorCode.INVALID_TOPIC_EXCEPTION, complaint
    if accepted >= MAX_COMMANDS:
        return ErrorCode.POLICY_VIOLATION, f"a request may create {MAX_COMMANDS} topics at most"
    return None


def _command(topic: CreatableTopic, validate_only: bool) -> CreateTopic:
    return CreateTopic(
        name=topic.name,
        partitions=topic.num_partitions,
        replication_factor=topic.replication_factor,
        assignments=[(item.partition_index, list(item.broker_ids)) for item in topic.assignments],
        configs={config.name: config.value for config in topic.configs},
        validate_only=validate_only,
    )


def _refused(name: str, code: int, text: str) -> CreatableTopicResult:
    return CreatableTopicResult(name=name, error_code=code, error_message=text)


def _result(shown: _ShownConfigs | None, name: str, result: CommandResult) -> CreatableTopicResult:
    """`shown` is None for a client that may not see the topic's settings."""
    if result.error_code or result.topic is None:
        return _refused(name, result.error_code, result.message or "")
    if shown is None:
        return CreatableTopicResult(
            name=name,
            topic_id=result.topic.topic_id,
            error_message=None,
            topic_config_error_code=ErrorCode.TOPIC_AUTHORIZATION_FAILED,
            configs=[],
        )
    return CreatableTopicResult(
        name=name,
        topic_id=result.topic.topic_id,
        error_message=None,
        num_partitions=result.topic.partitions,
        replication_factor=1,
        configs=shown.of(result.topic),
    )


class _ShownConfigs:
    """Settings as the answer shows them, made once for all topics that are set alike."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[frozenset[tuple[str, str]], list[CreatableTopicConfigs]] = {}

    def of(self, topic: Topic) -> list[CreatableTopicConfigs]:
        key = frozenset(topic.configs.items())
        if key not in self._made:
            self._made[key] = [
                CreatableTopicConfigs(name=entry.name, value=entry.value, config_source=entry.source)
                for entry in topic_configs.describe(topic.configs, self._settings)
            ]
        return self._made[key]

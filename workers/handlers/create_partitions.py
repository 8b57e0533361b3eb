"""CreatePartitions (key 37), v0-3: give topics more partitions, or say whether they could have them (validate_only).

Left out: placement (a manual assignment is checked for its form; slots decide).
"""

from __future__ import annotations

from collections import Counter

from kafscale.coordination.commands import MAX_COMMANDS, CreatePartitions
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.create_partitions import (
    CreatePartitionsRequest,
    CreatePartitionsResponse,
    CreatePartitionsTopic,
    CreatePartitionsTopicResult,
)
from kafscale.security.needs import ALTER_TOPIC
from workers.context import Context, Request


async def handle(context: Context, request: Request, message: CreatePartitionsRequest) -> CreatePartitionsResponse:
    named = Counter(topic.name for topic in message.topics)
    commands: dict[str, CreatePartitions] = {}
    results: dict[str, CreatePartitionsTopicResult] = {}
    for topic in message.topics:
        if named[topic.name] > 1:
            text = "the topic is named more than once in the request"
            results[topic.name] = _result(topic.name, ErrorCode.INVALID_REQUEST, text)
        elif not request.access.allows(ALTER_TOPIC, topic.name):
            results[topic.name] = _result(topic.name, ErrorCode.TOPIC_AUTHORIZATION_FAILED, "not authorized")
        elif len(commands) >= MAX_COMMANDS:
            text = f"a request may change {MAX_COMMANDS} topics at most"
            results[topic.name] = _result(topic.name, ErrorCode.POLICY_VIOLATION, text)
        else:
            commands[topic.name] = _command(topic, message.validate_only)
    outcomes = await context.admin.submit(list(commands.values()), message.timeout_ms / 1000)
    for name, outcome in zip(commands, outcomes, strict=True):
        results[name] = _result(name, outcome.error_code, outcome.message if outcome.error_code else None)
    return CreatePartitionsResponse(results=[results[name] for name in named])


def failed(message: CreatePartitionsRequest, code: int, text: str) -> CreatePartitionsResponse:
    """The error for every topic."""
    names = dict.fromkeys(topic.name for topic in message.topics)
    return CreatePartitionsResponse(results=[_result(name, code, text) for name in names])


def _command(topic: CreatePartitionsTopic, validate_only: bool) -> CreatePartitions:
    assignments = None if topic.assignments is None else [list(item.broker_ids) for item in topic.assignments]
    return CreatePartitions(name=topic.name, count=topic.count, assignments=assignments, validate_only=validate_only)


def _result(name: str, code: int, text: str | None) -> CreatePartitionsTopicResult:
    return CreatePartitionsTopicResult(name=name, error_code=code, error_message=text)

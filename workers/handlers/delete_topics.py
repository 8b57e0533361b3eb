"""DeleteTopics (key 20), v1-6: delete topics by name or (v6) by id.

A topic that is gone is gone for good: one created anew under its name has another id, and none of its records. Each
result names the topic as the request did, and in v6 both ways where the topic existed. Left out: nothing.
"""

from __future__ import annotations

from collections import Counter

from kafscale.coordination.commands import MAX_COMMANDS, CommandResult, DeleteTopic
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.delete_topics import (
    DeletableTopicResult,
    DeleteTopicsRequest,
    DeleteTopicsResponse,
    DeleteTopicState,
)
from kafscale.protocol.schema import ZERO_UUID
from kafscale.security.needs import DELETE_ANY_TOPIC, DESCRIBE_TOPIC
from workers.context import Context, Request

Wanted = tuple[str | None, bytes]


async def handle(context: Context, request: Request, message: DeleteTopicsRequest) -> DeleteTopicsResponse:
    wanted = [(topic.name, topic.topic_id) for topic in _states(message)]
    # A topic named by name here and by id there is named twice as well.
    same = Counter(_identity(context, item) for item in wanted)
    commands: dict[Wanted, DeleteTopic] = {}
    results: dict[Wanted, DeletableTopicResult] = {}
    for item in wanted:
        name, topic_id = item
        if (name is None) == (topic_id == ZERO_UUID):
            results[item] = _refused(item, ErrorCode.INVALID_REQUEST, "a topic is named by its name or by its id")
        elif (denied := _denied(context, request, item)) is not None:
            # Before it is said whether a name and an id are of the same topic.
            results[item] = denied
        elif same[_identity(context, item)] > 1:
            results[item] = _refused(
                item, ErrorCode.INVALID_REQUEST, "the topic is named more than once in the request"
            )
        elif len(commands) >= MAX_COMMANDS:
            text = f"a request may delete {MAX_COMMANDS} topics at most"
            results[item] = _refused(item, ErrorCode.POLICY_VIOLATION, text)
        else:
            commands[item] = DeleteTopic(name=name, topic_id=None if topic_id == ZERO_UUID else topic_id)
    outcomes = await context.admin.submit(list(commands.values()), message.timeout_ms / 1000)
    for item, outcome in zip(commands, outcomes, strict=True):
        results[item] = _result(item, outcome)
    return DeleteTopicsResponse(responses=[results[item] for item in dict.fromkeys(wanted)])


def failed(message: DeleteTopicsRequest, code: int, text: str) -> DeleteTopicsResponse:
    """The error for every topic."""
    wanted = dict.fromkeys((topic.name, topic.topic_id) for topic in _states(message))
    return DeleteTopicsResponse(responses=[_refused(item, code, text) for item in wanted])


def _states(message: DeleteTopicsRequest) -> list[DeleteTopicState]:
    """What is to be deleted, whichever version said it."""
    return [*message.topics, *(DeleteTopicState(name=name) for name in message.topic_names)]


def _identity(context: Context, item: Wanted) -> Wanted:
    name, topic_id = item
    topic = context.cluster.topic(name) if name is not None else context.cluster.topic_by_id(topic_id)
    return item if topic is None else (topic.name, topic.topic_id)


def _denied(context: Context, request: Request, item: Wanted) -> DeletableTopicResult | None:
    """The answer to one who may not delete the topic: the same whether it exists or not, where he names it; where he
    knows its id, its name is for who may describe it. Ids that are unknown are no secret."""
    name, topic_id = item
    if name is None:
        topic = context.cluster.topic_by_id(topic_id)
        if topic is None:
            return None
        name = topic.name
    if request.access.allows(DELETE_ANY_TOPIC, name):
        return None
    told = name if item[0] is not None or request.access.shows(DESCRIBE_TOPIC, name) else None
    return _refused((told, topic_id), ErrorCode.TOPIC_AUTHORIZATION_FAILED, "not authorized")


def _refused(item: Wanted, code: int, text: str | None) -> DeletableTopicResult:
    return DeletableTopicResult(name=item[0], topic_id=item[1], error_code=code, error_message=text)


def _result(item: Wanted, outcome: CommandResult) -> DeletableTopicResult:
    if outcome.error_code or outcome.topic is None:
        return _refused(item, outcome.error_code, outcome.message)
    return DeletableTopicResult(name=outcome.topic.name, topic_id=outcome.topic.topic_id)

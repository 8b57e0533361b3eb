"""AlterConfigs (key 33), v0-2: replace everything that is set on a topic. Deprecated in Kafka; tools still send it.

Also what it shares with IncrementalAlterConfigs: the pairing of resources with results. Only topics have settings
that can be changed here; a broker's come from its flags, environment and file, and are refused with INVALID_CONFIG.
Left out: groups, client metrics, broker loggers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

from kafscale.coordination.commands import MAX_COMMANDS, AlterConfigs
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.alter_configs import (
    AlterConfigsRequest,
    AlterConfigsResourceResponse,
    AlterConfigsResponse,
)
from workers.context import Context, Request


class ConfigResourceType(IntEnum):
    """What settings belong to (Kafka's ConfigResource.Type)."""

    TOPIC = 2
    BROKER = 4
    BROKER_LOGGER = 8
    CLIENT_METRICS = 16
    GROUP = 32


Outcome = tuple[int, str | None]
Identity = tuple[int, str]


async def handle(context: Context, request: Request, message: AlterConfigsRequest) -> AlterConfigsResponse:
    outcomes = await alter(
        context,
        message.resources,
        lambda resource: AlterConfigs(
            topic=resource.resource_name,
            replace_with={config.name: config.value for config in resource.configs},
            validate_only=message.validate_only,
        ),
    )
    return AlterConfigsResponse(responses=[_response(identity, *outcome) for identity, outcome in outcomes.items()])


def failed(message: AlterConfigsRequest, code: int, text: str) -> AlterConfigsResponse:
    """The error for every resource."""
    wanted = dict.fromkeys((r.resource_type, r.resource_name) for r in message.resources)
    return AlterConfigsResponse(responses=[_response(identity, code, text) for identity in wanted])


async def alter(
    context: Context, resources: Sequence[Any], command: Callable[[Any], AlterConfigs]
) -> dict[Identity, Outcome]:
    """Have the resources changed; error code and text for each (type, name), in the order of the request."""
    named = Counter((resource.resource_type, resource.resource_name) for resource in resources)
    outcomes: dict[Identity, Outcome] = dict.fromkeys(named, (0, None))
    commands: dict[Identity, AlterConfigs] = {}
    for resource in resources:
        identity = (resource.resource_type, resource.resource_name)
        complaint = _complaint(identity, named[identity], len(commands))
        if complaint is None:
            commands[identity] = command(resource)
        else:
            outcomes[identity] = complaint
    for identity, result in zip(commands, await context.admin.submit(list(commands.values())), strict=True):
        outcomes[identity] = (result.error_code, result.message if result.error_code else None)
    return outcomes


def _complaint(identity: Identity, times: int, accepted: int) -> Outcome | None:
    kind, _ = identity
    if times > 1:
        return ErrorCode.INVALID_REQUEST, "the resource is named more than once in the request"
    if kind == ConfigResourceType.BROKER:
        text = "a broker's settings come from its flags, environment and file, and can't be changed by a request"
        return ErrorCode.INVALID_CONFIG, text
    if kind != ConfigResourceType.TOPIC:
        return ErrorCode.INVALID_REQUEST, f"resources of type {kind} have no settings here"
    if accepted >= MAX_COMMANDS:
        return ErrorCode.POLICY_VIOLATION, f"a request may change {MAX_COMMANDS} topics at most"
    return None


def _response(identity: Identity, code: int, text: str | None) -> AlterConfigsResourceResponse:
    return AlterConfigsResourceResponse(
        error_code=code, error_message=text, resource_type=identity[0], resource_name=identity[1]
    )

"""AlterConfigs (key 33), v0-2: replace everything that is set on a topic. Deprecated in Kafka; tools still send it.

Also what it shares with IncrementalAlterConfigs: the pairing of resources with results. Only topics have settings
that can be changed here; a broker's come from its flags, environment and file, and are refused with INVALID_CONFIG.
Left out: groups, client metrics, broker loggers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final

from kafscale.coordination.commands import MAX_COMMANDS, AlterConfigs
from kafscale.protocol.acls import CLUSTER_NAME
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.alter_configs import (
    AlterConfigsRequest,
    AlterConfigsResourceResponse,
    AlterConfigsResponse,
)
from kafscale.security.needs import ALTER_CONFIGS_OF_CLUSTER, ALTER_CONFIGS_OF_GROUP, ALTER_CONFIGS_OF_TOPIC, Need
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
        request,
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
    context: Context, request: Request, resources: Sequence[Any], command: Callable[[Any], AlterConfigs]
) -> dict[Identity, Outcome]:
    """Have the resources changed; error code and text for each (type, name), in the order of the request."""
    named = Counter((resource.resource_type, resource.resource_name) for resource in resources)
    outcomes: dict[Identity, Outcome] = dict.fromkeys(named, (0, None))
    commands: dict[Identity, AlterConfigs] = {}
    for resource in resources:
        identity = (resource.resource_type, resource.resource_name)
        complaint = _complaint(request, identity, named[identity], len(commands))
        if complaint is None:
            commands[identity] = command(resource)
        else:
            outcomes[identity] = complaint
    for identity, result in zip(commands, await context.admin.submit(list(commands.values())), strict=True):
        outcomes[identity] = (result.error_code, result.message if result.error_code else None)
    return outcomes


def denial(
    request: Request, kind: int, name: str, needs: Mapping[int, tuple[Need, str | None, ErrorCode]]
) -> Outcome | None:
    """What is said of a resource that the client may not ask for; None if he may. `needs`: by type of resource."""
    need, fixed_name, code = needs.get(kind, (None, None, ErrorCode.NONE))
    if need is None or request.access.allows(need, name if fixed_name is None else fixed_name):
        return None
    return code, "not authorized"


NEEDS_TO_ALTER: Final[Mapping[int, tuple[Need, str | None, ErrorCode]]] = MappingProxyType(
    {
        ConfigResourceType.TOPIC: (ALTER_CONFIGS_OF_TOPIC, None, ErrorCode.TOPIC_AUTHORIZATION_FAILED),
        ConfigResourceType.GROUP: (ALTER_CONFIGS_OF_GROUP, None, ErrorCode.GROUP_AUTHORIZATION_FAILED),
        **dict.fromkeys(
            (ConfigResourceType.BROKER, ConfigResourceType.BROKER_LOGGER, ConfigResourceType.CLIENT_METRICS),
            (ALTER_CONFIGS_OF_CLUSTER, CLUSTER_NAME, ErrorCode.CLUSTER_AUTHORIZATION_FAILED),
        ),
    }
)


def _complaint(request: Request, identity: Identity, times: int, accepted: int) -> Outcome | None:
    kind, name = identity
    if times > 1:
        return ErrorCode.INVALID_REQUEST, "the resource is named more than once in the request"
    denied = denial(request, kind, name, NEEDS_TO_ALTER)
    if denied is not None:
        return denied
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

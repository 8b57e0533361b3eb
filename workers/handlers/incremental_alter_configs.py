"""IncrementalAlterConfigs (key 44), v0-1: set, delete, append to or subtract from single settings of topics (KIP-339).

What may be changed, and what is left out, is as in AlterConfigs.
"""

from __future__ import annotations

from kafscale.coordination.commands import AlterConfigs
from kafscale.coordination.topic_configs import ConfigOp
from kafscale.protocol.messages.incremental_alter_configs import (
    AlterConfigsResourceResponse,
    IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
)
from workers.context import Context, Request
from workers.handlers.alter_configs import Identity, alter


async def handle(
    context: Context, request: Request, message: IncrementalAlterConfigsRequest
) -> IncrementalAlterConfigsResponse:
    outcomes = await alter(
        context,
        request,
        message.resources,
        lambda resource: AlterConfigs(
            topic=resource.resource_name,
            ops=[ConfigOp(config.name, config.config_operation, config.value) for config in resource.configs],
            validate_only=message.validate_only,
        ),
    )
    return IncrementalAlterConfigsResponse(
        responses=[_response(identity, *outcome) for identity, outcome in outcomes.items()]
    )


def failed(message: IncrementalAlterConfigsRequest, code: int, text: str) -> IncrementalAlterConfigsResponse:
    """The error for every resource."""
    wanted = dict.fromkeys((r.resource_type, r.resource_name) for r in message.resources)
    return IncrementalAlterConfigsResponse(responses=[_response(identity, code, text) for identity in wanted])


def _response(identity: Identity, code: int, text: str | None) -> AlterConfigsResourceResponse:
    return AlterConfigsResourceResponse(
        error_code=code, error_message=text, resource_type=identity[0], resource_name=identity[1]
    )

"""DescribeClientQuotas (key 48), v0-1: the quotas that a filter matches, as the catalogue has them.

Left out: nothing; there are no quotas of addresses, so a filter for those finds none.
"""

from __future__ import annotations

from kafscale.coordination.quotas import Component, filter_complaint, matching, unknown_type
from kafscale.errors import Invalid
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.describe_client_quotas import (
    DescribeClientQuotasRequest,
    DescribeClientQuotasResponse,
    EntityData,
    EntryData,
    ValueData,
)
from workers.context import Context, Request


def handle(context: Context, request: Request, message: DescribeClientQuotasRequest) -> DescribeClientQuotasResponse:
    components = [Component(one.entity_type, one.match_type, one.match) for one in message.components]
    complaint = filter_complaint(components)
    if complaint is not None:
        raise Invalid(ErrorCode.INVALID_REQUEST, complaint)
    unknown = unknown_type(components)
    if unknown is not None:
        raise Invalid(ErrorCode.UNSUPPORTED_VERSION, f"Custom entity type '{unknown[:100]}' not supported")
    found = matching(context.cluster.state.quotas, components, message.strict)
    return DescribeClientQuotasResponse(
        error_message=None,
        entries=[
            EntryData(
                entity=[EntityData(entity_type=kind, entity_name=name) for kind, name in quota.entity.parts],
                values=[ValueData(key=key, value=value) for key, value in quota.values.items()],
            )
            for quota in found
        ],
    )


def failed(message: DescribeClientQuotasRequest, code: int, text: str) -> DescribeClientQuotasResponse:
    """The error, and null for what was asked for."""
    return DescribeClientQuotasResponse(error_code=code, error_message=text, entries=None)

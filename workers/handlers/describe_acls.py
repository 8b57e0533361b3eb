"""DescribeAcls (key 29), v1-3: Kafka's ACLs that a filter matches, those of one pattern together.

Read out of the snapshot that decisions are made by, so what is told is what is in force at this worker. Also what it
shares with CreateAcls and DeleteAcls: what is said where Kafka's ACLs are off. Left out: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kafscale.errors import Invalid
from kafscale.protocol.acls import AclFilter, filter_complaint, normal_host
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.delete_acls import DeleteAclsFilter
from kafscale.protocol.messages.describe_acls import (
    AclDescription,
    DescribeAclsRequest,
    DescribeAclsResource,
    DescribeAclsResponse,
)
from workers.context import Context, Request

# Bindings that are looked at in one turn of the loop.
AT_ONCE_MAX: Final = 500

_Pattern = tuple[int, int, str]


async def handle(context: Context, request: Request, message: DescribeAclsRequest) -> DescribeAclsResponse:
    refuse_if_off(context)
    wanted = filter_of(message)
    complaint = filter_complaint(wanted)
    if complaint is not None:
        raise Invalid(ErrorCode.INVALID_REQUEST, complaint)
    return _response(await _matching(context, wanted))


def refuse_if_off(context: Context) -> None:
    """Raise Invalid where Kafka's ACLs have no say."""
    if not context.settings.are_kafka_acls_on:
        text = "No Authorizer is configured: Kafka's ACLs are off on this broker (kafka_acl_enabled)"
        raise Invalid(ErrorCode.SECURITY_DISABLED, text)


def filter_of(message: DescribeAclsRequest | DeleteAclsFilter) -> AclFilter:
    """The filter that the message has, its host spelt as hosts are stored."""
    return AclFilter(
        resource_type=message.resource_type_filter,
        pattern_type=message.pattern_type_filter,
        name=message.resource_name_filter,
        principal=message.principal_filter,
        host=None if message.host_filter is None else normal_host(message.host_filter),
        operation=message.operation,
        permission=message.permission_type,
    )


async def _matching(context: Context, wanted: AclFilter) -> Mapping[_Pattern, list[AclDescription]]:
    found: dict[_Pattern, list[AclDescription]] = {}
    snapshot = context.authority.snapshot
    if snapshot is None:
        return found
    for number, binding in enumerate(snapshot.bindings(), 1):
        if wanted.matches(binding):
            pattern = (binding.resource_type, binding.pattern_type, binding.name)
            found.setdefault(pattern, []).append(
                AclDescription(
                    principal=binding.principal,
                    host=binding.host,
                    operation=binding.operation,
                    permission_type=binding.permission,
                )
            )
        if number % AT_ONCE_MAX == 0:
            await context.clock.sleep(0)
    return found


def _response(found: Mapping[_Pattern, list[AclDescription]]) -> DescribeAclsResponse:
    return DescribeAclsResponse(
        error_message=None,
        resources=[
            DescribeAclsResource(resource_type=resource, pattern_type=pattern_type, resource_name=name, acls=acls)
            for (resource, pattern_type, name), acls in found.items()
        ],
    )

"""CreateAcls (key 30), v1-3: create Kafka's ACLs; answered when they are in force on all workers of this broker.

Each is judged by itself; one that is there already is no mistake. Should the workers take long to follow, the answer
does not wait for ever: the change is durable then, and will come. Left out: nothing.
"""

from __future__ import annotations

from kafscale.coordination.commands import CreateAcls
from kafscale.protocol.acls import AclBinding, binding_complaint, normal_host
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.create_acls import (
    AclCreation,
    AclCreationResult,
    CreateAclsRequest,
    CreateAclsResponse,
)
from workers.context import Context, Request
from workers.handlers.describe_acls import refuse_if_off


async def handle(context: Context, request: Request, message: CreateAclsRequest) -> CreateAclsResponse:
    refuse_if_off(context)
    bindings = [_binding(creation) for creation in message.creations]
    complaints = [binding_complaint(binding) for binding in bindings]
    sound = [binding for binding, complaint in zip(bindings, complaints, strict=True) if complaint is None]
    outcome = AclCreationResult(error_message=None)
    if sound:
        (result,) = await context.admin.submit([CreateAcls(bindings=sound)])
        outcome = _result(result.error_code, result.message if result.error_code else None)
    return CreateAclsResponse(
        results=[
            outcome if complaint is None else _result(ErrorCode.INVALID_REQUEST, complaint) for complaint in complaints
        ]
    )


def failed(message: CreateAclsRequest, code: int, text: str) -> CreateAclsResponse:
    """The error for every ACL."""
    return CreateAclsResponse(results=[_result(code, text)] * len(message.creations))


def _binding(creation: AclCreation) -> AclBinding:
    return AclBinding(
        resource_type=creation.resource_type,
        pattern_type=creation.resource_pattern_type,
        name=creation.resource_name,
        principal=creation.principal,
        host=normal_host(creation.host),
        operation=creation.operation,
        permission=creation.permission_type,
    )


def _result(code: int, text: str | None) -> AclCreationResult:
    return AclCreationResult(error_code=code, error_message=text)

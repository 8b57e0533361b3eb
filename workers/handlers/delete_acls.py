"""DeleteAcls (key 31), v1-3: delete Kafka's ACLs that filters match, and say which; answered as CreateAcls is.

Each filter is judged by itself. An ACL that several match is told of the first. Left out: nothing.
"""

from __future__ import annotations

from kafscale.coordination.commands import MAX_COMMANDS, DeleteAcls
from kafscale.protocol.acls import AclBinding, filter_complaint
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.delete_acls import (
    DeleteAclsFilterResult,
    DeleteAclsMatchingAcl,
    DeleteAclsRequest,
    DeleteAclsResponse,
)
from workers.context import Context, Request
from workers.handlers.describe_acls import filter_of, refuse_if_off


async def handle(context: Context, request: Request, message: DeleteAclsRequest) -> DeleteAclsResponse:
    refuse_if_off(context)
    results: list[DeleteAclsFilterResult | None] = []
    commands: list[DeleteAcls] = []
    for item in message.filters:
        wanted = filter_of(item)
        complaint = filter_complaint(wanted)
        if complaint is not None:
            results.append(_result(ErrorCode.INVALID_REQUEST, complaint))
        elif len(commands) >= MAX_COMMANDS:
            too_many = f"a request may have {MAX_COMMANDS} filters at most"
            results.append(_result(ErrorCode.POLICY_VIOLATION, too_many))
        else:
            commands.append(DeleteAcls(filter=wanted))
            results.append(None)
    outcomes = iter(await context.admin.submit(commands))
    answers = []
    for result in results:
        if result is None:
            outcome = next(outcomes)
            text = outcome.message if outcome.error_code else None
            result = _result(outcome.error_code, text, outcome.acls)
        answers.append(result)
    return DeleteAclsResponse(filter_results=answers)


def failed(message: DeleteAclsRequest, code: int, text: str) -> DeleteAclsResponse:
    """The error for every filter."""
    return DeleteAclsResponse(filter_results=[_result(code, text)] * len(message.filters))


def _result(code: int, text: str | None, deleted: list[AclBinding] | None = None) -> DeleteAclsFilterResult:
    return DeleteAclsFilterResult(
        error_code=code,
        error_message=text,
        matching_acls=[
            DeleteAclsMatchingAcl(
                error_message=None,
                resource_type=binding.resource_type,
                resource_name=binding.name,
                pattern_type=binding.pattern_type,
                principal=binding.principal,
                host=binding.host,
                operation=binding.operation,
                permission_type=binding.permission,
            )
            for binding in deleted or ()
        ],
    )

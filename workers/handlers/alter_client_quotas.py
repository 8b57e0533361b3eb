"""AlterClientQuotas (key 49), v0-1: set quotas and take them away; each entity is judged by itself.

In force on a worker when it has followed the version in which they were set. Left out: quotas of addresses, of
connections and of changes, which are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from kafscale.coordination.commands import MAX_COMMANDS, AlterQuota
from kafscale.coordination.quotas import QuotaEntity, entity_complaint, value_complaint
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.alter_client_quotas import (
    AlterClientQuotasRequest,
    AlterClientQuotasResponse,
    EntityData,
    EntryData,
    EntryResult,
)
from workers.context import Context, Request


async def handle(context: Context, request: Request, message: AlterClientQuotasRequest) -> AlterClientQuotasResponse:
    complaints: list[tuple[int, str] | None] = []
    commands: list[AlterQuota] = []
    for entry in message.entries:
        complaint = _complaint(entry)
        if complaint is None and len(commands) >= MAX_COMMANDS:
            text = f"a request may change the quotas of {MAX_COMMANDS} entities at most"
            complaints.append((ErrorCode.POLICY_VIOLATION, text))
            continue
        complaints.append(None if complaint is None else (ErrorCode.INVALID_REQUEST, complaint))
        if complaint is None:
            commands.append(_command(entry, message.validate_only))
    outcomes = iter(await context.admin.submit(commands))
    results = []
    for entry, refused in zip(message.entries, complaints, strict=True):
        if refused is None:
            outcome = next(outcomes)
            refused = outcome.error_code, outcome.message or ""
        results.append(_result(entry.entity, *refused))
    return AlterClientQuotasResponse(entries=results)


def failed(message: AlterClientQuotasRequest, code: int, text: str) -> AlterClientQuotasResponse:
    """The error for each entity."""
    return AlterClientQuotasResponse(entries=[_result(entry.entity, code, text) for entry in message.entries])


def _complaint(entry: EntryData) -> str | None:
    complaint = entity_complaint([(part.entity_type, part.entity_name) for part in entry.entity])
    if complaint is not None:
        return complaint
    keys = [op.key for op in entry.ops]
    if len(set(keys)) != len(keys):
        return "a key is named twice for the same entity"
    complaints = (value_complaint(op.key, 1 if op.remove else op.value) for op in entry.ops)
    return next((complaint for complaint in complaints if complaint is not None), None)


def _command(entry: EntryData, validate_only: bool) -> AlterQuota:
    return AlterQuota(
        entity=QuotaEntity(tuple(sorted((part.entity_type, part.entity_name) for part in entry.entity))),
        changes=[(op.key, None if op.remove else op.value) for op in entry.ops],
        validate_only=validate_only,
    )


def _result(entity: Sequence[EntityData], code: int, text: str) -> EntryResult:
    return EntryResult(error_code=code, error_message=text if code else None, entity=entity)

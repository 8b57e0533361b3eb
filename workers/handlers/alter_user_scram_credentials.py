"""AlterUserScramCredentials (key 51), v0: set and delete passwords, as what SCRAM keeps of them (KIP-554).

A user's changes happen together or not at all; those of others in the same request go their own way. What a client
sends (the salted password) would let one log in: the keys alone leave this file. Answered when the change is durable,
and known to this worker; its siblings hear of it at the same moment. Left out: delegation tokens, which are not served.
"""

from __future__ import annotations

import hashlib

from kafscale.coordination.cluster import ScramCredential
from kafscale.coordination.commands import AlterCredentials
from kafscale.errors import Invalid
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.alter_user_scram_credentials import (
    AlterUserScramCredentialsRequest,
    AlterUserScramCredentialsResponse,
    AlterUserScramCredentialsResult,
    ScramCredentialDeletion,
    ScramCredentialUpsertion,
)
from kafscale.security.credentials import SALT_BYTES_MAX
from kafscale.security.scram import HASH_OF, MAX_ITERATIONS, MIN_ITERATIONS, USER_BYTES_MAX, keys_of
from workers.context import Context, Request
from workers.handlers.describe_user_scram_credentials import MECHANISM_OF


async def handle(
    context: Context, request: Request, message: AlterUserScramCredentialsRequest
) -> AlterUserScramCredentialsResponse:
    wanted: dict[str, dict[str, ScramCredential | None]] = {}
    refused: dict[str, AlterUserScramCredentialsResult] = {}
    for item in _items(message):
        changes = wanted.setdefault(item.name, {})
        try:
            mechanism, credential = _change(item)
            if mechanism in changes:
                text = "A user credential cannot be altered twice in the same request"
                raise Invalid(ErrorCode.DUPLICATE_RESOURCE, text)
            changes[mechanism] = credential
        except Invalid as error:
            refused[item.name] = _result(item.name, error.code, str(error))
    sound = {user: changes for user, changes in wanted.items() if user not in refused}
    book = context.authenticator.book
    outcomes = await context.admin.submit(
        [
            AlterCredentials(
                user=user,
                credentials=changes,
                of_file=[mechanism for mechanism in changes if book.is_of_file(user, mechanism)],
            )
            for user, changes in sound.items()
        ]
    )
    found = {
        user: _result(user, outcome.error_code, outcome.message) for user, outcome in zip(sound, outcomes, strict=True)
    }
    return AlterUserScramCredentialsResponse(results=[refused.get(user) or found[user] for user in wanted])


def failed(message: AlterUserScramCredentialsRequest, code: int, text: str) -> AlterUserScramCredentialsResponse:
    """The error for every user."""
    users = dict.fromkeys(item.name for item in _items(message))
    return AlterUserScramCredentialsResponse(results=[_result(user, code, text) for user in users])


def _items(message: AlterUserScramCredentialsRequest) -> list[ScramCredentialDeletion | ScramCredentialUpsertion]:
    return [*message.deletions, *message.upsertions]


def _change(item: ScramCredentialDeletion | ScramCredentialUpsertion) -> tuple[str, ScramCredential | None]:
    """(mechanism, what to keep, or None to delete). Raises Invalid."""
    if not item.name:
        raise Invalid(ErrorCode.UNACCEPTABLE_CREDENTIAL, "Username must not be empty")
    mechanism = MECHANISM_OF.get(item.mechanism)
    if mechanism is None:
        raise Invalid(ErrorCode.UNSUPPORTED_SASL_MECHANISM, "Unknown SCRAM mechanism")
    if isinstance(item, ScramCredentialDeletion):
        return mechanism, None
    complaint = _complaint(item, mechanism)
    if complaint is not None:
        raise Invalid(ErrorCode.UNACCEPTABLE_CREDENTIAL, complaint)
    return mechanism, ScramCredential(*keys_of(mechanism, item.salted_password, item.salt, item.iterations))


def _complaint(item: ScramCredentialUpsertion, mechanism: str) -> str | None:
    """What is wrong with a credential; nothing of it is repeated."""
    if item.iterations < MIN_ITERATIONS:
        return f"Too few iterations: {MIN_ITERATIONS} are the least"
    if item.iterations > MAX_ITERATIONS:
        return f"Too many iterations: {MAX_ITERATIONS} are the most"
    if len(item.name.encode()) > USER_BYTES_MAX or "\0" in item.name:
        return f"A user name has at most {USER_BYTES_MAX} bytes, none of them zero"
    if not 0 < len(item.salt) <= SALT_BYTES_MAX:
        return f"A salt has from 1 to {SALT_BYTES_MAX} bytes"
    if len(item.salted_password) != hashlib.new(HASH_OF[mechanism]).digest_size:
        return f"A salted password of {mechanism} is as long as its hash"
    return None


def _result(user: str, code: int, text: str | None) -> AlterUserScramCredentialsResult:
    return AlterUserScramCredentialsResult(user=user, error_code=code, error_message=text if code else None)

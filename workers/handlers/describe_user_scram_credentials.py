"""DescribeUserScramCredentials (key 50), v0: which users have a password, for which mechanisms, with how
many iterations.

The bootstrap file's users are among them, unless the catalogue says otherwise. Nothing that helps to guess a password
is told. Also the mechanisms' numbers, which AlterUserScramCredentials shares. Left out: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.describe_user_scram_credentials import (
    CredentialInfo,
    DescribeUserScramCredentialsRequest,
    DescribeUserScramCredentialsResponse,
    DescribeUserScramCredentialsResult,
)
from kafscale.security.scram import SCRAM_SHA_256, SCRAM_SHA_512
from workers.context import Context, Request

# KIP-554's numbers (ScramMechanism.type).
MECHANISM_OF: Final[Mapping[int, str]] = MappingProxyType({1: SCRAM_SHA_256, 2: SCRAM_SHA_512})
NUMBER_OF: Final[Mapping[str, int]] = MappingProxyType({name: number for number, name in MECHANISM_OF.items()})


def handle(
    context: Context, request: Request, message: DescribeUserScramCredentialsRequest
) -> DescribeUserScramCredentialsResponse:
    book = context.authenticator.book
    asked = [user.name for user in message.users or ()]
    twice = {name for name in asked if asked.count(name) > 1} if len(set(asked)) < len(asked) else set()
    results = []
    for name in dict.fromkeys(asked) if asked else book.users():
        found = book.mechanisms(name)
        if name in twice:
            text = f"Cannot describe SCRAM credentials for the same user twice in a single request: {name}"
            results.append(_refused(name, ErrorCode.DUPLICATE_RESOURCE, text))
        elif not found:
            text = f"Attempt to describe a user credential that does not exist: {name}"
            results.append(_refused(name, ErrorCode.RESOURCE_NOT_FOUND, text))
        else:
            infos = [
                CredentialInfo(mechanism=NUMBER_OF[mechanism], iterations=iterations)
                for mechanism, iterations in found.items()
            ]
            results.append(DescribeUserScramCredentialsResult(user=name, credential_infos=infos))
    return DescribeUserScramCredentialsResponse(results=results)


def _refused(name: str, code: ErrorCode, text: str) -> DescribeUserScramCredentialsResult:
    return DescribeUserScramCredentialsResult(user=name, error_code=code, error_message=text)

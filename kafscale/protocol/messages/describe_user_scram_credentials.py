"""DescribeUserScramCredentials (key 50): for whom a password is kept, and for which mechanisms (KIP-554).

v0 flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int8, int16, int32, string


class UserName(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""


class DescribeUserScramCredentialsRequest(Message, frozen=True, kw_only=True):
    """What a client sends. Null or none: all users."""

    users: Annotated[Sequence[UserName] | None, array("0+", nullable="0+")] = None


class CredentialInfo(Message, frozen=True, kw_only=True):
    mechanism: Annotated[int, int8("0+")] = 0
    iterations: Annotated[int, int32("0+")] = 0


class DescribeUserScramCredentialsResult(Message, frozen=True, kw_only=True):
    user: Annotated[str, string("0+")] = ""
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = None
    credential_infos: Annotated[Sequence[CredentialInfo], array("0+")] = ()


class DescribeUserScramCredentialsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = None
    results: Annotated[Sequence[DescribeUserScramCredentialsResult], array("0+")] = ()

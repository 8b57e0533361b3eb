"""AlterUserScramCredentials (key 51): set and delete what is kept of passwords (KIP-554).

v0 flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int8, int16, int32, octets, string


class ScramCredentialDeletion(Message, frozen=True, kw_only=True):
    name: Annotated[str, string("0+")] = ""
    mechanism: Annotated[int, int8("0+")] = 0


class ScramCredentialUpsertion(Message, frozen=True, kw_only=True):
    """Who has the salted password can log in with it: it must not be kept, nor shown."""

    name: Annotated[str, string("0+")] = ""
    mechanism: Annotated[int, int8("0+")] = 0
    iterations: Annotated[int, int32("0+")] = 0
    salt: Annotated[bytes, octets("0+")] = b""
    salted_password: Annotated[bytes, octets("0+")] = b""

    def __repr__(self) -> str:
        return f"ScramCredentialUpsertion({self.name!r}, …)"


class AlterUserScramCredentialsRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    deletions: Annotated[Sequence[ScramCredentialDeletion], array("0+")] = ()
    upsertions: Annotated[Sequence[ScramCredentialUpsertion], array("0+")] = ()


class AlterUserScramCredentialsResult(Message, frozen=True, kw_only=True):
    user: Annotated[str, string("0+")] = ""
    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = None


class AlterUserScramCredentialsResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    throttle_time_ms: Annotated[int, int32("0+")] = 0
    results: Annotated[Sequence[AlterUserScramCredentialsResult], array("0+")] = ()

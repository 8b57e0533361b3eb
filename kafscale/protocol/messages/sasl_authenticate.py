"""SaslAuthenticate (key 36): a step of a SASL exchange (KIP-152).

v1 session lifetime (KIP-368); v2 flexible.
"""

from typing import Annotated

from kafscale.protocol.schema import Message, int16, int64, octets, string


class SaslAuthenticateRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    auth_bytes: Annotated[bytes, octets("0+")] = b""


class SaslAuthenticateResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    error_code: Annotated[int, int16("0+")] = 0
    error_message: Annotated[str | None, string("0+", nullable="0+")] = ""
    auth_bytes: Annotated[bytes, octets("0+")] = b""
    session_lifetime_ms: Annotated[int, int64("1+")] = 0

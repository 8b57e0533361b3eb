"""SaslHandshake (key 17), v0-1: choose a SASL mechanism. Answered here only where it comes out of turn.

On a connection that must authenticate, and on one whose session ends, it never gets this far: `SaslGate` deals with it
(`workers/authentication.py`). What comes here is from a client that is known for good, or on a listener without SASL.
"""

from __future__ import annotations

from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.sasl_handshake import SaslHandshakeRequest, SaslHandshakeResponse
from workers.context import Context, Request


def handle(context: Context, request: Request, message: SaslHandshakeRequest) -> SaslHandshakeResponse:
    return SaslHandshakeResponse(error_code=ErrorCode.ILLEGAL_SASL_STATE)

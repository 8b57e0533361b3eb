"""SaslAuthenticate (key 36), v0-2: a step of a SASL exchange. Answered here only where it comes out of turn.

As with SaslHandshake, `SaslGate` (`workers/authentication.py`) deals with those that come in turn, re-authentication
(KIP-368) among them.
"""

from __future__ import annotations

from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages.sasl_authenticate import SaslAuthenticateRequest, SaslAuthenticateResponse
from workers.context import Context, Request

_TEXT = "there is no exchange to go on with: the client is known, or the listener has no SASL"


def handle(context: Context, request: Request, message: SaslAuthenticateRequest) -> SaslAuthenticateResponse:
    return SaslAuthenticateResponse(error_code=ErrorCode.ILLEGAL_SASL_STATE, error_message=_TEXT)

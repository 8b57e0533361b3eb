"""SaslHandshake (key 17): choose a SASL mechanism.

v0 raw tokens follow; v1 SaslAuthenticate requests follow (KIP-152). Not flexible.
"""

from collections.abc import Sequence
from typing import Annotated

from kafscale.protocol.schema import Message, array, int16, string


class SaslHandshakeRequest(Message, frozen=True, kw_only=True):
    """What a client sends."""

    mechanism: Annotated[str, string("0+")] = ""


class SaslHandshakeResponse(Message, frozen=True, kw_only=True):
    """What the broker answers."""

    error_code: Annotated[int, int16("0+")] = 0
    mechanisms: Annotated[Sequence[str], array("0+", of="string")] = ()

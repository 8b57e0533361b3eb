"""What a SASL mechanism is to whoever runs it: an `Exchange` that takes the client's messages and says what follows.

Pure: no socket, no clock but the time that is handed in. A mechanism never says to a client why it refused: `Refused`
carries a reason for the log alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol


class Challenge(NamedTuple):
    """The exchange goes on: send this, and wait for the client's next message."""

    data: bytes


class Accepted(NamedTuple):
    """The client is `user`. `data` is the last message to it; `expires_at_ms` when what it showed runs out, if ever,
    in milliseconds since the epoch."""

    data: bytes
    user: str
    expires_at_ms: int | None = None


class Refused(NamedTuple):
    """The client is refused. `reason` is for the log, without anything secret; `user` whom it said to be, if it did."""

    reason: str
    user: str = ""


class Verification(NamedTuple):
    """`work` takes milliseconds of CPU: run it where it holds nobody up, and give what it returns to `settle`."""

    work: Callable[[], bool]


Step = Challenge | Accepted | Refused | Verification


class Exchange(Protocol):
    """One run of a mechanism. `step` for every message of the client, `settle` once after a `Verification`."""

    def step(self, token: bytes) -> Step: ...

    def settle(self, is_right: bool) -> Step: ...


class Verifier(Protocol):
    """What is kept of a password (RFC 5802): nothing that would let one log in."""

    @property
    def salt(self) -> bytes: ...
    @property
    def stored_key(self) -> bytes: ...
    @property
    def server_key(self) -> bytes: ...
    @property
    def iterations(self) -> int: ...

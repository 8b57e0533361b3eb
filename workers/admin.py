"""Changes to the catalogue, as a worker asks for them: commands to the supervisor, results from it; nothing is decided.

Owns the requests that are on their way. A command may take effect although its submitter was told to retry (a time-out
says nothing of what happened), as with any broker. Knows the control channel only as a function that sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from kafscale.clock import Clock
from kafscale.control import MAX_FRAME_BYTES, CommandReply, CommandRequest
from kafscale.coordination.commands import Command, CommandResult, decode_results, encode_commands
from kafscale.errors import Invalid, Retry
from kafscale.protocol.error_codes import ErrorCode

TIMEOUT_SECONDS_MAX: Final = 30.0
# Some clients ask for 0 by default, and mean: as long as it takes.
TIMEOUT_SECONDS_MIN: Final = 1.0
# Requests on their way at once. Beyond, clients are told to come back: the supervisor decides one after the other.
OUTSTANDING_MAX: Final = 256
# What a control frame may hold, less its envelope.
COMMANDS_BYTES_MAX: Final = MAX_FRAME_BYTES - 1024


class Admin:
    """The worker's side of `CommandRequest` and `CommandReply`."""

    def __init__(self, clock: Clock, send: Callable[[CommandRequest], None]) -> None:
        self._clock = clock
        self._send = send
        self._last_id = 0
        self._outstanding: dict[int, asyncio.Future[list[CommandResult]]] = {}

    @property
    def outstanding_count(self) -> int:
        """Requests that are on their way."""
        return len(self._outstanding)

    async def submit(
        self, commands: Sequence[Command], timeout_seconds: float = TIMEOUT_SECONDS_MAX
    ) -> list[CommandResult]:
        """Have the commands decided and made durable; one result each, in order.

        When it returns, this worker's view of the cluster has what took effect. Raises Retry when no answer comes in
        time or too much is on its way already, Invalid when the commands are too large for one request.
        """
        if not commands:
            return []
        if len(self._outstanding) >= OUTSTANDING_MAX:
            raise Retry(ErrorCode.REQUEST_TIMED_OUT, f"{OUTSTANDING_MAX} changes are under way already; try again")
        encoded = encode_commands(commands)
        if len(encoded) > COMMANDS_BYTES_MAX:
            raise Invalid(ErrorCode.INVALID_REQUEST, f"{len(commands)} changes in one request are too much; send fewer")
        self._last_id += 1
        request_id = self._last_id
        answer: asyncio.Future[list[CommandResult]] = asyncio.get_running_loop().create_future()
        self._outstanding[request_id] = answer
        patience = max(TIMEOUT_SECONDS_MIN, min(timeout_seconds, TIMEOUT_SECONDS_MAX))
        timer = self._clock.call_later(patience, _give_up, answer)
        try:
            self._send(CommandRequest(request_id, encoded))
            results = await answer
        finally:
            timer.cancel()
            del self._outstanding[request_id]
        if len(results) != len(commands):
            raise AssertionError(f"{len(results)} results came for {len(commands)} commands")
        return results

    def on_reply(self, reply: CommandReply) -> None:
        """The supervisor's answer. One that comes too late is dropped. Raises Corrupt where it can't be read."""
        answer = self._outstanding.get(reply.request_id)
        if answer is not None and not answer.done():
            answer.set_result(decode_results(reply.results))


def _give_up(answer: asyncio.Future[list[CommandResult]]) -> None:
    if not answer.done():
        text = "the change was not confirmed in time; it may have been made"
        answer.set_exception(Retry(ErrorCode.REQUEST_TIMED_OUT, text))

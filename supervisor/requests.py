"""Answers the workers' requests to change the catalogue: hands them to the controller, and always replies.

Owns how many of a worker's requests may wait. A reply goes out after the version in which the change took effect, on
the same socket. A change that can't be written is answered with a retriable error.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from kafscale.control import CommandReply, CommandRequest
from kafscale.coordination.commands import (
    Command,
    CommandResult,
    CreateAcls,
    DeleteAcls,
    decode_commands,
    encode_results,
)
from kafscale.errors import Corrupt, KafscaleError, Retry, StoreFailed
from kafscale.protocol.error_codes import ErrorCode
from supervisor.child import Child
from supervisor.controller import Controller

log = logging.getLogger(__name__)

MAX_WAITING_PER_WORKER = 256


class CommandRequests:
    """One broker's requests. `on_store_failed` is told when the store can no longer be trusted."""

    def __init__(
        self,
        controller: Controller,
        on_store_failed: Callable[[StoreFailed], None],
        until_acls_in_force: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """`until_acls_in_force` returns once what a version says of ACLs is what this broker's workers go by."""
        self._controller = controller
        self._until_acls_in_force = until_acls_in_force
        self._on_store_failed = on_store_failed
        self._waiting: Counter[int] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, child: Child, request: CommandRequest) -> None:
        """Take a request of a worker; one whose bytes make no sense ends the worker."""
        try:
            commands = decode_commands(request.commands)
        except Corrupt as error:
            child.break_off(str(error))
            return
        if self._waiting[child.pid] >= MAX_WAITING_PER_WORKER:
            results = _refused(commands, ErrorCode.REQUEST_TIMED_OUT, "too many changes are waiting")
            child.send(CommandReply(request.request_id, 0, encode_results(results)))
            return
        self._waiting[child.pid] += 1
        task = asyncio.create_task(self._execute(child, request.request_id, commands))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is not decided yet."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _execute(self, child: Child, request_id: int, commands: list[Command]) -> None:
        version = 0
        try:
            version, results = await self._controller.submit(commands)
            has_acls = any(isinstance(command, CreateAcls | DeleteAcls) for command in commands)
            if has_acls and version and self._until_acls_in_force is not None:
                await self._until_acls_in_force(version)
        except Retry as error:
            results = _refused(commands, error.code, str(error))
        except KafscaleError as error:
            if isinstance(error, StoreFailed):
                self._on_store_failed(error)
            results = _refused(commands, ErrorCode.REQUEST_TIMED_OUT, f"the change could not be written: {error}")
        except Exception:
            log.exception("a request to change the catalogue failed")
            results = _refused(commands, ErrorCode.UNKNOWN_SERVER_ERROR, "the change failed; see the broker's log")
        finally:
            self._waiting[child.pid] -= 1
            if not self._waiting[child.pid]:
                del self._waiting[child.pid]
        child.send(CommandReply(request_id, version, encode_results(results)))


def _refused(commands: list[Command], code: int, message: str) -> list[CommandResult]:
    return [CommandResult(code, message)] * len(commands)

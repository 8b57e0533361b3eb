"""Goal: every request to change the catalogue gets a reply, and what can't be done now says that it may be later."""

from __future__ import annotations

import asyncio

import pytest

from kafscale.control import CommandReply, CommandRequest
from kafscale.coordination.commands import (
    CommandResult,
    CreateAcls,
    CreateTopic,
    DeleteAcls,
    decode_results,
    encode_commands,
)
from kafscale.errors import KafscaleError, Retry, StoreFailed, StoreUnavailable, StoreUnclear
from kafscale.protocol.acls import AclFilter
from kafscale.protocol.error_codes import ErrorCode
from supervisor import requests
from supervisor.requests import CommandRequests


class Child:
    """What a reply goes to."""

    pid = 1

    def __init__(self) -> None:
        self.replies: list[CommandReply] = []
        self.broken: str | None = None

    def send(self, message: CommandReply) -> None:
        self.replies.append(message)

    def break_off(self, detail: str) -> None:
        self.broken = detail


class Controller:
    """Answers when it is let, with what it is told to."""

    def __init__(self, outcome: Exception | None = None) -> None:
        self.outcome = outcome
        self.gate = asyncio.Event()

    async def submit(self, commands):
        await self.gate.wait()
        if self.outcome is not None:
            raise self.outcome
        return 5, [CommandResult() for _ in commands]


def request(number: int, commands: int = 1) -> CommandRequest:
    return CommandRequest(number, encode_commands([CreateTopic(name=f"t{n}") for n in range(commands)]))


async def settled(child: Child, count: int) -> list[CommandReply]:
    while len(child.replies) < count:  # noqa: ASYNC110 - a few turns of the loop
        await asyncio.sleep(0)
    return child.replies


def codes(reply: CommandReply) -> list[int]:
    return [result.error_code for result in decode_results(reply.results)]


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (None, 0),
        (Retry(ErrorCode.NOT_CONTROLLER, "no"), ErrorCode.NOT_CONTROLLER),
        (StoreUnavailable("no"), ErrorCode.REQUEST_TIMED_OUT),
        (StoreUnclear("no"), ErrorCode.REQUEST_TIMED_OUT),
        (StoreFailed("no"), ErrorCode.REQUEST_TIMED_OUT),
        (RuntimeError("a defect"), ErrorCode.UNKNOWN_SERVER_ERROR),
    ],
)
def test_whatever_happens_each_command_gets_a_result(outcome, code) -> None:
    failures: list[KafscaleError] = []

    async def scenario() -> None:
        controller, child = Controller(outcome), Child()
        controller.gate.set()
        CommandRequests(controller, failures.append).accept(child, request(9, commands=3))
        (reply,) = await settled(child, 1)
        assert (reply.request_id, codes(reply), reply.version) == (9, [code] * 3, 0 if outcome else 5)
        assert bool(failures) == isinstance(outcome, StoreFailed)

    asyncio.run(scenario())


def test_a_change_of_acls_is_answered_when_it_is_in_force() -> None:
    """Other changes don't wait for that."""

    async def scenario() -> None:
        controller, child = Controller(), Child()
        controller.gate.set()
        asked: list[int] = []
        in_force = asyncio.Event()

        async def until_in_force(version: int) -> None:
            asked.append(version)
            await in_force.wait()

        desk = CommandRequests(controller, lambda error: None, until_in_force)
        for number, command in enumerate((CreateAcls(bindings=[]), DeleteAcls(filter=AclFilter()))):
            desk.accept(child, CommandRequest(number, encode_commands([command])))
        desk.accept(child, request(9))
        assert [reply.request_id for reply in await settled(child, 1)] == [9]
        assert asked == [5, 5]
        in_force.set()
        assert [reply.request_id for reply in await settled(child, 3)] == [9, 0, 1]

    asyncio.run(scenario())


def test_only_so_many_may_wait(monkeypatch) -> None:
    monkeypatch.setattr(requests, "MAX_WAITING_PER_WORKER", 2)

    async def scenario() -> None:
        controller, child = Controller(), Child()
        desk = CommandRequests(controller, lambda error: None)
        for number in range(3):
            desk.accept(child, request(number))
        assert [(reply.request_id, codes(reply)) for reply in child.replies] == [(2, [ErrorCode.REQUEST_TIMED_OUT])]
        controller.gate.set()
        await settled(child, 3)
        desk.accept(child, request(3))
        assert codes((await settled(child, 4))[-1]) == [0]
        await desk.close()

    asyncio.run(scenario())


def test_bytes_that_are_no_commands_end_the_worker() -> None:
    async def scenario() -> None:
        child = Child()
        CommandRequests(Controller(), lambda error: None).accept(child, CommandRequest(1, b"\xc1"))
        assert child.broken is not None and child.replies == []

    asyncio.run(scenario())

"""Goal: every submitter hears once, in bounded time, what became of its commands; and what is on its way is bounded."""

from __future__ import annotations

import asyncio

import pytest

from kafscale.control import CommandReply, CommandRequest
from kafscale.coordination.commands import CommandResult, DeleteTopic, decode_commands, encode_results
from kafscale.errors import Invalid, Retry
from kafscale.protocol.error_codes import ErrorCode
from tests.unit.workers.doubles import ManualClock
from workers.admin import OUTSTANDING_MAX, Admin


def reply_to(request: CommandRequest, code: int = 0) -> CommandReply:
    results = [CommandResult(error_code=code) for _ in decode_commands(request.commands)]
    return CommandReply(request.request_id, 1, encode_results(results))


def test_replies_reach_their_submitters() -> None:
    """In whatever order they come; one that nobody waits for any more is dropped."""

    async def scenario() -> None:
        sent: list[CommandRequest] = []
        admin = Admin(ManualClock(), sent.append)
        submitters = [asyncio.ensure_future(admin.submit([DeleteTopic(name=str(n))] * (n + 1))) for n in range(5)]
        await asyncio.sleep(0)
        for request in reversed(sent):
            code = int(decode_commands(request.commands)[0].name or 0)  # type: ignore[union-attr]
            admin.on_reply(reply_to(request, code))
            admin.on_reply(reply_to(request, 99))
        for number, submitter in enumerate(submitters):
            assert [result.error_code for result in await submitter] == [number] * (number + 1)
        admin.on_reply(reply_to(sent[0]))
        assert admin.outstanding_count == 0

    asyncio.run(scenario())


def test_nothing_to_change_asks_nobody() -> None:
    """An empty request is answered on the spot."""
    sent: list[CommandRequest] = []
    assert asyncio.run(Admin(ManualClock(), sent.append).submit([])) == []
    assert not sent


def test_silence_is_a_retriable_error() -> None:
    """After the time-out, within bounds of our own, the submitter hears REQUEST_TIMED_OUT."""

    async def scenario() -> None:
        clock = ManualClock()
        admin = Admin(clock, lambda request: None)
        for asked, waited in ((5.0, 5.0), (0.0, 1.0), (-1.0, 1.0), (1e9, 30.0)):
            submitter = asyncio.ensure_future(admin.submit([DeleteTopic(name="t")], asked))
            await asyncio.sleep(0)
            clock.advance(waited - 0.1)
            await asyncio.sleep(0)
            assert not submitter.done()
            clock.advance(0.2)
            with pytest.raises(Retry) as raised:
                await submitter
            assert raised.value.code == ErrorCode.REQUEST_TIMED_OUT
        assert admin.outstanding_count == 0

    asyncio.run(scenario())


def test_what_is_on_its_way_is_bounded() -> None:
    """Over the bound submitters are told to come back, and can as soon as there is room."""

    async def scenario() -> None:
        sent: list[CommandRequest] = []
        admin = Admin(ManualClock(), sent.append)
        submitters = [asyncio.ensure_future(admin.submit([DeleteTopic(name="t")])) for _ in range(OUTSTANDING_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(Retry):
            await admin.submit([DeleteTopic(name="t")])
        admin.on_reply(reply_to(sent[0]))
        await submitters[0]
        last = asyncio.ensure_future(admin.submit([DeleteTopic(name="t")]))
        await asyncio.sleep(0)
        assert not last.done()
        for submitter in (*submitters, last):
            submitter.cancel()
        await asyncio.gather(*submitters, last, return_exceptions=True)
        assert admin.outstanding_count == 0

    asyncio.run(scenario())


def test_too_much_for_one_frame_is_refused() -> None:
    """It could not be sent, and the connection to the supervisor must not suffer."""

    async def scenario() -> None:
        with pytest.raises(Invalid) as raised:
            await Admin(ManualClock(), lambda request: None).submit([DeleteTopic(name="x" * (1 << 20))] * 65)
        assert raised.value.code == ErrorCode.INVALID_REQUEST

    asyncio.run(scenario())

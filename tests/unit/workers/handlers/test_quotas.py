"""Goal: DescribeClientQuotas and AlterClientQuotas do what KIP-546 says."""

from __future__ import annotations

import asyncio

import pytest

from kafscale.protocol.api import ApiKey
from kafscale.protocol.messages.alter_client_quotas import AlterClientQuotasRequest, EntityData, EntryData, OpData
from kafscale.protocol.messages.describe_client_quotas import ComponentData, DescribeClientQuotasRequest
from tests.unit.workers.node import Node

Entity = dict[str, str | None]
ALICE: Entity = {"user": "alice"}
DEFAULT: Entity = {"client-id": None, "user": None}


def entry(entity: Entity, *ops: OpData, **values: float | None) -> EntryData:
    """Values to set, by key; None takes one away."""
    return EntryData(
        entity=[EntityData(entity_type=kind, entity_name=name) for kind, name in entity.items()],
        ops=[
            *ops,
            *(OpData(key=key, value=value or 0.0, remove=value is None) for key, value in values.items()),
        ],
    )


class QuotaNode(Node):
    async def alter(
        self, *entries: EntryData, validate_only: bool = False, version: int = 1
    ) -> list[tuple[int, str | None]]:
        message = AlterClientQuotasRequest(entries=entries, validate_only=validate_only)
        answer = await self.call(ApiKey.ALTER_CLIENT_QUOTAS, version, message)
        assert [list(result.entity) for result in answer.entries] == [wanted.entity for wanted in entries]
        return [(result.error_code, result.error_message) for result in answer.entries]

    async def describe(self, *components: tuple[str, int, str | None], strict: bool = False) -> list[object]:
        message = DescribeClientQuotasRequest(
            components=[ComponentData(entity_type=a, match_type=b, match=c) for a, b, c in components], strict=strict
        )
        answer = await self.call(ApiKey.DESCRIBE_CLIENT_QUOTAS, 1, message)
        if answer.error_code:
            assert answer.error_message and answer.entries is None
            return [answer.error_code]
        return [
            (
                {part.entity_type: part.entity_name for part in found.entity},
                {value.key: value.value for value in found.values},
            )
            for found in answer.entries
        ]


@pytest.mark.parametrize("version", [0, 1])
def test_quotas_are_set_told_of_and_taken_away(version: int) -> None:
    async def scenario() -> None:
        node = QuotaNode()
        set_both = [entry(ALICE, producer_byte_rate=1e6, request_percentage=12.5), entry(DEFAULT, consumer_byte_rate=5)]
        assert await node.alter(*set_both, validate_only=True, version=version) == [(0, None)] * 2
        assert await node.describe() == []
        assert await node.alter(*set_both, version=version) == [(0, None)] * 2
        alice = (ALICE, {"producer_byte_rate": 1e6, "request_percentage": 12.5})
        assert await node.describe() == [alice, (DEFAULT, {"consumer_byte_rate": 5.0})]
        assert await node.describe(("user", 0, "alice")) == [alice]
        assert await node.alter(entry(ALICE, producer_byte_rate=None, consumer_byte_rate=7)) == [(0, None)]
        assert await node.describe(("user", 2, None), strict=True) == [
            (ALICE, {"request_percentage": 12.5, "consumer_byte_rate": 7.0})
        ]
        assert await node.alter(entry(DEFAULT, consumer_byte_rate=None)) == [(0, None)]
        assert await node.alter(entry(DEFAULT, consumer_byte_rate=None)) == [(0, None)]
        assert len(await node.describe()) == 1

    asyncio.run(scenario())


def test_what_is_wrong_is_refused_by_itself() -> None:
    """Each entity is answered for itself, in the order of the request; nothing of what is refused is kept."""

    async def scenario() -> None:
        node = QuotaNode()
        twice = OpData(key="consumer_byte_rate", value=1.0)
        results = await node.alter(
            entry({}, producer_byte_rate=1),
            entry({"user": "a"}, producer_byte_rate=1),
            entry({"ip": "10.0.0.1"}, connection_creation_rate=1),
            entry({"user": "b"}, producer_byte_rate=-1, consumer_byte_rate=1),
            entry({"user": "c"}, twice, twice),
            entry({"user": "d"}, nonsense=None),
            entry({"client-id": "e", "user": "e"}, request_percentage=1),
        )
        assert [code for code, _ in results] == [42, 0, 42, 42, 42, 42, 0]
        assert all((text is None) == (code == 0) for code, text in results)
        assert [found[0] for found in await node.describe()] == [{"user": "a"}, {"client-id": "e", "user": "e"}]
        assert await node.describe(("user", 0, None)) == [42]
        assert await node.describe(("planet", 0, "a")) == [35]
        assert await node.describe(("ip", 0, "10.0.0.1")) == []

    asyncio.run(scenario())


def test_a_catalogue_that_cant_be_written() -> None:
    """While the supervisor does not answer, the client is told to come again, for each entity."""

    async def scenario() -> None:
        node = QuotaNode()
        node.is_controller_silent = True
        altering = asyncio.ensure_future(node.alter(entry(ALICE, producer_byte_rate=1), entry(DEFAULT)))
        await node.until(lambda: bool(node.requests))
        node.clock.advance(3600)
        results = await altering
        assert {code for code, _ in results} == {7}

    asyncio.run(scenario())

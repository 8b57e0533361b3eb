"""Goal: DescribeAcls, CreateAcls and DeleteAcls say what Kafka's do: bad items one by one, filters as they mean, and
that there is no authorizer where there is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from kafscale.config import Settings
from kafscale.protocol.acls import AclBinding
from kafscale.protocol.api import ApiKey
from kafscale.protocol.messages.create_acls import AclCreation, CreateAclsRequest
from kafscale.protocol.messages.delete_acls import DeleteAclsFilter, DeleteAclsRequest
from kafscale.protocol.messages.describe_acls import DescribeAclsRequest
from kafscale.security.acl_rules import RuleSet
from kafscale.security.snapshot import Snapshot
from kafscale.security.snapshot_compiler import compile_snapshot
from tests.unit.workers.node import Node
from workers.authorization import Authority

SETTINGS = Settings(acl_enabled=True, super_users="User:ANONYMOUS")
ALL: dict[str, Any] = {
    "resource_type_filter": 1,
    "resource_name_filter": None,
    "pattern_type_filter": 1,
    "principal_filter": None,
    "host_filter": None,
    "operation": 1,
    "permission_type": 1,
}


def creation(**fields: Any) -> AclCreation:
    given: dict[str, Any] = {
        "resource_type": 2,
        "resource_name": "t",
        "resource_pattern_type": 3,
        "principal": "User:a",
        "host": "*",
        "operation": 3,
        "permission_type": 3,
    }
    return AclCreation(**(given | fields))


class AclNode(Node):
    """A node of a super user's, on which rules come into force with the catalogue, as the supervisor sees to."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        super().__init__(settings, is_authorization_on=settings.acl_enabled)
        self.compile()

    def compile(self) -> None:
        if self.settings.acl_enabled:
            rules = RuleSet(bindings=self.cluster.state.acls, super_users=frozenset({"User:ANONYMOUS"}))
            self.authority.replace(Snapshot(compile_snapshot(rules, self.cluster.state.version)))

    def answer(self, request: Any) -> None:
        super().answer(request)
        self.compile()

    async def create(self, *creations: AclCreation, version: int = 3) -> list[tuple[int, str | None]]:  # type: ignore[override]
        answer = await self.call(ApiKey.CREATE_ACLS, version, CreateAclsRequest(creations=creations))
        return [(result.error_code, result.error_message) for result in answer.results]

    async def describe(self, version: int = 3, **fields: Any) -> set[AclBinding]:
        answer = await self.call(ApiKey.DESCRIBE_ACLS, version, DescribeAclsRequest(**(ALL | fields)))
        assert (answer.error_code, answer.error_message) == (0, None)
        patterns = [(r.resource_type, r.pattern_type, r.resource_name) for r in answer.resources]
        assert len(set(patterns)) == len(patterns), "a pattern is told twice"
        return {
            AclBinding(*pattern, acl.principal, acl.host, acl.operation, acl.permission_type)
            for pattern, resource in zip(patterns, answer.resources, strict=True)
            for acl in resource.acls
        }

    async def delete(self, *filters: dict[str, Any], version: int = 3) -> list[Any]:
        message = DeleteAclsRequest(filters=[DeleteAclsFilter(**(ALL | fields)) for fields in filters])
        return list((await self.call(ApiKey.DELETE_ACLS, version, message)).filter_results)


def names(found: Iterable[AclBinding]) -> list[str]:
    return sorted(binding.name for binding in found)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_what_is_created_is_described_and_deleted(version: int) -> None:
    """In every version: created, created again without harm, described, deleted with a word on each, gone."""

    async def scenario() -> None:
        node = AclNode()
        assert (
            await node.create(creation(), creation(resource_name="p", resource_pattern_type=4), version=version)
            == [(0, None)] * 2
        )
        assert await node.create(creation(), version=version) == [(0, None)]
        assert await node.describe(version) == {
            AclBinding(2, 3, "t", "User:a", "*", 3, 3),
            AclBinding(2, 4, "p", "User:a", "*", 3, 3),
        }
        (result,) = await node.delete({"resource_name_filter": "t"}, version=version)
        assert (result.error_code, result.error_message, len(result.matching_acls)) == (0, None, 1)
        acl = result.matching_acls[0]
        assert (acl.error_code, acl.error_message, acl.resource_name, acl.principal) == (0, None, "t", "User:a")
        assert names(await node.describe(version)) == ["p"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"resource_type": 4, "resource_name": "prod"},
            "The only valid name for the CLUSTER resource is kafka-cluster",
        ),
        ({"resource_name": ""}, "Invalid empty resource name"),
        ({"resource_type": 0}, "Invalid resource type 0"),
        ({"resource_type": 1}, "Invalid resource type 1"),
        ({"resource_type": 9}, "Invalid resource type 9"),
        ({"resource_pattern_type": 0}, "Invalid pattern type 0"),
        ({"resource_pattern_type": 1}, "Invalid pattern type 1"),
        ({"resource_pattern_type": 2}, "Invalid pattern type 2"),
        ({"operation": 0}, "Invalid operation 0"),
        ({"operation": 1}, "Invalid operation 1"),
        ({"operation": 77}, "Invalid operation 77"),
        ({"permission_type": 0}, "Invalid permission type 0"),
        ({"permission_type": 1}, "Invalid permission type 1"),
        ({"principal": "alice"}, "Could not parse principal from `alice`"),
    ],
)
def test_a_bad_acl_is_refused_and_those_beside_it_are_not(fields: dict[str, Any], text: str) -> None:
    """INVALID_REQUEST for the item, with a text that says why."""

    async def scenario() -> None:
        node = AclNode()
        good, bad, also_good = await node.create(creation(), creation(**fields), creation(resource_name="u"))
        assert (good, also_good) == ((0, None), (0, None))
        assert bad[0] == 42 and bad[1] is not None and bad[1].startswith(text)
        assert names(await node.describe()) == ["t", "u"]

    asyncio.run(scenario())


def test_filters_mean_what_kafka_means() -> None:
    """MATCH is what applies to a name, ANY that very name in any pattern, null everything."""

    async def scenario() -> None:
        node = AclNode()
        await node.create(
            creation(resource_name="orders-1"),
            creation(resource_name="orders-", resource_pattern_type=4),
            creation(resource_name="orders-1", resource_pattern_type=4),
            creation(resource_name="*"),
            creation(resource_name="other"),
            creation(resource_type=3, resource_name="orders-1", host="::ffff:10.0.0.1"),
        )
        topic = {"resource_type_filter": 2, "resource_name_filter": "orders-1"}
        assert names(await node.describe(**topic, pattern_type_filter=2)) == ["*", "orders-", "orders-1", "orders-1"]
        assert names(await node.describe(**topic, pattern_type_filter=1)) == ["orders-1", "orders-1"]
        assert names(await node.describe(**topic, pattern_type_filter=3)) == ["orders-1"]
        assert names(await node.describe(**topic, pattern_type_filter=4)) == ["orders-1"]
        assert names(await node.describe(resource_name_filter="*", pattern_type_filter=3)) == ["*"]
        assert len(await node.describe()) == 6
        # However an address was spelt, it is found however it is spelt.
        for host in ("10.0.0.1", "::ffff:10.0.0.1"):
            assert {binding.host for binding in await node.describe(host_filter=host)} == {"10.0.0.1"}
        results = await node.delete(topic | {"pattern_type_filter": 2}, {"resource_type_filter": 0}, topic)
        assert [(result.error_code, len(result.matching_acls)) for result in results] == [(0, 4), (42, 0), (0, 0)]
        assert names(await node.describe()) == ["orders-1", "other"]

    asyncio.run(scenario())


@pytest.mark.parametrize("field", ["resource_type_filter", "pattern_type_filter", "operation", "permission_type"])
@pytest.mark.parametrize("value", [0, 100])
def test_a_filter_with_unknown_elements_is_refused(field: str, value: int) -> None:
    """INVALID_REQUEST, and nothing is told or deleted."""

    async def scenario() -> None:
        node = AclNode()
        await node.create(creation())
        answer = await node.call(ApiKey.DESCRIBE_ACLS, 3, DescribeAclsRequest(**(ALL | {field: value})))
        assert answer.error_code == 42 and "unknown" in answer.error_message and not answer.resources
        (result,) = await node.delete({field: value})
        assert result.error_code == 42 and not result.matching_acls
        assert len(await node.describe()) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("settings", [Settings(), Settings(acl_enabled=True, acl_json="{}")])
def test_without_an_authorizer_there_are_no_acls(settings: Settings) -> None:
    """SECURITY_DISABLED: with authorization off, and where KafScale's document alone decides."""

    async def scenario() -> None:
        node = AclNode(settings)
        node.authority = node.context.authority = Authority(node.clock, node.bench.metrics, is_on=False)
        node.dispatcher._authority = node.authority
        for version in (1, 2, 3):
            assert [code for code, _ in await node.create(creation(), creation(), version=version)] == [54, 54]
            assert [result.error_code for result in await node.delete({}, {}, version=version)] == [54, 54]
            answer = await node.call(ApiKey.DESCRIBE_ACLS, version, DescribeAclsRequest(**ALL))
            assert answer.error_code == 54 and not answer.resources
        assert not node.requests

    asyncio.run(scenario())


def test_a_thousand_acls_are_described_in_turns_of_the_loop() -> None:
    """Looking at many takes several turns, so that others are served meanwhile."""

    async def scenario() -> None:
        node = AclNode()
        for first in range(0, 2000, 1000):
            await node.create(*(creation(resource_name=f"t{number}") for number in range(first, first + 1000)))
        asked = asyncio.ensure_future(node.describe(resource_name_filter="t7"))
        await asyncio.sleep(0)
        assert not asked.done()
        while not asked.done():
            node.clock.advance(0)
            node.bench.settle()
            await asyncio.sleep(0)
        assert names(asked.result()) == ["t7"]

    asyncio.run(scenario())

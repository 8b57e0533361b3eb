"""Goal: settings of topics are shown and changed as Kafka's tools expect, a broker's are shown and never changed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kafscale.config import DECLARATIONS, Settings
from kafscale.protocol.api import ApiKey
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.messages import alter_configs, incremental_alter_configs
from kafscale.protocol.messages.describe_configs import DescribeConfigsRequest, DescribeConfigsResource
from tests.unit.workers.node import Node

TOPIC, BROKER, BROKER_LOGGER, GROUP = 2, 4, 8, 32
SET, DELETE, APPEND = 0, 1, 2
DYNAMIC_TOPIC, STATIC_BROKER, DEFAULT = 1, 4, 5


async def describe(node: Node, version: int, kind: int, name: str, keys: Any = None, **options: Any) -> Any:
    resource = DescribeConfigsResource(resource_type=kind, resource_name=name, configuration_keys=keys)
    request = DescribeConfigsRequest(resources=[resource], **options)
    (result,) = (await node.call(ApiKey.DESCRIBE_CONFIGS, version, request)).results
    assert (result.resource_type, result.resource_name) == (kind, name)
    return result


async def alter(node: Node, version: int, *resources: tuple[int, str, dict[str, str | None]], **options: Any) -> Any:
    request = alter_configs.AlterConfigsRequest(
        resources=[
            alter_configs.AlterConfigsResource(
                resource_type=kind,
                resource_name=name,
                configs=[alter_configs.AlterableConfig(name=k, value=v) for k, v in configs.items()],
            )
            for kind, name, configs in resources
        ],
        **options,
    )
    response = await node.call(ApiKey.ALTER_CONFIGS, version, request)
    return [(r.resource_type, r.resource_name, r.error_code) for r in response.responses]


async def change(node: Node, version: int, name: str, *ops: tuple[str, int, str | None], **options: Any) -> int:
    configs = [
        incremental_alter_configs.AlterableConfig(name=key, config_operation=operation, value=value)
        for key, operation, value in ops
    ]
    resource = incremental_alter_configs.AlterConfigsResource(resource_type=TOPIC, resource_name=name, configs=configs)
    request = incremental_alter_configs.IncrementalAlterConfigsRequest(resources=[resource], **options)
    response = await node.call(ApiKey.INCREMENTAL_ALTER_CONFIGS, version, request)
    return int(response.responses[0].error_code)


@pytest.mark.parametrize("version", range(1, 5))
def test_settings_of_a_topic(version: int) -> None:
    """All of them, or those asked for; with where they come from, and from version 3 on what they mean."""

    async def scenario() -> None:
        node = Node(Settings(log_retention_ms=5000))
        await node.create("t")
        assert await change(node, 1, "t", ("max.message.bytes", SET, "777")) == 0
        result = await describe(node, version, TOPIC, "t", include_synonyms=True, include_documentation=True)
        assert (result.error_code, result.error_message) == (0, None)
        entries = {entry.name: entry for entry in result.configs}
        shown = {name: (entries[name].value, entries[name].config_source) for name in entries}
        assert shown["max.message.bytes"] == ("777", DYNAMIC_TOPIC)
        assert shown["retention.ms"] == ("5000", STATIC_BROKER)
        assert shown["cleanup.policy"] == ("delete", DEFAULT)
        assert entries["max.message.bytes"].synonyms[0].source == DYNAMIC_TOPIC
        if version >= 3:
            assert entries["retention.ms"].documentation
            assert entries["retention.ms"].config_type == 5
        some = await describe(node, version, TOPIC, "t", ["retention.ms", "no.such"])
        assert [entry.name for entry in some.configs] == ["retention.ms"]
        assert not some.configs[0].synonyms
        assert not some.configs[0].documentation
        assert len((await describe(node, version, TOPIC, "t", [])).configs) == len(entries)

    asyncio.run(scenario())


def test_settings_that_are_not_there() -> None:
    """An unknown topic, a bad name, another broker's node, and kinds of resources that have no settings here."""

    async def scenario() -> None:
        node = Node()
        for kind, name, code in (
            (TOPIC, "gone", ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
            (TOPIC, "a/b", ErrorCode.INVALID_TOPIC_EXCEPTION),
            (BROKER, "100", ErrorCode.INVALID_REQUEST),
            (BROKER, "me", ErrorCode.INVALID_REQUEST),
            (BROKER, "²", ErrorCode.INVALID_REQUEST),
            (BROKER_LOGGER, "0", ErrorCode.INVALID_REQUEST),
            (GROUP, "g", ErrorCode.INVALID_REQUEST),
            (0, "", ErrorCode.INVALID_REQUEST),
        ):
            result = await describe(node, 4, kind, name)
            assert result.error_code == code
            assert result.error_message
            assert not result.configs
        assert (await describe(node, 4, BROKER, "")).error_code == 0

    asyncio.run(scenario())


def test_settings_of_the_broker() -> None:
    """Read-only, under Kafka's names and all of them under ours, with what was set told from what is default."""

    async def scenario() -> None:
        node = Node(Settings(message_max_bytes=4242, auto_create_topics=False, worker_ports=None))
        result = await describe(node, 4, BROKER, "1", include_documentation=True, include_synonyms=True)
        entries = {entry.name: entry for entry in result.configs}
        assert len(entries) == len(result.configs), "no name twice"
        assert all(entry.read_only for entry in result.configs)
        shown = {name: (entry.value, entry.config_source) for name, entry in entries.items()}
        assert shown["message.max.bytes"] == ("4242", STATIC_BROKER)
        assert shown["auto.create.topics.enable"] == ("false", STATIC_BROKER)
        assert shown["num.partitions"] == ("1", DEFAULT)
        assert shown["default.replication.factor"] == ("1", DEFAULT)
        assert shown["log.retention.ms"][0] == str(node.settings.log_retention_ms)
        assert shown["kafscale.message.max.bytes"] == ("4242", STATIC_BROKER)
        assert shown["kafscale.worker.ports"][0] is None
        for declaration in DECLARATIONS:
            entry = entries["kafscale." + declaration.name.replace("_", ".")]
            assert entry.documentation == declaration.setting.help
            assert not declaration.setting.secret or (entry.value is None and entry.is_sensitive)
        only = await describe(node, 4, BROKER, "1", ["num.partitions"])
        assert [entry.name for entry in only.configs] == ["num.partitions"]

    asyncio.run(scenario())


@pytest.mark.parametrize("version", range(3))
def test_replacing_all_settings(version: int) -> None:
    """What is not named goes back to its default; each resource fails for itself; a broker's are fixed."""

    async def scenario() -> None:
        node = Node()
        for name in ("a", "b"):
            await node.create(name)
        assert await alter(node, version, (TOPIC, "a", {"retention.ms": "1", "segment.bytes": "1048576"})) == [
            (TOPIC, "a", 0)
        ]
        results = await alter(
            node,
            version,
            (TOPIC, "a", {"retention.ms": "2"}),
            (TOPIC, "b", {"retention.ms": "x"}),
            (TOPIC, "gone", {}),
            (BROKER, "0", {"log.retention.ms": "1"}),
            (GROUP, "g", {}),
        )
        assert results == [
            (TOPIC, "a", 0),
            (TOPIC, "b", ErrorCode.INVALID_CONFIG),
            (TOPIC, "gone", ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
            (BROKER, "0", ErrorCode.INVALID_CONFIG),
            (GROUP, "g", ErrorCode.INVALID_REQUEST),
        ]
        assert node.cluster.state.topics["a"].configs == {"retention.ms": "2"}
        assert await alter(node, version, (TOPIC, "b", {"retention.ms": "9"}), validate_only=True) == [(TOPIC, "b", 0)]
        assert not node.cluster.state.topics["b"].configs
        twice = await alter(node, version, (TOPIC, "a", {}), (TOPIC, "a", {"retention.ms": "7"}))
        assert twice == [(TOPIC, "a", ErrorCode.INVALID_REQUEST)]

    asyncio.run(scenario())


@pytest.mark.parametrize("version", range(2))
def test_changing_single_settings(version: int) -> None:
    """Set, delete and append; what was set before and is not named stays."""

    async def scenario() -> None:
        node = Node()
        await node.create("t")
        throttled = "leader.replication.throttled.replicas"
        assert await change(node, version, "t", ("retention.ms", SET, "1"), (throttled, SET, "0:1")) == 0
        assert await change(node, version, "t", ("retention.ms", DELETE, None), (throttled, APPEND, "1:1")) == 0
        assert node.cluster.state.topics["t"].configs == {throttled: "0:1,1:1"}
        assert await change(node, version, "t", ("retention.ms", SET, "-2")) == ErrorCode.INVALID_CONFIG
        assert await change(node, version, "t", ("retention.ms", 9, "1")) == ErrorCode.INVALID_REQUEST
        assert await change(node, version, "gone", ("retention.ms", SET, "1")) == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
        assert await change(node, version, "t", ("retention.ms", SET, "5"), validate_only=True) == 0
        assert node.cluster.state.topics["t"].configs == {throttled: "0:1,1:1"}

    asyncio.run(scenario())


def test_a_resource_asked_for_a_thousand_times() -> None:
    """It is described once: a small request can't ask for a huge answer."""

    async def scenario() -> None:
        node = Node()
        await node.create("t")
        resource = DescribeConfigsResource(resource_type=TOPIC, resource_name="t", configuration_keys=None)
        request = DescribeConfigsRequest(resources=[resource] * 1000)
        assert len((await node.call(ApiKey.DESCRIBE_CONFIGS, 4, request)).results) == 1

    asyncio.run(scenario())

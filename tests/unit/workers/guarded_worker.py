"""A whole worker whose clients need rights: rules are set in words, changes of the catalogue are decided by the real
code, and what was asked of the supervisor is kept. Use inside `whole_worker.run`."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable
from typing import Any

from kafscale.config import Settings
from kafscale.control import CommandReply, CommandRequest
from kafscale.coordination.cluster import OFFSETS_TOPIC
from kafscale.coordination.commands import Draft, decide_all, decode_commands, encode_results
from kafscale.protocol.acls import AclBinding, Operation, PatternType, Permission, ResourceType
from kafscale.protocol.api import ApiKey
from kafscale.protocol.schema import Message
from kafscale.security.acl_rules import RuleSet, parse_super_users
from kafscale.security.kafscale_document import parse_document
from kafscale.security.snapshot import Snapshot
from kafscale.security.snapshot_compiler import compile_snapshot
from tests.unit.workers.whole_worker import Client, WholeWorker

ALICE = "User:alice"
ADMIN = "User:admin"
HOST = "10.1.2.3"
SETTINGS = Settings(cluster_namespace="ns", acl_enabled=True, super_users=ADMIN, group_initial_rebalance_delay_ms=0)


def binding(text: str, principal: str = ALICE, host: str = "*") -> AclBinding:
    """`allow read topic t`; a name that ends in `*` is a prefix, one that is `*` any."""
    permission, operation, resource, name = text.split()
    is_prefix = name.endswith("*") and name != "*"
    return AclBinding(
        resource_type=ResourceType[resource.upper()],
        pattern_type=PatternType.PREFIXED if is_prefix else PatternType.LITERAL,
        name=name[:-1] if is_prefix else name,
        principal=principal,
        host=host,
        operation=Operation[operation.upper()],
        permission=Permission[permission.upper()],
    )


def document(allow: Iterable[str] = (), deny: Iterable[str] = (), default: str = "deny", name: str = "alice") -> str:
    """Rules as `fetch topic t`."""

    def rules(texts: Iterable[str]) -> list[dict[str, str]]:
        return [dict(zip(("action", "resource", "name"), text.split(), strict=True)) for text in texts]

    principal = {"name": name, "allow": rules(allow), "deny": rules(deny)}
    return json.dumps({"default_policy": default, "principals": [principal]})


def snapshot_of(
    bindings: Iterable[AclBinding | str] | None = None, in_document: str | None = None, generation: int = 1
) -> Snapshot:
    rules = RuleSet(
        document=None if in_document is None else parse_document(in_document),
        document_source="acl.json",
        bindings=None if bindings is None else [binding(item) if isinstance(item, str) else item for item in bindings],
        super_users=parse_super_users(ADMIN),
    )
    return Snapshot(compile_snapshot(rules, generation))


class GuardedWorker(WholeWorker):
    """Node 0; topics `t` and `u` are its own, and so are all groups."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        super().__init__(settings)
        self.asked: list[Any] = []
        self._generations = itertools.count(1)
        self._topic_numbers = itertools.count(100, 2)

    async def start(self) -> GuardedWorker:
        await super().start()
        self.create(OFFSETS_TOPIC, 2)
        self.create("t", 4)
        self.create("u", 6)
        return self

    def rule(self, *bindings: AclBinding | str, in_document: str | None = None) -> None:
        """From now on these are the rules: of Kafka's, or of a document alone."""
        kafka = bindings if bindings or in_document is None else None
        self.worker.authority.replace(snapshot_of(kafka, in_document, next(self._generations)))

    def connect_as(self, principal: str = ALICE) -> Client:
        client = self.connect()
        client.protocol.principal = principal
        return client

    async def ask(self, key: ApiKey, version: int, message: Message, principal: str = ALICE) -> Any:
        """The answer to a client of this name; None if its connection was closed."""
        return await self.call(key, version, message, self.connect_as(principal))

    def _sent(self, message: Any) -> None:
        super()._sent(message)
        if isinstance(message, CommandRequest):
            asyncio.get_running_loop().call_soon(self._reply, message)

    def _reply(self, request: CommandRequest) -> None:
        commands = decode_commands(request.commands)
        self.asked += commands
        changes, results = decide_all(
            Draft(self.state),
            commands,
            lambda: next(self._topic_numbers).to_bytes(8, "big") + b"\0" * 7 + b"\1",
            self.clock.wall_ms(),
        )
        if changes:
            self.decide(*changes)
        self.worker.receive(CommandReply(request.request_id, self.state.version, encode_results(results)))

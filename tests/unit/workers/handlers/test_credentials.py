"""Goal: DescribeUserScramCredentials and AlterUserScramCredentials do what KIP-554 says, and what is kept of a password
logs its owner in and nobody else.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kafscale.config import Settings
from kafscale.control import Credential, Security
from kafscale.coordination.commands import decode_commands
from kafscale.protocol.api import ApiKey
from kafscale.protocol.messages.alter_user_scram_credentials import (
    AlterUserScramCredentialsRequest,
    ScramCredentialDeletion,
    ScramCredentialUpsertion,
)
from kafscale.protocol.messages.describe_user_scram_credentials import DescribeUserScramCredentialsRequest, UserName
from kafscale.security.credentials import make_credential
from kafscale.security.scram import is_password, salted_password
from tests.unit.workers.node import Node

MECHANISMS = {1: "SCRAM-SHA-256", 2: "SCRAM-SHA-512"}
SALT = b"0123456789abcdef"


def upsertion(name: str = "alice", mechanism: int = 1, iterations: int = 4096, **fields: Any) -> Any:
    salted = b""
    if mechanism in MECHANISMS and iterations > 0:
        salted = salted_password(MECHANISMS[mechanism], b"secret", SALT, iterations)
    given = {"salt": SALT, "salted_password": salted} | fields
    return ScramCredentialUpsertion(name=name, mechanism=mechanism, iterations=iterations, **given)


def deletion(name: str = "alice", mechanism: int = 1) -> ScramCredentialDeletion:
    return ScramCredentialDeletion(name=name, mechanism=mechanism)


class CredentialNode(Node):
    """`of_file`: users of the bootstrap file."""

    def __init__(self, *of_file: str) -> None:
        super().__init__()
        self.context.authenticator.follow(self.cluster.state)
        credentials = [
            Credential(user, MECHANISMS[1], *make_credential(MECHANISMS[1], "filed", SALT)) for user in of_file
        ]
        self.context.authenticator.replace_security(Security(credentials=credentials))

    async def alter(self, *items: Any) -> dict[str, tuple[int, str | None]]:
        message = AlterUserScramCredentialsRequest(
            deletions=[item for item in items if isinstance(item, ScramCredentialDeletion)],
            upsertions=[item for item in items if isinstance(item, ScramCredentialUpsertion)],
        )
        answer = await self.call(ApiKey.ALTER_USER_SCRAM_CREDENTIALS, 0, message)
        results = {result.user: (result.error_code, result.error_message) for result in answer.results}
        assert len(results) == len(answer.results), "a user is answered twice"
        return results

    async def codes(self, *items: Any) -> dict[str, int]:
        return {user: code for user, (code, _) in (await self.alter(*items)).items()}

    async def describe(self, *names: str) -> dict[str, tuple[int, dict[int, int]]]:
        """user → (error, mechanism → iterations)."""
        message = DescribeUserScramCredentialsRequest(users=[UserName(name=name) for name in names] or None)
        answer = await self.call(ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS, 0, message)
        assert (answer.error_code, answer.error_message) == (0, None)
        for result in answer.results:
            assert (result.error_message is None) == (result.error_code == 0)
        return {
            result.user: (result.error_code, {info.mechanism: info.iterations for info in result.credential_infos})
            for result in answer.results
        }


def test_a_password_is_set_told_of_used_and_deleted() -> None:
    """For both mechanisms: who set it logs in by it; what is told is the mechanism and the iterations alone."""

    async def scenario() -> None:
        node = CredentialNode()
        assert await node.alter(upsertion(), upsertion(mechanism=2, iterations=16384), upsertion("bob")) == {
            "alice": (0, None),
            "bob": (0, None),
        }
        assert await node.describe() == {"alice": (0, {1: 4096, 2: 16384}), "bob": (0, {1: 4096})}
        for number, mechanism in MECHANISMS.items():
            kept = node.context.authenticator.book.find("alice", mechanism)
            assert kept is not None and is_password(mechanism, b"secret", kept)
            assert not is_password(mechanism, b"Secret", kept)
            assert await node.codes(deletion(mechanism=number)) == {"alice": 0}
            assert node.context.authenticator.book.find("alice", mechanism) is None
        assert await node.describe() == {"bob": (0, {1: 4096})}
        assert "alice" not in node.cluster.state.credentials

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("item", "code"),
    [
        (upsertion(iterations=4095), 93),
        (upsertion(iterations=16385, salted_password=bytes(32)), 93),
        (upsertion(iterations=-1, salted_password=bytes(32)), 93),
        (upsertion(""), 93),
        (upsertion("x" * 1025), 93),
        (upsertion("a\0b"), 93),
        (upsertion(salt=b""), 93),
        (upsertion(salted_password=bytes(31)), 93),
        (upsertion(mechanism=2, salted_password=bytes(32)), 93),
        (upsertion(mechanism=0), 33),
        (upsertion(mechanism=3), 33),
        (upsertion(mechanism=-1), 33),
        (deletion(), 91),
        (deletion(mechanism=0), 33),
        (deletion(""), 93),
    ],
)
def test_what_is_refused(item: Any, code: int) -> None:
    """Kafka's codes, a text without a secret, nothing changed, and others' changes made."""

    async def scenario() -> None:
        node = CredentialNode()
        answers = await node.alter(item, upsertion("bob"))
        assert answers["bob"] == (0, None)
        found, text = answers[item.name]
        assert found == code and text is not None and "secret" not in text
        assert list(await node.describe()) == ["bob"]

    asyncio.run(scenario())


def test_twice_in_one_request() -> None:
    """92 for the user, whose changes are not made; two mechanisms of one user are two things."""

    async def scenario() -> None:
        node = CredentialNode()
        assert await node.codes(upsertion(), upsertion(), upsertion("bob")) == {"alice": 92, "bob": 0}
        assert await node.codes(deletion("bob"), upsertion("bob"), upsertion("bob", 2)) == {"bob": 92}
        assert await node.describe() == {"bob": (0, {1: 4096})}
        assert await node.codes(deletion("bob"), upsertion("bob", 2)) == {"bob": 0}
        assert await node.describe() == {"bob": (0, {2: 4096})}

    asyncio.run(scenario())


def test_a_users_changes_are_made_together_or_not_at_all() -> None:
    """A deletion of what is not there keeps the password of the other mechanism from being set."""

    async def scenario() -> None:
        node = CredentialNode()
        assert await node.codes(deletion(), upsertion(mechanism=2)) == {"alice": 91}
        assert await node.describe() == {}

    asyncio.run(scenario())


def test_who_is_asked_for_by_name() -> None:
    """91 for one who has none, 92 for one named twice, the others beside them."""

    async def scenario() -> None:
        node = CredentialNode()
        await node.alter(upsertion(), upsertion("bob"))
        assert await node.describe("alice", "carol") == {"alice": (0, {1: 4096}), "carol": (91, {})}
        assert await node.describe("alice", "bob", "alice") == {"alice": (92, {}), "bob": (0, {1: 4096})}

    asyncio.run(scenario())


def test_users_of_the_bootstrap_file() -> None:
    """They are told of, replaced and deleted as all others are, and the file does not bring a deleted one back."""

    async def scenario() -> None:
        node = CredentialNode("first", "second")
        book = node.context.authenticator.book
        assert await node.describe() == {"first": (0, {1: 8192}), "second": (0, {1: 8192})}
        assert await node.codes(upsertion("first"), deletion("second")) == {"first": 0, "second": 0}
        assert await node.describe() == {"first": (0, {1: 4096})}
        book = node.context.authenticator.book
        assert is_password(MECHANISMS[1], b"secret", book.find("first", MECHANISMS[1]))
        assert await node.codes(deletion("second")) == {"second": 91}
        assert await node.codes(deletion("first")) == {"first": 0}
        assert await node.describe() == {}
        assert await node.codes(upsertion("second")) == {"second": 0}
        assert await node.describe() == {"second": (0, {1: 4096})}

    asyncio.run(scenario())


def test_what_would_let_one_log_in_goes_nowhere() -> None:
    """Neither to the supervisor, nor into the catalogue, nor into anything's description."""

    async def scenario() -> None:
        node = CredentialNode()
        item = upsertion()
        await node.alter(item)
        (sent,) = node.requests
        assert item.salted_password not in sent.commands
        kept = node.cluster.state.credentials["alice"][MECHANISMS[1]]
        assert kept is not None and kept.salt == SALT
        message = AlterUserScramCredentialsRequest(upsertions=[item])
        for thing in (message, decode_commands(sent.commands), node.cluster.state):
            text = repr(thing)
            assert "alice" in text
            for secret in (item.salted_password, kept.stored_key, kept.server_key):
                assert repr(secret)[2:-1] not in text and secret.hex() not in text

    asyncio.run(scenario())


def test_admin_apis_switched_off() -> None:
    """31 for every user, once."""

    async def scenario() -> None:
        node = Node(Settings(allow_admin_apis=False))
        message = AlterUserScramCredentialsRequest(deletions=[deletion()], upsertions=[upsertion(), upsertion("bob")])
        answer = await node.call(ApiKey.ALTER_USER_SCRAM_CREDENTIALS, 0, message)
        assert [(result.user, result.error_code) for result in answer.results] == [("alice", 31), ("bob", 31)]
        assert not node.requests

    asyncio.run(scenario())

"""Goal: `kafscale acl check` decides as the broker does, from the same settings, and says which rule it was; its exit
code tells allowed, denied and nonsense apart.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kafscale.protocol.api import APIS, ApiKey, decode_request, encode_response
from kafscale.protocol.headers import parse_request_header
from kafscale.protocol.messages.describe_acls import AclDescription, DescribeAclsResource, DescribeAclsResponse
from supervisor import cli

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests" / "unit" / "security" / "kafscale_acl_vectors.json").read_text())["cases"]
ON = {"KAFSCALE_ACL_ENABLED": "true", "KAFSCALE_PRINCIPAL_SOURCE": "remote_addr"}
DOCUMENT = json.dumps(
    {
        "principals": [
            {
                "name": "alice",
                "allow": [{"action": "fetch", "resource": "topic", "name": "orders-*"}],
                "deny": [{"action": "fetch", "resource": "topic", "name": "orders-secret"}],
            }
        ]
    }
)


class Answer:
    """What a run of the command said."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Any:
    """`kafscale acl check` with flags and variables, in this process."""

    def run(*flags: str, **environ: str) -> Answer:
        code = cli.run(["acl", "check", *flags], environ)
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return run


def question(principal: str, action: str, resource: str, name: str) -> list[str]:
    return [f"--principal={principal}", f"--action={action}", f"--resource={resource}", f"--name={name}"]


@pytest.mark.parametrize("case", VECTORS, ids=[case["name"] for case in VECTORS])
def test_every_vector_is_answered_as_kafscale_decides(case: dict[str, Any], check: Any) -> None:
    """By exit code; a document that can't be read denies and is named."""
    environ = {**ON, "KAFSCALE_ACL_JSON": case["acl_json"]}
    for query in case["queries"]:
        answer = check(*question(query["principal"], query["action"], query["resource"], query["name"]), **environ)
        assert answer.code == (0 if query["allow"] else 1), (query, answer.out)
        if case["parse_error"]:
            assert "the ACL document can't be read: nothing is allowed" in answer.err


def test_an_answer_names_rule_and_source(check: Any, tmp_path: Path) -> None:
    """For a person in lines, for a script as JSON."""
    file = tmp_path / "acl.json"
    file.write_text(DOCUMENT)
    environ = {**ON, "KAFSCALE_ACL_FILE": str(file)}
    allowed = check(*question("alice", "fetch", "topic", "orders-1"), **environ)
    assert allowed.code == 0 and allowed.out.splitlines() == [
        "allowed: 'alice', fetch on topic 'orders-1'",
        "  because  a rule allows it",
        "  rule     principals[0].allow[0] of 'alice': allow fetch on topic 'orders-*'",
        f"  from     {file}",
    ]
    denied = check(*question("alice", "Read", "topic", "orders-secret"), "--json", **environ)
    assert denied.code == 1
    assert json.loads(denied.out) == {
        "allowed": False,
        "reason": "a rule denies it",
        "rule": "principals[0].deny[0] of 'alice': deny fetch on topic 'orders-secret'",
        "source": str(file),
    }


def test_names_are_taken_literally_and_a_likely_mistake_is_told(check: Any) -> None:
    """Asked in KafScale's words `User:alice` is nobody whom the document calls `alice`, as in KafScale; but who asks so
    is told. Asked in Kafka's words it is."""
    environ = {**ON, "KAFSCALE_ACL_JSON": DOCUMENT}
    literal = check(*question("User:alice", "fetch", "topic", "orders-1"), **environ)
    assert literal.code == 1 and "ask for 'alice', or in Kafka's words" in literal.err
    assert check(*question("User:alice", "Read", "topic", "orders-1"), **environ).code == 0
    for plain in (question("alice", "fetch", "topic", "t"), question("User:bob", "fetch", "topic", "t")):
        assert "ask for" not in check(*plain, **environ).err


@pytest.mark.parametrize(
    ("environ", "code", "words"),
    [
        ({}, 0, "ACLs are off, so everything is allowed"),
        (ON, 1, "neither acl_json nor acl_file is set"),
        ({**ON, "KAFSCALE_ACL_FAIL_OPEN": "1"}, 0, "as acl_fail_open asks for"),
        ({**ON, "KAFSCALE_ACL_JSON": "{", "KAFSCALE_ACL_FAIL_OPEN": "1"}, 0, "as acl_fail_open asks for"),
        ({**ON, "KAFSCALE_ACL_FILE": "/nowhere/acl.json"}, 1, "/nowhere/acl.json"),
        ({**ON, "KAFSCALE_SUPER_USERS": "User:alice"}, 0, "User:alice is a super user"),
        ({**ON, "KAFSCALE_SUPER_USERS": "User:bob"}, 1, "no ACL allows it"),
        ({**ON, "KAFSCALE_KAFKA_ACL_ENABLED": "1", "KAFSCALE_ALLOW_EVERYONE_IF_NO_ACL_FOUND": "1"}, 0, "no ACL names"),
    ],
)
def test_the_settings_are_the_brokers(environ: dict[str, str], code: int, words: str, check: Any) -> None:
    """Every row of the loading table, super users and defaults: as a broker started with them would decide."""
    answer = check(*question("alice", "produce", "topic", "t"), **environ)
    assert (answer.code, words in answer.out + answer.err) == (code, True), answer.out + answer.err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--action=fetch", "--resource=topic", "--name=t"], "--principal is missing"),
        (["--principal=a", "--resource=topic", "--name=t"], "--action is missing"),
        (["--principal=a", "--action=fetch", "--name=t"], "--resource is missing"),
        (["--principal=a", "--action=fetch", "--resource=topic"], "--name is missing"),
        (question("a", "juggle", "topic", "t"), "--action 'juggle': there is no such action"),
        (question("a", "fetch", "moon", "t"), "--resource 'moon': there is no such resource"),
        (question("a", "Read", "cluster", "kafka-cluster"), "no request needs READ on a cluster"),
        ([*question("a", "fetch", "topic", "t"), "--bootstrap=nowhere"], "--bootstrap:"),
        ([*question("a", "fetch", "topic", "t"), "--quick"], "--quick belongs to the command verify"),
        ([*question("a", "fetch", "topic", "t"), "more"], "unexpected word more"),
    ],
)
def test_a_question_that_makes_no_sense_ends_with_2(flags: list[str], complaint: str, check: Any) -> None:
    """And one line that says what is wrong with it."""
    answer = check(*flags, **ON, KAFSCALE_ACL_JSON=DOCUMENT)
    assert (answer.code, answer.out) == (2, "")
    assert complaint in answer.err and "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["acl"], "acl is no command by itself; say acl check"),
        (["acl", "list"], "unknown command acl list"),
        (["serve", "--principal=a"], "--principal belongs to the command acl check"),
    ],
)
def test_the_words_around_it(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is nearly the command is told what the command is."""
    assert cli.run(arguments, {}, lambda _: 0) == 2
    assert complaint in capsys.readouterr().err


# A running broker's ACLs


@contextmanager
def broker_that_answers(response: DescribeAclsResponse | None) -> Iterator[str]:
    """A listener that answers one DescribeAcls, through the server's side of the codec; None: that hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                (size,) = struct.unpack(">i", connection.recv(4))
                frame = bytearray(connection.recv(size))
                header, position = parse_request_header(frame, 0, len(frame))
                api = APIS[ApiKey.DESCRIBE_ACLS]
                assert header.api_key == api.key and header.client_id == "me"
                request = decode_request(api, header.api_version, frame, position, len(frame))
                assert (request.resource_name_filter, request.pattern_type_filter) == (None, 1)
                if response is not None:
                    connection.sendall(
                        b"".join(encode_response(api, header.api_version, header.correlation_id, response))
                    )

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            thread.join(20)


def acls(permission: int, host: str = "*") -> DescribeAclsResponse:
    described = [AclDescription(principal="User:alice", host=host, operation=4, permission_type=permission)]
    resource = DescribeAclsResource(resource_type=2, resource_name="t", pattern_type=4, acls=described)
    return DescribeAclsResponse(error_message=None, resources=[resource])


def test_a_running_broker_is_asked_for_its_acls(check: Any) -> None:
    """They decide together with the settings; which one did is said. Without asking, it is said that they may."""
    environ = {**ON, "KAFSCALE_SUPER_USERS": "User:root", "KAFSCALE_ACL_JSON": DOCUMENT}
    asked = question("alice", "Write", "topic", "t1")
    alone = check(*asked, **environ)
    assert alone.code == 1 and "give --bootstrap" in alone.err
    for permission, host, from_host, code in (
        (3, "*", None, 0),
        (2, "*", None, 1),
        (3, "10.0.0.1", "::ffff:10.0.0.1", 0),
    ):
        with broker_that_answers(acls(permission, host)) as bootstrap:
            flags = [f"--bootstrap={bootstrap}", "--client-id=me", *([f"--host={from_host}"] if from_host else [])]
            answer = check(*asked, *flags, **environ)
        verb = "ALLOW" if permission == 3 else "DENY"
        assert answer.code == code and f"{verb} WRITE on TOPIC:PREFIXED:t to User:alice from host {host}" in answer.out
        assert "Kafka's ACLs in the cluster's catalogue" in answer.out


@pytest.mark.parametrize(
    ("response", "complaint"),
    [
        (
            DescribeAclsResponse(error_code=31, error_message="not authorized"),
            "CLUSTER_AUTHORIZATION_FAILED: not authorized",
        ),
        (DescribeAclsResponse(error_code=54, error_message="off"), "SECURITY_DISABLED: off"),
        (None, "it closed the connection"),
    ],
)
def test_a_broker_that_does_not_tell_is_no_answer(
    response: DescribeAclsResponse | None, complaint: str, check: Any
) -> None:
    """Neither allowed nor denied: exit code 2, and why."""
    with broker_that_answers(response) as bootstrap:
        answer = check(*question("alice", "Write", "topic", "t"), f"--bootstrap={bootstrap}", "--client-id=me", **ON)
    assert (answer.code, answer.out) == (2, "") and complaint in answer.err

"""Goal: `kafscale credential` prints lines that the bootstrap file's reader takes, and no password is an argument."""

from __future__ import annotations

import io

import pytest

from kafscale.errors import UsageError
from kafscale.security.credentials import parse_credentials
from kafscale.security.scram import is_password
from supervisor import cli, credential


def test_the_lines_are_the_password(capsys: pytest.CaptureFixture[str]) -> None:
    """Both mechanisms, a fresh salt each time, and the password itself nowhere."""
    printed = []
    for _ in range(2):
        assert credential.run(["alice"], io.StringIO("wonder, land=1\nmore\n")) == 0
        printed.append(capsys.readouterr().out)
    assert "wonder" not in printed[0] and printed[0] != printed[1]
    found = parse_credentials(printed[0])["alice"]
    assert sorted(found) == ["SCRAM-SHA-256", "SCRAM-SHA-512"]
    for mechanism, keys in found.items():
        assert is_password(mechanism, b"wonder, land=1", keys)


@pytest.mark.parametrize(
    ("words", "text", "problem"),
    [
        ([], "x\n", "whose password"),
        (["alice", "secret"], "x\n", "whose password"),
        (["two words"], "x\n", "no spaces"),
        (["#alice"], "x\n", "no spaces"),
        (["alice"], "\n", "an empty password"),
        (["alice"], "", "an empty password"),
        (["alice"], "x" * 5000, "at most"),
        (["a" * 2000], "x\n", "at most"),
    ],
)
def test_what_is_refused(words: list[str], text: str, problem: str) -> None:
    """Whatever could not be a line, or would let nobody in."""
    with pytest.raises(UsageError, match=problem):
        credential.run(words, io.StringIO(text))


def test_by_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs no sound settings."""
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))
    assert cli.run(["credential", "alice"], {"KAFSCALE_WORKERS": "none"}) == 0
    assert len(parse_credentials(capsys.readouterr().out)["alice"]) == 2

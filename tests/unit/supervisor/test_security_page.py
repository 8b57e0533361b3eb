"""Goal: every set-up of docs/security.md is one that starts: its settings fit together and its files are what they are
said to be."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kafscale.config.listeners import listeners_of
from kafscale.config.sources import resolve
from supervisor.status import first_try
from tests.unit.security import tokens
from tests.unit.supervisor.test_security import CA, CHAIN, KEY, USERS, load

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
# By the heading an example stands under: protocol and principal source of its listeners.
SET_UPS = {
    "A private network that is trusted": [("PLAINTEXT", "client_id")],
    "TLS: encrypted, everybody may come": [("SSL", "client_id")],
    "Client certificates": [("SSL", "mtls")],
    "Passwords": [("SASL_SSL", "sasl")],
    "Tokens": [("SASL_SSL", "sasl")],
    "Inside and outside": [("PLAINTEXT", "client_id"), ("SSL", "mtls"), ("SASL_SSL", "sasl")],
    "Behind a load balancer": [("SASL_SSL", "sasl")],
    "As with KafScale": [("PLAINTEXT", "client_id")],
}


def examples() -> dict[str, dict[str, str]]:
    """Variables by heading."""
    found: dict[str, dict[str, str]] = {}
    for section in re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        for block in re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            words = [word for word in shlex.split(block) if word != "export"]
            found[heading] = dict(word.split("=", 1) for word in words)
    return found


def test_all_set_ups_are_tried() -> None:
    """None is forgotten here."""
    assert list(examples()) == list(SET_UPS)


@pytest.mark.parametrize("heading", list(SET_UPS))
def test_the_set_up_can_be_used(heading: str, tmp_path: Path) -> None:
    """With files in another folder, and the provider's keys in one of them."""
    for name, content in {
        "server.pem": CHAIN,
        "server.key": KEY,
        "ca.pem": CA.pem,
        "revoked.pem": CA.revocation_list(),
        "users": USERS.encode(),
        "keys.json": tokens.key_set(),
    }.items():
        (tmp_path / name).write_bytes(content)
    variables = {name: text.replace("/etc/kafscale", str(tmp_path)) for name, text in examples()[heading].items()}
    settings = resolve({}, variables).settings
    assert [(one.protocol, one.principal_source) for one in listeners_of(settings)] == SET_UPS[heading]
    if variables.pop("KAFSCALE_SASL_OAUTHBEARER_JWKS_URL", None):
        settings = resolve(
            {}, variables | {"KAFSCALE_SASL_OAUTHBEARER_JWKS_FILE": str(tmp_path / "keys.json")}
        ).settings
    load(settings)


def test_the_start_says_what_clients_need() -> None:
    """A command to copy where it would work; else where the settings are."""
    lines = {heading: first_try(listeners_of(resolve({}, examples()[heading]).settings)[0]) for heading in SET_UPS}
    assert "kcat -P -b 10.0.0.5:9092" in lines["A private network that is trusted"]
    assert "SASL_SSL: docs/clients.md" in lines["Passwords"]

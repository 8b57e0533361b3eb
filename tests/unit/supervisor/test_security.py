"""Goal: nothing is served with a certificate, key or credential that is missing or not sound; what changes later is
taken over soon, and what breaks later changes nothing but an alarm.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.config.listeners import parse_listeners
from kafscale.control import Security
from kafscale.errors import KafscaleError, StartError, UsageError
from kafscale.security.credentials import format_credential, make_credential
from kafscale.storage.threads import Threads
from supervisor import security as security_module
from supervisor.security import SecurityWatch
from supervisor.signing_keys import KEYS_BYTES_MAX
from tests.unit.security import tokens
from tests.unit.security.certificates import Authority, encrypted

CA = Authority()
CHAIN, KEY = CA.server()
USERS = format_credential("alice", "SCRAM-SHA-256", make_credential("SCRAM-SHA-256", "x", b"salt"))
LISTENERS = (
    "mutual://127.0.0.1:1?protocol=SASL_SSL&mechanisms=SCRAM-SHA-256,OAUTHBEARER,"
    "certified://127.0.0.1:2?protocol=SSL&principal_mapping_rules=RULE:^CN=(.*)$/%241/"
)


class Files:
    """A folder with all that a broker with every kind of listener needs, and the settings that name it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("server.pem", CHAIN)
        self.write("server.key", encrypted(KEY, b"key password"))
        self.write("password", b"key password\n")
        self.write("ca.pem", CA.pem)
        self.write("revoked.pem", CA.revocation_list())
        self.write("users", USERS.encode())
        self.write("keys.json", tokens.key_set())

    def write(self, name: str, content: bytes) -> None:
        """In one step, with another inode, as Kubernetes does."""
        (self.folder / f".{name}").write_bytes(content)
        os.replace(self.folder / f".{name}", self.folder / name)

    def settings(self, **changed: Any) -> Settings:
        path = self.folder
        given: dict[str, Any] = {
            "listeners": parse_listeners(LISTENERS),
            "broker_tls_cert_file": str(path / "server.pem"),
            "broker_tls_key_file": str(path / "server.key"),
            "broker_tls_key_password_file": str(path / "password"),
            "broker_tls_client_ca_file": str(path / "ca.pem"),
            "broker_tls_crl_file": str(path / "revoked.pem"),
            "sasl_credentials_file": str(path / "users"),
            "sasl_oauthbearer_jwks_file": str(path / "keys.json"),
            "security_check_interval_ms": 20,
        }
        return Settings(**(given | changed))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


class Watching:
    """A watch at work, and what it has said."""

    def __init__(self, settings: Settings) -> None:
        self.published: list[Security] = []
        self.reloads: list[tuple[str, str]] = []
        self.watch = SecurityWatch(
            settings,
            SystemClock(),
            Threads("test-files", 1),
            self.published.append,
            lambda what, cause: self.reloads.append((what, cause)),
        )
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watching:
        await self.watch.load()
        self._task = asyncio.ensure_future(self.watch.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.watch._threads.close()

    async def until(self, condition: Callable[[], Any]) -> None:
        assert self._task is not None
        async with asyncio.timeout(20):
            while not condition():
                assert not self._task.done(), "the watch has ended"
                await asyncio.sleep(0.005)


def load(settings: Settings) -> Security:
    """What a start would be given."""

    async def run() -> Security:
        async with Watching(settings) as watching:
            return watching.watch.security

    return asyncio.run(run())


def test_what_is_sound_is_loaded(files: Files) -> None:
    """Every file reaches the workers, each in its place."""
    found = load(files.settings())
    for name in ("mutual", "certified"):
        one = found.tls[name]
        assert (one.certificate, one.key_password, one.client_ca) == (CHAIN, "key password", CA.pem)
        assert one.revoked
    assert [(one.user, one.mechanism) for one in found.credentials] == [("alice", "SCRAM-SHA-256")]
    assert json.loads(found.signing_keys)["keys"]


@pytest.mark.parametrize(
    "name", ["server.pem", "server.key", "password", "ca.pem", "revoked.pem", "users", "keys.json"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "folder", "other text", "not text", "cut off"])
def test_what_is_not_sound_stops_the_start(files: Files, name: str, damage: str) -> None:
    """Each file, broken in each way: no start, and one line that names the file."""
    path = files.folder / name
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "empty":
            path.write_bytes(b" \n")
        case "folder":
            path.mkdir()
        case "other text":
            path.write_bytes(b"# nothing\nof the kind\n")
        case "not text":
            path.write_bytes(bytes(range(128, 256)))
        case "cut off":
            path.write_bytes(content[: len(content) // 2])
    if name == "password" and damage in ("other text", "cut off", "empty"):
        # Texts all of them, and wrong ones: it is the key that can't be opened.
        name = "password" if damage == "empty" else "server.key"
    with pytest.raises(UsageError) as caught:
        load(files.settings())
    text = str(caught.value)
    assert name in text and "\n" not in text and len(text) < 400
    assert "key password" not in text.replace("server.key", "")


def test_an_unreadable_file_stops_the_start(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions are looked at by reading (who runs tests as root may read everything, so the error is made)."""
    real = Path.open

    def opened(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == "server.key":
            raise PermissionError(13, "Permission denied")
        return real(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(UsageError, match=r"server\.key.*Permission denied"):
        load(files.settings())


def test_wrong_rules_stop_the_start(files: Files) -> None:
    """A principal mapping rule that can't be read is named with its listener."""
    broken = LISTENERS.replace("RULE:^CN=(.*)$/%241/", "RULE:^CN=((.*)$/%241/")
    with pytest.raises(UsageError, match="listener certified: principal_mapping_rules"):
        load(files.settings(listeners=parse_listeners(broken)))


def test_changes_are_taken_over(files: Files) -> None:
    """Certificate and key, CA, list of revoked ones, users and keys: each change reaches the workers by itself."""

    async def run() -> None:
        async with Watching(files.settings()) as watching:
            chain, key = CA.server()
            files.write("server.key", encrypted(key, b"key password"))
            await watching.until(lambda: watching.watch.has_failed)
            assert watching.published == [], "certificate and key are of different days"
            files.write("server.pem", chain)
            await watching.until(lambda: watching.published)
            assert watching.published[-1].tls["mutual"].certificate == chain
            assert not watching.watch.has_failed
            for name, content, has_come in (
                (
                    "ca.pem",
                    CA.pem + Authority("Next").pem,
                    lambda found: b"".join([CA.pem]) != found.tls["mutual"].client_ca,
                ),
                ("users", USERS.replace("alice", "bob").encode(), lambda found: found.credentials[0].user == "bob"),
                (
                    "keys.json",
                    tokens.key_set(tokens.EC),
                    lambda found: len(json.loads(found.signing_keys)["keys"]) == 1,
                ),
            ):
                before = len(watching.published)
                files.write(name, content)
                await watching.until(lambda before=before: len(watching.published) > before)  # type: ignore[misc]
                assert has_come(watching.published[-1])
            assert [cause for _, cause in watching.reloads if not cause] == [""] * 4

    asyncio.run(run())


def test_what_breaks_later_changes_nothing(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """Half a file, or none: an alarm that names it, once and not all the time; the workers keep what they have. Mended,
    all is well again."""

    async def run() -> None:
        async with Watching(files.settings()) as watching:
            good = watching.watch.security
            content = (files.folder / "users").read_bytes()
            files.write("users", content[:30])
            await watching.until(lambda: watching.watch.failure_count >= 3)
            assert watching.published == [] and watching.watch.security == good
            assert watching.watch.has_failed
            (what, cause) = watching.reloads[0]
            assert len(watching.reloads) == 1 and "users" in cause and what == security_module.FILES
            files.write("users", content)
            await watching.until(lambda: not watching.watch.has_failed)
            assert watching.published == []

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert len([one for one in caplog.records if "can't be used" in one.message]) == 1


def test_expiry_is_warned_of(files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that ends within thirty days is named at the start, one that has ended as an error, and not again
    with every look."""
    expires_at = datetime.now(UTC) + timedelta(days=29)
    for moment, level in ((expires_at, "WARNING"), (datetime.now(UTC) - timedelta(days=1), "ERROR")):
        caplog.clear()
        # The chain's own end is years away.
        monkeypatch.setattr(security_module.SecurityWatch, "expires_at", {"mutual": moment})

        async def run() -> None:
            async with Watching(files.settings()) as watching:
                for _ in range(3):
                    watching.watch.reload()
                    await asyncio.sleep(0)
                files.write("users", USERS.replace("alice", f"u{time.time_ns()}").encode())
                await watching.until(lambda: watching.published)

        asyncio.run(run())
        found = [(one.levelname, one.listener) for one in caplog.records if "expire" in one.message]  # type: ignore[attr-defined]
        assert found == [(level, "mutual")]


def test_when_the_first_certificate_of_a_chain_ends(files: Files) -> None:
    """That is what is shown for each listener with TLS."""

    async def run() -> dict[str, datetime]:
        async with Watching(files.settings()) as watching:
            return watching.watch.expires_at

    found = asyncio.run(run())
    assert set(found) == {"mutual", "certified"} and found["mutual"] > datetime.now(UTC)


# Signing keys from a URL


class Provider:
    """Answers every GET with what it is set to, and counts."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 200, {"Content-Type": "application/json"}, tokens.key_set(tokens.EC)
        self.asked: list[str] = []
        self.url = ""


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            self.send_response(made.status)
            for name, value in made.headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(made.body)
            except ConnectionError:
                pass

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with _serving(Handler) as url:
        made.url = url
        yield made


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def by_url(files: Files, provider: Provider, **changed: Any) -> Settings:
    return files.settings(sasl_oauthbearer_jwks_file=None, sasl_oauthbearer_jwks_url=f"{provider.url}/keys", **changed)


def test_keys_are_fetched(files: Files, provider: Provider) -> None:
    """Before the start, and again when they are due."""

    async def run() -> None:
        settings = by_url(files, provider, sasl_oauthbearer_jwks_refresh_ms=20)
        async with Watching(settings) as watching:
            assert watching.watch.security.signing_keys == tokens.key_set(tokens.EC)
            provider.body = tokens.key_set(tokens.RSA)
            await watching.until(lambda: watching.published)
            assert watching.published[-1].signing_keys == provider.body

    asyncio.run(run())
    assert set(provider.asked) == {"/keys"} and len(provider.asked) >= 2


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"status": 500}, "status 500"),
        # Followed to wherever somebody says, it would be no longer the operator's URL.
        ({"status": 302, "headers": {"Location": "/elsewhere"}}, "status 302"),
        ({"body": b"not JSON"}, "not JSON"),
        ({"body": b'{"keys": []}'}, "no public key"),
        ({"body": b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}'}, "no public key"),
        ({"body": b" " * (KEYS_BYTES_MAX + 1)}, "bytes"),
    ],
)
def test_without_keys_there_is_no_start(files: Files, provider: Provider, changed: dict[str, Any], why: str) -> None:
    """Case 45: no keys, no start; and later on, the keys that there are stay."""
    good = vars(provider).copy()
    vars(provider).update(changed)
    with pytest.raises(StartError, match=why):
        load(by_url(files, provider))
    assert len(provider.asked) == 1
    vars(provider).update(good)

    async def run() -> None:
        async with Watching(by_url(files, provider, sasl_oauthbearer_jwks_refresh_ms=20)) as watching:
            vars(provider).update(changed)
            await watching.until(lambda: watching.watch.failure_count)
            assert watching.watch.security.signing_keys == tokens.key_set(tokens.EC)
            assert watching.published == []
            assert any(why in cause for _, cause in watching.reloads)

    asyncio.run(run())


def test_a_provider_that_is_not_there(files: Files, provider: Provider) -> None:
    """No start, and a line that names setting and URL."""
    provider.url = "http://127.0.0.1:9"
    with pytest.raises(KafscaleError, match=r"sasl_oauthbearer_jwks_url: cannot read http://127\.0\.0\.1:9/keys"):
        load(by_url(files, provider))


def test_an_unknown_key_is_looked_for(files: Files, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a client's token names one, and not for every such token: a client could have the provider asked all day."""
    monkeypatch.setattr(security_module, "FETCH_INTERVAL_SECONDS_MIN", 0.5)

    async def run() -> None:
        async with Watching(by_url(files, provider)) as watching:
            provider.body = tokens.key_set(tokens.EC, tokens.RSA)
            began = time.monotonic()
            while not watching.published:
                watching.watch.want_keys()
                await asyncio.sleep(0.005)
                assert time.monotonic() - began < 20
            assert time.monotonic() - began >= 0.4
            assert len(provider.asked) == 2
            assert watching.published[-1].signing_keys == provider.body

    asyncio.run(run())

"""Certificates, keys and credentials while the broker runs: loaded before anything is served, looked at again and
again, and handed to the workers whenever they have changed.

Owns the newest `Security` that was found sound. A start without it fails. Later, what is wrong is logged and counted,
and the workers go on with what they have: a half-written file costs nobody a connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.config.listeners import listeners_of, mechanisms_of
from kafscale.control import Security
from kafscale.errors import KafscaleError
from kafscale.logs import RateLimited
from kafscale.storage.threads import Threads
from supervisor.security_files import Loaded, SecurityFiles
from supervisor.signing_keys import fetch_signing_keys

log = logging.getLogger(__name__)

EXPIRY_WARNING: Final = timedelta(days=30)
EXPIRY_WARNING_INTERVAL_SECONDS: Final = 24 * 3600.0
FAILURE_INTERVAL_SECONDS: Final = 60.0
# A token with an unknown key makes us look for new ones, but not more often than this.
FETCH_INTERVAL_SECONDS_MIN: Final = 10.0
FILES: Final = "certificates, keys and credentials"
SIGNING_KEYS: Final = "signing keys"


class SecurityWatch:
    """`load` before the first worker is configured, then `run` until the broker drains. `publish` is called with every
    `Security` after the first; `on_reload`, for an audit, with what was read anew, and why it was refused if it was."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        files: Threads,
        publish: Callable[[Security], None],
        on_reload: Callable[[str, str], None] = lambda what, cause: None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._threads = files
        self._publish = publish
        self._on_reload = on_reload
        # What was refused last, by what it was, and why.
        self._last_refused: dict[str, str] = {}
        self._files = SecurityFiles(settings, listeners_of(settings))
        self._has_url = settings.sasl_oauthbearer_jwks_url is not None and "OAUTHBEARER" in mechanisms_of(settings)
        self._loaded: Loaded | None = None
        self._fetched = b""
        self._fetched_at = 0.0
        self._are_keys_wanted = False
        self._is_reload_asked_for = False
        self._woken = asyncio.Event()
        self._failures = RateLimited(clock, FAILURE_INTERVAL_SECONDS)
        self._expiries = RateLimited(clock, EXPIRY_WARNING_INTERVAL_SECONDS)
        self.reload_count = 0
        self.failure_count = 0
        self.has_failed = False

    @property
    def security(self) -> Security:
        """What workers are to go by."""
        assert self._loaded is not None
        found = self._loaded.security
        return msgspec.structs.replace(found, signing_keys=self._fetched) if self._has_url else found

    @property
    def expires_at(self) -> dict[str, datetime]:
        """When the first certificate of each listener with TLS ends."""
        return {} if self._loaded is None else self._loaded.expires_at

    async def load(self) -> None:
        """Read everything for the first time. Raises UsageError and StartError."""
        self._loaded = await self._threads.call(self._files.load)
        if self._has_url:
            self._fetched = await fetch_signing_keys(self._settings)
            self._fetched_at = self._clock.monotonic()
        self._warn_of_expiry()

    def reload(self) -> None:
        """Look at everything now, whether it seems to have changed or not."""
        self._is_reload_asked_for = True
        self._woken.set()

    def want_keys(self) -> None:
        """A client's token was signed with a key that is not known."""
        if self._has_url:
            self._are_keys_wanted = True
            self._woken.set()

    async def run(self) -> None:
        while True:
            timer = self._clock.call_later(self._settings.security_check_interval_ms / 1000, self._woken.set)
            try:
                await self._woken.wait()
            finally:
                timer.cancel()
            self._woken.clear()
            before = self.security
            asked, self._is_reload_asked_for = self._is_reload_asked_for, False
            await self._look_at_files(asked)
            await self._look_for_keys(asked)
            if self.security != before:
                self.reload_count += 1
                self._on_reload(FILES, "")
                log.info("certificates, keys or credentials have changed", extra={"listeners": len(self.expires_at)})
                self._publish(self.security)
            self._warn_of_expiry()

    async def _look_at_files(self, asked: bool) -> None:
        # One that failed is tried again: perhaps a file was only half written.
        if not (asked or self.has_failed or await self._threads.call(self._files.have_changed)):
            return
        try:
            self._loaded = await self._threads.call(self._files.load)
            self.has_failed = False
            self._last_refused.pop(FILES, None)
        except Exception as error:  # noqa: BLE001 - whatever a file holds, the broker goes on with what it has
            self.has_failed = True
            self.failure_count += 1
            cause = str(error) if isinstance(error, KafscaleError) else repr(error)
            self._refused(FILES, cause)
            self._failures.log(
                log, logging.ERROR, "security files can't be used; what was loaded stays", key="files", cause=cause
            )

    async def _look_for_keys(self, asked: bool) -> None:
        if not self._has_url:
            return
        age = self._clock.monotonic() - self._fetched_at
        is_due = age * 1000 >= self._settings.sasl_oauthbearer_jwks_refresh_ms
        is_wanted = self._are_keys_wanted and age >= FETCH_INTERVAL_SECONDS_MIN
        if not (asked or is_due or is_wanted):
            return
        self._are_keys_wanted = False
        # Counted from the attempt, so that a provider that is down is not asked all the time.
        self._fetched_at = self._clock.monotonic()
        try:
            self._fetched = await fetch_signing_keys(self._settings)
            self._last_refused.pop(SIGNING_KEYS, None)
        except KafscaleError as error:
            self.failure_count += 1
            self._refused(SIGNING_KEYS, str(error))
            self._failures.log(
                log, logging.ERROR, "signing keys can't be fetched; those there are stay", key="keys", cause=str(error)
            )

    def _refused(self, what: str, cause: str) -> None:
        """A file that stays bad is tried again and again: once is enough to tell."""
        if self._last_refused.get(what) != cause:
            self._last_refused[what] = cause
            self._on_reload(what, cause)

    def _warn_of_expiry(self) -> None:
        now = datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC)
        for listener, expires_at in self.expires_at.items():
            if expires_at - now < EXPIRY_WARNING:
                is_over = expires_at <= now
                message = "a certificate has expired" if is_over else "a certificate expires soon"
                level = logging.ERROR if is_over else logging.WARNING
                self._expiries.log(
                    log, level, message, key=(listener, is_over), listener=listener, expires_at=expires_at.isoformat()
                )

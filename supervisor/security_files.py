"""The files of certificates, keys and credentials: read, judged, and read again when they change.

Blocks: called from a thread. Owns nothing but what it last saw of the files. What can't be read or is not sound is
refused as a whole, so that certificate and key, or a CA and its revocation list, are never of different days; whoever
calls keeps what it had.
"""

from __future__ import annotations

import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from kafscale.config import Settings
from kafscale.config.listeners import ListenerSettings, mechanisms_of
from kafscale.control import Credential, Security, TlsFiles
from kafscale.errors import UsageError

log = logging.getLogger(__name__)

FILE_BYTES_MAX: Final = 16 << 20

# A file's number, size and time of change, or why it can't be seen.
_Seen = tuple[int, int, int] | str


class Loaded(NamedTuple):
    """What the files say. `expires_at` is when the first certificate of each listener with TLS ends."""

    security: Security
    expires_at: dict[str, datetime]


class SecurityFiles:
    """The files that the settings name."""

    def __init__(self, settings: Settings, listeners: tuple[ListenerSettings, ...]) -> None:
        self._settings = settings
        self._listeners = listeners
        self._needs_keys = "OAUTHBEARER" in mechanisms_of(settings)
        self._seen: dict[str, _Seen] = {}

    @property
    def paths(self) -> list[str]:
        settings = self._settings
        found = [settings.sasl_credentials_file, settings.broker_tls_key_password_file]
        if self._needs_keys:
            found.append(settings.sasl_oauthbearer_jwks_file)
        for one in self._listeners:
            found += [one.tls_cert_file, one.tls_key_file, one.tls_key_password_file]
            found += [one.tls_client_ca_file, one.tls_crl_file]
        return sorted({path for path in found if path is not None})

    def have_changed(self) -> bool:
        """Whether a file is not as it was when `load` was last called."""
        return self._look() != self._seen

    def load(self) -> Loaded:
        """Read everything. Raises UsageError, which names the setting, the file and what is wrong with it."""
        self._seen = self._look()
        tls: dict[str, TlsFiles] = {}
        expires_at: dict[str, datetime] = {}
        for listener in self._listeners:
            self._check_rules(listener)
            if listener.has_tls:
                tls[listener.name], expires_at[listener.name] = self._load_tls(listener)
        return Loaded(Security(tls, self._load_keys(), self._load_credentials()), expires_at)

    def _look(self) -> dict[str, _Seen]:
        seen: dict[str, _Seen] = {}
        for path in self.paths:
            try:
                status = os.stat(path)
            except OSError as error:
                seen[path] = error.strerror or str(error)
            else:
                # Kubernetes changes a mounted secret by a link to another folder: the number changes.
                seen[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
        return seen

    def _load_tls(self, listener: ListenerSettings) -> tuple[TlsFiles, datetime]:
        from kafscale.security.tls import CertificateProblem, TlsMaterial, check, server_context

        settings = self._settings
        paths = {
            "certificate": listener.tls_cert_file,
            "key": listener.tls_key_file,
            "client_ca": listener.tls_client_ca_file,
            "revoked": listener.tls_crl_file,
        }
        contents = {part: _read(path, f"listener {listener.name}") for part, path in paths.items() if path is not None}
        material = TlsMaterial(
            contents["certificate"],
            contents["key"],
            self._key_password(listener),
            contents.get("client_ca"),
            contents.get("revoked"),
        )
        try:
            expires_at = check(material).expires_at
            server_context(
                material,
                listener.client_auth or "none",
                min_version=settings.broker_tls_min_version,
                is_strict=settings.broker_tls_strict,
            )
        except CertificateProblem as problem:
            raise UsageError(f"listener {listener.name}: {paths[problem.part]} {problem.reason}") from None
        return TlsFiles(*material), expires_at

    def _key_password(self, listener: ListenerSettings) -> str | None:
        if listener.tls_key_password_file is not None:
            text = _read(listener.tls_key_password_file, f"listener {listener.name}")
            try:
                # A line as `echo` writes it; spaces may belong to it.
                return text.decode().rstrip("\r\n")
            except UnicodeDecodeError:
                raise UsageError(f"{listener.tls_key_password_file}: the password in it is not UTF-8") from None
        # The setting's password is that of the setting's key.
        own_key = listener.tls_key_file != self._settings.broker_tls_key_file
        return None if own_key else self._settings.broker_tls_key_password

    def _check_rules(self, listener: ListenerSettings) -> None:
        if listener.principal_source != "mtls":
            return
        from kafscale.security.principal_rules import PrincipalRules

        try:
            PrincipalRules(listener.principal_mapping_rules or "DEFAULT")
        except ValueError as error:
            raise UsageError(f"listener {listener.name}: principal_mapping_rules: {error}") from None

    def _load_keys(self) -> bytes:
        path = self._settings.sasl_oauthbearer_jwks_file
        if path is None or not self._needs_keys:
            return b""
        content = _read(path, "sasl_oauthbearer_jwks_file")
        check_signing_keys(content, path)
        return content

    def _load_credentials(self) -> list[Credential]:
        from kafscale.security.credentials import parse_credentials

        path = self._settings.sasl_credentials_file
        if path is None:
            return []
        content = _read(path, "sasl_credentials_file")
        try:
            users = parse_credentials(content.decode())
        except (ValueError, UnicodeDecodeError) as error:
            reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            raise UsageError(f"sasl_credentials_file: {path}: {reason}") from None
        return [
            Credential(user, mechanism, *keys)
            for user, mechanisms in users.items()
            for mechanism, keys in mechanisms.items()
        ]


def check_signing_keys(content: bytes, where: str) -> None:
    """Raises UsageError if these are no keys that tokens could be checked with."""
    from kafscale.security.tokens import SigningKeys

    try:
        SigningKeys(content)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def _read(path: str, setting: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{setting}: cannot read {path!r}: {error.strerror or error}") from None
    if len(content) > FILE_BYTES_MAX:
        raise UsageError(f"{setting}: {path!r} is larger than {FILE_BYTES_MAX} bytes")
    if not content.strip():
        raise UsageError(f"{setting}: {path!r} is empty")
    return content

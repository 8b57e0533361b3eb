"""TLS contexts for listeners: what is offered, whose client certificates count, and whether the files that say so are
sound.

From bytes to `ssl.SSLContext`; files are read elsewhere. TLS 1.2 and 1.3, ciphers that authenticate the data (AEAD)
and forward secrecy alone, no renegotiation, no compression, no resumption of sessions whose connection has ended: a
certificate that was revoked would live on in those. A context is never changed: when a certificate, key, CA or
revocation list changes, another is made of all of them, and new connections begin with it.

OpenSSL wants names of files where Python's `ssl` has no way for bytes, so they are handed over as memory files: no key
is written to a disk, and certificate and key are always of one piece.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

ClientCertificates = Literal["none", "requested", "required"]

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
RSA_BITS_MIN: Final = 2048
_LAST_WORDS: Final = "last_words"
EC_BITS_MIN: Final = 256
_VERIFY_MODES: Final = {
    "none": ssl.CERT_NONE,
    "requested": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


class TlsMaterial(NamedTuple):
    """What a listener's files hold, all PEM. Without `client_ca` no client certificate is asked for."""

    certificate: bytes
    key: bytes
    key_password: str | None = None
    client_ca: bytes | None = None
    revoked: bytes | None = None

    def __repr__(self) -> str:
        return "TlsMaterial(…)"


class CertificateProblem(Exception):
    """A file is not what it should be. `part` is the field of `TlsMaterial` that must be mended."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(reason)
        self.part = part
        self.reason = reason


class Checked(NamedTuple):
    """What was found out about sound material: when the first certificate of the chain to end does."""

    expires_at: datetime


def check(material: TlsMaterial) -> Checked:
    """Look at every part by itself, so that what is wrong can be named. Raises CertificateProblem."""
    chain = _certificates("certificate", material.certificate)
    key = _private_key(material)
    if key.public_key() != chain[0].public_key():
        raise CertificateProblem("key", "is not the key of the certificate")
    if material.client_ca is not None:
        _certificates("client_ca", material.client_ca)
    if material.revoked is not None:
        if material.client_ca is None:
            raise CertificateProblem("revoked", "says which client certificates are revoked, and no CA for any is set")
        try:
            x509.load_pem_x509_crl(material.revoked)
        except ValueError as error:
            raise CertificateProblem("revoked", f"holds no certificate revocation list in PEM ({error})") from None
    return Checked(min(certificate.not_valid_after_utc for certificate in chain))


def last_words(error: Exception) -> bytes:
    """What a context of ours wanted to tell a client whose handshake came to `error`: TLS's alert, or nothing."""
    return getattr(error, _LAST_WORDS, b"")


class _ServerObject(ssl.SSLObject):
    """Two things that event loops and Python's `ssl` leave no other way for. They close a connection whose handshake
    fails, and with it goes the alert that OpenSSL has made ready and that would tell the client why: it is put with the
    error. And in TLS 1.2 OpenSSL keeps sessions to be resumed, up to eleven kilobytes each, twenty thousand of them,
    but none of a connection that did not say goodbye; so none is said there. That nothing was cut off, frames tell."""

    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            setattr(error, _LAST_WORDS, self.outgoing.read())
            raise

    def unwrap(self) -> None:
        if self.version() != "TLSv1.2":
            super().unwrap()


class _ServerContext(ssl.SSLContext):
    sslobject_class = _ServerObject

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *arguments: Any, **named: Any
    ) -> _ServerObject:
        made = super().wrap_bio(incoming, outgoing, *arguments, **named)
        assert isinstance(made, _ServerObject)
        made.outgoing = outgoing
        return made


def server_context(
    material: TlsMaterial,
    client_certificates: ClientCertificates = "none",
    *,
    min_version: Literal["1.2", "1.3"] = "1.2",
    is_strict: bool = True,
) -> ssl.SSLContext:
    """A listener's context. `is_strict`: client certificates must follow RFC 5280 to the letter. Raises
    CertificateProblem; takes milliseconds, and longer for a key with a password."""
    context = _ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= (
        ssl.OP_NO_RENEGOTIATION
        | ssl.OP_NO_COMPRESSION
        | ssl.OP_NO_TICKET
        | ssl.OP_SINGLE_ECDH_USE
        | ssl.OP_CIPHER_SERVER_PREFERENCE
    )
    context.num_tickets = 0
    try:
        with _memory_file(material.certificate) as certificate, _memory_file(material.key) as key:
            # Never without a password: OpenSSL would ask the terminal for it.
            context.load_cert_chain(certificate, key, material.key_password or "")
    except ssl.SSLError as error:
        raise CertificateProblem("certificate", f"can't be used with its key ({_reason(error)})") from None
    if client_certificates != "none":
        _verify_clients(context, material, is_strict)
        context.verify_mode = _VERIFY_MODES[client_certificates]
    return context


def _verify_clients(context: ssl.SSLContext, material: TlsMaterial, is_strict: bool) -> None:
    if material.client_ca is None:
        raise CertificateProblem("client_ca", "is missing: certificates of clients are asked for")
    try:
        context.load_verify_locations(cadata=material.client_ca.decode("ascii", "replace"))
    except ssl.SSLError as error:
        raise CertificateProblem("client_ca", f"can't be used ({_reason(error)})") from None
    if is_strict:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    if material.revoked is not None:
        try:
            with _memory_file(material.revoked) as revoked:
                context.load_verify_locations(cafile=revoked)
        except ssl.SSLError as error:
            raise CertificateProblem("revoked", f"can't be used ({_reason(error)})") from None
        # Of every CA in a chain: whoever has no list, or an old one, vouches for nobody.
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def _certificates(part: str, pem: bytes) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateProblem(part, f"holds no certificate in PEM ({error})") from None
    if not found:
        raise CertificateProblem(part, "holds no certificate in PEM")
    return found


def _private_key(
    material: TlsMaterial,
) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey:
    password = None if material.key_password is None else material.key_password.encode()
    try:
        key = load_pem_private_key(material.key, password)
    except TypeError:
        # cryptography's way to say that there is a password and none is needed, or the other way round.
        if password is None:
            raise CertificateProblem("key", "is encrypted, and no password for it is set") from None
        return _private_key(material._replace(key_password=None))
    except (ValueError, UnsupportedAlgorithm) as error:
        if password is not None and b"ENCRYPTED" in material.key:
            raise CertificateProblem("key", "can't be decrypted with the password that is set") from None
        raise CertificateProblem("key", f"holds no private key in PEM ({type(error).__name__})") from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < RSA_BITS_MIN:
            raise CertificateProblem("key", f"is an RSA key of {key.key_size} bits; it must have {RSA_BITS_MIN}")
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        if key.key_size < EC_BITS_MIN:
            raise CertificateProblem("key", f"is an EC key of {key.key_size} bits; it must have {EC_BITS_MIN}")
    elif not isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        raise CertificateProblem("key", f"is a key of a kind that TLS does not use ({type(key).__name__})")
    return key


@contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """The name of a file that exists in memory, for this process, for as long as the context lasts."""
    descriptor = os.memfd_create("kafscale-tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _reason(error: ssl.SSLError) -> str:
    return error.reason or str(error)

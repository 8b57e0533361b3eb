"""Certificates of every kind the tests need: good ones by trustme, and wrong ones made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT_AUTH, SERVER_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


class Authority:
    """A CA: issues certificates by the book, and others that no CA should."""

    def __init__(self, name: str = "Test CA") -> None:
        self.ca = trustme.CA(organization_name=name, key_type=trustme.KeyType.ECDSA)
        self.pem = self.ca.cert_pem.bytes()
        self._certificate = x509.load_pem_x509_certificate(self.pem)
        self._key: Any = load_pem_private_key(self.ca.private_key_pem.bytes(), None)

    def server(self, *names: str, **arguments: Any) -> tuple[bytes, bytes]:
        """(certificate chain, key) of a server, PEM."""
        issued = self.ca.issue_cert(*(names or ("localhost", "127.0.0.1", "::1")), key_type=trustme.KeyType.ECDSA)
        return b"".join(part.bytes() for part in issued.cert_chain_pems), issued.private_key_pem.bytes()

    def client(
        self,
        subject: str | x509.Name = "alice",
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        usage: Sequence[x509.ObjectIdentifier] = (CLIENT_AUTH,),
    ) -> tuple[bytes, bytes]:
        """(certificate, key) of a client, PEM; `subject` is a common name or a whole Name."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]) if isinstance(subject, str) else subject
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or now - timedelta(days=1))
            .not_valid_after(not_after or now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.ExtendedKeyUsage(list(usage)), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), private_pem(key)

    def revocation_list(self, *revoked: bytes, next_update: datetime | None = None) -> bytes:
        """A CRL of the certificates given, PEM."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - timedelta(days=1))
            .next_update(next_update or now + timedelta(days=1))
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        for pem in revoked:
            certificate = x509.load_pem_x509_certificate(pem)
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(now - timedelta(hours=1))
                .build()
            )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def private_pem(key: Any, password: bytes | None = None) -> bytes:
    """A key as PEM, encrypted if there is a password."""
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def encrypted(key_pem: bytes, password: bytes) -> bytes:
    return private_pem(load_pem_private_key(key_pem, None), password)

"""Goal: a certificate's subject reads as Java, and so Kafka, writes it; subjects that differ never read the same."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type as Form
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from kafscale.errors import ProtocolError
from kafscale.security.distinguished_names import rfc2253_name, subject_of
from tests.unit.security.certificates import Authority

CN, ORG, OU = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME


def name_of(*parts: tuple[x509.ObjectIdentifier, str]) -> bytes:
    return x509.Name([x509.NameAttribute(kind, text, _validate=False) for kind, text in parts]).public_bytes()


@pytest.mark.parametrize(
    ("der", "text"),
    [
        (name_of((NameOID.COUNTRY_NAME, "DE"), (ORG, "Acme"), (CN, "alice")), "CN=alice,O=Acme,C=DE"),
        (name_of((CN, "admin,OU=x")), r"CN=admin\,OU\=x"),
        (name_of((OU, "x"), (CN, "admin")), "CN=admin,OU=x"),
        (name_of((CN, ' #a\\b"c+d;e<f> ')), r"CN=\ \#a\\b\"c\+d\;e\<f\>\ "),
        (name_of((CN, "nul\0byte")), r"CN=nul\00byte"),
        (name_of((CN, "jürgen")), "CN=jürgen"),
        (name_of((NameOID.EMAIL_ADDRESS, "a@b")), "1.2.840.113549.1.9.1=#1603614062"),
        (name_of((NameOID.USER_ID, "u1"), (NameOID.DOMAIN_COMPONENT, "example")), "DC=example,UID=u1"),
        (name_of(), ""),
    ],
)
def test_names(der: bytes, text: str) -> None:
    """Most specific first, no spaces, escapes, unknown attributes in hexadecimal."""
    assert rfc2253_name(der) == text


def test_several_attributes_in_one_part() -> None:
    """A part of two attributes is joined by a plus sign, which no value holds unescaped."""
    part = x509.RelativeDistinguishedName([x509.NameAttribute(CN, "a"), x509.NameAttribute(OU, "b")])
    assert sorted(rfc2253_name(x509.Name([part]).public_bytes()).split("+")) == ["CN=a", "OU=b"]


def test_the_subject_of_a_certificate() -> None:
    """It is found in the certificate as it stands there."""
    pem, _ = Authority().client("alice, or so")
    certificate = x509.load_pem_x509_certificate(pem)
    assert subject_of(certificate.public_bytes(Encoding.DER)) == certificate.subject.public_bytes()


texts = st.text(st.sampled_from('ab ,+"\\<>;#=/üж用\n\r\t\0'), min_size=1, max_size=8)
parts = st.lists(st.tuples(st.sampled_from([CN, ORG, OU, NameOID.SERIAL_NUMBER]), texts), min_size=1, max_size=4)


@given(parts, parts)
def test_different_names_read_differently(
    first: list[tuple[x509.ObjectIdentifier, str]], second: list[tuple[x509.ObjectIdentifier, str]]
) -> None:
    assert (rfc2253_name(name_of(*first)) == rfc2253_name(name_of(*second))) == (first == second)


cut_or_longer = st.builds(
    lambda end, behind: name_of((CN, "a"), (ORG, "b"))[:end] + behind, st.integers(0, 40), st.binary(max_size=20)
)


@given(st.one_of(st.binary(max_size=80), cut_or_longer))
def test_rubbish(data: bytes) -> None:
    """Bytes that are no Name raise the protocol error and nothing else."""
    for read in (rfc2253_name, subject_of):
        try:
            read(data)
        except ProtocolError:
            pass


@pytest.mark.java
@pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime")
def test_as_java_writes_them() -> None:
    """Five hundred random names, of all forms, character for character."""
    choose = random.Random(20261122)
    names = [_random_name(choose) for _ in range(500)]
    done = subprocess.run(
        ["java", str(Path(__file__).with_name("JavaNames.java"))],
        input="\n".join(name.hex() for name in names),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    theirs = [bytes.fromhex(line).decode() for line in done.stdout.splitlines()]
    assert [rfc2253_name(name) for name in names] == theirs


def _random_name(choose: random.Random) -> bytes:
    kinds = [CN, ORG, OU, NameOID.LOCALITY_NAME, NameOID.STREET_ADDRESS, NameOID.DOMAIN_COMPONENT, NameOID.USER_ID]
    kinds += [NameOID.EMAIL_ADDRESS, NameOID.SERIAL_NUMBER, x509.ObjectIdentifier("2.999.3")]
    found = []
    for _ in range(choose.randint(1, 4)):
        attributes = []
        for kind in choose.sample(kinds, choose.choice([1, 1, 1, 2])):
            text = "".join(choose.choice('ab ,+"\\<>;#=/üж用\n\r\t\0') for _ in range(choose.randint(1, 8)))
            form = choose.choice([Form.UTF8String, Form.UTF8String, Form.PrintableString, Form.IA5String])
            if form is not Form.UTF8String:
                text = text.encode("ascii", "ignore").decode() or "x"
            attributes.append(x509.NameAttribute(kind, text, form, _validate=False))
        found.append(x509.RelativeDistinguishedName(attributes))
    return x509.Name(found).public_bytes()

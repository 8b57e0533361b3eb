"""Goal: only modern TLS is spoken, client certificates count only when all about them is right, and files that are not
sound are named before anything is served with them."""

from __future__ import annotations

import contextlib
import gc
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

from kafscale.security.tls import CertificateProblem, TlsMaterial, check, server_context
from tests.unit.security.certificates import SERVER_AUTH, Authority, encrypted, private_pem

CA = Authority()
SERVER = CA.server()


def material(**changed: object) -> TlsMaterial:
    return TlsMaterial(*SERVER)._replace(**changed)  # type: ignore[arg-type]


def client_context(**options: object) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=CA.pem.decode())
    for name, value in options.items():
        setattr(context, name, value)
    return context


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a TLS connection in memory, once a byte went each way. Raises SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    done: set[ssl.SSLObject] = set()
    for _ in range(20):
        for end in ends:
            if end not in done:
                try:
                    end.do_handshake()
                    done.add(end)
                except ssl.SSLWantReadError:
                    pass
        if len(done) == 2:
            break
    for one, other in (ends, ends[::-1]):
        one.write(b"x")
        assert other.read(1) == b"x"
    return ends


def test_the_newest_version_is_spoken() -> None:
    client, server = shake_hands(server_context(material()), client_context())
    assert client.version() == "TLSv1.3"
    assert server.compression() is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_ended_sessions_are_forgotten(version: ssl.TLSVersion) -> None:
    """Of a connection that has ended, in good order or not, nothing is kept that another could go on from."""
    server = server_context(material())
    limits = client_context(minimum_version=version, maximum_version=version)
    for is_orderly in (False, True):
        ends = shake_hands(server, limits)
        for number in range(4 if is_orderly else 0):
            with contextlib.suppress(ssl.SSLError):
                ends[number % 2].unwrap()
        del ends
        gc.collect()
        assert server.session_stats()["number"] == 0


def test_scan_of_versions() -> None:
    """TLS 1.2 and 1.3 work; older ones don't, whatever the client is willing to do."""
    version = ssl.TLSVersion
    both = server_context(material())
    only_newest = server_context(material(), min_version="1.3")
    shake_hands(both, client_context(maximum_version=version.TLSv1_2))
    with pytest.raises(ssl.SSLError):
        shake_hands(only_newest, client_context(maximum_version=version.TLSv1_2))
    with pytest.warns(DeprecationWarning):
        old = client_context(minimum_version=version.TLSv1, maximum_version=version.TLSv1_1)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        shake_hands(both, old)


def test_scan_of_ciphers() -> None:
    """Of all that OpenSSL knows only AEAD ciphers with ephemeral keys are taken."""
    everything = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    everything.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    server = server_context(material())
    taken = set()
    for cipher in everything.get_ciphers():
        if cipher["protocol"] == "TLSv1.3":
            continue
        client = client_context(maximum_version=ssl.TLSVersion.TLSv1_2)
        client.set_ciphers(f"{cipher['name']}:@SECLEVEL=0")
        try:
            shake_hands(server, client)
        except ssl.SSLError:
            continue
        taken.add(cipher["name"])
        assert cipher["aead"]
        assert "ECDHE" in cipher["name"]
    assert taken
    assert all(cipher["aead"] for cipher in server.get_ciphers())


def test_sessions_are_not_resumed() -> None:
    """Nor are connections renegotiated: a revoked certificate must not live on."""
    server = server_context(material())
    for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        client = client_context(maximum_version=newest)
        _, end = shake_hands(server, client)
        assert not end.session_reused
    assert server.options & ssl.OP_NO_RENEGOTIATION
    assert server.options & ssl.OP_NO_TICKET
    assert server.num_tickets == 0


OTHER_CA = Authority("Other CA")
GOOD = CA.client()
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
CERTIFICATES = {
    "none": None,
    "good": GOOD,
    "of another CA": OTHER_CA.client(),
    "expired": CA.client(not_before=LONG_AGO, not_after=LONG_AGO + timedelta(days=9)),
    "not valid yet": CA.client(not_before=datetime.now(UTC) + timedelta(days=1)),
    "for servers only": CA.client(usage=[SERVER_AUTH]),
}
REVOKED = CA.client("mallory")


def client_with(certificate: tuple[bytes, bytes] | None, tmp_path: object) -> ssl.SSLContext:
    context = client_context()
    if certificate is not None:
        path = tmp_path / "client.pem"  # type: ignore[operator]
        path.write_bytes(b"".join(certificate))
        context.load_cert_chain(path)
    return context


@pytest.mark.parametrize("which", list(CERTIFICATES))
@pytest.mark.parametrize("mode", ["requested", "required"])
def test_client_certificates(which: str, mode: str, tmp_path: object) -> None:
    """Required: none but a good one will do. Requested: none at all will do too, but a bad one never."""
    server = server_context(material(client_ca=CA.pem), mode)  # type: ignore[arg-type]
    client = client_with(CERTIFICATES[which], tmp_path)
    if which == "good" or (which, mode) == ("none", "requested"):
        _, end = shake_hands(server, client)
        assert (end.getpeercert(binary_form=True) is None) == (which == "none")
    else:
        with pytest.raises(ssl.SSLError):
            shake_hands(server, client)


@pytest.mark.parametrize(
    ("revoked", "who", "gets_in"),
    [
        (CA.revocation_list(REVOKED[0]), GOOD, True),
        (CA.revocation_list(REVOKED[0]), REVOKED, False),
        (CA.revocation_list(next_update=datetime.now(UTC) - timedelta(hours=1)), GOOD, False),
        (OTHER_CA.revocation_list(), GOOD, False),
    ],
)
def test_revoked_certificates(revoked: bytes, who: tuple[bytes, bytes], gets_in: bool, tmp_path: object) -> None:
    """A revoked one is refused; so is any when the list has run out or is another CA's: what is broken denies."""
    server = server_context(material(client_ca=CA.pem, revoked=revoked), "required")
    client = client_with(who, tmp_path)
    if gets_in:
        shake_hands(server, client)
    else:
        with pytest.raises(ssl.SSLError):
            shake_hands(server, client)


def test_sound_files() -> None:
    """Everything set and right, the key encrypted: usable, and it is said when the first certificate ends."""
    password = "pass word"
    sound = material(
        key=encrypted(SERVER[1], password.encode()),
        key_password=password,
        client_ca=CA.pem,
        revoked=CA.revocation_list(),
    )
    assert check(sound).expires_at > datetime.now(UTC)
    shake_hands(server_context(sound), client_context())
    # A password that is not needed does no harm.
    assert check(material(key_password=password)).expires_at.tzinfo is UTC
    assert password not in repr(sound)


BROKEN = {
    "no certificate": (material(certificate=b"nonsense"), "certificate"),
    "a key for a certificate": (material(certificate=SERVER[1]), "certificate"),
    "no key": (material(key=b"nonsense"), "key"),
    "a certificate for a key": (material(key=SERVER[0]), "key"),
    "another's key": (material(key=CA.server()[1]), "key"),
    "an encrypted key without a password": (material(key=encrypted(SERVER[1], b"x")), "key"),
    "an encrypted key with a wrong one": (material(key=encrypted(SERVER[1], b"x"), key_password="y"), "key"),
    "a short RSA key": (material(key=private_pem(rsa.generate_private_key(65537, 1024))), "key"),
    "a short EC key": (material(key=private_pem(ec.generate_private_key(ec.SECP192R1()))), "key"),
    "a DSA key": (material(key=private_pem(dsa.generate_private_key(1024))), "key"),
    "no CA": (material(client_ca=b""), "client_ca"),
    "no revocation list": (material(client_ca=CA.pem, revoked=b"nonsense"), "revoked"),
    "a revocation list without a CA": (material(revoked=CA.revocation_list()), "revoked"),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_files_that_are_not_sound(what: str) -> None:
    """Each is refused, and the part to mend is named."""
    broken, part = BROKEN[what]
    with pytest.raises(CertificateProblem) as raised:
        check(broken)
    assert raised.value.part == part


def test_a_context_is_refused_too() -> None:
    """Whoever skips the check gets the same kind of error, and no question at the terminal."""
    for broken in (material(key=CA.server()[1]), material(key=encrypted(SERVER[1], b"x"))):
        with pytest.raises(CertificateProblem):
            server_context(broken)
    with pytest.raises(CertificateProblem):
        server_context(material(), "required")

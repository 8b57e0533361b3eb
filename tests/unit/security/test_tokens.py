"""Goal: a token opens only if one of the keys signed it and it says all it must; anything else is a TokenError."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import OctKey, RSAKey

from kafscale.security.tokens import Bearer, SigningKeys, TokenError, TokenRules, UnknownKey
from tests.unit.security.tokens import EC, ED, KEYS, NOW_MS, RSA, key_set, secret_token, token_of, unsigned_token

RULES = TokenRules(issuer="https://issuer", audience="kafka")


def bearer(token: str, rules: TokenRules = RULES, jwks: bytes | None = None) -> Bearer:
    return SigningKeys(jwks or key_set()).bearer_of(token, rules, NOW_MS)


@pytest.mark.parametrize("algorithm", list(KEYS))
def test_a_good_token(algorithm: str) -> None:
    """Signed by any key of the set, it names the bearer and its end."""
    assert bearer(token_of(algorithm)) == Bearer("alice", NOW_MS + 300_000)


@pytest.mark.parametrize(
    "token",
    [
        unsigned_token({"alg": "none"}),
        unsigned_token({"alg": "None", "kid": "rsa"}),
        unsigned_token({"alg": "ES256", "kid": "ec"}),
        unsigned_token({"kid": "ec"}),
        unsigned_token({"alg": ["ES256"], "kid": "ec"}),
        secret_token(RSA.as_pem(private=False)),
        secret_token(json.dumps(RSA.as_dict(private=False)).encode()),
        secret_token(EC.as_pem(private=False), "HS512", kid="ec"),
        token_of("ES256", kid="rsa"),
        token_of("ES256")[:-4] + "AAAA",
        token_of("RS256", RSAKey.generate_key(2048), kid="rsa"),
        "",
        "...",
        "a.b.c",
        token_of() + ".x",
    ],
)
def test_tokens_that_nobody_signed(token: str) -> None:
    """No signature, one with a secret (a public key taken for one among them), or by a key that is not in the set."""
    with pytest.raises(TokenError):
        bearer(token)


@pytest.mark.parametrize(
    "header", [{"jwk": EC.as_dict(private=False)}, {"jku": "http://127.0.0.1:1/"}, {"crit": ["x"]}]
)
def test_keys_that_a_token_brings_along(header: dict[str, Any]) -> None:
    """What a token says of keys is not followed, and what it calls critical is not passed over."""
    with pytest.raises(TokenError):
        bearer(unsigned_token({"alg": "ES256", "kid": "other", **header}))


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": None},
        {"iat": None},
        {"exp": NOW_MS // 1000 - 31},
        {"iat": NOW_MS // 1000 + 31, "exp": NOW_MS // 1000 + 900},
        {"iat": NOW_MS // 1000 + 20, "exp": NOW_MS // 1000 + 10},
        {"nbf": NOW_MS // 1000 + 31},
        {"exp": "soon"},
        {"exp": True},
        {"exp": 1e300},
        {"iss": "https://other"},
        {"iss": None},
        {"aud": "other"},
        {"aud": ["other", "more"]},
        {"aud": None},
        {"aud": {"kafka": 1}},
        {"sub": None},
        {"sub": " "},
        {"sub": 7},
        {"sub": "x" * 1025},
    ],
)
def test_claims_that_are_refused(changed: dict[str, Any]) -> None:
    """Times, issuer, audience and name must be there and right; the clock may differ by the skew and no more."""
    with pytest.raises(TokenError):
        bearer(token_of(**changed))


def test_skew_and_other_claims() -> None:
    """Within the skew it holds; name and scope may be other claims."""
    assert bearer(token_of(exp=NOW_MS // 1000 - 29, iat=NOW_MS // 1000 - 300)).name == "alice"
    rules = TokenRules(principal_claim="azp", required_scope="kafka.write")
    assert bearer(token_of(azp="app", scope="a kafka.write b"), rules).name == "app"
    assert bearer(token_of(azp="app", scp=["kafka.write"]), rules).name == "app"
    with pytest.raises(TokenError, match="lacks the scope"):
        bearer(token_of(azp="app", scope="kafka.writes"), rules)


def test_an_unknown_key_is_said_apart() -> None:
    """So that whoever fetches keys can look for new ones."""
    with pytest.raises(UnknownKey):
        bearer(token_of(kid="next"))


def test_a_token_without_key_id() -> None:
    """It means the only key there is; with several it means none."""
    from joserfc import jwt

    from tests.unit.security.tokens import claims_of

    token = jwt.encode({"alg": "ES256"}, claims_of(), EC, algorithms=["ES256"])
    assert bearer(token, jwks=key_set(EC)).name == "alice"
    with pytest.raises(TokenError, match="several"):
        bearer(token)


@pytest.mark.parametrize(
    "jwks",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[]}',
        b'{"keys":[1,null,{"kty":"RSA"}]}',
        json.dumps({"keys": [OctKey.generate_key(256).as_dict(private=True)]}).encode(),
        json.dumps({"keys": [RSAKey.generate_key(1024).as_dict(private=False)]}).encode(),
        key_set(EC, use="enc"),
        key_set(ED, alg="HS256"),
        key_set(ED, key_ops=["sign"]),
        b" " * ((1 << 20) + 1),
    ],
    ids=lambda jwks: f"{len(jwks)} bytes",
)
def test_key_sets_that_are_refused(jwks: bytes) -> None:
    """No key that can check a signature, no start: secrets, short keys and keys for other uses don't count."""
    with pytest.raises(ValueError, match="key set"):
        SigningKeys(jwks)


def test_keys_of_no_use_are_passed_over() -> None:
    """A set may hold other keys beside."""
    mixed = json.loads(key_set())
    mixed["keys"] += [{"kty": "AKP"}, {"kty": "oct", "k": "c2VjcmV0", "kid": "rsa"}, 7]
    keys = SigningKeys(json.dumps(mixed).encode())
    assert len(keys) == 3
    assert keys.bearer_of(token_of("RS256"), RULES, NOW_MS).name == "alice"


@given(st.one_of(st.text(max_size=200), st.from_regex(r"[A-Za-z0-9_.=-]{0,200}", fullmatch=True)))
def test_rubbish_is_a_token_error(text: str) -> None:
    """Nothing that comes in raises anything else."""
    with pytest.raises(TokenError):
        bearer(text)

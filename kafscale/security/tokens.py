"""Signed tokens (JWT, RFC 7519) and the keys they are checked with (JWKS, RFC 7517): who a bearer is, and until when.

The only file that imports joserfc. Pure: where keys come from is the supervisor's matter, and nothing a token says of
keys (`jku`, `jwk`, `x5u`) is ever followed. Only signatures by private keys count: a token signed with a secret, of all
things with a public key taken for one, or not at all, is refused whatever keys there are (CVE-2026-33557).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, Key, KeySet, OKPKey, RSAKey

TOKEN_BYTES_MAX: Final = 64 * 1024
KEYS_BYTES_MAX: Final = 1 << 20
KEYS_MAX: Final = 200
NAME_CHARACTERS_MAX: Final = 1024
RSA_BITS_MIN: Final = 2048
ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
_CURVES: Final = frozenset({"P-256", "P-384", "P-521", "Ed25519"})


class _Registry(jws.JWSRegistry):
    """Room for the headers and claims that identity providers send."""

    max_header_length = 8 * 1024
    max_payload_length = TOKEN_BYTES_MAX


# Header fields that nobody registered must be ignored (RFC 7515 section 4); critical ones are still refused.
_REGISTRY: Final = _Registry(algorithms=ALGORITHMS, strict_check_header=False)


class TokenError(Exception):
    """The token shows nothing. The text is for the log: it repeats no part of the token."""


class UnknownKey(TokenError):
    """The token names a key that is not known (yet)."""


class Bearer(NamedTuple):
    """What a good token says: the principal's name, and when that ends, in milliseconds since the epoch."""

    name: str
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must say. `issuer` and `audience` are compared where they are set."""

    issuer: str | None = None
    audience: str | None = None
    clock_skew_ms: int = 30_000
    principal_claim: str = "sub"
    required_scope: str | None = None


class SigningKeys:
    """The keys that tokens may be signed with."""

    def __init__(self, jwks: bytes) -> None:
        """Read a JWKS document. Raises ValueError if it is none, or holds no key that can be used."""
        if len(jwks) > KEYS_BYTES_MAX:
            raise ValueError(f"a key set of {len(jwks)} bytes; {KEYS_BYTES_MAX} are allowed")
        try:
            document = orjson.loads(jwks)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"the key set is not JSON: {error}") from None
        entries = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise ValueError('the key set is no object with an array "keys" (RFC 7517)')
        if len(entries) > KEYS_MAX:
            raise ValueError(f"a key set of {len(entries)} keys; {KEYS_MAX} are allowed")
        usable: list[Key] = [key for entry in entries if (key := _usable(entry)) is not None]
        if not usable:
            raise ValueError("the key set holds no public key for signatures (RSA of 2048 bits and more, EC, Ed25519)")
        self._keys = usable

    def __len__(self) -> int:
        return len(self._keys)

    def bearer_of(self, token: str, rules: TokenRules, now_ms: int) -> Bearer:
        """Check a token. Raises TokenError."""
        if len(token) > TOKEN_BYTES_MAX:
            raise TokenError(f"a token of {len(token)} bytes")
        claims = self._claims_of(token)
        expires_at_ms = _check_times(claims, rules, now_ms)
        if rules.issuer is not None and claims.get("iss") != rules.issuer:
            raise TokenError("issued by another issuer")
        if rules.audience is not None and rules.audience not in _texts(claims.get("aud")):
            raise TokenError("meant for another audience")
        if rules.required_scope is not None and rules.required_scope not in _scopes(claims):
            raise TokenError(f"lacks the scope {rules.required_scope}")
        name = claims.get(rules.principal_claim)
        if not isinstance(name, str) or not name.strip() or len(name) > NAME_CHARACTERS_MAX:
            raise TokenError(f"the claim {rules.principal_claim} names nobody")
        return Bearer(name, expires_at_ms)

    def _claims_of(self, token: str) -> dict[str, Any]:
        try:
            signature = jws.extract_compact(token.encode("ascii"), registry=_REGISTRY)
            header = signature.headers()
            if header.get("alg") not in ALGORITHMS:
                raise TokenError("signed in a way that is not accepted, or not at all")
            keys = self._candidates(header.get("kid"))
            if not jws.validate_compact(signature, keys, registry=_REGISTRY):
                raise TokenError("the signature is wrong")
            claims = orjson.loads(signature.payload or b"")
        except TokenError:
            raise
        except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            # joserfc's own and what it lets through for headers of odd types; cryptography's are ValueErrors.
            raise TokenError(f"can't be read: {type(error).__name__}") from None
        if not isinstance(claims, dict):
            raise TokenError("its claims are no object")
        return claims

    def _candidates(self, key_id: object) -> KeySet:
        """The keys that a token may mean: one without a key id means the only one there is."""
        if key_id is None:
            if len(self._keys) > 1:
                raise TokenError("names no key, and there are several")
            return KeySet(self._keys)
        found = [key for key in self._keys if key.kid == key_id]
        if not found:
            raise UnknownKey("signed with a key that is not known")
        return KeySet(found)


def _usable(entry: object) -> Key | None:
    """The public key, or None for one that is of no use here; a key set may hold keys for other purposes."""
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    if entry.get("kty") not in ("RSA", "EC", "OKP") or entry.get("alg", ALGORITHMS[0]) not in ALGORITHMS:
        return None
    if "key_ops" in entry and "verify" not in _texts(entry["key_ops"]):
        return None
    try:
        key = JWKRegistry.import_key(entry)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAKey):
        return key if key.public_key.key_size >= RSA_BITS_MIN else None
    if isinstance(key, ECKey | OKPKey):
        return key if key.curve_name in _CURVES else None
    return None


def _check_times(claims: dict[str, Any], rules: TokenRules, now_ms: int) -> int:
    """Compare what the token says of time; returns when it ends. Both ends must be given, as in Kafka (KIP-768)."""
    expires_at, issued_at = _instant(claims, "exp"), _instant(claims, "iat")
    if expires_at is None or issued_at is None:
        raise TokenError("does not say when it was issued and until when it holds")
    if now_ms >= expires_at + rules.clock_skew_ms:
        raise TokenError("has expired")
    if issued_at - rules.clock_skew_ms > now_ms or issued_at > expires_at:
        raise TokenError("was issued in the future, or after its end")
    not_before = _instant(claims, "nbf")
    if not_before is not None and not_before - rules.clock_skew_ms > now_ms:
        raise TokenError("does not hold yet")
    return expires_at


def _instant(claims: dict[str, Any], name: str) -> int | None:
    """A NumericDate in milliseconds."""
    value = claims.get(name)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not 0 <= value < 1e12
    ):
        raise TokenError(f"the claim {name} is no time")
    return int(value * 1000)


def _scopes(claims: dict[str, Any]) -> list[str]:
    """Providers write scopes as a text with spaces, or as an array, in `scope` or `scp`."""
    found: list[str] = []
    for name in ("scope", "scp"):
        value = claims.get(name)
        found += value.split() if isinstance(value, str) else _texts(value)
    return found


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []

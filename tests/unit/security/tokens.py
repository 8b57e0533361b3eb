"""Tokens as an identity provider would sign them, good and bad, for tests."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

NOW_MS = 1_790_000_000_000

RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
KEYS = {"RS256": RSA, "PS256": RSA, "ES256": EC, "Ed25519": ED}


def key_set(*keys: Any, **more: Any) -> bytes:
    chosen = keys or (RSA, EC, ED)
    return json.dumps({"keys": [{**key.as_dict(private=False), **more} for key in chosen]}).encode()


def claims_of(now_ms: int = NOW_MS, **changed: Any) -> dict[str, Any]:
    """A good token's claims; None takes one away."""
    now = now_ms // 1000
    claims = {"sub": "alice", "iss": "https://issuer", "aud": "kafka", "iat": now, "exp": now + 300} | changed
    return {name: value for name, value in claims.items() if value is not None}


def token_of(algorithm: str = "ES256", key: Any = None, kid: str | None = None, **changed: Any) -> str:
    key = key or KEYS[algorithm]
    header = {"alg": algorithm, "kid": kid or key.kid}
    return jwt.encode(header, claims_of(**changed), key, algorithms=[algorithm])


def unsigned_token(header: dict[str, Any], **changed: Any) -> str:
    """A token with any header, and no signature."""
    return f"{_part(header)}.{_part(claims_of(**changed))}."


def secret_token(secret: bytes, algorithm: str = "HS256", kid: str = "rsa", **changed: Any) -> str:
    """A token signed with a secret, be it something public. By hand: no library would do that."""
    signed = f"{_part({'alg': algorithm, 'kid': kid})}.{_part(claims_of(**changed))}"
    signature = hmac.digest(secret, signed.encode(), f"sha{algorithm[2:]}")
    return f"{signed}.{text_of(signature)}"


def _part(value: Any) -> str:
    return text_of(json.dumps(value).encode())


def text_of(data: bytes) -> str:
    """In base64 as tokens have it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signature_of(signed: bytes) -> bytes:
    """ES256 by the key `ec`, whatever it is that is signed. By hand: no library would sign just anything."""
    der = EC.private_key.sign(signed, ECDSA(SHA256()))
    return b"".join(number.to_bytes(32, "big") for number in decode_dss_signature(der))

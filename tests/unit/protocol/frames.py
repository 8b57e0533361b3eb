"""Ways to take messages apart for tests: encode, decode, and damage."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kafscale.protocol.compiler import chunk_encoder, decoder, encoder, has_records
from kafscale.protocol.schema import Message
from kafscale.protocol.table import Api


def few(examples: int) -> settings:
    """So many examples, no stored ones, no clock: hundreds of parameters share a minute."""
    return settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))


def encode(api: Api, version: int, message: Message) -> bytes:
    """The body alone."""
    kind = type(message)
    if has_records(kind):
        return b"".join(chunk_encoder(kind, version, api.is_flexible(version))(message))
    return encoder(kind, version, api.is_flexible(version))(message)


def decode(api: Api, version: int, kind: type[Message], raw: bytes) -> Any:
    """The body alone, and all of it."""
    return decoder(kind, version, api.is_flexible(version))(raw, 0, len(raw))


@st.composite
def damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """`raw` with up to three bytes changed, some cut off or some added."""
    out = bytearray(raw)
    for _ in range(draw(st.integers(0, 3))):
        if out:
            out[draw(st.integers(0, len(out) - 1))] = draw(
                st.sampled_from([0, 1, 2, 127, 128, 255]) | st.integers(0, 255)
            )
    cut = draw(st.sampled_from([0, 0, 1, 5]))
    return bytes(out[: len(out) - cut]) + draw(st.binary(max_size=2))

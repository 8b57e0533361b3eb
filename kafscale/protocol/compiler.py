"""From a declaration to a function: one decoder and one encoder per (message, version), compiled when first asked for.

Nested structs are written out in place, runs of fixed-size fields become one `struct` call, and what a version lacks
costs nothing (`decoding.py`, `encoding.py`). The functions are kept by caches on pure functions: as many as there are
messages and versions, no more. Knows no API, header or frame.
"""

from __future__ import annotations

import functools

from kafscale.protocol.decoding import Decoder, DecoderSource
from kafscale.protocol.encoding import ChunkEncoder, Encoder, EncoderSource
from kafscale.protocol.schema import Message, fields


@functools.cache
def decoder(message: type[Message], version: int, flexible: bool) -> Decoder:
    """The function that reads `message` at `version`; `flexible` is KIP-482's encoding."""
    return DecoderSource(message, version, flexible).compile()


@functools.cache
def encoder(message: type[Message], version: int, flexible: bool) -> Encoder:
    """The function that writes `message`, which has no records, at `version`."""
    encode: Encoder = EncoderSource(message, version, flexible, chunks=False).compile()
    return encode


@functools.cache
def chunk_encoder(message: type[Message], version: int, flexible: bool) -> ChunkEncoder:
    """The function that writes `message`, which has records, at `version`."""
    encode: ChunkEncoder = EncoderSource(message, version, flexible, chunks=True).compile()
    return encode


@functools.cache
def has_records(message: type[Message]) -> bool:
    """Whether record batches travel in `message`, so that it is written with `chunk_encoder`."""
    return any(
        field.wire.kind == "records" or (field.message is not None and has_records(field.message))
        for field in fields(message)
    )

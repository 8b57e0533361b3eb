"""From what was raised to what a client is told: the one place that turns domain errors into Kafka's error codes.

Also how a whole request is answered with an error, for the APIs whose answer has a field for it, and which codes an
answer holds, for the counters. Knows no connection and no handler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Final

from kafscale.errors import (
    Corrupt,
    Fenced,
    Invalid,
    ObjectMissing,
    ProtocolError,
    Retry,
    StoreError,
)
from kafscale.protocol.error_codes import ErrorCode
from kafscale.protocol.schema import Message, fields

# (the request, an error code, a text for people) → an answer that says so of everything that was asked for.
Failed = Callable[[Any, int, str], Message]

_SURPRISE: Final = "The server experienced an unexpected error; its log says more."


def code_of(error: BaseException) -> tuple[ErrorCode, str]:
    """The Kafka error code and the text for what was raised. Anything not raised on purpose is UNKNOWN_SERVER_ERROR."""
    match error:
        case Invalid() | Retry():
            return ErrorCode(error.code), str(error)
        case Fenced():
            # The client asks for metadata and finds the one who has taken over.
            return ErrorCode.NOT_LEADER_OR_FOLLOWER, "another broker has taken over"
        case Corrupt():
            return ErrorCode.CORRUPT_MESSAGE, "stored data is corrupt; the server's log says more"
        case ObjectMissing():
            return ErrorCode.KAFKA_STORAGE_ERROR, "stored data is missing; the server's log says more"
        case StoreError():
            return ErrorCode.KAFKA_STORAGE_ERROR, "the object store does not answer as it should"
        case ProtocolError():
            return ErrorCode.INVALID_REQUEST, str(error)
        case _:
            return ErrorCode.UNKNOWN_SERVER_ERROR, _SURPRISE


def deserves_stack_trace(error: BaseException) -> bool:
    """Whether an operator must hear of it: a defect of ours, or data that is damaged."""
    return code_of(error)[0] is ErrorCode.UNKNOWN_SERVER_ERROR or isinstance(error, Corrupt | ObjectMissing)


def top_level_failure(response: type[Message]) -> Failed | None:
    """How to answer with an error by the answer's own field for it; None if it has none."""
    names = response.__struct_fields__
    if "error_code" not in names:
        return None
    if "error_message" in names:
        return lambda _request, code, text: response(error_code=code, error_message=text)
    return lambda _request, code, _text: response(error_code=code)


def error_codes_in(message: Message) -> Iterator[int]:
    """Every error code, other than 0, in an answer and in what it holds."""
    has_code, inner = _places_of_codes(type(message))
    if has_code and message.error_code:  # type: ignore[attr-defined]
        yield message.error_code  # type: ignore[attr-defined]
    for name in inner:
        for item in getattr(message, name) or ():
            yield from error_codes_in(item)


@functools.cache
def _places_of_codes(kind: type[Message]) -> tuple[bool, tuple[str, ...]]:
    """Whether `kind` has a code itself, and which of its arrays hold structs with codes, at any depth."""
    inner = []
    for field in fields(kind):
        if field.wire.kind == "array" and field.message is not None:
            has_code, deeper = _places_of_codes(field.message)
            if has_code or deeper:
                inner.append(field.name)
    return "error_code" in kind.__struct_fields__, tuple(inner)

"""Log lines: one event, one line, as text for a terminal or JSON for a machine. Knows no files: lines go to stderr.

Used through stdlib logging: `log = logging.getLogger(__name__)`, then `log.info("slot loaded", extra={"slot": 7})`.
Names in `extra` become fields. Whatever a client sent (a topic, a client.id) may be passed as a field or an argument:
control characters are escaped and every field is bounded, so no text can forge a line, command a terminal or fill a
disk.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any, TextIO

import orjson

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.terminal import escaped

FIELD_MAX_CHARS = 1024
FIELDS_MAX = 32
STACK_MAX_CHARS = 16 * 1024

LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "urllib3", "grpc", "etcd3", "asyncio")

# What a LogRecord has of its own; all else came in through `extra`.
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# JSON fields that an extra may not replace.
_RESERVED = frozenset({"ts", "level", "logger", "msg", "worker", "role", "error", "stack"})
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_LEVEL_NAMES = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn", logging.ERROR: "error"}
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/@+[]{}(),*%")


def configure(settings: Settings, role: str, *, worker: int | None = None, stream: TextIO | None = None) -> None:
    """Send this process's log to `stream` (stderr) in the form the settings ask for.

    `role` is "supervisor" or "worker"; `worker` the worker's index. Call once, in the process's composition root.
    """
    stream = stream or sys.stderr
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter(role, worker) if as_text else JsonFormatter(role, worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[settings.log_level])
    # What libraries say while they work would bury our lines, and has requests in it with what signs them.
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    # A reader of our stderr that went away must not turn every line into a traceback, which nobody could read either.
    logging.raiseExceptions = False
    logging.captureWarnings(True)


class JsonFormatter(logging.Formatter):
    """One JSON object: ts (RFC 3339, UTC, ms), level, logger, msg, worker or role, then the extra fields."""

    def __init__(self, role: str, worker: int | None) -> None:
        super().__init__()
        self._origin: dict[str, Any] = {"role": role} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "ts": _timestamp(record),
            "level": _level(record),
            "logger": record.name,
            "msg": bounded(_message(record), FIELD_MAX_CHARS),
            **self._origin,
        }
        event.update(_extra(record))
        if record.exc_info and record.exc_info[1] is not None:
            event["error"] = bounded(_safe_str(record.exc_info[1]), FIELD_MAX_CHARS)
            event["stack"] = bounded(_stack(record), STACK_MAX_CHARS)
        return visible(orjson.dumps(event, option=orjson.OPT_NON_STR_KEYS).decode())


class TextFormatter(logging.Formatter):
    """`12:34:56.789 INFO  worker 0  message key=value …`, times in UTC; a stack follows on the same line, escaped."""

    def __init__(self, role: str, worker: int | None) -> None:
        super().__init__()
        self._origin = role if worker is None else f"{role} {worker}"

    def format(self, record: logging.LogRecord) -> str:
        time = _timestamp(record)[11:23]
        message = escaped(bounded(_message(record), FIELD_MAX_CHARS))
        parts = [f"{time} {_level(record).upper():5} {self._origin}  {message}"]
        parts += [f"{name}={_quoted(value)}" for name, value in _extra(record)]
        if record.exc_info and record.exc_info[1] is not None:
            parts.append(f"error={_quoted(bounded(_safe_str(record.exc_info[1]), FIELD_MAX_CHARS))}")
            parts.append(f"stack={_quoted(bounded(_stack(record), STACK_MAX_CHARS))}")
        return " ".join(parts)


class RateLimited:
    """Lets a repeated event through once per interval and key, and counts what it held back. Bounded in keys.

    `limited = RateLimited(clock, 10.0)`; `held = limited.permit(key)`: None means be silent, a number means log now and
    say how many were held back since.
    """

    def __init__(self, clock: Clock, interval_seconds: float, *, keys_max: int = 1024) -> None:
        self._clock = clock
        self._interval = interval_seconds
        self._keys_max = keys_max
        # key → (time of the last one let through, held back since); the least recently let through first.
        self._seen: OrderedDict[object, tuple[float, int]] = OrderedDict()

    def permit(self, key: object = None) -> int | None:
        """How many were held back before this one, if it may be logged; else None."""
        now = self._clock.monotonic()
        last, held = self._seen.get(key, (None, 0))
        if last is not None and now - last < self._interval:
            self._seen[key] = (last, held + 1)
            return None
        self._seen[key] = (now, 0)
        self._seen.move_to_end(key)
        while len(self._seen) > self._keys_max:
            self._seen.popitem(last=False)
        return held

    def log(self, logger: logging.Logger, level: int, message: str, *, key: object = None, **fields: object) -> bool:
        """Log `message` with `fields` unless it (or `key`) was logged too recently; adds `held_back` if any were."""
        held = self.permit(message if key is None else key)
        if held is None:
            return False
        logger.log(level, message, extra={**fields, "held_back": held} if held else fields)
        return True


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def _level(record: logging.LogRecord) -> str:
    return _LEVEL_NAMES.get(record.levelno) or ("error" if record.levelno > logging.ERROR else record.levelname.lower())


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a wrong format string must not lose the event, let alone the caller
        return _safe_str(record.msg)


def _safe_str(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - whatever __str__ raises, the line must come out
        return f"<{type(value).__name__}>"


def _extra(record: logging.LogRecord) -> list[tuple[str, Any]]:
    """The fields given as `extra`: numbers, booleans and None as they are, all else as bounded text."""
    found = [(name, value) for name, value in record.__dict__.items() if name not in _OWN_ATTRIBUTES]
    return [(f"{name}_" if name in _RESERVED else name, _plain(value)) for name, value in found[:FIELDS_MAX]]


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bounded(bytes(value[:FIELD_MAX_CHARS]).hex(), FIELD_MAX_CHARS)
    return bounded(_safe_str(value), FIELD_MAX_CHARS)


def bounded(text: str, most: int) -> str:
    """At most `most` characters, without lone surrogates, which have no UTF-8 form."""
    if len(text) > most:
        text = f"{text[:most]}… ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace").decode()


def _stack(record: logging.LogRecord) -> str:
    return "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""


def _quoted(value: object) -> str:
    text = str(value)
    if text and _BARE.issuperset(text):
        return text
    return '"' + escaped(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def visible(line: str) -> str:
    """JSON with what orjson leaves raw but a terminal obeys (DEL, C1 controls, U+2028, bidi marks) as JSON escapes."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else _json_escape(c) for c in line)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))

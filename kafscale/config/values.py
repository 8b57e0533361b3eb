"""From the texts and TOML values people write to typed, bounded values, and back. Knows no sources.

Every ValueError raised here is one line that says what is wrong with which value; a secret's value is not repeated.
"""

from __future__ import annotations

import re
from typing import Any

from kafscale.config.declarations import Declaration
from kafscale.config.endpoint import Endpoint
from kafscale.config.listeners import format_listeners, parse_listeners

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,20}")
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
# Other spellings that people bring along.
_CHOICE_SPELLINGS = {"warning": "warn"}
_SHOWN_MAX = 80


def parse_text(declaration: Declaration, text: str) -> Any:
    """The value of a flag or variable; None for `auto`. Raises ValueError."""
    text = text.strip()
    if not text and declaration.setting.blank_is_auto:
        return None
    if not text:
        raise ValueError("is empty; give a value or leave it out")
    if declaration.setting.auto and text.lower() == "auto":
        return None
    return _parse(declaration, text)


def parse_toml(declaration: Declaration, value: object) -> Any:
    """The value of a TOML key: a boolean, an integer or a text. Raises ValueError."""
    if declaration.kind == "bool" and isinstance(value, bool):
        return value
    if declaration.kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return _bounded(declaration, value)
    if isinstance(value, str):
        return parse_text(declaration, value)
    if declaration.kind == "listeners":
        return parse_listeners(value)
    wanted = {"int": "a whole number", "bool": "true or false"}.get(declaration.kind, "a text")
    raise ValueError(f"{_shown(declaration, value)} is not {wanted}")


def _parse(declaration: Declaration, text: str) -> Any:
    match declaration.kind:
        case "int":
            if not _WHOLE_NUMBER.fullmatch(text):
                raise ValueError(f"{_shown(declaration, text)} is not a whole number")
            return _bounded(declaration, int(text))
        case "bool":
            if text.lower() not in _BOOLEANS:
                raise ValueError(f"{_shown(declaration, text)} is neither true nor false")
            return _BOOLEANS[text.lower()]
        case "choice":
            choice = _CHOICE_SPELLINGS.get(text.lower(), text.lower())
            if choice not in declaration.choices:
                raise ValueError(f"{_shown(declaration, text)} is none of {', '.join(declaration.choices)}")
            return choice
        case "listeners":
            return parse_listeners(text)
        case "endpoint":
            # An address with auto is one that others are told, so it has other rules than one to listen on.
            return Endpoint.parse_advertised(text) if declaration.setting.auto else Endpoint.parse(text)
        case _:
            if "\0" in text or (declaration.setting.pattern and not re.fullmatch(declaration.setting.pattern, text)):
                rule = declaration.setting.pattern or "a text without NUL"
                raise ValueError(f"{_shown(declaration, text)} is not allowed; it must match {rule}")
            return text


def _bounded(declaration: Declaration, value: int) -> int:
    low, high = declaration.setting.low, declaration.setting.high
    if low is not None and value < low:
        raise ValueError(f"{_shown(declaration, value)} is below the least, {low}")
    if high is not None and value > high:
        raise ValueError(f"{_shown(declaration, value)} is above the most, {high}")
    return value


def _shown(declaration: Declaration, value: object) -> str:
    """The value as a message repeats it: quoted, without control characters, not too long, and no secret."""
    if declaration.setting.secret:
        return "the value"
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "…"


def format_value(declaration: Declaration, value: Any) -> str:
    """The value as `kafscale config` shows it; what it prints can be given back as flag, variable or TOML text."""
    if value is None:
        return "auto"
    if declaration.setting.secret:
        return "********"
    if declaration.kind == "listeners":
        return format_listeners(value)
    return str(value).lower() if isinstance(value, bool) else str(value)

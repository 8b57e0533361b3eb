"""Settings shown: the table of `kafscale config`, the same as JSON, and docs/settings.md. Secrets are masked here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from kafscale.config.declarations import DECLARATIONS, SECTIONS, Declaration
from kafscale.config.sources import BROKER_ADDR, BROKER_HOST, BROKER_PORT, CONFIG_FLAG, CONFIG_VARIABLE, Source
from kafscale.config.values import format_value
from kafscale.terminal import escaped

_PREFACE = f"""# Settings

Written by `python -m kafscale config --markdown` from `kafscale/config/declarations.py`; do not edit by hand.

A setting is a flag of `kafscale serve`, a `KAFSCALE_*` variable, or a key in the TOML file that `{CONFIG_FLAG}` or
`{CONFIG_VARIABLE}` names. The key is the name in the table. A flag wins over a variable, a variable over the file,
the file over the default. `kafscale config` prints every value and where it came from. Where the default is *auto*,
`auto` may also be written. An unknown flag or key, and a value that is out of bounds, stop the start with exit code
2; so does an unknown variable that looks like a security setting. Other unknown `KAFSCALE_*` variables are a warning.

Of KafScale, another broker, written in Go, `{BROKER_ADDR}` (`HOST:PORT` to listen on), `{BROKER_HOST}` and
`{BROKER_PORT}` (what clients are told) are read where the settings' own variables and flags leave room. A port alone,
where nothing else says what to listen on, is the port to listen on. What Kubernetes injects for its services is passed
over.
"""


def as_table(declarations: Iterable[Declaration], settings: Any, sources: Mapping[str, Source]) -> str:
    """A line for each setting: name, value, where it came from. Ends with a newline."""
    rows = [("SETTING", "VALUE", "FROM")]
    for declaration in declarations:
        value = format_value(declaration, getattr(settings, declaration.name))
        rows.append((declaration.name, escaped(value), escaped(str(sources[declaration.name]))))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{name:{widths[0]}}  {value:{widths[1]}}  {source}\n" for name, value, source in rows)


def as_json(declarations: Iterable[Declaration], settings: Any, sources: Mapping[str, Source]) -> bytes:
    """An array of objects: name, value (typed; auto is null), source (`kind`, `name`), flag, variable."""
    rows = []
    for declaration in declarations:
        value = getattr(settings, declaration.name)
        plain = value if isinstance(value, bool | int) and not declaration.setting.secret else None
        shown = plain if plain is not None or value is None else format_value(declaration, value)
        source = sources[declaration.name]
        rows.append(
            {
                "name": declaration.name,
                "value": shown,
                "source": {"kind": source.kind, "name": source.name or None},
                "flag": declaration.flag,
                "variable": declaration.variable,
            }
        )
    return orjson.dumps(rows, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def as_markdown() -> str:
    """The page docs/settings.md."""
    parts = [_PREFACE]
    for declaration in DECLARATIONS:
        if declaration.name in SECTIONS:
            parts.append(
                f"\n## {SECTIONS[declaration.name]}\n\n"
                "| name | flag | variable | default | allowed | |\n|---|---|---|---|---|---|\n"
            )
        parts.append(_markdown_row(declaration))
    return "".join(parts)


def _markdown_row(declaration: Declaration) -> str:
    setting = declaration.setting
    variables = "<br>".join(f"`{name}`" for name in (declaration.variable, *setting.also))
    default = f"*auto*: {setting.auto}" if setting.auto else f"`{format_value(declaration, declaration.default)}`"
    flag = f"`{declaration.flag}`" if declaration.flag else ""
    cells = (f"`{declaration.name}`", flag, variables, default, _allowed(declaration), setting.help)
    return "| " + " | ".join(cells) + " |\n"


def _allowed(declaration: Declaration) -> str:
    setting = declaration.setting
    if declaration.kind == "int":
        return f"{setting.low} to {setting.high}"
    if declaration.choices:
        return ", ".join(f"`{choice}`" for choice in declaration.choices)
    return f"`{setting.pattern or declaration.metavar}`".replace("|", "\\|")

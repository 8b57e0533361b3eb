"""The command line: reads the words, settles the settings, runs what was asked, and turns errors into one line.

The exit code is 0 when clean, 1 for a failure, 2 for usage or settings. Knows nothing of how a broker runs; what is
heavy is imported only when it is needed, since starting must be quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import kafscale
from kafscale.config.declarations import DECLARATIONS, SECTIONS
from kafscale.config.sources import CONFIG_FLAG, CONFIG_VARIABLE, Resolved, hint, resolve
from kafscale.config.values import format_value
from kafscale.errors import KafscaleError, UsageError
from kafscale.terminal import escaped

COMMANDS = {
    "serve": "run the broker in the foreground",
    "config": "print every setting, its value and where it came from (--json; --markdown prints the manual)",
    "recover": "read the bucket and say what a start would bring up; changes nothing",
    "verify": "read the bucket and report what is missing, corrupt, unreferenced or out of place (--quick, --strict)",
    "audit verify": "name the first audit record that was changed, removed or moved; of FILES, or - (--any-order)",
    "credential": "print lines for sasl_credentials_file: of USER, whose password is asked for or read from a pipe",
    "acl check": "say whether --principal may do --action on --resource --name, and which rule decides",
    "version": "print the version",
}

_USAGE = "kafscale [serve|config|recover|verify|audit verify|credential|acl check|version] [flags]"

# Flags that say what a command does, and the commands they belong to.
_COMMAND_FLAGS = {
    "json": ("config", "verify", "audit verify", "acl check"),
    "markdown": ("config",),
    "quick": ("verify",),
    "strict": ("verify", "audit verify"),
    "any-order": ("audit verify",),
    "no-anchors": ("audit verify",),
}
# Flags with a value that belong to `acl check`.
_QUESTION_FLAGS = {
    "principal": "who: as KafScale's document names clients, or with a type, as in User:alice",
    "action": "what: an action of KafScale's (fetch, admin, ...) or an operation of Kafka's (Read, AlterConfigs, ...)",
    "resource": "on what: topic, group, cluster or transactional_id",
    "name": "which one",
    "host": "the client's address",
    "bootstrap": "a broker to ask for the catalogue's ACLs",
    "client-id": "the client id to ask it with",
    "ca-file": "CAs (PEM) that the asked broker's certificate must be signed by; turns TLS on",
    "cert-file": "the certificate (PEM) to show it",
    "key-file": "that certificate's key (PEM)",
    "user": "SASL user to ask it as; the password is typed, or the first line of standard input",
    "mechanism": "SCRAM-SHA-256 (the default), SCRAM-SHA-512, or PLAIN with TLS",
}
# Commands of two words, by the first.
_PAIRS = {"audit": "audit verify", "acl": "acl check"}
# Those that take other words as well: files, a user.
_WITH_FILES = ("audit verify", "credential")
_OTHER_FLAGS = (
    "--help",
    "--version",
    *(f"--{name}" for name in _COMMAND_FLAGS),
    *(f"--{name}" for name in _QUESTION_FLAGS),
)

Serve = Callable[[Resolved], int]


def main() -> NoReturn:
    """Entry point of the `kafscale` command."""
    sys.exit(run(sys.argv[1:], os.environ))


def run(arguments: Sequence[str], environ: Mapping[str, str], serve: Serve | None = None) -> int:
    """Do what the arguments ask and return the exit code. `serve` stands in for the supervisor in tests."""
    try:
        return _run(arguments, environ, serve or _serve)
    except UsageError as error:
        return _fail(2, error)
    except KafscaleError as error:
        return _fail(1, error)
    except BrokenPipeError:
        # The reader of our output (`kafscale config | head`) has gone. Nothing may be flushed to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 1


def _run(arguments: Sequence[str], environ: Mapping[str, str], serve: Serve) -> int:
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    if given.help:
        parser.print_help()
        return 0
    command, words = _command(rest)
    if given.version or command == "version":
        print(f"kafscale {kafscale.__version__}")
        return 0
    if command is None:
        raise UsageError(f"no command given; say one of {', '.join(COMMANDS)}, or --help")
    for name, commands in _COMMAND_FLAGS.items():
        if getattr(given, name.replace("-", "_")) and command not in commands:
            raise UsageError(f"--{name} belongs to the command {' and '.join(commands)}")
    question = {name: text for name in _QUESTION_FLAGS if (text := getattr(given, f"question_{name}")) is not None}
    if question and command != "acl check":
        raise UsageError(f"--{next(iter(question))} belongs to the command acl check")
    if given.markdown:
        return _print_markdown()
    if command == "credential":
        from supervisor import credential

        return credential.run(words)
    flags = {d.name: text for d in DECLARATIONS if (text := getattr(given, d.name, None)) is not None}
    resolved = resolve(flags, environ, given.config)
    for warning in resolved.warnings:
        print(f"kafscale: warning: {escaped(warning)}", file=sys.stderr)
    if command == "recover":
        from supervisor import recover

        return recover.run(resolved.settings)
    if command == "verify":
        from supervisor import verify

        options = verify.Options(quick=given.quick, strict=given.strict, as_json=given.json)
        return verify.run(resolved.settings, options)
    if command == "audit verify":
        from supervisor import audit_verify

        wanted = audit_verify.Options(
            files=tuple(words),
            any_order=given.any_order,
            without_anchors=given.no_anchors,
            strict=given.strict,
            as_json=given.json,
        )
        return audit_verify.run(resolved.settings, wanted)
    if command == "acl check":
        from supervisor import acl_check

        asked = {name.replace("-", "_"): text for name, text in question.items()}
        return acl_check.run(resolved.settings, acl_check.Question(**asked, as_json=given.json))
    return serve(resolved) if command == "serve" else _print_settings(resolved, as_json=given.json)


def _serve(resolved: Resolved) -> int:
    from supervisor.main import run as run_supervisor

    return run_supervisor(resolved.settings, resolved.sources)


def _print_settings(resolved: Resolved, *, as_json: bool) -> int:
    from kafscale.config import listing

    if as_json:
        text = listing.as_json(DECLARATIONS, resolved.settings, resolved.sources).decode()
    else:
        text = listing.as_table(DECLARATIONS, resolved.settings, resolved.sources)
    sys.stdout.write(text)
    sys.stdout.flush()
    return 0


def _print_markdown() -> int:
    from kafscale.config import listing

    sys.stdout.write(listing.as_markdown())
    sys.stdout.flush()
    return 0


def _command(rest: Sequence[str]) -> tuple[str | None, list[str]]:
    """The one command among the words that are no known flags, and the files that it is given."""
    command: str | None = None
    first: str | None = None
    files: list[str] = []
    for word in rest:
        if word.startswith("-") and word != "-":
            flag = word.split("=", 1)[0]
            known = [*_OTHER_FLAGS, CONFIG_FLAG, *(d.flag for d in DECLARATIONS if d.flag is not None)]
            raise UsageError(f"unknown flag {escaped(flag)}{hint(flag, known, '--')}")
        if command in _WITH_FILES:
            files.append(word)
            continue
        if command is not None:
            raise UsageError(f"unexpected word {escaped(word)} after the command {command}")
        if first is None and word in _PAIRS:
            first = word
            continue
        if first is not None:
            word = f"{first} {word}"
        if word not in COMMANDS:
            raise UsageError(f"unknown command {escaped(word)}{hint(word, COMMANDS)}")
        command, first = word, None
    if first is not None:
        raise UsageError(f"{first} is no command by itself; say {_PAIRS[first]}")
    return command, files


class _Parser(argparse.ArgumentParser):
    """argparse that raises its complaints, and takes flags before and after the command."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def _parser() -> _Parser:
    parser = _Parser(
        prog="kafscale",
        usage=_USAGE,
        description="A Kafka-protocol broker.\n\n" + "\n".join(f"  {name:14}{text}" for name, text in COMMANDS.items()),
        epilog="Every flag is also a variable (--data-dir: KAFSCALE_DATA_DIR) and a key of the TOML file (data_dir).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="print this")
    parser.add_argument("--version", action="store_true", help="print the version")
    for name in _COMMAND_FLAGS:
        parser.add_argument(f"--{name}", action="store_true", help=argparse.SUPPRESS)
    for name, text in _QUESTION_FLAGS.items():
        parser.add_argument(f"--{name}", dest=f"question_{name}", metavar="TEXT", help=f"acl check: {text}")
    parser.add_argument(CONFIG_FLAG, metavar="FILE", help=f"TOML file of settings (variable: {CONFIG_VARIABLE})")
    group: argparse._ArgumentGroup | None = None
    for declaration in DECLARATIONS:
        if declaration.name in SECTIONS:
            group = parser.add_argument_group(SECTIONS[declaration.name])
        if declaration.flag is None or group is None:
            continue
        default = declaration.setting.auto or format_value(declaration, declaration.default)
        text = f"{declaration.setting.help} ({default})".replace("%", "%%")
        group.add_argument(declaration.flag, dest=declaration.name, metavar=declaration.metavar, help=text)
    return parser


def _fail(code: int, error: Exception) -> int:
    sys.stdout.flush()
    print(f"kafscale: {escaped(str(error))}", file=sys.stderr)
    return code

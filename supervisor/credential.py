"""`kafscale credential USER`: prints what is kept of a password, as lines for `sasl_credentials_file`.

The password comes from the terminal, typed twice and not shown, or is the first line of standard input; never from an
argument, which every user of the machine could read. Needs no settings and no broker.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from kafscale.errors import UsageError
from kafscale.security.credentials import format_credential, make_credential
from kafscale.security.plain import PASSWORD_BYTES_MAX
from kafscale.security.scram import HASH_OF, USER_BYTES_MAX

SALT_BYTES = 24


def run(words: Sequence[str], source: TextIO | None = None) -> int:
    """Returns the exit code. Raises UsageError."""
    if len(words) != 1:
        raise UsageError("whose password? say kafscale credential USER")
    user = words[0]
    # The file's notation has spaces between a line's parts.
    if not user.isprintable() or any(map(str.isspace, user)) or user.startswith("#"):
        raise UsageError(f"{user!r} can't stand in the file: a user has no spaces there, and does not begin with #")
    if len(user.encode()) > USER_BYTES_MAX:
        raise UsageError(f"a user name has at most {USER_BYTES_MAX} bytes")
    password = _password(source or sys.stdin)
    for mechanism in HASH_OF:
        keys = make_credential(mechanism, password, os.urandom(SALT_BYTES))
        print(format_credential(user, mechanism, keys))
    return 0


def _password(source: TextIO) -> str:
    try:
        password = _typed() if source.isatty() else source.readline().rstrip("\r\n")
        size = len(password.encode())
    except UnicodeError:
        raise UsageError("the password is not UTF-8") from None
    if not password:
        raise UsageError("an empty password lets nobody in; give it as the first line of standard input")
    if size > PASSWORD_BYTES_MAX:
        raise UsageError(f"a password has at most {PASSWORD_BYTES_MAX} bytes")
    return password


def _typed() -> str:
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise UsageError("the two passwords differ")
    return password

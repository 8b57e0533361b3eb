"""Progress of a command that takes a while, beside its findings: one line that is written over on a terminal, else a
line now and then. It knows nothing of what is done."""

from __future__ import annotations

import sys
from typing import TextIO

from kafscale.clock import Clock

# On a terminal often enough to be seen to live, in a log seldom enough not to be in the way.
TERMINAL_SECONDS = 0.1
LOG_SECONDS = 5.0
_CLEAR = "\r\x1b[K"


class Progress:
    """Says how far something is; `say` for the end of a step, `note` as often as one likes."""

    def __init__(self, clock: Clock, stream: TextIO | None = None) -> None:
        self._clock = clock
        self._stream = stream if stream is not None else sys.stderr
        self._is_terminal = self._stream.isatty()
        self._pause = TERMINAL_SECONDS if self._is_terminal else LOG_SECONDS
        self._written_at = clock.monotonic()
        self._is_open = False

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(text, file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """A line that counts only until the next."""
        now = self._clock.monotonic()
        if now - self._written_at < self._pause:
            return
        self._written_at = now
        if self._is_terminal:
            print(_CLEAR + text, end="", file=self._stream, flush=True)
            self._is_open = True
        else:
            print(text, file=self._stream, flush=True)

    def clear(self) -> None:
        """Take the passing line away, so that something else can be written."""
        if self._is_open:
            print(_CLEAR, end="", file=self._stream, flush=True)
            self._is_open = False

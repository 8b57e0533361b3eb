"""A client program that runs beside what is measured: for as long as a `with` block does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any, Self

PATIENCE_S = 180


class Beside:
    """Runs `command`, a program that ends when its standard input does and prints JSON then: `result` afterwards."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self.result: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            output, _error = self._process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        if self._process.returncode == 0:
            self.result = json.loads(output)

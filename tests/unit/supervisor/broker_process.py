"""Runs a broker of stub workers as a process of its own: `python broker_process.py DATA_DIR MODE [LISTEN]`."""

from __future__ import annotations

import sys
from pathlib import Path

from kafscale.config import resolve
from kafscale.errors import KafscaleError
from supervisor.main import run

STUB = str(Path(__file__).with_name("stub_worker.py"))


def main() -> int:
    data_dir, mode, *listen = sys.argv[1:]
    flags = {
        "data_dir": data_dir,
        "listen": listen[0] if listen else "127.0.0.1:0",
        "metrics_addr": "127.0.0.1:0",
        "workers": "2",
        "slots": "8",
        "log_format": "text",
    }
    config = Path(data_dir).with_suffix(".toml")
    resolved = resolve(flags, {}, str(config) if config.exists() else None)
    try:
        return run(resolved.settings, resolved.sources, [sys.executable, STUB, "--mode", mode])
    except KafscaleError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

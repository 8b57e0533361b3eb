"""Runs a broker in this process: event loop, signals, log, and the way out. Decides nothing itself."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

import msgspec
import uvloop

from kafscale import logs
from kafscale.clock import SystemClock
from kafscale.config import DECLARATIONS, Settings, Source
from kafscale.config.sources import NO_KILL_VARIABLE, from_file
from supervisor.spawner import WORKER_COMMAND
from supervisor.supervisor import Supervisor


def run(settings: Settings, sources: Mapping[str, Source], worker_command: Sequence[str] = WORKER_COMMAND) -> int:
    """Serve until a signal ends it. Returns the exit code; raises KafscaleError where the broker can't go on."""
    logs.configure(settings, "supervisor")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, sources, worker_command))


async def _serve(settings: Settings, sources: Mapping[str, Source], worker_command: Sequence[str]) -> int:
    supervisor = Supervisor(
        settings,
        SystemClock(),
        random.Random(),  # nosec B311
        # Where the audit log is on standard output there is nothing else.
        announce=_print_line if settings.audit_log != "stdout" else lambda line: _print_line(line, sys.stderr),
        worker_command=worker_command,
        kill_hung=os.environ.get(NO_KILL_VARIABLE) != "1",
        reload=lambda: _reload(settings, sources),
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.ask_to_stop)
    loop.add_signal_handler(signal.SIGHUP, supervisor.ask_to_reload)
    return await supervisor.run()


def _reload(settings: Settings, sources: Mapping[str, Source]) -> None:
    """Read the settings file again and take over what can change in a running broker: the level of the log.

    A flag and a variable can't change, and go on ranking above the file. Raises UsageError.
    """
    paths = {source.name for source in sources.values() if source.kind == "file"}
    for path in paths:
        found = from_file(path, path, DECLARATIONS)
        if "log_level" in found and sources["log_level"].kind in ("file", "default"):
            logs.configure(msgspec.structs.replace(settings, log_level=found["log_level"][0]), "supervisor")
    logging.getLogger(__name__).info("settings were read again", extra={"files": ", ".join(sorted(paths)) or "none"})


def _print_line(line: str, stream: TextIO | None = None) -> None:
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        pass

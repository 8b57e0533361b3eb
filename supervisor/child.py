"""One worker process as its parent sees it: spawned, spoken to over its control socket, pinged, and seen to end.

Owns the process, the parent's end of the socket, and the judgement that the process has ended, hangs, was fenced or
talks nonsense. Must not know slots, logs or what is done about an ending.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess  # nosec B404
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import cast

import msgspec

from kafscale.clock import Clock, Timer
from kafscale.control import (
    MAX_FRAME_BYTES,
    Configure,
    Drained,
    Ping,
    Pong,
    ToSupervisor,
    ToWorker,
    WorkerFenced,
    encode_frame,
    supervisor_side_reader,
)
from supervisor.descriptors import DescriptorSender

log = logging.getLogger(__name__)

PING_SECONDS = 0.5
# A process that was just spawned imports its code before it can answer.
FIRST_ANSWER_SECONDS = 30.0
# Between the end of the control socket and the end of the process, when it ends by itself.
EXIT_AFTER_EOF_SECONDS = 1.0
# Frames that a worker has not taken yet: it is as good as hung beyond.
MAX_UNSENT_BYTES = 2 * MAX_FRAME_BYTES


class EndingKind(StrEnum):
    EXITED = "exited"
    HUNG = "hung"
    FENCED = "fenced"
    BROKEN = "broken"


class Ending(msgspec.Struct, frozen=True):
    """Why an incarnation is over. Only after EXITED is its process known to be gone."""

    kind: EndingKind
    detail: str


class Child(asyncio.Protocol):
    """A worker process, from its spawning until it is gone.

    `over` settles with the first reason to replace it, `gone` with the exit status (negative: a signal) once the
    process has ended. `on_message` gets what it says, but for answers to pings.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        control: socket.socket,
        clock: Clock,
        descriptors: DescriptorSender | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.pid = process.pid
        self.over: asyncio.Future[Ending] = loop.create_future()
        self.gone: asyncio.Future[int] = loop.create_future()
        self.on_message: Callable[[ToSupervisor], None] = lambda message: None
        self.store_ok = True
        self.drained = False
        self._process = process
        self._control = control
        self._descriptors = descriptors
        self._clock = clock
        self._reader = supervisor_side_reader()
        self._transport: asyncio.Transport | None = None
        self._hang_seconds = 0.0
        self._ping_number = 0
        self._answered = False
        self._heard_at = 0.0
        self._ticked_at = 0.0
        self._timer: Timer | None = None
        # A pidfd becomes readable when its process ends: no signal handler, no race with the number's reuse.
        self._pidfd = os.pidfd_open(process.pid)
        loop.add_reader(self._pidfd, self._process_ended)

    @classmethod
    def launch(cls, command: Sequence[str], inherited: Sequence[int], clock: Clock) -> Child:
        """Start `command --control-fd N --descriptors-fd M` with the descriptors of `inherited` open under their own
        numbers.

        Not fork: the child shares no memory with an event loop. Its process group is its own, so that a Ctrl-C at the
        terminal reaches the supervisor alone, which then drains. To be followed by `connect`. Raises OSError.
        """
        ours, theirs = socket.socketpair()
        # A message each, so that the end of one is the end of what came with it.
        sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, receiving:
            try:
                ours.setblocking(False)
                process = subprocess.Popen(  # nosec B603
                    [*command, "--control-fd", str(theirs.fileno()), "--descriptors-fd", str(receiving.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[*inherited, theirs.fileno(), receiving.fileno()],
                    process_group=0,
                )
            except BaseException:
                ours.close()
                sending.close()
                raise
        return cls(process, ours, clock, DescriptorSender(sending))

    async def connect(self) -> None:
        """Make it possible to speak to the process."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=self._control)

    def configure(self, configure: Configure, hang_seconds: float) -> None:
        """Say who it is, and from now on expect an answer to every ping within `hang_seconds`."""
        self._hang_seconds = hang_seconds
        self._heard_at = self._ticked_at = self._clock.monotonic()
        self.send(configure)
        self._tick()

    def send(self, message: ToWorker) -> None:
        """Queue a frame. One that can't be sent any more is dropped."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._end(EndingKind.HUNG, "it doesn't read its control socket")
            return
        self._transport.write(encode_frame(message))

    def send_descriptor(self, fd: int) -> None:
        """Hand over an open descriptor. What was handed over before and not taken yet is forgotten."""
        if self._descriptors is not None and not self.gone.done():
            self._descriptors.send(fd)

    def kill(self) -> None:
        """End the process at once, if it hasn't ended."""
        if not self.gone.done():
            self._process.send_signal(signal.SIGKILL)

    def stop_pings(self) -> None:
        """Expect no more answers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._reader.feed(data)
        except (ValueError, msgspec.MsgspecError) as error:
            self.break_off(f"it sent a control frame that can't be read: {error}")
            return
        for message in messages:
            # Whatever it says, its loop runs.
            self._answered = True
            self._heard_at = self._clock.monotonic()
            match message:
                case Pong(_, store_ok):
                    self.store_ok = store_ok
                case WorkerFenced(reason):
                    self._end(EndingKind.FENCED, reason)
                case Drained():
                    self.drained = True
                case _:
                    self.on_message(message)  # type: ignore[arg-type]  # the reader is of this direction

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self.over.done():
            self._clock.call_later(EXIT_AFTER_EOF_SECONDS, self.break_off, "it closed its control socket")

    def break_off(self, detail: str) -> None:
        """Give the worker up: what it says makes no sense."""
        self._end(EndingKind.BROKEN, detail)
        if self._transport is not None:
            self._transport.abort()

    def _tick(self) -> None:
        now = self._clock.monotonic()
        if now - self._ticked_at > 3 * PING_SECONDS:
            # This process was held up itself: the worker's silence proves nothing.
            self._heard_at = now
        self._ticked_at = now
        patience = self._hang_seconds if self._answered else max(self._hang_seconds, FIRST_ANSWER_SECONDS)
        if now - self._heard_at >= patience:
            self._end(EndingKind.HUNG, f"no answer for {now - self._heard_at:.1f} s")
            return
        self._ping_number += 1
        self.send(Ping(self._ping_number, self._heard_at))
        if not self.over.done():
            wait = min(PING_SECONDS, self._hang_seconds / 4)
            self._timer = self._clock.call_later(wait, self._tick)

    def _process_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._process.wait()
        if self._descriptors is not None:
            self._descriptors.close()
        self.gone.set_result(status)
        self._end(EndingKind.EXITED, exit_text(status))
        if self._transport is not None:
            self._transport.close()

    def _end(self, kind: EndingKind, detail: str) -> None:
        self.stop_pings()
        if not self.over.done():
            self.over.set_result(Ending(kind, detail))


def exit_text(status: int) -> str:
    """An exit status as a person reads it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"

"""Where audit records go: a file, or standard output. What writing means there, and how it is known where to go on.

A sink's `open` says what was written last. A file says so itself. Of standard output nothing can be read back, so a
small file in the data directory remembers: the last record that surely went out, and up to which number more may have.
After a crash these numbers are a gap; after an orderly end there is none. Blocking calls are made in a thread.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol

import msgspec

from kafscale.config import Settings
from kafscale.errors import StartError
from kafscale.security.audit_chain import START as FIRST
from kafscale.security.audit_chain import ChainLink, Gap
from kafscale.storage.threads import Threads
from supervisor.audit_file import AuditFile, AuditStream

FILE_NAME: Final = "audit.log"
STATE_NAME: Final = "audit-chain.json"
# Numbers that may be used before what is remembered is written anew.
REMEMBERED_AHEAD: Final = 10_000
# So many records are written after an anchor at most before there is another: who knows of nothing but the anchor can
# tell that no later number was used.
RECORDS_PER_ANCHOR_MAX: Final = 1_000_000
STDOUT: Final = 1


class Ending(msgspec.Struct, frozen=True):
    """How what was written before ends. `last` is None where nothing is known; `reserved_to`: numbers up to it may have
    been used since; `unsound_lines` and `torn_bytes`: what lay behind it and is no record."""

    last: ChainLink | None = None
    reserved_to: int = 0
    unsound_lines: int = 0
    torn_bytes: int = 0


def continuation(ending: Ending, anchor: ChainLink | None) -> tuple[ChainLink, Gap | None]:
    """The record that the chain goes on from, and which numbers are left out because they may have been used."""
    last = ending.last
    base = last or FIRST
    if anchor is not None and anchor.sequence > max(base.sequence, ending.reserved_to):
        up_to = anchor.sequence + RECORDS_PER_ANCHOR_MAX
        if last is None:
            reason = f"nothing is known here of what was written up to record {anchor.sequence}, which was anchored"
            return anchor, Gap(anchor.sequence + 1, up_to, reason)
        reason = f"what is here ends before record {anchor.sequence}, which was anchored"
        return base, Gap(base.sequence + 1, up_to, reason)
    if ending.unsound_lines:
        reason = f"{ending.unsound_lines} lines at the end are no records"
        return base, Gap(base.sequence + 1, base.sequence + RECORDS_PER_ANCHOR_MAX, reason)
    if ending.reserved_to > base.sequence:
        return base, Gap(base.sequence + 1, ending.reserved_to, "the broker was not ended in order")
    return base, None


class Sink(Protocol):
    """`open` once, then `write`, and `close` at the end."""

    async def open(self, chain: str) -> Ending:
        """What was written of this chain before. Raises StartError."""

    async def write(self, lines: bytes, first: int, last: ChainLink) -> None:
        """Write the records from number `first` to `last`, whole and in order, and make them last. Raises OSError: then
        the same call is made again."""

    def take_thrown_away(self) -> int:
        """Up to which record what there was has been deleted to make room; 0 if it has not since the last call."""

    async def close(self) -> None: ...


def open_sink(settings: Settings, root: Path, threads: Threads) -> Sink:
    """The one that the settings name. `root` is the data directory."""
    if settings.audit_log == "stdout":
        return StdoutSink(root, threads)
    path = root / FILE_NAME if settings.audit_file is None else Path(settings.audit_file).absolute()
    return FileSink(AuditFile(path, settings.audit_file_max_bytes, settings.audit_files_kept), threads)


class FileSink:
    """Records as lines of a file, made durable with every write."""

    def __init__(self, file: AuditFile, threads: Threads) -> None:
        self._file = file
        self._threads = threads

    async def open(self, chain: str) -> Ending:
        tail = await self._threads.call(self._file.open)
        # A file that another broker wrote before ends another chain.
        is_ours = tail.last is not None and tail.last.chain == chain
        link = tail.last.link if tail.last is not None and is_ours else None
        return Ending(link, 0 if link is None else link.sequence, tail.unsound_lines, tail.torn_bytes)

    async def write(self, lines: bytes, first: int, last: ChainLink) -> None:
        await self._threads.call(lambda: self._file.write(lines, first))

    def take_thrown_away(self) -> int:
        return self._file.take_thrown_away()

    async def close(self) -> None:
        await self._threads.call(self._file.close)


class _Remembered(msgspec.Struct, frozen=True):
    """What the small file says."""

    chain: str
    seq: int
    hash: str
    reserved_to: int


class StdoutSink:
    """Records as lines of standard output."""

    def __init__(self, root: Path, threads: Threads, fd: int = STDOUT) -> None:
        self._path = root / STATE_NAME
        self._threads = threads
        self._stream = AuditStream(fd)
        self._chain = ""
        self._last = FIRST
        self._reserved_to = 0

    async def open(self, chain: str) -> Ending:
        self._chain = chain
        remembered = await self._threads.call(self._remembered)
        if remembered is None or remembered.chain != chain:
            return Ending()
        self._last = ChainLink(remembered.seq, remembered.hash)
        self._reserved_to = remembered.reserved_to
        return Ending(self._last, self._reserved_to)

    async def write(self, lines: bytes, first: int, last: ChainLink) -> None:
        await self._threads.call(lambda: self._write(lines, last))

    def take_thrown_away(self) -> int:
        return 0

    async def close(self) -> None:
        self._reserved_to = self._last.sequence
        try:
            await self._threads.call(self._remember)
        except OSError:
            pass  # What is there says that more may have been written: true enough.

    def _write(self, lines: bytes, last: ChainLink) -> None:
        if last.sequence > self._reserved_to:
            self._reserved_to = last.sequence + REMEMBERED_AHEAD
            self._remember()
        self._stream.write(lines)
        self._last = last

    def _remember(self) -> None:
        content = msgspec.json.encode(_Remembered(self._chain, self._last.sequence, self._last.hash, self._reserved_to))
        beside = self._path.with_name(self._path.name + ".new")
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._path)

    def _remembered(self) -> _Remembered | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Remembered)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StartError(f"{self._path}, which says where the audit log goes on, can't be read: {error}") from None

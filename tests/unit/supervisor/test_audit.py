"""Goal: a broker's audit log goes on where it ended, whatever it ended by; what can't be written is kept and written
later; what nobody can know is a gap that says so; and the command finds what was done to it."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from kafscale.clock import SystemClock
from kafscale.config import Settings
from kafscale.control import AuditBatch
from kafscale.errors import StartError, StoreUnavailable
from kafscale.security.audit_chain import START, Chain, ChainLink, read_record
from kafscale.security.audit_event import AuditEvent, Kind, Origin, body_of, encode_events
from kafscale.security.audit_verification import ChainReport, Line, verify_lines
from kafscale.storage.keys import Keys
from kafscale.storage.memory import MemoryStore
from kafscale.storage.store import ObjectInfo, Purpose
from kafscale.storage.threads import Threads
from supervisor import cli
from supervisor.audit import AuditLog
from supervisor.audit_anchors import Anchor, Anchors
from supervisor.audit_file import AuditFile, rotated_files
from supervisor.audit_sinks import RECORDS_PER_ANCHOR_MAX, Ending, StdoutSink, continuation
from tests.unit.supervisor.test_broker import Broker, run, until

ORIGIN = Origin("c1", 0)
KEYS = Keys("ns")


def lines(count: int, chain: Chain | None = None) -> list[bytes]:
    chain = chain or Chain(ORIGIN.chain)
    event = AuditEvent(kind=Kind.LIFECYCLE, time_ms=1, action="Start broker")
    return [chain.seal(body_of(event, ORIGIN)) for _ in range(count)]


def report_of(*paths: Path, anchors: list[ChainLink] | None = None) -> ChainReport:
    read = [
        Line(f"{path.name}:{number}", line.rstrip(b"\n"), is_torn=not line.endswith(b"\n"))
        for path in paths
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1)
    ]
    (report,) = verify_lines(read, {ORIGIN.chain: anchors or []})
    return report


# Where a chain goes on


@pytest.mark.parametrize(
    ("ending", "anchor", "last", "gap"),
    [
        (Ending(), None, START, None),
        (Ending(ChainLink(7, "h"), 7), None, ChainLink(7, "h"), None),
        (Ending(ChainLink(7, "h"), 7), ChainLink(5, "a"), ChainLink(7, "h"), None),
        # More may have been written after what is known.
        (Ending(ChainLink(7, "h"), 12), ChainLink(5, "a"), ChainLink(7, "h"), (8, 12)),
        # Less is there than was anchored.
        (Ending(ChainLink(7, "h"), 7), ChainLink(9, "a"), ChainLink(7, "h"), (8, 9 + RECORDS_PER_ANCHOR_MAX)),
        # Nothing is there any more.
        (Ending(), ChainLink(9, "a"), ChainLink(9, "a"), (10, 9 + RECORDS_PER_ANCHOR_MAX)),
        (Ending(ChainLink(7, "h"), 7, unsound_lines=2), None, ChainLink(7, "h"), (8, 7 + RECORDS_PER_ANCHOR_MAX)),
    ],
)
def test_where_a_chain_goes_on(
    ending: Ending, anchor: ChainLink | None, last: ChainLink, gap: tuple[int, int] | None
) -> None:
    """Goal: no number is used twice, and none is left out unsaid."""
    found, left_out = continuation(ending, anchor)
    assert found == last
    assert (None if left_out is None else (left_out.first, left_out.last)) == gap


# The file


def test_a_file_goes_on_from_its_last_line(tmp_path: Path) -> None:
    """Goal: what a crash left of a line is cut off; the chain goes on from the last whole one."""
    path = tmp_path / "audit.log"
    written = lines(3)
    path.write_bytes(b"".join(written) + written[0][:50])
    file = AuditFile(path, 0, 1)
    tail = file.open()
    assert tail.last is not None and tail.last.sequence == 3
    assert (tail.torn_bytes, tail.unsound_lines) == (50, 0)
    file.write(b"".join(lines(2, Chain(ORIGIN.chain, tail.last.link))), 4)
    file.close()
    assert not report_of(path).findings
    path.write_bytes(path.read_bytes() + b"rubbish\nmore\n")
    tail = AuditFile(path, 0, 1).open()
    assert tail.last is not None and (tail.last.sequence, tail.unsound_lines) == (5, 2)


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    """Goal: a second broker does not start on the same file; one where there is no folder doesn't either."""
    first = AuditFile(tmp_path / "audit.log", 0, 1)
    first.open()
    with pytest.raises(StartError, match="is being written by another process"):
        AuditFile(tmp_path / "audit.log", 0, 1).open()
    first.close()
    with pytest.raises(StartError, match=r"none/audit.log can't be opened: No such file"):
        AuditFile(tmp_path / "none" / "audit.log", 0, 1).open()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """Goal: of lines that did not fit nothing stays, and the same call succeeds once there is room."""
    path = tmp_path / "audit.log"
    file = AuditFile(path, 0, 1)
    file.open()
    chain = Chain(ORIGIN.chain)
    file.write(b"".join(lines(2, chain)), 1)
    size = path.stat().st_size
    more = b"".join(lines(3, chain))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.write(more, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size
    file.write(more, 3)
    assert report_of(path).records == 5 and not report_of(path).findings


def test_files_are_rotated_and_the_oldest_are_deleted(tmp_path: Path) -> None:
    """Goal: files stay below their size, as many as asked for are kept, and it is known what was thrown away."""
    path = tmp_path / "audit.log"
    written = lines(10)
    file = AuditFile(path, 3 * len(written[0]), 2)
    file.open()
    thrown_away = []
    for number, line in enumerate(written, 1):
        file.write(line, number)
        thrown_away.append(file.take_thrown_away())
    file.close()
    kept = rotated_files(path)
    assert [one.name[-2:] for one in kept] == ["04", "07"]
    assert [last for last in thrown_away if last] == [3]
    assert report_of(*kept, path).first == 4
    # The next start, in the moment after a rotation.
    path.unlink()
    tail = AuditFile(path, 0, 2).open()
    assert tail.last is not None and tail.last.sequence == 9


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    """Goal: logrotate may move the file; nothing is lost, and the chain goes on over both."""
    path = tmp_path / "audit.log"
    file = AuditFile(path, 0, 1)
    file.open()
    written = lines(4)
    file.write(b"".join(written[:2]), 1)
    path.rename(tmp_path / "moved")
    file.write(b"".join(written[2:]), 3)
    file.close()
    assert report_of(tmp_path / "moved", path).records == 4


def test_standard_output_goes_on_behind_a_gap_after_a_crash(tmp_path: Path) -> None:
    """Goal: of what can't be read back it is known what may have gone out; after an orderly end exactly that."""

    async def scenario() -> None:
        threads = Threads("audit", 1)
        out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
        chain = Chain(ORIGIN.chain)
        first = StdoutSink(tmp_path, threads, out)
        assert await first.open(ORIGIN.chain) == Ending()
        await first.write(b"".join(lines(3, chain)), 1, chain.last)
        crashed = await StdoutSink(tmp_path, threads, out).open(ORIGIN.chain)
        assert crashed.last == START and crashed.reserved_to > 3
        await first.write(b"".join(lines(2, chain)), 4, chain.last)
        await first.close()
        ended = await StdoutSink(tmp_path, threads, out).open(ORIGIN.chain)
        assert ended == Ending(chain.last, 5)
        (tmp_path / "audit-chain.json").write_text("{")
        with pytest.raises(StartError, match="can't be read"):
            await StdoutSink(tmp_path, threads, out).open(ORIGIN.chain)
        await threads.close()
        os.close(out)

    run(scenario())


# The writer


class ListSink:
    """Records in a list, and an error for as long as it is asked for."""

    def __init__(self, last: ChainLink | None = None) -> None:
        self.lines: list[bytes] = []
        self.error: OSError | None = None
        self.tries = 0
        self._last = last

    async def open(self, chain: str) -> Ending:
        return Ending(self._last, 0 if self._last is None else self._last.sequence)

    async def write(self, lines: bytes, first: int, last: ChainLink) -> None:
        self.tries += 1
        if self.error is not None:
            raise self.error
        self.lines += lines.splitlines(keepends=True)
        read = read_record(self.lines[-1][:-1])
        assert read is not None and read.link == last

    def take_thrown_away(self) -> int:
        return 0

    async def close(self) -> None:
        return

    def actions(self) -> list[str]:
        return [orjson.loads(line)["unmapped"]["action"] for line in self.lines]


class SpokenTo:
    """A worker as the audit log sees it."""

    pid = 7

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.complaints: list[str] = []

    def send(self, message: Any) -> None:
        self.sent.append(message.number)

    def break_off(self, detail: str) -> None:
        self.complaints.append(detail)


class Rig:
    """An audit log on a list, with its anchors in memory."""

    def __init__(self, sink: ListSink | None = None, store: MemoryStore | None = None, **settings: Any) -> None:
        self.sink = sink or ListSink()
        self.store = store or MemoryStore(SystemClock())
        self.failures: list[BaseException] = []
        made = Settings(audit_log="file", **{"audit_anchor_interval_ms": 100_000} | settings)
        self.log = AuditLog(made, SystemClock(), self.failures.append, self.sink)
        self.anchors = Anchors(self.store, KEYS, 0, SystemClock(), random.Random(1))
        self.worker: Any = SpokenTo()
        self.numbers = itertools.count(1)

    async def __aenter__(self) -> Rig:
        await self.log.begin("c1", self.anchors)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.log.close()
        assert not self.failures

    def event(self, action: str) -> None:
        self.log.record(Kind.LIFECYCLE, action)

    def batch(self, *actions: str, lost: int = 0) -> None:
        events = [AuditEvent(kind=Kind.LIFECYCLE, time_ms=1, action=action) for action in actions]
        self.log.accept(self.worker, AuditBatch(next(self.numbers), encode_events(events), lost))

    def report(self) -> ChainReport:
        (report,) = verify_lines([Line("", line[:-1]) for line in self.sink.lines], {}, is_whole=False)
        return report


async def wait(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is another's state
            await asyncio.sleep(0.002)


def test_workers_are_told_once_their_events_are_written() -> None:
    """Goal: a batch is confirmed when all of it is written, in order, and not before; lost events are on record."""

    async def scenario() -> None:
        async with Rig() as rig:
            rig.sink.error = OSError(28, "No space left on device")
            rig.batch("a", "b")
            rig.event("c")
            await wait(lambda: rig.sink.tries >= 1)
            rig.batch("d", lost=3)
            rig.batch()
            await wait(lambda: rig.log.figures.is_failing)
            assert rig.worker.sent == [3]
            rig.sink.error = None
            await wait(lambda: rig.worker.sent == [3, 1, 2])
            assert rig.sink.actions() == ["a", "b", "c", "Lose events", "d"]
            assert orjson.loads(rig.sink.lines[3])["unmapped"]["lost"] == 3
            assert rig.log.figures.lost == 3 and not rig.log.figures.is_failing
            assert not rig.report().findings
            rig.log.accept(rig.worker, AuditBatch(9, b"\xc1"))
            assert len(rig.worker.complaints) == 1

    run(scenario())


def test_what_was_numbered_is_written_unchanged() -> None:
    """Goal: records that could not be written are tried again with the same numbers, before all others."""

    async def scenario() -> None:
        async with Rig() as rig:
            rig.sink.error = OSError(5, "Input/output error")
            for number in range(600):
                rig.batch(str(number))
            await wait(lambda: rig.sink.tries >= 2)
            rig.sink.error = None
            await wait(lambda: len(rig.worker.sent) == 600)
            assert rig.sink.actions() == [str(number) for number in range(600)]
            assert not rig.report().findings and rig.report().last == 600

    run(scenario())


def test_the_newest_record_is_anchored() -> None:
    """Goal: the first record, then one for each interval in which anything was written, and the last are anchored."""

    async def scenario() -> None:
        async with Rig(audit_anchor_interval_ms=100) as rig:
            rig.event("a")
            await wait(lambda: rig.log.figures.anchored == 1)
            rig.event("b")
            await wait(lambda: rig.log.figures.anchored == 2)
            rig.event("c")
        newest = await rig.anchors.newest()
        assert newest is not None and newest.seq == 3
        assert newest.hash == rig.log._chain.last.hash
        (report,) = verify_lines([Line("", line[:-1]) for line in rig.sink.lines], {"c1/0": [newest.link]})
        assert report.anchors == 1
        # The next life knows the end; what is missing from it is a gap.
        async with Rig(ListSink(rig.log._chain.last), rig.store) as rig:
            rig.event("d")
        assert rig.report().first == 4
        async with Rig(ListSink(ChainLink(2, "x" * 64)), rig.store) as rig:
            rig.event("e")
        assert rig.sink.actions() == ["Leave a gap", "e"]
        assert orjson.loads(rig.sink.lines[0])["gap"]["first"] == 3

    run(scenario())


@pytest.mark.parametrize("how", ["list", "get"])
def test_a_store_that_refuses_at_first_does_not_end_the_start(how: str) -> None:
    """Goal: the newest anchor is asked for again, so that the chain goes on from it all the same."""

    class Refusing(MemoryStore):
        refusals = 0

        async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
            self._refuse("list")
            return await super().list(prefix, purpose, start_after)

        async def get(self, key: str, purpose: Purpose) -> bytes:
            self._refuse("get")
            return await super().get(key, purpose)

        def _refuse(self, asked: str) -> None:
            if asked == how and self.refusals:
                self.refusals -= 1
                raise StoreUnavailable("503 SlowDown")

    async def scenario() -> None:
        store = Refusing(SystemClock())
        async with Rig(store=store) as rig:
            rig.event("a")
        store.refusals = 3
        async with Rig(store=store) as rig:
            rig.event("b")
        assert store.refusals == 0 and rig.sink.actions() == ["Leave a gap", "b"]

    run(scenario())


def test_two_writers_of_one_chain_are_told_of() -> None:
    """Goal: a record that was anchored with another hash is on record, and loud."""

    async def scenario() -> None:
        async with Rig(audit_anchor_interval_ms=100_000) as rig:
            await rig.anchors.put(Anchor("c1/0", 1, "0" * 64, 1))
            rig.event("a")
            await wait(lambda: "Find a contradiction" in rig.sink.actions())

    run(scenario())


# The broker


def test_starts_stops_reloads_and_lost_workers_are_on_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Goal: two lives of a broker make one chain, which the command finds whole; a line taken out it names."""
    root = tmp_path / "data"

    async def life(is_first: bool) -> None:
        async with Broker(root, audit_log="file") as broker:
            await broker.ready()
            if is_first:
                os.kill(broker.pids()[0], signal.SIGKILL)
                await until(lambda: broker.posts[0].restart_count and broker.posts[0].serving, broker.running)
                broker.supervisor.ask_to_reload()
        assert broker.code == 0

    run(life(True))
    run(life(False))
    path = root / "audit.log"
    written = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    actions = [line["unmapped"]["action"] for line in written]
    assert actions[0] == "Start broker" and actions.count("Start broker") == actions.count("Stop broker") == 2
    assert actions[-1] == "Stop broker"
    assert "Reload settings" in actions
    lost = written[actions.index("Stop worker")]
    assert "SIGKILL" in lost["status_detail"] and lost["status"] == "Failure"
    assert actions.index("Stop worker") < actions.index("Restart worker")
    flags = ["audit", "verify", "--data-dir", str(root)]
    assert cli.run(flags, {}) == 0
    assert "Verdict     whole" in capsys.readouterr().out
    content = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(content[:2] + content[3:]))
    assert cli.run(flags, {}) == 1
    assert "NOT whole: record 3 is the first that was removed" in capsys.readouterr().out
    path.write_bytes(b"".join(content[:-1]))
    assert cli.run([*flags, "--json"], {}) == 1
    found = orjson.loads(capsys.readouterr().out)["findings"]
    assert [(one["wrong"], one["sequence"]) for one in found] == [("truncated", len(content))]
    # Only the anchors can tell.
    assert cli.run([*flags, "--no-anchors"], {}) == 0
    assert cli.run(["audit", "verify", str(path), "--no-anchors"], {}) == 0
    random.Random(1).shuffle(content)
    path.write_bytes(b"".join(content))
    assert cli.run(["audit", "verify", str(path), "--any-order", "--data-dir", str(root)], {}) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["audit"], "audit is no command by itself; say audit verify"),
        (["audit", "verfy"], "unknown command audit verfy; did you mean audit verify?"),
        (["audit", "verify", "--any-order"], "--any-order is for lines from a topic"),
        (["audit", "verify", "--data-dir", "/nonexistent"], "there is no audit log /nonexistent/audit.log"),
        (["audit", "verify", "/nonexistent", "--no-anchors"], "/nonexistent can't be read: No such file"),
        (["serve", "--audit-file", "x"], "--audit-file: nothing is put on record; set audit_log as well"),
    ],
)
def test_mistakes_get_one_clear_line(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Goal: whoever asks for what can't be is told what and what to do."""
    assert cli.run(arguments, {}) in (1, 2)
    assert complaint in capsys.readouterr().err


def test_a_broker_does_not_start_without_its_audit_log(tmp_path: Path) -> None:
    """Goal: an audit log that can't be opened stops the start, before anything is served."""

    async def scenario() -> None:
        broker = Broker(tmp_path / "data", audit_log="file", audit_file=str(tmp_path / "none" / "audit.log"))
        async with broker:
            with pytest.raises(StartError, match="can't be opened"):
                await broker.running
            broker.running = asyncio.create_task(asyncio.sleep(0, 1))

    run(scenario())

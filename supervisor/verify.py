"""`kafscale verify`: reads a bucket and reports every object that is missing, corrupt, unreferenced or out of place.

It reads only, and may do so while brokers run. First everything is listed, then the newest decisions are read and what
they name, so whatever is named was written before it was looked for. What seems to be missing, or to be named by
nobody, is looked at again by newer decisions, since a running cluster replaces and deletes: only what is so both times
is reported. Every object that something names is read whole and checked, batch by batch (`--quick`: only its size).

Memory: some 500 bytes an object, 48 an extent and 200 a partition, and `BODY_BYTES` of objects being read.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from kafscale.clock import Clock, SystemClock
from kafscale.config import Settings
from kafscale.coordination.cluster import ClusterState, decode_version
from kafscale.errors import Corrupt, ObjectMissing, StartError
from kafscale.storage.cluster_log import FIRST_VERSION, ClusterLog
from kafscale.storage.ended_logs import decode_ended
from kafscale.storage.keys import Keys, index_of, sequence_of, writer_of
from kafscale.storage.partition import EpochStart
from kafscale.storage.store import ObjectInfo, ObjectStore, Purpose
from kafscale.storage.takeover import LogReader, find_end
from kafscale.storage.verification import (
    Wrong,
    check_index,
    check_object,
    expected_row,
    least_size,
    ranges_of,
    wrong_of,
)
from kafscale.storage.worker_log import MAX_IN_FLIGHT
from supervisor.audit_anchors import read_anchor
from supervisor.bucket_reader import BucketReader, Contents, Finding, LoadedPartition
from supervisor.cluster_history import load_state
from supervisor.progress import Progress
from supervisor.read_store import open_for_reading
from supervisor.unnamed import RANKS, Ages, Judge, LogSeal, Why, wrong_with
from supervisor.verify_report import Report, as_json, as_text

# Requests under way, and at most so many bytes of objects being read (one that is larger by itself is read alone).
AT_ONCE = 16
BODY_BYTES = 128 << 20
# How often what seems wrong in a running cluster is looked at again, and after how long.
LOOKS = 3
LOOK_AGAIN_SECONDS = 1.0
# So many leftovers are listed, unless they count as findings.
LEFTOVERS_SHOWN = 20
# Sweeps that may pass before what they should have deleted is called unreferenced.
SWEEPS_ALLOWED = 2
# A worker whose log others have ended may be loading slots, or be paused: what it wrote until then is no riddle.
LATE_MS = 600_000

_Item = TypeVar("_Item")

_ID = "[0-9a-f]{32}"
_NUMBER = "[0-9]{20}"
_SEGMENT = rf"[a-zA-Z0-9._-]+/{_ID}/[0-9]+/segment-{_NUMBER}-{_ID}-[0-9]+\.(kfs|index)"
_KEYS = re.compile(
    rf"(cluster|pids|audit/[0-9]{{10}})/{_NUMBER}|(log|ended|manifest|pack)/{_ID}/{_NUMBER}|topics/{_SEGMENT}|probe/[^/]+"
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`quick`: don't read bodies. `strict`: leftovers count as findings. `as_json`: a finding is a line of JSON."""

    quick: bool = False
    strict: bool = False
    as_json: bool = False


def run(settings: Settings, options: Options) -> int:
    """Print the findings as they are made. Returns 1 where there are any. Raises KafscaleError."""
    if settings.s3_bucket is None and not Path(settings.data_dir).is_dir():
        raise StartError(f"there is no data directory {settings.data_dir}")
    return asyncio.run(_run(settings, options))


async def _run(settings: Settings, options: Options) -> int:
    clock, source = SystemClock(), random.Random()  # nosec B311
    progress = Progress(clock)
    store = open_for_reading(settings, clock, source, progress)

    def write(line: str) -> None:
        progress.clear()
        print(line, flush=True)

    try:
        report = await Verifier(settings, options, store, clock, source, progress, write).run()
    finally:
        progress.clear()
        await store.close()
    if not options.as_json:
        print("\n".join(report.summary()), flush=True)
    return 1 if report.is_bad(options.strict) else 0


class Verifier:
    """One look at a bucket. `run` once; `write` gets a line for each finding."""

    def __init__(
        self,
        settings: Settings,
        options: Options,
        store: ObjectStore,
        clock: Clock,
        random_source: random.Random,
        progress: Progress,
        write: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._options = options
        self._store = store
        self._clock = clock
        self._progress = progress
        self._write = write
        self._keys = Keys(settings.cluster_namespace)
        self._cluster_log = ClusterLog(store, self._keys, clock, random_source)
        self._reader = LogReader(store, self._keys, clock, random_source)
        self._report = Report()
        self._topic_names: dict[bytes, str] = {}
        # Of everything that was listed and lies where it may.
        self._listed: dict[str, ObjectInfo] = {}
        self._newest_ms = 0
        self._rows: dict[str, bytearray] = {}
        self._epochs: dict[tuple[bytes, int], list[EpochStart]] = {}
        self._body_bytes = 0
        self._body_room = asyncio.Condition()
        # Objects of other logs that were found damaged, to be told of once.
        self._damaged: set[str] = set()

    async def run(self) -> Report:
        """Raises StartError where there is no cluster, StoreFailed where the store gives no answers."""
        await self._list()
        await self._check_versions()
        state = await self._newest_state()
        if state is not None:
            await self._check_cluster(state)
        return self._report

    # Listing

    async def _list(self) -> None:
        prefix = f"{self._keys.namespace}/"
        found = await self._store.list(prefix, Purpose.RECOVERY)
        if not any(info.key.startswith(self._keys.cluster_prefix) for info in found):
            raise StartError(f"no cluster lies under the namespace {self._keys.namespace!r}")
        for info in found:
            self._report.objects += 1
            self._report.bytes += info.size
            self._newest_ms = max(self._newest_ms, info.created_ms)
            if _KEYS.fullmatch(info.key.removeprefix(prefix)):
                self._listed[info.key] = info
            else:
                self._find(Finding(Wrong.MISPLACED, info.key, "no part of Kafscale writes such a key"))
        self._progress.say(f"listed {self._report.objects:,} objects")

    def _numbers(self, prefix: str) -> dict[str, list[int]]:
        """Log id → its listed numbers, in order."""
        numbers: dict[str, list[int]] = defaultdict(list)
        for key in self._listed:
            if key.startswith(prefix):
                numbers[str(writer_of(key))].append(sequence_of(key))
        return {log_id: sorted(found) for log_id, found in numbers.items()}

    # Decisions

    async def _check_versions(self) -> None:
        """Every version of the cluster log, which are never deleted, every claimed block of producer ids, and every
        anchor of an audit log."""
        versions = sorted(sequence_of(key) for key in self._listed if key.startswith(self._keys.cluster_prefix))
        for number in sorted(set(range(FIRST_VERSION, versions[-1] + 1)) - set(versions)):
            problem = f"version {number} of the cluster log, which goes on to {versions[-1]}"
            self._find(Finding(Wrong.MISSING, self._keys.cluster(number), problem))
        if self._options.quick:
            return
        await self._each(versions, self._check_version, "versions of the cluster log")
        pids = [key for key in self._listed if key.startswith(self._keys.pids_prefix)]
        await self._each(pids, self._check_producer_ids, "blocks of producer ids")
        anchors = [key for key in self._listed if key.startswith(self._keys.audit_prefix)]
        await self._each(anchors, self._check_anchor, "audit anchors")
        ended = [key for key in self._listed if key.startswith(self._keys.ended_prefix)]
        await self._each(ended, self._check_ended, "summaries of ended logs")

    async def _check_version(self, number: int) -> None:
        key = self._keys.cluster(number)
        try:
            payload = await self._cluster_log.read(number)
            if payload is not None and decode_version(payload).version != number:
                raise Corrupt("its content is of another version")
        except (Corrupt, StartError) as error:
            self._find(Finding(Wrong.CORRUPT, key, str(error)))

    async def _check_ended(self, key: str) -> None:
        """That it is whole, and says what the log says."""
        log_id = str(writer_of(key))
        try:
            body = await self._store.get(key, Purpose.RECOVERY)
            written_down = await decode_ended(body, log_id, self._keys, self._clock)
        except ObjectMissing:
            return  # Swept meanwhile.
        except Corrupt as error:
            self._find(Finding(Wrong.CORRUPT, key, f"{error} (whoever takes over reads the log itself)"))
            return
        try:
            end = await find_end(self._reader, log_id)
        except Corrupt:
            return  # The log's own affair.
        if end != written_down and (end.objects or not end.sealed):
            problem = f"says that the log ended at {written_down.end}, replayed from {written_down.replay_from}, and it"
            problem += (
                f" {'ended at' if end.sealed else 'has not ended, and goes to'} {end.end}, from {end.replay_from}"
            )
            self._find(Finding(Wrong.CORRUPT, key, problem))

    async def _check_producer_ids(self, key: str) -> None:
        body = await self._store.get(key, Purpose.RECOVERY)
        if not re.fullmatch(_ID.encode(), body):
            self._find(Finding(Wrong.CORRUPT, key, "does not hold the id of the log whose worker claimed it"))

    async def _check_anchor(self, key: str) -> None:
        try:
            await read_anchor(self._store, key)
        except Corrupt as error:
            self._find(Finding(Wrong.CORRUPT, key, str(error)))

    async def _newest_state(self) -> ClusterState | None:
        try:
            state = await load_state(self._cluster_log)
        except Corrupt as error:
            problem = f"the newest decisions can't be read, and nothing that rests on them: {error}"
            self._find(Finding(Wrong.CORRUPT, self._keys.cluster_prefix, problem))
            return None
        if state is not None:
            self._report.cluster = f"{state.cluster_id}, version {state.version} of its log"
            self._topic_names |= {topic.topic_id: name for name, topic in state.topics.items()}
        return state

    # What they name

    async def _check_cluster(self, state: ClusterState) -> None:
        contents = await self._read_contents(state, self._count_rows)
        certain = [finding for finding in contents.findings if finding.wrong is not Wrong.MISSING]
        unsure = [finding for finding in contents.findings if finding.wrong is Wrong.MISSING]
        for finding in certain:
            self._find(finding)
        self._report.named = len(contents.named)
        missing = {finding.key for finding in unsure}
        missing |= await self._check_objects(sorted(contents.named - {finding.key for finding in certain}))
        unnamed = [info for key, info in self._listed.items() if self._may_be_unnamed(key, contents)]
        judged = await self._judge(unnamed, contents)
        await self._look_again(missing, unsure, judged)

    async def _read_contents(
        self, state: ClusterState, count: Callable[[LoadedPartition], None] = lambda loaded: None
    ) -> Contents:
        async def visit(loaded: LoadedPartition) -> None:
            count(loaded)
            await self._clock.sleep(0)

        reader = BucketReader(self._settings, self._store, self._keys, self._reader, state, visit, self._progress.note)
        return await reader.read(self._numbers(self._keys.log_prefix))

    def _count_rows(self, loaded: LoadedPartition) -> None:
        partition = loaded.log
        self._report.partitions += 1
        self._report.records += partition.high_watermark - partition.log_start_offset
        self._epochs[partition.topic_id, partition.index] = partition.epochs
        for extent in partition.extents:
            row = expected_row(
                partition.topic_id,
                partition.index,
                extent.base_offset,
                extent.last_offset,
                extent.position,
                extent.length,
            )
            rows = self._rows.get(extent.key)
            if rows is None:
                rows = self._rows[extent.key] = bytearray()
            rows += row

    def _may_be_unnamed(self, key: str, contents: Contents) -> bool:
        kept = (self._keys.cluster_prefix, self._keys.pids_prefix, self._keys.audit_prefix)
        return key not in contents.named and not key.startswith(kept)

    # Objects

    async def _check_objects(self, keys: list[str]) -> set[str]:
        """Check everything that is named; returns what is not there."""
        missing: set[str] = set()

        async def check(key: str) -> None:
            try:
                await self._check_named(key)
            except ObjectMissing:
                missing.add(key)

        await self._each([key for key in keys if not key.endswith(".index")], check, "objects")
        return missing

    async def _check_named(self, key: str) -> None:
        """Raises ObjectMissing."""
        rows = self._rows.get(key, b"")
        info = self._listed.get(key)
        if self._options.quick or key.startswith(self._keys.manifest_prefix):
            # Manifests were read by the places in them that count.
            if info is None and not await self._store.exists(key, Purpose.RECOVERY):
                raise ObjectMissing(key)
            if info is not None and info.size < least_size(rows):
                problem = f"holds {info.size} bytes, {least_size(rows)} are referred to"
                self._find(Finding(Wrong.CORRUPT, key, problem, ranges_of(rows)))
            if key.endswith(".kfs") and index_of(key) not in self._listed:
                await self._check_index(index_of(key), None)
            return
        size = info.size if info is not None else least_size(rows)
        await self._take_room(size)
        try:
            data = await self._store.get(key, Purpose.RECOVERY)
            self._report.bodies += 1
            damages = check_object(key, data, rows, self._epochs)
            for damage in damages:
                self._find(Finding(damage.wrong, key, damage.problem, damage.affected))
            if key.endswith(".kfs"):
                await self._check_index(index_of(key), None if damages else data)
        finally:
            await self._give_room(size)

    async def _check_index(self, key: str, segment: bytes | None) -> None:
        try:
            index = await self._store.get(key, Purpose.RECOVERY)
        except ObjectMissing:
            if await self._store.exists(key.removesuffix(".index") + ".kfs", Purpose.RECOVERY):
                self._find(Finding(Wrong.MISSING, key, "a segment's index, which only KafScale's own readers use"))
            return
        for damage in check_index(key, index, segment):
            self._find(Finding(damage.wrong, key, f"{damage.problem} (only KafScale's own readers use it)"))

    async def _take_room(self, size: int) -> None:
        async with self._body_room:
            await self._body_room.wait_for(lambda: self._body_bytes == 0 or self._body_bytes + size <= BODY_BYTES)
            self._body_bytes += size

    async def _give_room(self, size: int) -> None:
        async with self._body_room:
            self._body_bytes -= size
            self._body_room.notify_all()

    # What nothing names

    async def _judge(self, unnamed: list[ObjectInfo], contents: Contents) -> list[tuple[ObjectInfo, Why]]:
        """What of it is no seal, and why it lies there."""
        numbers = self._numbers(self._keys.log_prefix)
        seal_keys, seals = await self._read_seals(numbers, contents)
        checkpoints_ms = {
            log_id: info.created_ms
            for log_id, log in contents.logs.items()
            if (info := self._listed.get(self._keys.log(log_id, log.checkpoint_sequence))) is not None
        }
        grace_ms = self._settings.sweep_grace_ms
        ages = Ages(
            young_ms=self._newest_ms - grace_ms,
            overdue_ms=self._newest_ms - grace_ms - SWEEPS_ALLOWED * self._settings.sweep_interval_ms,
            late_ms=LATE_MS,
        )
        judge = Judge(self._keys, contents.logs, numbers.keys(), checkpoints_ms, contents.owners, seals, ages)
        return [(info, judge.why(info)) for info in unnamed if info.key not in seal_keys]

    async def _read_seals(
        self, numbers: Mapping[str, Sequence[int]], contents: Contents
    ) -> tuple[set[str], dict[str, LogSeal]]:
        """Which objects are seals, and the first of each log that can have ended it. Looks at whatever may be one: of
        logs that slots name what lies from their end on, of others everything that is left of them."""
        seal_keys: set[str] = set()
        found_seals: dict[str, list[tuple[int, LogSeal]]] = defaultdict(list)
        highest: dict[str, int] = defaultdict(int)

        async def look(entry: tuple[str, int]) -> None:
            log_id, number = entry
            key = self._keys.log(log_id, number)
            try:
                found = await self._reader.read(log_id, number)
            except Corrupt as error:
                if key not in self._damaged:
                    self._damaged.add(key)
                    self._find(Finding(wrong_of(error), key, str(error)))
                return
            if found is None:
                return
            if found.seal is None:
                highest[log_id] = max(highest[log_id], number)
                return
            seal_keys.add(key)
            seal = LogSeal(self._listed[key].created_ms, found.seal.writer == log_id)
            found_seals[log_id].append((number, seal))

        wanted = [
            (log_id, number)
            for log_id, listed in numbers.items()
            for number in listed
            if log_id not in contents.logs or number >= contents.logs[log_id].end
        ]
        await self._each(wanted, look, "objects of ended logs")
        seals = {}
        for log_id, entries in found_seals.items():
            # Its owner goes past a seal only if that came late, to a number that was deleted already.
            ending = [seal for number, seal in entries if number + MAX_IN_FLIGHT >= highest[log_id]]
            if ending:
                seals[log_id] = min(ending, key=lambda seal: seal.created_ms)
        return seal_keys, seals

    async def _look_again(self, missing: set[str], unsure: list[Finding], judged: list[tuple[ObjectInfo, Why]]) -> None:
        """Report what is still so by the newest decisions."""
        for attempt in range(LOOKS):
            if not missing and all(wrong_with(why) is Wrong.LEFTOVER for _, why in judged):
                break
            if attempt:
                await self._clock.sleep(LOOK_AGAIN_SECONDS)
            state = await load_state(self._cluster_log)
            if state is None:
                raise StartError("the cluster log has vanished")
            contents = await self._read_contents(state)
            unsure = [finding for finding in contents.findings if finding.wrong is Wrong.MISSING]
            still = {finding.key for finding in unsure}
            still |= {key for key in missing if key in contents.named and not await self._exists(key)}
            missing &= still
            unnamed = [info for info, _ in judged if info.key not in contents.named and await self._exists(info.key)]
            judged = await self._judge(unnamed, contents)
            if all(log.sealed for log in contents.logs.values()):
                break  # Nobody is writing.
        for finding in unsure:
            if finding.key in missing:
                self._find(finding)
        for key in sorted(missing - {finding.key for finding in unsure}):
            affected = ranges_of(self._rows.get(key, b""))
            self._find(Finding(Wrong.MISSING, key, "something current refers to it", affected))
        self._report_unnamed(judged)

    def _report_unnamed(self, judged: list[tuple[ObjectInfo, Why]]) -> None:
        """The least explained first; what is explained best is only counted beyond some number."""
        for info, why in sorted(judged, key=lambda entry: (RANKS[entry[1]], entry[0].key)):
            finding = Finding(wrong_with(why), info.key, str(why))
            is_leftover = finding.wrong is Wrong.LEFTOVER
            self._report.leftover_bytes += info.size if is_leftover else 0
            is_beyond = is_leftover and self._report.found[Wrong.LEFTOVER] >= LEFTOVERS_SHOWN
            self._find(finding, is_shown=self._options.strict or self._options.as_json or not is_beyond)

    async def _exists(self, key: str) -> bool:
        return await self._store.exists(key, Purpose.RECOVERY)

    # Throughout

    async def _each(self, items: list[_Item], check: Callable[[_Item], Awaitable[None]], what: str) -> None:
        """Check all items, some at a time. Raises what the first check that failed raised."""
        waiting = iter(items)
        done = 0

        async def work() -> None:
            nonlocal done
            for item in waiting:
                await check(item)
                done += 1
                self._progress.note(f"checked {done:,} of {len(items):,} {what}")

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, len(items))):
                    group.create_task(work())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def _find(self, finding: Finding, is_shown: bool = True) -> None:
        self._report.found[finding.wrong] += 1
        if is_shown:
            show = as_json if self._options.as_json else as_text
            self._write(show(finding, self._topic_names))

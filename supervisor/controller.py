"""The writer of the cluster log: one queue of proposals, several of them in one version, decided anew after a lost
race.

Owns the supervisor's `ClusterState`. A decision takes effect only once its version is durable; then it is published to
the workers, then answered. Knows nothing of processes and sockets.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.coordination import assignment
from kafscale.coordination.assignment import EndedLog, Incarnation
from kafscale.coordination.cluster import (
    FORMAT_VERSION,
    OFFSETS_TOPIC,
    Assign,
    Change,
    ClusterState,
    Topic,
    Version,
    apply,
    decode_version,
    encode_version,
)
from kafscale.coordination.commands import Command, CommandResult, Draft, decide_all
from kafscale.errors import Corrupt, KafscaleError, Retry, StartError
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.cluster_log import FIRST_VERSION, ClusterLog

log = logging.getLogger(__name__)

SNAPSHOT_INTERVAL_VERSIONS = 64
MAX_QUEUED_PROPOSALS = 1024
# A version holds the proposals that have come in together, up to about so many commands.
MAX_COMMANDS_PER_VERSION = 10_000
MAX_PROPOSALS_PER_VERSION = 256
READS_AT_ONCE = 16

EndLog = Callable[[str], Awaitable[EndedLog]]
OnVersion = Callable[[int, bytes], None]
_Result = TypeVar("_Result")
# Who owns what is read off the state, the catalogue off the draft, which gets the changes too.
Decide = Callable[[ClusterState, Draft], tuple[list[Change], _Result]]


class _Proposal(Generic[_Result]):
    """Something to be decided on the newest state, perhaps more than once, and who waits for it."""

    def __init__(self, decide: Decide[_Result], weight: int) -> None:
        self.decide = decide
        self.weight = weight
        self.result: _Result | None = None
        self.outcome: asyncio.Future[tuple[int, _Result]] = asyncio.get_running_loop().create_future()

    def settle(self, version: int) -> None:
        if not self.outcome.done():
            assert self.result is not None
            self.outcome.set_result((version, self.result))

    def fail(self, error: Exception) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class Controller:
    """Decides and writes. `on_version(version, payload)` is called for every version after the one loaded, in order."""

    def __init__(
        self, cluster_log: ClusterLog, clock: Clock, settings: Settings, writer_id: str, on_version: OnVersion
    ) -> None:
        self._log = cluster_log
        self._clock = clock
        self._settings = settings
        self._writer_id = writer_id
        self._on_version = on_version
        self._state: ClusterState | None = None
        # The catalogue of that state, ready to be changed; None where it must be made anew.
        self._draft: Draft | None = None
        self._queue: deque[_Proposal[object]] = deque()
        self._arrived = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    @property
    def state(self) -> ClusterState:
        """The newest state known. Only after `start`."""
        assert self._state is not None
        return self._state

    @property
    def version(self) -> int:
        """The newest version known; 0 before `start` has read one."""
        return 0 if self._state is None else self._state.version

    async def start(self, workers: Sequence[Incarnation], end_log: EndLog) -> None:
        """Load the state, or write the first version, and give all slots to `workers`, in one version.

        The logs that own slots are ended first. Raises StartError for a newer format, Corrupt, StoreError.
        """
        while self._state is None:
            self._state = await self._load() or await self._found_cluster(workers)
        self._writer = asyncio.create_task(self._run(), name="controller")
        ended: dict[str, EndedLog] = {}
        ours = {worker.log_id for worker in workers}
        while missing := _owning_logs(self.state) - ended.keys() - ours:
            for read in await asyncio.gather(*(end_log(log_id) for log_id in sorted(missing))):
                ended[read.log_id] = read
            await self._propose(lambda state, _: _start_anew(state, workers, ended))

    async def submit(self, commands: Sequence[Command]) -> tuple[int, list[CommandResult]]:
        """Decide the commands of one request. Returns the version in which they took effect (0: nothing was written).

        Raises Retry when too many wait, StoreUnavailable when nothing was applied, StoreUnclear when that can't be
        told.
        """

        def decide(_: ClusterState, draft: Draft) -> tuple[list[Change], list[CommandResult]]:
            return decide_all(
                draft, commands, new_topic_id, self._clock.wall_ms(), self._settings.auto_create_partitions
            )

        return await self._propose(decide, weight=len(commands))

    async def replace(self, ended: EndedLog, worker: Incarnation) -> None:
        """Give the slots that the ended log still owns to its worker's next incarnation. Raises as `submit`."""

        def decide(state: ClusterState, _: Draft) -> tuple[list[Change], bool]:
            change = assignment.replace(state, worker, ended)
            return ([] if change is None else [change]), True

        await self._propose(decide)

    async def newest_state(self) -> ClusterState:
        """The state at the newest version there is, read from the log by key: for decisions that others' versions would
        change. Raises StoreUnavailable."""
        state = self.state
        while (payload := await self._log.read(state.version + 1)) is not None:
            state = apply(state, _read_version(payload))
        return state

    async def close(self) -> None:
        """Stop writing; what waits fails with Retry."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        while self._queue:
            self._queue.popleft().fail(_stopping())

    async def _propose(self, decide: Decide[_Result], weight: int = 1) -> tuple[int, _Result]:
        if len(self._queue) >= MAX_QUEUED_PROPOSALS:
            raise Retry(ErrorCode.REQUEST_TIMED_OUT, "too many changes of the cluster are waiting")
        if self._writer is None or self._writer.done():
            raise _stopping()
        proposal = _Proposal(decide, weight)
        self._queue.append(proposal)  # type: ignore[arg-type]  # the queue only hands a result back to its own proposal
        self._arrived.set()
        return await proposal.outcome

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                batch = [self._queue.popleft()]
                weight = batch[0].weight
                while (
                    self._queue
                    and len(batch) < MAX_PROPOSALS_PER_VERSION
                    and weight + self._queue[0].weight <= MAX_COMMANDS_PER_VERSION
                ):
                    batch.append(self._queue.popleft())
                    weight += batch[-1].weight
                try:
                    await self._write(batch)
                except asyncio.CancelledError:
                    for proposal in batch:
                        proposal.fail(_stopping())
                    raise
                except KafscaleError as error:
                    log.warning("the cluster log could not be written", extra={"cause": str(error)})
                    for proposal in batch:
                        proposal.fail(error)
                except Exception as error:
                    # The next batch may well be written: a writer that ended here would leave the cluster unchangeable.
                    log.exception("writing the cluster log failed")
                    self._draft = None
                    for proposal in batch:
                        proposal.fail(error)

    async def _write(self, batch: list[_Proposal[object]]) -> None:
        while True:
            before = self.state
            changes, after = self._decide(batch)
            if not changes:
                for proposal in batch:
                    proposal.settle(0)
                return
            payload = encode_version(self._version(after, changes))
            # Should this fail, what was decided on the draft has not come to be.
            draft, self._draft = self._draft, None
            if await self._log.append(after.version, payload):
                self._advance(after, payload)
                self._draft = draft
                for proposal in batch:
                    proposal.settle(after.version)
                return
            await self._catch_up()
            if self.state.version == before.version:
                raise Corrupt(f"version {after.version} of the cluster log is taken, and yet it isn't there")

    def _decide(self, batch: list[_Proposal[object]]) -> tuple[list[Change], ClusterState]:
        """All changes of the batch, each proposal decided on what those before it leave, and the state after them."""
        before = seen = self.state
        if self._draft is None:
            self._draft = Draft(before)
        changes: list[Change] = []
        for proposal in batch:
            try:
                decided, proposal.result = proposal.decide(seen, self._draft)
            except Exception as error:
                # A defect in one must not fail those beside it, and the draft may have half of it.
                log.exception("a change of the cluster could not be decided")
                proposal.fail(error)
                self._draft = None
                return self._decide([other for other in batch if other is not proposal])
            changes += decided
            if any(isinstance(change, Assign) for change in decided):
                seen = apply(before, Version(before.version + 1, self._writer_id, 0, changes))
        return changes, apply(before, Version(before.version + 1, self._writer_id, 0, changes))

    def _version(self, after: ClusterState, changes: list[Change]) -> Version:
        snapshot = after if after.version % SNAPSHOT_INTERVAL_VERSIONS == 0 else None
        return Version(after.version, self._writer_id, self._clock.wall_ms(), changes, snapshot)

    def _advance(self, state: ClusterState, payload: bytes) -> None:
        self._state = state
        self._on_version(state.version, payload)

    async def _catch_up(self) -> None:
        """Read and publish the versions that others wrote."""
        while (payload := await self._log.read(self.state.version + 1)) is not None:
            self._advance(apply(self.state, _read_version(payload)), payload)

    async def _load(self) -> ClusterState | None:
        """The newest state in the log, or None if the log is empty."""
        newest = await self._log.newest()
        if newest == 0:
            return None
        versions: list[Version] = []
        while not versions or versions[-1].snapshot is None:
            highest = versions[-1].version - 1 if versions else newest
            wanted = range(highest, max(highest - READS_AT_ONCE, FIRST_VERSION - 1), -1)
            if not wanted:
                raise Corrupt("no version of the cluster log carries the cluster's state")
            for number, payload in zip(wanted, await asyncio.gather(*map(self._log.read, wanted)), strict=True):
                if payload is None:
                    raise Corrupt(f"version {number} of the cluster log is missing")
                versions.append(_read_version(payload))
                if versions[-1].snapshot is not None:
                    break
        state = versions[-1].snapshot
        assert state is not None
        for version in reversed(versions[:-1]):
            state = apply(state, version)
        return state

    async def _found_cluster(self, workers: Sequence[Incarnation]) -> ClusterState | None:
        """Write the first version, all slots assigned; None if another was quicker."""
        state = first_state(self._settings, self._clock.wall_ms(), workers)
        payload = encode_version(Version(FIRST_VERSION, self._writer_id, self._clock.wall_ms(), [], state))
        if not await self._log.append(FIRST_VERSION, payload):
            return None
        log.info("a new cluster begins", extra={"cluster_id": state.cluster_id, "slots": state.slot_count})
        return state


def first_state(settings: Settings, now_ms: int, workers: Sequence[Incarnation]) -> ClusterState:
    """The state of a cluster at its first start."""
    offsets = Topic(
        name=OFFSETS_TOPIC,
        topic_id=new_topic_id(),
        partitions=settings.offsets_topic_partitions,
        created_ms=now_ms,
    )
    state = ClusterState(
        version=FIRST_VERSION,
        cluster_id=base64.urlsafe_b64encode(new_topic_id()).rstrip(b"=").decode(),
        slot_count=settings.slots,
        topics={offsets.name: offsets},
        slots=[[] for _ in range(settings.slots)],
    )
    for slot, entries in assignment.start(state, workers, {}).slots.items():
        state.slots[slot] = entries
    return state


def new_topic_id() -> bytes:
    """A random UUID. Kafka's tools take ids as base64, and one that began with '-' for a flag."""
    while True:
        candidate = uuid.uuid4().bytes
        # The first character carries the first six bits; 62 is '-'.
        if candidate[0] >> 2 != 62:
            return candidate


def _start_anew(
    state: ClusterState, workers: Sequence[Incarnation], ended: dict[str, EndedLog]
) -> tuple[list[Change], bool]:
    """Assign all slots, unless another has meanwhile given some to a log that is not ended."""
    if _owning_logs(state) - ended.keys():
        return [], False
    return [assignment.start(state, workers, ended)], True


def _owning_logs(state: ClusterState) -> set[str]:
    return {entries[-1].log_id for entries in state.slots if entries}


def _read_version(payload: bytes) -> Version:
    version = decode_version(payload)
    if version.snapshot is not None and version.snapshot.format_version > FORMAT_VERSION:
        raise StartError(
            f"the cluster is in format {version.snapshot.format_version}, newer than this Kafscale reads "
            f"({FORMAT_VERSION}): start a newer version"
        )
    return version


def _stopping() -> Retry:
    return Retry(ErrorCode.REQUEST_TIMED_OUT, "the broker is stopping")

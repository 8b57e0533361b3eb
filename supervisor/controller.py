"""The writer of the cluster log: one queue of proposals, several of them in one version, decided anew after a lost
race.

Owns the supervisor's `ClusterState`. A decision takes effect only once its version is durable; then it is published to
the workers, then answered. Versions that other brokers wrote are read and published in the same order, when it is told
of them (`heard_of`) or meets them under its own number. Knows nothing of processes and sockets, nor who is alive.
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
from kafscale.coordination.assignment import EndedLog, Incarnation, broker_of
from kafscale.coordination.cluster import (
    OFFSETS_TOPIC,
    Assign,
    Change,
    ClusterState,
    SetDecoyKey,
    Topic,
    Version,
    apply,
    encode_version,
)
from kafscale.coordination.commands import Command, CommandResult, Draft, decide_all
from kafscale.errors import Corrupt, KafscaleError, Retry
from kafscale.protocol.error_codes import ErrorCode
from kafscale.storage.cluster_log import FIRST_VERSION, ClusterLog
from supervisor.cluster_history import load_state, read_version

log = logging.getLogger(__name__)

SNAPSHOT_INTERVAL_VERSIONS = 64
MAX_QUEUED_PROPOSALS = 1024
# A version holds the proposals that have come in together, up to about so many commands.
MAX_COMMANDS_PER_VERSION = 10_000
MAX_PROPOSALS_PER_VERSION = 256

EndLog = Callable[[str], Awaitable[EndedLog]]
OnVersion = Callable[[int, bytes], None]
_Result = TypeVar("_Result")
# Who owns what is read off the state, the catalogue off the draft, which gets the changes too.
Decide = Callable[[ClusterState, Draft], tuple[list[Change], _Result]]


class _Proposal(Generic[_Result]):
    """Something to be decided on the newest state, perhaps more than once, and who waits for it."""

    def __init__(self, decide: Decide[_Result], weight: int, is_on_newest: bool) -> None:
        self.decide = decide
        self.weight = weight
        # Whether to decide on a state known to be the newest, even where there turns out to be nothing to write.
        self.is_on_newest = is_on_newest
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
    """Decides and writes. `on_version(version, payload)` is called for every version after the one loaded, in order.
    While `may_change` says no, clients' changes are refused; who owns what can still be written."""

    def __init__(
        self,
        cluster_log: ClusterLog,
        clock: Clock,
        settings: Settings,
        writer_id: str,
        on_version: OnVersion,
        may_change: Callable[[], bool] = lambda: True,
    ) -> None:
        self._log = cluster_log
        self._clock = clock
        self._settings = settings
        self._writer_id = writer_id
        self._on_version = on_version
        self._may_change = may_change
        self._heard_of = 0
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

    async def load(self, workers: Sequence[Incarnation]) -> ClusterState:
        """Read the newest state, or write the first version, with all slots given to `workers`.

        Raises StartError for a newer format, Corrupt, StoreError.
        """
        while self._state is None:
            self._state = await load_state(self._log) or await self._found_cluster(workers)
        return self._state

    async def start(self, workers: Sequence[Incarnation], end_log: EndLog, broker_id: int | None = None) -> None:
        """Begin to write; end the logs of earlier lives of this broker that lists still name, and give the slots that
        they own to `workers`, in one version. Others may wait for a log that owns nothing any more.

        Earlier lives are those of this `broker_id`; None says that this broker is the whole cluster. Raises as `load`.
        """
        await self.load(workers)
        self._writer = asyncio.create_task(self._run(), name="controller")
        ended: dict[str, EndedLog] = {}
        ours = {worker.log_id for worker in workers}
        while missing := _named_logs(self.state, broker_id) - ended.keys() - ours:
            for read in await asyncio.gather(*(end_log(log_id) for log_id in sorted(missing))):
                ended[read.log_id] = read
            await self._propose(lambda state, _: _start_anew(state, workers, ended, broker_id))

    def heard_of(self, version: int) -> None:
        """Another may have written `version`: read what is missing up to it, and on."""
        if version > self._heard_of:
            self._heard_of = version
            self._arrived.set()

    def look(self) -> None:
        """See whether the log has a version of which nobody told."""
        self.heard_of(self.version + 1)

    async def submit(self, commands: Sequence[Command]) -> tuple[int, list[CommandResult]]:
        """Decide the commands of one request. Returns the version in which they took effect (0: nothing was written).

        Raises Retry when too many wait or the cluster can't be changed now, StoreUnavailable when nothing was applied,
        StoreUnclear when that can't be told.
        """
        if not self._may_change():
            raise Retry(ErrorCode.REQUEST_TIMED_OUT, "the cluster's coordination is not available: try again later")

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

        # Others may have given slots to the ended log a moment ago.
        await self._propose(decide, is_on_newest=True)

    async def assign(self, decide: Callable[[ClusterState], Assign | None]) -> int:
        """Write what `decide` makes of the newest state, perhaps asked more than once. Returns how many slots' lists
        it changed. Raises as `submit`."""

        def decide_with_count(state: ClusterState, _: Draft) -> tuple[list[Change], int]:
            change = decide(state)
            return ([], 0) if change is None else ([change], len(change.slots))

        _, count = await self._propose(decide_with_count)
        return count

    async def newest_state(self) -> ClusterState:
        """The state at the newest version there is, read from the log by key: for decisions that others' versions would
        change. Raises StoreUnavailable."""
        state = self.state
        while (payload := await self._log.read(state.version + 1)) is not None:
            state = apply(state, read_version(payload))
        return state

    async def close(self) -> None:
        """Stop writing; what waits fails with Retry."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        while self._queue:
            self._queue.popleft().fail(_stopping())

    async def _propose(
        self, decide: Decide[_Result], weight: int = 1, is_on_newest: bool = False
    ) -> tuple[int, _Result]:
        if len(self._queue) >= MAX_QUEUED_PROPOSALS:
            raise Retry(ErrorCode.REQUEST_TIMED_OUT, "too many changes of the cluster are waiting")
        if self._writer is None or self._writer.done():
            raise _stopping()
        proposal = _Proposal(decide, weight, is_on_newest)
        self._queue.append(proposal)  # type: ignore[arg-type]  # the queue only hands a result back to its own proposal
        self._arrived.set()
        return await proposal.outcome

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await self._follow()
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
        if any(proposal.is_on_newest for proposal in batch):
            await self._catch_up()
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

    async def _follow(self) -> None:
        """Read what was heard of. Should the store not answer, the next to tell of a version brings it up again."""
        if self._heard_of <= self.state.version:
            return
        try:
            await self._catch_up()
        except KafscaleError as error:
            log.warning("the cluster log could not be read", extra={"cause": str(error)})
        except Exception:
            log.exception("reading the cluster log failed")
        # Heard of and not there (yet): who told may have read ahead of a store that lags, and will tell again.
        self._heard_of = self.state.version

    async def _catch_up(self) -> None:
        """Read and publish the versions that others wrote."""
        while (payload := await self._log.read(self.state.version + 1)) is not None:
            self._draft = None
            self._advance(apply(self.state, read_version(payload)), payload)

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
        decoy_key=new_decoy_key(),
        slots=[[] for _ in range(settings.slots)],
    )
    for slot, entries in assignment.start(state, workers, {}).slots.items():
        state.slots[slot] = entries
    return state


def new_decoy_key() -> bytes:
    """A secret of 244 random bits."""
    return uuid.uuid4().bytes + uuid.uuid4().bytes


def new_topic_id() -> bytes:
    """A random UUID. Kafka's tools take ids as base64, and one that began with '-' for a flag."""
    while True:
        candidate = uuid.uuid4().bytes
        # The first character carries the first six bits; 62 is '-'.
        if candidate[0] >> 2 != 62:
            return candidate


def _start_anew(
    state: ClusterState, workers: Sequence[Incarnation], ended: dict[str, EndedLog], broker_id: int | None
) -> tuple[list[Change], bool]:
    """Assign what was ours, unless another has meanwhile given some to a log of ours that is not ended."""
    if _named_logs(state, broker_id) - ended.keys() - {worker.log_id for worker in workers}:
        return [], False
    change = assignment.hand_over(state, workers, ended)
    changes: list[Change] = [] if change is None else [change]
    if not state.decoy_key:
        changes.append(SetDecoyKey(new_decoy_key()))  # A cluster from before there was one.
    return changes, True


def _named_logs(state: ClusterState, broker_id: int | None) -> set[str]:
    """The logs that some slot's list names: of one broker, or all."""
    return {
        entry.log_id
        for entries in state.slots
        for entry in entries
        if broker_id is None or broker_of(entry.node_id) == broker_id
    }


def _stopping() -> Retry:
    return Retry(ErrorCode.REQUEST_TIMED_OUT, "the broker is stopping")

"""The rules of ownership as a model: one slot, a few logs and their workers, and supervisors that decide.

Everything that may happen happens, in every order: workers hear of versions late, load, write, stop and die; PUTs
arrive late; supervisors give the slot away at any time, rightly or not, seal whom they take for lost, shorten lists by
what they have read, and sweep. What must hold, at every moment:

- One writer: a worker that serves the slot knows every record that was acknowledged under an earlier epoch.
- Nothing lost: whoever took the slot over now, by the newest list, would find every acknowledged record.
- Nobody waits for ever: once all have done what they must and nothing is on its way, a living owner serves.

The rules that make it so are in `Rules`; each can be left out, and then some order of events breaks it. The words are
those of docs/adr/0002, 0003 and 0010; the lists are changed by the production functions (`coordination/assignment.py`).
What is left out: clocks, leases, reads, several slots, what lies in manifests but which records.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import msgspec

from kafscale.coordination import assignment
from kafscale.coordination.assignment import EndedLog, Incarnation
from kafscale.coordination.cluster import Assignment, ClusterState
from tests.model.explore import Broken


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps the promise. `True`: as it should be."""

    # Loading.
    waits_for_every_earlier_log: bool = True
    seal_is_the_end: bool = True
    release_names_its_assignment: bool = True
    release_counts_without_gap: bool = True
    released_is_never_loaded: bool = True
    # Writing.
    number_taken_fences: bool = True
    acknowledged_in_order: bool = True
    own_checkpoint_before_acknowledging: bool = True
    stops_before_releasing: bool = True
    never_loaded_is_released_too: bool = True
    # Deciding.
    decided_on_newest_version: bool = True
    epochs_rise: bool = True
    shortened_by_counting_checkpoint: bool = True
    entries_that_may_hold_something_stay: bool = True
    # Sweeping.
    named_logs_are_not_swept: bool = True
    seals_are_kept: bool = True


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """How far the model goes."""

    logs: int = 3
    assignments: int = 3
    versions: int = 4
    records: int = 2
    in_flight: int = 1
    sweeps: int = 0
    # Objects that have nothing of the slot.
    others: int = 0
    # How many workers may die, and how many PUTs of theirs arrive all the same.
    crashes: int = 1


# What lies in a log, as tuples: a record of an epoch; a checkpoint that names the slot at an epoch, with the records
# that its manifest holds; the release of an assignment; a seal; something of another slot.
RECORD, CHECKPOINT, RELEASE, SEAL = "record", "checkpoint", "release", "seal"
Object = tuple[str, int, int]
OTHER: Object = ("other", 0, 0)
MARK: Object = (SEAL, 1, 0)
SEALED: Object = (SEAL, 0, 0)

IDLE, LOADED, SERVES, STOPS = 0, 1, 2, 3


class Worker(msgspec.Struct, frozen=True, array_like=True):
    """Which version it knows, what it has of the slot (epoch, and as bits the records), what it has released (epochs as
    bits), its next number, how many numbers are confirmed without a gap, those confirmed beyond as bits, and what is on
    its way: (number, object)."""

    version: int
    phase: int = IDLE
    epoch: int = 0
    holds: int = 0
    released: int = 0
    next_number: int = 0
    counted: int = 0
    beyond: int = 0
    in_flight: tuple[tuple[int, Object], ...] = ()
    is_dead: bool = False
    has_crashed: bool = False


Log = tuple[Object | None, ...]
Slot = tuple[Assignment, ...]
# The slot's list at each version; the logs; their workers; the epoch of each record; which records are acknowledged, as
# bits; how often was swept.
State = tuple[tuple[Slot, ...], tuple[Log, ...], tuple[Worker, ...], tuple[int, ...], int, int]


def first_state(bounds: Bounds) -> State:
    """The slot is log 0's; all logs are empty."""
    lists = ((Assignment(1, 0, "0"),),)
    return lists, ((),) * bounds.logs, (Worker(0),) * bounds.logs, (), 0, 0


class Model:
    """`is_patient`: nobody minds a worker that waits for ever."""

    def __init__(self, rules: Rules, bounds: Bounds, is_patient: bool = False) -> None:
        self._rules = rules
        self._bounds = bounds
        self._is_patient = is_patient

    def successors(self, state: State) -> Iterator[tuple[str, State]]:
        """Everything that may happen next. Raises Broken."""
        lists, logs, workers, _, _, _ = state
        is_quiet = True
        for log, worker in enumerate(workers):
            for step in self._duties(state, log, worker):
                is_quiet = False
                yield step
        if is_quiet and not self._is_patient:
            self._check_served(state)
        highest = _highest(lists)
        for log, worker in enumerate(workers[: highest + 1]):
            if not worker.is_dead:
                yield from self._whims(state, log, worker)
                if not _end(logs[log])[1]:
                    yield from self._sealing(state, log)
            if self._bounds.sweeps:
                yield from self._sweeping(state, log)
        if len(lists) < self._bounds.versions:
            yield from self._decisions(state)

    def _check_served(self, state: State) -> None:
        """All duties are done, and nothing is on its way: then the owner serves, if it lives."""
        lists, _, workers, *_ = state
        owner = lists[-1][-1]
        worker = workers[int(owner.log_id)]
        if not worker.is_dead and (worker.phase != SERVES or worker.epoch != owner.epoch):
            raise Broken("nobody has anything to do any more", f"worker {owner.log_id} waits for ever for the slot")

    # A worker's own steps

    def _duties(self, state: State, log: int, worker: Worker) -> Iterator[tuple[str, State]]:
        """What happens sooner or later: a living worker hears, loads, and lets go; what was sent arrives; and of a
        worker that has died somebody ends the log."""
        lists, logs, *_ = state
        for place in range(len(worker.in_flight)):
            yield from self._arrival(state, log, worker, place)
        if worker.is_dead:
            if not _end(logs[log])[1]:
                yield from self._sealing(state, log)
            return
        if _end(logs[log])[1]:
            # Sooner or later it asks for its next number.
            yield f"{log} finds its log ended", _with(state, log, _fenced(worker))
        entries = lists[worker.version]
        owner = entries[-1]
        version = _next_version(lists, log, worker)
        if version is not None:
            yield f"{log} hears of version {version}", self._hears(state, log, worker, version)
        if worker.phase == IDLE and owner.log_id == str(log) and not worker.released >> owner.epoch & 1:
            loaded = self._load(logs, entries)
            if loaded is not None:
                phase = LOADED if self._rules.own_checkpoint_before_acknowledging else SERVES
                after = msgspec.structs.replace(worker, phase=phase, epoch=owner.epoch, holds=loaded)
                yield f"{log} loads epoch {owner.epoch}", _checked(_with(state, log, after), f"{log} loads")
        if len(worker.in_flight) < self._bounds.in_flight:
            if worker.phase == LOADED:
                yield from self._writes_checkpoint(state, log, worker)
            yield from self._releases(state, log, worker, entries)

    def _whims(self, state: State, log: int, worker: Worker) -> Iterator[tuple[str, State]]:
        """What happens or not."""
        _, logs, workers, epochs, *_ = state
        bounds = self._bounds
        if sum(w.has_crashed for w in workers) < bounds.crashes:
            crashed = msgspec.structs.replace(worker, is_dead=True, has_crashed=True)
            yield f"{log} dies", _with(state, log, crashed)
        if len(worker.in_flight) >= bounds.in_flight:
            return
        if sum(what == OTHER for objects in logs for what in objects) < bounds.others:
            yield f"{log} writes for another slot", _with(state, log, self._sends(worker, OTHER))
        if worker.phase == SERVES and len(epochs) < bounds.records:
            record = len(epochs)
            sent = self._sends(worker, (RECORD, worker.epoch, record))
            after = _with(state, log, sent)
            yield f"{log} writes record {record}", (*after[:3], (*epochs, worker.epoch), *after[4:])
        if worker.phase == SERVES:
            yield from self._writes_checkpoint(state, log, worker)

    def _writes_checkpoint(self, state: State, log: int, worker: Worker) -> Iterator[tuple[str, State]]:
        checkpoint = (CHECKPOINT, worker.epoch, worker.holds)
        if checkpoint not in (*state[1][log], *(what for _, what in worker.in_flight)):
            yield f"{log} writes a checkpoint", _with(state, log, self._sends(worker, checkpoint))

    def _hears(self, state: State, log: int, worker: Worker, version: int) -> State:
        """What it holds and is another's by now, it gives away."""
        lists = state[0]
        phase = worker.phase
        owner = lists[version][-1]
        if owner.log_id != str(log) or owner.epoch != worker.epoch:
            if phase == SERVES and self._rules.stops_before_releasing:
                phase = STOPS
            if phase == LOADED and self._rules.released_is_never_loaded:
                phase = IDLE
        return _with(state, log, msgspec.structs.replace(worker, version=version, phase=phase))

    def _releases(self, state: State, log: int, worker: Worker, entries: Slot) -> Iterator[tuple[str, State]]:
        """What was given on: what it holds, once it takes no more writes for it; and what it never loaded."""
        given = [entry.epoch for entry in entries[:-1] if entry.log_id == str(log)]
        for epoch in given:
            if worker.released >> epoch & 1:
                continue
            is_held = worker.epoch == epoch and worker.phase in (SERVES, STOPS)
            if is_held and self._rules.stops_before_releasing and worker.phase != STOPS:
                continue
            if not is_held and not self._rules.never_loaded_is_released_too:
                continue
            after = self._sends(worker, (RELEASE, epoch, 0))
            stays = is_held and not self._rules.stops_before_releasing
            after = msgspec.structs.replace(
                after,
                released=worker.released | 1 << epoch,
                phase=IDLE if is_held and not stays else worker.phase,
            )
            yield f"{log} releases epoch {epoch}", _with(state, log, after)

    def _sends(self, worker: Worker, what: Object) -> Worker:
        return msgspec.structs.replace(
            worker,
            next_number=worker.next_number + 1,
            in_flight=(*worker.in_flight, (worker.next_number, what)),
        )

    # The store

    def _arrival(self, state: State, log: int, worker: Worker, place: int) -> Iterator[tuple[str, State]]:
        """A PUT arrives, and is answered if its worker lives."""
        lists, logs, workers, epochs, acknowledged, sweeps = state
        number, what = worker.in_flight[place]
        left = worker.in_flight[:place] + worker.in_flight[place + 1 :]
        worker = msgspec.structs.replace(worker, in_flight=left)
        objects = logs[log]
        is_taken = number < len(objects) and objects[number] is not None
        name = f"number {number} of {log} arrives: {what[0]}"
        if is_taken and self._rules.number_taken_fences:
            yield f"{name}, taken", _with(state, log, _fenced(worker))
            return
        logs = _placed(logs, log, number, what)
        if not worker.is_dead:
            worker, newly = self._confirmed(worker, number, logs[log])
            acknowledged |= newly
        after = (lists, logs, _replaced(workers, log, worker), epochs, acknowledged, sweeps)
        yield name, _checked(after, name)

    def _confirmed(self, worker: Worker, number: int, objects: Log) -> tuple[Worker, int]:
        """The worker hears that the object is durable. Returns it, and the records that it acknowledges by that."""
        beyond = worker.beyond | 1 << number
        counted = worker.counted
        counting = [number] if not self._rules.acknowledged_in_order else []
        while beyond >> counted & 1:
            if self._rules.acknowledged_in_order:
                counting.append(counted)
            counted += 1
        phase, holds, newly = worker.phase, worker.holds, 0
        for each in counting:
            found = objects[each]
            assert found is not None
            kind, epoch, value = found
            if kind == RECORD:
                newly |= 1 << value
                holds |= 1 << value if epoch == worker.epoch else 0
            elif kind == CHECKPOINT and phase == LOADED and epoch == worker.epoch:
                phase = SERVES
        worker = msgspec.structs.replace(worker, beyond=beyond, counted=counted, phase=phase, holds=holds)
        return worker, newly

    def _sealing(self, state: State, log: int) -> Iterator[tuple[str, State]]:
        """Somebody seals the log, as many numbers at once as its rule says: twice what may be on its way."""
        lists, logs, *rest = state
        end, _ = _end(logs[log])
        for number in range(end, end + 2 * self._bounds.in_flight):
            if number >= len(logs[log]) or logs[log][number] is None:
                logs = _placed(logs, log, number, SEALED)
        name = f"{log} is sealed from {end} on"
        yield name, _checked((lists, logs, *rest), name)  # type: ignore[arg-type]

    def _sweeping(self, state: State, log: int) -> Iterator[tuple[str, State]]:
        """What an ended log left is deleted, but for its seals. First a mark is put above all numbers that anybody
        tries: it shows that the log has ended."""
        lists, logs, workers, epochs, acknowledged, sweeps = state
        objects = logs[log]
        is_named = any(entry.log_id == str(log) for entry in lists[-1])
        if sweeps >= self._bounds.sweeps or MARK in objects or not _end(objects)[1]:
            return
        if is_named and self._rules.named_logs_are_not_swept:
            return
        is_kept = self._rules.seals_are_kept
        kept = (found if is_kept and found is not None and found[0] == SEAL else None for found in objects)
        mark_at = _end(objects)[0] + 2 * self._bounds.in_flight
        swept = _placed(_replaced(logs, log, tuple(kept)), log, mark_at, MARK)
        after = (lists, swept, workers, epochs, acknowledged, sweeps + 1)
        yield f"{log} is swept", _checked(after, f"{log} is swept")

    # Deciding

    def _decisions(self, state: State) -> Iterator[tuple[str, State]]:
        lists, logs, *_ = state
        # A supervisor may be behind; its version is written only where the number is free.
        highest = _highest(lists)
        bases = range(len(lists)) if not self._rules.decided_on_newest_version else [len(lists) - 1]
        for base in bases:
            entries = lists[base]
            for what, decided in self._decided(logs, entries, highest):
                if decided != lists[-1]:
                    name = f"version {len(lists)}, on {base}: {what}"
                    yield name, _checked(((*lists, decided), *state[1:]), name)  # type: ignore[arg-type]

    def _decided(self, logs: tuple[Log, ...], entries: Slot, highest: int) -> Iterator[tuple[str, Slot]]:
        rules = self._rules
        owner = entries[-1]
        if owner.epoch < self._bounds.assignments:
            epoch = owner.epoch + 1 if rules.epochs_rise else owner.epoch
            # One log that was never named is as good as another.
            for log in range(min(self._bounds.logs, highest + 2)):
                if str(log) == owner.log_id:
                    continue
                given = Assignment(epoch, log, str(log))
                yield f"to {log} at epoch {epoch}", (*entries, given)
                ended = {str(i): _read(objects) for i, objects in enumerate(logs) if _end(objects)[1]}
                if not rules.entries_that_may_hold_something_stay:
                    kept = tuple(entry for entry in entries if entry.log_id not in ended) or entries[:1]
                    if kept != entries:
                        yield f"to {log} at epoch {epoch}, without ended logs", (*kept, given)
                elif owner.log_id in ended and rules.epochs_rise:
                    kept = _given_after_end(entries, given, tuple(sorted(ended.items())))
                    if kept is not None and kept != (*entries, given):
                        yield f"to {log} at epoch {epoch}, shortened", kept
        for entry in entries[1:]:
            objects = logs[int(entry.log_id)]
            if rules.shortened_by_counting_checkpoint:
                known = _named_epoch(objects, counting=True)
                if known == entry.epoch:
                    shorter = _shortened(entries, entry.log_id, known)
                    if shorter is not None:
                        yield f"shortened by {entry.log_id}'s checkpoint", shorter
            elif _named_epoch(objects, counting=False) == entry.epoch:
                yield f"shortened by {entry.log_id}'s checkpoint that need not count", entries[entries.index(entry) :]

    # Loading

    def _load(self, logs: tuple[Log, ...], entries: Slot) -> int | None:
        """The records that whoever loads the slot now finds, as bits; None if it must wait."""
        rules = self._rules
        earlier = entries[:-1]
        awaited = earlier if rules.waits_for_every_earlier_log else earlier[-1:]
        for entry in awaited:
            objects = logs[int(entry.log_id)]
            if not self._lets_go(objects, entry.epoch):
                return None
        for entry in reversed(awaited):
            objects = logs[int(entry.log_id)]
            found = _manifest(objects, entry.epoch)
            if found is not None:
                return found
        if entries[0].epoch > 1 and rules.waits_for_every_earlier_log:
            return None
        return 0

    def _lets_go(self, objects: Log, epoch: int) -> bool:
        end, is_ended = _end(objects)
        if is_ended or not self._rules.seal_is_the_end:
            return True
        counting = objects[:end] if self._rules.release_counts_without_gap else objects
        return any(
            found is not None
            and found[0] == RELEASE
            and (found[1] == epoch or not self._rules.release_names_its_assignment)
            for found in counting
        )


# Logs


@lru_cache(maxsize=1 << 16)
def _end(objects: Log) -> tuple[int, bool]:
    """The first number that is free or holds a seal, and whether it is a seal. What was swept has ended at 0."""
    if MARK in objects:
        return 0, True
    for number, found in enumerate(objects):
        if found is None:
            return number, False
        if found[0] == SEAL:
            return number, True
    return len(objects), False


@lru_cache(maxsize=1 << 16)
def _named_epoch(objects: Log, counting: bool) -> int:
    """The epoch at which the newest checkpoint names the slot; 0 for none."""
    looked_at = objects[: _end(objects)[0]] if counting else objects
    epochs = [found[1] for found in looked_at if found is not None and found[0] == CHECKPOINT]
    return epochs[-1] if epochs else 0


@lru_cache(maxsize=1 << 16)
def _manifest(objects: Log, epoch: int) -> int | None:
    """The records that the log knows of the slot at the epoch, as bits: those of its newest counting checkpoint, and
    what comes after that. None if that does not name the slot at this epoch."""
    counting = objects[: _end(objects)[0]]
    if _named_epoch(objects, True) != epoch:
        return None
    known = 0
    for found in counting:
        assert found is not None
        kind, of_epoch, value = found
        if of_epoch == epoch and kind == CHECKPOINT:
            known |= value
        elif of_epoch == epoch and kind == RECORD:
            known |= 1 << value
    return known


@lru_cache(maxsize=1 << 16)
def _read(objects: Log) -> tuple[bool, int]:
    """What a supervisor knows of a log that it has ended: whether it is empty, and the epoch it names the slot at."""
    return _end(objects)[0] == 0, _named_epoch(objects, True)


def _placed(logs: tuple[Log, ...], log: int, number: int, what: Object) -> tuple[Log, ...]:
    objects = list(logs[log])
    objects += [None] * (number + 1 - len(objects))
    objects[number] = what
    return _replaced(logs, log, tuple(objects))


@lru_cache(maxsize=1 << 12)
def _highest(lists: tuple[Slot, ...]) -> int:
    """The highest log that was ever named. Those above it have done nothing, and any of them is like the others."""
    return max(int(entry.log_id) for entries in lists for entry in entries)


def _next_version(lists: tuple[Slot, ...], log: int, worker: Worker) -> int | None:
    """The next version that means anything to the worker: one that names it, or any while it holds the slot."""
    for version in range(worker.version + 1, len(lists)):
        if worker.phase != IDLE or any(entry.log_id == str(log) for entry in lists[version]):
            return version
    return None


# Lists, by the production functions


def _state_of(entries: Slot) -> ClusterState:
    return ClusterState(version=1, cluster_id="model", slot_count=1, slots=[list(entries)])


@lru_cache(maxsize=1 << 16)
def _given_after_end(entries: Slot, given: Assignment, ended: tuple[tuple[str, tuple[bool, int]], ...]) -> Slot | None:
    read = {log_id: EndedLog(log_id, is_empty, {0: epoch}) for log_id, (is_empty, epoch) in ended}
    worker = Incarnation(given.node_id, given.log_id)
    change = assignment.hand_over(_state_of(entries), [worker], read)
    return tuple(change.slots[0]) if change is not None else None


@lru_cache(maxsize=1 << 16)
def _shortened(entries: Slot, log_id: str, epoch: int) -> Slot | None:
    change = assignment.shorten(_state_of(entries), log_id, {0: epoch})
    return tuple(change.slots[0]) if change is not None else None


# States


def _replaced(values, place, value):  # type: ignore[no-untyped-def]
    return (*values[:place], value, *values[place + 1 :])


def _fenced(worker: Worker) -> Worker:
    """It acknowledges nothing more; what it has sent is on its way still."""
    return msgspec.structs.replace(worker, is_dead=True)


def _with(state: State, log: int, worker: Worker) -> State:
    lists, logs, workers, *rest = state
    return (lists, logs, _replaced(workers, log, worker), *rest)  # type: ignore[return-value]


def _checked(state: State, action: str) -> State:
    """Raises Broken where what must hold does not."""
    lists, logs, workers, epochs, acknowledged, _ = state
    if acknowledged & ~_found(lists[-1], logs):
        raise Broken(action, "an acknowledged record is lost to whoever takes the slot over")
    for log, worker in enumerate(workers):
        if worker.phase != SERVES or worker.is_dead:
            continue
        for record, epoch in enumerate(epochs):
            if acknowledged >> record & 1 and epoch < worker.epoch and not worker.holds >> record & 1:
                raise Broken(
                    action, f"worker {log} serves at epoch {worker.epoch}, and lacks record {record} of {epoch}"
                )
    return state


@lru_cache(maxsize=1 << 18)
def _found(entries: Slot, logs: tuple[Log, ...]) -> int:
    """The records, as bits, that a load by this list comes to if all its logs end as they are now."""
    for entry in reversed(entries):
        known = _manifest(logs[int(entry.log_id)], entry.epoch)
        if known is not None:
            return known
    return 0

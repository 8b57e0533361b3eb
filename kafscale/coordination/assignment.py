"""Who should own which slot, and how a slot's list of assignments grows and shrinks. Pure.

A slot's list says which logs may still hold its newest manifest; its last entry is the owner. Lists are appended to. An
entry goes away only where the writer of the version has itself read what makes it superfluous
(docs/adr/0002-slots-and-the-cluster-log.md):

- a counting checkpoint, of an ended log or of a living one, that names the slot at an entry's epoch: everything before
  that entry goes;
- an ended log without a single object that counts: its entry can hold nothing of the slot. The first entry stays all
  the same, since a list that reaches back to FIRST_EPOCH is how a new owner knows that the slot may be empty.

Without the second rule a worker that crashes before it writes anything would lengthen the lists at every restart.

A slot whose list has one entry is *settled*: its owner has taken it over, as far as a writer has read. Slots are
evened out only while they are settled, so that no slot has two planned moves in progress.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import msgspec

from kafscale.coordination.cluster import Assign, Assignment, ClusterState

FIRST_EPOCH = 1
# A broker's workers are the nodes broker_id * NODES_PER_BROKER and up.
NODES_PER_BROKER = 100


class Incarnation(msgspec.Struct, frozen=True):
    """One life of a worker: the node that it is and the log that it writes."""

    node_id: int
    log_id: str


class EndedLog(msgspec.Struct, frozen=True):
    """What a writer read of a log that it ended: whether anything in it counts, and for each slot that its last
    counting checkpoint names, at which epoch."""

    log_id: str
    is_empty: bool
    checkpoint_epochs: Mapping[int, int]


def spread(
    slots: Iterable[int],
    nodes: Sequence[int],
    owners: Mapping[int, int],
    pinned: AbstractSet[int] = frozenset(),
) -> dict[int, int]:
    """The moves, slot → node, after which every one of `nodes` owns the same number of `slots`, give or take one.

    `owners` (slot → node) may lack slots and may name nodes that are gone. As few slots move as can be, and the same
    arguments give the same moves. Slots in `pinned` stay where they are if their node is there; that may leave it with
    more than its share. Raises ValueError without nodes.
    """
    if not nodes:
        raise ValueError("slots can't be spread over no nodes")
    held: dict[int, list[int]] = {node: [] for node in nodes}
    homeless = []
    for slot in sorted(slots):
        owner = owners.get(slot)
        if owner is not None and owner in held:
            held[owner].append(slot)
        else:
            homeless.append(slot)
    total = len(homeless) + sum(map(len, held.values()))
    base, extra = divmod(total, len(held))
    # Those that hold most keep one more, so that they need to give up less.
    by_load = sorted(held, key=lambda node: -len(held[node]))
    target = {node: base + (1 if position < extra else 0) for position, node in enumerate(by_load)}
    for node, of_node in held.items():
        of_node.sort(key=lambda slot: slot not in pinned)
        homeless.extend(slot for slot in of_node[target[node] :] if slot not in pinned)
    # Round robin: neighbouring slots hold the partitions of one topic, and should not lie on one node.
    receivers = [node for node in nodes if len(held[node]) < target[node]]
    room = {node: target[node] - len(held[node]) for node in receivers}
    moves: dict[int, int] = {}
    position = 0
    for slot in sorted(homeless):
        while room[node := receivers[position % len(receivers)]] == 0:
            position += 1
        moves[slot] = node
        room[node] -= 1
        position += 1
    return moves


def broker_of(node_id: int) -> int:
    """The broker that the node belongs to."""
    return node_id // NODES_PER_BROKER


def owners_of(state: ClusterState) -> dict[int, int]:
    """Slot → node, for every slot that has an owner."""
    return {slot: entries[-1].node_id for slot, entries in enumerate(state.slots) if entries}


def named_logs(state: ClusterState) -> set[str]:
    """Every log that some slot's list names: none of its objects may be swept."""
    return {entry.log_id for entries in state.slots for entry in entries}


def start(state: ClusterState, workers: Sequence[Incarnation], ended: Mapping[str, EndedLog]) -> Assign:
    """All slots to the incarnations of a broker that starts, the only one of its cluster.

    `ended` are the logs that the caller has ended. Raises ValueError if the owner of a slot is not among them: a log
    must have ended before its slots are given to another without its consent.
    """
    by_node = {worker.node_id: worker for worker in workers}
    owners = owners_of(state)
    owners.update(spread(range(state.slot_count), list(by_node), owners))
    return Assign({slot: _given(slot, state.slots[slot], by_node[node], ended) for slot, node in owners.items()})


def hand_over(state: ClusterState, workers: Sequence[Incarnation], ended: Mapping[str, EndedLog]) -> Assign | None:
    """The slots that ended logs own, to `workers`, evened out with what those own already; None if there are none.

    Nothing is taken from a log that lives, and nothing given to one that has ended: a broker that was lost may be back
    before its workers know. A slot stays on its node where that is among the workers and has no more than its share.
    """
    by_node = {worker.node_id: worker for worker in workers if worker.log_id not in ended}
    living = {worker.log_id for worker in by_node.values()}
    owners: dict[int, int] = {}
    pinned: set[int] = set()
    orphans: set[int] = set()
    for slot, entries in enumerate(state.slots):
        if not entries:
            continue
        owner = entries[-1]
        if owner.log_id in ended:
            orphans.add(slot)
        elif owner.log_id in living:
            pinned.add(slot)
        else:
            continue
        owners[slot] = owner.node_id
    if not orphans or not by_node:
        return None
    owners.update(spread(owners.keys(), list(by_node), owners, pinned))
    return Assign({slot: _given(slot, state.slots[slot], by_node[owners[slot]], ended) for slot in sorted(orphans)})


def balance(state: ClusterState, stay: Sequence[Incarnation], leave: Collection[Incarnation]) -> Assign | None:
    """The planned moves that even out what `stay` and `leave` own: everything away from `leave`, and each node of
    `stay` within one of its share of that; None if nothing is to be moved, or there is nowhere to move it.

    Slots of others (lost, or being replaced) are left to whoever ends their logs. A slot that is not settled moves only
    if it must; so the shares are even once all are settled.
    """
    by_node = {worker.node_id: worker for worker in stay}
    if not by_node:
        return None
    leaving = {worker.log_id for worker in leave}
    owners: dict[int, int] = {}
    movable: set[int] = set()
    pinned: set[int] = set()
    for slot, entries in enumerate(state.slots):
        if not entries:
            continue
        owner = entries[-1]
        if owner.log_id in leaving:
            movable.add(slot)
        elif owner.node_id in by_node:
            owners[slot] = owner.node_id
            if len(entries) > 1 or owner.log_id != by_node[owner.node_id].log_id:
                pinned.add(slot)
    moves = spread(owners.keys() | movable, list(by_node), owners, pinned)
    slots = {}
    for slot, node in sorted(moves.items()):
        entries = state.slots[slot]
        worker = by_node[node]
        slots[slot] = [*entries, Assignment(entries[-1].epoch + 1, worker.node_id, worker.log_id)]
    return Assign(slots) if slots else None


def shorten(state: ClusterState, log_id: str, checkpoint_epochs: Mapping[int, int]) -> Assign | None:
    """What becomes superfluous in the lists by a counting checkpoint of the log `log_id`, slot → epoch, that the caller
    has read; None if nothing does."""
    slots = {}
    for slot, entries in enumerate(state.slots):
        for position, entry in enumerate(entries):
            if position and entry.log_id == log_id and checkpoint_epochs.get(slot) == entry.epoch:
                slots[slot] = list(entries[position:])
    return Assign(slots) if slots else None


def unsettled_logs(state: ClusterState) -> dict[str, set[int]]:
    """The slots that are not settled, by the log that owns them."""
    found: dict[str, set[int]] = {}
    for slot, entries in enumerate(state.slots):
        if len(entries) > 1:
            found.setdefault(entries[-1].log_id, set()).add(slot)
    return found


def replace(state: ClusterState, worker: Incarnation, ended: EndedLog) -> Assign | None:
    """The slots that `state` still assigns to the ended log, to another incarnation; None if there are none."""
    slots = {
        slot: _given(slot, entries, worker, {ended.log_id: ended})
        for slot, entries in enumerate(state.slots)
        if entries and entries[-1].log_id == ended.log_id
    }
    return Assign(slots) if slots else None


def _given(
    slot: int, entries: Sequence[Assignment], worker: Incarnation, ended: Mapping[str, EndedLog]
) -> list[Assignment]:
    """The slot's list after it is given to `worker`."""
    if entries and entries[-1].log_id not in ended:
        raise ValueError(f"log {entries[-1].log_id}, the owner of slot {slot}, has not been ended")
    epoch = entries[-1].epoch + 1 if entries else FIRST_EPOCH
    return [*_needed(slot, entries, ended), Assignment(epoch, worker.node_id, worker.log_id)]


def _needed(slot: int, entries: Sequence[Assignment], ended: Mapping[str, EndedLog]) -> list[Assignment]:
    """The entries that must stay; see the head of this file."""
    first = 0
    for position, entry in enumerate(entries):
        read = ended.get(entry.log_id)
        if read is not None and read.checkpoint_epochs.get(slot) == entry.epoch:
            first = position
    kept = list(entries[first : first + 1])
    for entry in entries[first + 1 :]:
        read = ended.get(entry.log_id)
        if read is None or not read.is_empty:
            kept.append(entry)
    return kept

"""Who should own which slot, and how a slot's list of assignments grows and shrinks. Pure.

A slot's list says which logs may still hold its newest manifest; its last entry is the owner. Lists are appended to. An
entry goes away only where the writer of the version has itself read what makes it superfluous
(docs/adr/0002-slots-and-the-cluster-log.md):

- a counting checkpoint that names the slot at an entry's epoch: everything before that entry goes;
- an ended log without a single object that counts: its entry can hold nothing of the slot. The first entry stays all
  the same, since a list that reaches back to FIRST_EPOCH is how a new owner knows that the slot may be empty.

Without the second rule a worker that crashes before it writes anything would lengthen the lists at every restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from kafscale.coordination.cluster import Assign, Assignment, ClusterState

FIRST_EPOCH = 1


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


def spread(slot_count: int, nodes: Sequence[int], owners: Mapping[int, int]) -> dict[int, int]:
    """The moves, slot → node, after which every one of `nodes` owns the same number of slots, give or take one.

    `owners` (slot → node) may lack slots and may name nodes that are gone. As few slots move as can be, and the same
    arguments give the same moves. Raises ValueError without nodes.
    """
    if not nodes:
        raise ValueError("slots can't be spread over no nodes")
    held: dict[int, list[int]] = {node: [] for node in nodes}
    homeless = []
    for slot in range(slot_count):
        owner = owners.get(slot)
        if owner is not None and owner in held:
            held[owner].append(slot)
        else:
            homeless.append(slot)
    base, extra = divmod(slot_count, len(held))
    # Those that hold most keep one more, so that they need to give up less.
    by_load = sorted(held, key=lambda node: -len(held[node]))
    target = {node: base + (1 if position < extra else 0) for position, node in enumerate(by_load)}
    for node, slots in held.items():
        homeless.extend(slots[target[node] :])
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
    owners.update(spread(state.slot_count, list(by_node), owners))
    return Assign({slot: _given(slot, state.slots[slot], by_node[node], ended) for slot, node in owners.items()})


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

"""What must hold of a cluster and its bucket once there is peace, whatever clients saw.

`disorder`: every slot is owned by a worker that serves, its list is as short as can be, and the brokers' shares are
even. `findings`: after a sweep `kafscale verify` finds nothing in the bucket but what somebody will delete.
"""

from __future__ import annotations

import io
from collections import Counter

import msgspec

from kafscale.coordination.assignment import named_logs
from kafscale.storage.keys import Keys
from kafscale.storage.sweep import LogsInUse, sweep
from kafscale.storage.verification import Wrong
from supervisor.progress import Progress
from supervisor.unnamed import Why
from supervisor.verify import Options, Verifier
from tests.sim.cluster import SimCluster
from tests.sim.store import StoreFaults
from tests.sim.world import SimClock

# Orphans that only the sweep deletes, once the log of their writer has ended: what a worker wrote without hearing that
# it had, and what one wrote that did not know that it was replaced.
ORPHANS = (Why.DISOWNED, Why.AFTER_THE_END)
LOOKS = 4
LOOK_AGAIN_SECONDS = 3.0


def disorder(cluster: SimCluster) -> str | None:
    """What is not in order yet; None if all is."""
    state = cluster.state
    if state is None:
        return "there is no cluster"
    posts = [post for broker in cluster.brokers if broker.is_up for post in broker.supervisor.posts]
    serving = {post.log_id: post.node_id for post in posts if post.serving}
    shares = Counter(dict.fromkeys(serving.values(), 0))
    for slot, entries in enumerate(state.slots):
        owner = entries[-1]
        if owner.log_id not in serving:
            return f"slot {slot} belongs to log {owner.log_id} of node {owner.node_id}, which does not serve"
        shares[owner.node_id] += 1
    if cluster.etcd is None:
        return None
    for slot, entries in enumerate(state.slots):
        if len(entries) > 1:
            return f"the list of slot {slot} still has {len(entries)} entries"
    if max(shares.values()) - min(shares.values()) > 1:
        return f"the nodes' shares are uneven: {dict(shares)}"
    return None


async def findings(cluster: SimCluster) -> list[str]:
    """What is wrong in the bucket after a last sweep, on a store that is quick at last. To be called in peace."""
    world = cluster.world
    process = world.process("auditor")
    clock, chance = SimClock(world, process), world.stream("auditor")
    cluster.bucket.faults = StoreFaults(delay_usual=0.0005, slow=0)
    store, keys = cluster.bucket.handle(process), Keys(cluster.settings.cluster_namespace)
    settings = msgspec.structs.replace(cluster.settings, sweep_interval_ms=1)

    async def look() -> list[str]:
        lines: list[str] = []
        swept = await sweep(store, keys, clock, chance, lambda: _in_use(cluster), 0)
        if swept.refused is not None:
            lines.append(f"nothing could be swept: {swept.refused}")
        progress = Progress(clock, io.StringIO())
        await Verifier(settings, Options(strict=True), store, clock, chance, progress, lines.append).run()
        return lines

    found: list[str] = []
    for _ in range(LOOKS):
        # Compaction may go on: what was named by a manifest while it was swept may not be a moment later.
        lines = await process.spawn(look())
        world.counts["orphans"] += sum(any(str(why) in line for why in ORPHANS) for line in lines)
        found = [line for line in lines if not line.startswith(Wrong.LEFTOVER)]
        found = [line for line in found if not any(str(why) in line for why in ORPHANS)]
        if not found:
            break
        await process.spawn(clock.sleep(LOOK_AGAIN_SECONDS))
    return found


async def _in_use(cluster: SimCluster) -> LogsInUse:
    assert cluster.state is not None
    owners = {slot: entries[-1] for slot, entries in enumerate(cluster.state.slots)}
    return LogsInUse(
        live=cluster.current_logs(),
        listed=named_logs(cluster.state),
        owners={slot: (owner.epoch, owner.log_id) for slot, owner in owners.items()},
    )

"""Whatever members do, and whenever a worker is replaced: one generation, one plan, every question answered.

The driver checks after every call that the records add up to the state and that no reply tells more than they do.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kafscale.coordination.groups.events import (
    DeleteGroupsRequest,
    GroupConfig,
    JoinGroupRequest,
    JoinGroupResponse,
    OffsetDeleteRequest,
    OffsetFetchRequest,
    TimerKind,
    TopicPartitions,
)
from kafscale.protocol.error_codes import ErrorCode
from tests.unit.coordination.groups.driver import Driver, subscription

RANGE = ("range", subscription("t"))
ROUND_ROBIN = ("roundrobin", subscription("t", "u"))
PROTOCOLS = ((RANGE, ROUND_ROBIN), (RANGE, ROUND_ROBIN), (ROUND_ROBIN, RANGE), (RANGE,), (ROUND_ROBIN,))
GROUPS = ("g", "h")
INSTANCES = (None, None, None, None, "left", "right")
FORGET_IDS = (ErrorCode.UNKNOWN_MEMBER_ID, ErrorCode.FENCED_INSTANCE_ID)

clients = st.integers(0, len(INSTANCES) - 1)


class Client:
    """What one client believes."""

    def __init__(self, index: int) -> None:
        self.group_id = GROUPS[0] if index != 3 else GROUPS[1]
        self.instance_id = INSTANCES[index]
        self.member_id = ""
        self.joined: JoinGroupResponse | None = None
        self.open: list[int] = []
        self.synced = False


class Groups(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clients = [Client(index) for index in range(len(INSTANCES))]
        self.lost: set[int] = set()
        self.snapshots: list[tuple[bytes, int]] = []
        self.plans: dict[tuple[str, int, int], set[bytes]] = {}
        self.plan_count = 0
        self.seen = 0

    @initialize(delay_ms=st.sampled_from((0, 3_000)), max_members=st.sampled_from((3, 10)))
    def start(self, delay_ms: int, max_members: int) -> None:
        self.driver = Driver(
            GroupConfig(
                initial_rebalance_delay_ms=delay_ms,
                group_max_members=max_members,
                group_max_pending_members=3,
                group_max_offsets=3,
                offsets_retention_ms=600_000,
                offsets_check_interval_ms=60_000,
            ),
            {"t": b"t" * 16},
        )
        self.collect()

    # --- what clients do --------------------------------------------------------------------------------------------

    @rule(index=clients, protocols=st.sampled_from(PROTOCOLS), asks_id=st.booleans(), forgets=st.booleans())
    def join(self, index: int, protocols: Any, asks_id: bool, forgets: bool) -> None:
        client = self.clients[index]
        if forgets and client.instance_id is not None:
            client.member_id = ""  # a static client that was restarted
        token = self.driver.join(
            client.member_id,
            group_id=client.group_id,
            instance_id=client.instance_id,
            protocols=protocols,
            requires_known_member_id=asks_id,
            skips_assignment=asks_id,
        )
        client.open.append(token)
        self.collect()

    @rule(index=clients, age=st.integers(0, 1))
    def sync(self, index: int, age: int) -> None:
        client = self.clients[index]
        if client.joined is None:
            return
        plan = {}
        if client.joined.leader == client.member_id:
            self.plan_count += 1
            name = b"generation %d, plan %d" % (client.joined.generation, self.plan_count)
            plan = {told.member_id: name for told in client.joined.members}
        token = self.driver.sync(
            client.joined,
            plan,
            group_id=client.group_id,
            member_id=client.member_id,
            generation=client.joined.generation - age,
            instance_id=client.instance_id,
            protocol_name=client.joined.protocol_name,
        )
        client.open.append(token)
        self.collect()

    @rule(order=st.permutations(range(len(INSTANCES))), rounds=st.integers(1, 6), crash=st.integers(0, 24))
    def carry_on(self, order: list[int], rounds: int, crash: int) -> None:
        """Clients do what clients do: join, sync, and then stay; in their midst the worker may be replaced."""
        for turn in range(rounds):
            for place, index in enumerate(order):
                if turn * len(order) + place == crash:
                    self.restart(len(self.snapshots))
                client = self.clients[index]
                if client.open:
                    continue
                if client.joined is None:
                    self.join(index, (RANGE, ROUND_ROBIN), True, False)
                elif not client.synced:
                    self.sync(index, 0)
                elif self.driver.heartbeat(client.joined, group_id=client.group_id) is not ErrorCode.NONE:
                    client.joined = None
            self.driver.advance(1_000)
            self.collect()

    @rule(index=clients, age=st.integers(0, 1))
    def heartbeat(self, index: int, age: int) -> None:
        client = self.clients[index]
        if client.joined is not None:
            generation = client.joined.generation - age
            self.driver.heartbeat(client.joined, group_id=client.group_id, generation=generation)

    @rule(index=clients)
    def leave(self, index: int) -> None:
        client = self.clients[index]
        if client.member_id:
            self.driver.leave(client.member_id, client.instance_id, client.group_id)
            client.joined = None
        self.collect()

    @rule(index=clients, offset=st.integers(0, 1000), partition=st.integers(0, 4), simple=st.booleans())
    def commit(self, index: int, offset: int, partition: int, simple: bool) -> None:
        client = self.clients[index]
        changes: dict[str, Any] = {"topic_id": b"t" * 16} if partition else {}
        if not simple and client.joined is not None:
            changes |= {"member_id": client.member_id, "generation": client.joined.generation}
        self.driver.commit(offset, partition=partition, group_id=client.group_id, **changes)
        self.collect()

    @rule(group_id=st.sampled_from(GROUPS))
    def fetch(self, group_id: str) -> None:
        self.driver.ask("offset_fetch", OffsetFetchRequest(group_id=group_id))

    # --- what administrators do -------------------------------------------------------------------------------------

    @rule(group_id=st.sampled_from(GROUPS))
    def delete_group(self, group_id: str) -> None:
        self.driver.ask("delete_groups", DeleteGroupsRequest(group_ids=(group_id,)))
        self.collect()

    @rule(group_id=st.sampled_from(GROUPS), partition=st.integers(0, 4))
    def delete_offset(self, group_id: str, partition: int) -> None:
        topics = (TopicPartitions(name="t", partitions=(partition,)),)
        self.driver.ask("offset_delete", OffsetDeleteRequest(group_id=group_id, topics=topics))

    @rule(topic_id=st.sampled_from((b"t" * 16, b"x" * 16)))
    def delete_topic(self, topic_id: bytes) -> None:
        self.driver.run(lambda now, wall: self.driver.shard.on_topic_deleted("t", topic_id, now, wall))

    # --- time and takeover ------------------------------------------------------------------------------------------

    @rule(milliseconds=st.sampled_from((1, 2_999, 3_000, 9_000, 11_000, 31_000, 301_000, 700_000)))
    def wait(self, milliseconds: int) -> None:
        self.driver.advance(milliseconds)
        self.collect()

    @rule()
    def snapshot(self) -> None:
        self.snapshots.append((self.driver.shard.snapshot(), len(self.driver.log)))

    @rule(which=st.integers(0, 3))
    def restart(self, which: int) -> None:
        for client in self.clients:
            self.lost.update(client.open)
            client.open.clear()
        if which < len(self.snapshots):
            self.driver.restart(*self.snapshots[-1 - which])
        else:
            self.driver.restart()
        self.collect()

    @rule()
    def move(self) -> None:
        """A planned move: whoever waits is told at once where to go."""
        self.driver.run(lambda now, wall: self.driver.shard.deactivate(now, wall))
        self.collect()
        assert not any(client.open for client in self.clients)
        assert not self.driver.timers
        self.driver.restart(self.driver.shard.snapshot(), len(self.driver.log))

    # --- what must hold ---------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Let clients read their replies, and hold the plans they got against each other."""
        for client in self.clients:
            for token in [token for token in client.open if token in self.driver.replies]:
                client.open.remove(token)
                self._read(client, self.driver.requests[token], self.driver.replies[token])

    def _read(self, client: Client, request: Any, response: Any) -> None:
        if response.error in FORGET_IDS and request.member_id == client.member_id:
            client.member_id, client.joined = "", None
        if isinstance(request, JoinGroupRequest):
            if response.error is ErrorCode.NONE:
                client.member_id, client.joined, client.synced = response.member_id, response, False
            elif response.error is ErrorCode.MEMBER_ID_REQUIRED:
                client.member_id = response.member_id
        elif response.error is not ErrorCode.NONE:
            client.joined = None
        else:
            client.synced = True
            assert response.assignment, "told to stand by with nothing, though the leader plans for all"
            life = self.driver.lives.get(client.group_id, 0)
            plans = self.plans.setdefault((client.group_id, life, request.generation), set())
            plans.add(response.assignment)
            assert len(plans) == 1, "members of one generation were assigned from two leaders' plans"
            assert response.assignment.startswith(b"generation %d," % request.generation)

    @invariant()
    def someone_will_answer(self) -> None:
        """While a member waits, a timer runs that will end the wait."""
        for client in self.clients:
            for token in client.open:
                is_join = isinstance(self.driver.requests[token], JoinGroupRequest)
                kinds = (TimerKind.JOIN,) if is_join else (TimerKind.SYNC, TimerKind.SESSION)
                running = {(key.kind, key.group_id) for key in self.driver.timers}
                assert any((kind, client.group_id) in running for kind in kinds)

    @invariant()
    def timers_belong_to_someone(self) -> None:
        """Sessions run for members and for ids given out, and for nobody else; the shard knows its own timers."""
        groups = self.driver.shard._groups
        assert self.driver.shard._deadlines == self.driver.timers
        for key in self.driver.timers:
            if key.kind is TimerKind.SESSION:
                group = groups[key.group_id]
                assert key.member_id in group.members or key.member_id in group.pending_join

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.advance(3_600_000)
            self.collect()
            unanswered = self.driver.requests.keys() - self.driver.replies.keys() - self.lost
            assert not unanswered, f"never answered: {[self.driver.requests[token] for token in unanswered]}"
            # All sessions are over, all offsets expired: nothing is left, in memory or in the log.
            assert self.driver.shard.group_count() == 0
            assert not self.driver.records


Groups.TestCase.settings = settings(max_examples=250, stateful_step_count=50, suppress_health_check=list(HealthCheck))
TestGroups = Groups.TestCase

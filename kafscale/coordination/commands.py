"""What a client may ask to be changed in the catalogue, and how that is decided.

Pure: (state, command) → (changes, result), no store and no clock. The controller decides the commands of a request one
after the other, each on the state its forerunners leave, and decides anew when it loses a race for a version. What must
always hold: applying the returned changes to the given state gives a valid state; a refused command changes nothing.

Replication: an acknowledged record is durable in the object store, so a replication factor asks for nothing here. Any
positive one, and -1, is accepted, since tools send 1 or 3 by habit; Metadata shows the leader, and a reader in each
other zone. A manual assignment is checked for its form and gives the number of partitions; placement follows slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from kafscale.coordination import cluster, topic_configs
from kafscale.coordination.acl_draft import AclDraft
from kafscale.coordination.cluster import Change, ClusterState, Topic, apply_change, topic_name_error
from kafscale.coordination.quotas import MAX_QUOTAS, QuotaEntity, altered
from kafscale.errors import Corrupt, Invalid
from kafscale.protocol.acls import AclBinding, AclFilter
from kafscale.protocol.error_codes import ErrorCode

MAX_PARTITIONS_PER_TOPIC = 10_000
MAX_PARTITIONS_PER_CLUSTER = 200_000
# A few hundred bytes each, in every state.
MAX_CREDENTIAL_USERS = 20_000
# Bounds what one request may hold up the controller for.
MAX_COMMANDS = 10_000
# Names and settings of all topics: a state must fit a control frame (`control.MAX_FRAME_BYTES`).
MAX_CATALOGUE_BYTES = 24 << 20
MAX_REPLICATION_FACTOR = 2**15 - 1
NO_TOPIC_ID = bytes(16)

NewTopicId = Callable[[], bytes]


class CreateTopic(msgspec.Struct, frozen=True, tag="create_topic", kw_only=True):
    """`partitions` and `replication_factor` -1: the broker's default. `assignments` are Kafka's: (partition, broker
    ids)."""

    name: str
    partitions: int = -1
    replication_factor: int = -1
    assignments: list[tuple[int, list[int]]] = []
    configs: dict[str, str | None] = {}
    validate_only: bool = False


class DeleteTopic(msgspec.Struct, frozen=True, tag="delete_topic", kw_only=True):
    """By name or by id: exactly one of them."""

    name: str | None = None
    topic_id: bytes | None = None


class CreatePartitions(msgspec.Struct, frozen=True, tag="create_partitions", kw_only=True):
    """Raise the number of partitions to `count`. `assignments`: the broker ids of each new one, or None."""

    name: str
    count: int
    assignments: list[list[int]] | None = None
    validate_only: bool = False


class AlterConfigs(msgspec.Struct, frozen=True, tag="alter_configs", kw_only=True):
    """Change settings of a topic: by `ops` (IncrementalAlterConfigs), or all of them by `replace_with`
    (AlterConfigs)."""

    topic: str
    ops: list[topic_configs.ConfigOp] = []
    replace_with: dict[str, str | None] | None = None
    validate_only: bool = False


class CreateAcls(msgspec.Struct, frozen=True, tag="create_acls", kw_only=True):
    """Create Kafka's ACLs; one that is there already is no mistake. They have been found sound one by one."""

    bindings: list[AclBinding]


class DeleteAcls(msgspec.Struct, frozen=True, tag="delete_acls", kw_only=True):
    """Delete every ACL that the filter matches."""

    filter: AclFilter


class AlterCredentials(msgspec.Struct, frozen=True, tag="alter_credentials", kw_only=True):
    """Set a user's credentials by SCRAM mechanism, or delete them (None): all of them, or none where one can't be. They
    have been found sound. `of_file`: for which of the mechanisms the broker's bootstrap file has one too."""

    user: str
    credentials: dict[str, cluster.ScramCredential | None]
    of_file: list[str] = []


class AlterQuota(msgspec.Struct, frozen=True, tag="alter_quota", kw_only=True):
    """Set client quotas of an entity, and take away those whose value is None. They have been found sound."""

    entity: QuotaEntity
    changes: list[tuple[str, float | None]]
    validate_only: bool = False


TopicCommand = CreateTopic | DeleteTopic | CreatePartitions | AlterConfigs
Command = TopicCommand | CreateAcls | DeleteAcls | AlterCredentials | AlterQuota


class CommandResult(msgspec.Struct, frozen=True):
    """The outcome: a Kafka error code (0: done), why, and the topic as it is after the command; of DeleteAcls, the ACLs
    that were deleted.

    For a deleted topic that is the topic as it was; with validate_only, as it would be (a topic to be created with the
    id NO_TOPIC_ID). None where the command was refused.
    """

    error_code: int = 0
    message: str | None = None
    topic: Topic | None = None
    acls: list[AclBinding] = []


class Draft:
    """The catalogue on its way from one version to the next, with the indexes that make many commands cheap.

    Building one takes time with the number of topics, a command on it does not: a controller keeps its draft while all
    that was decided on it came to be written, and makes a new one where not.
    """

    def __init__(self, state: ClusterState) -> None:
        self.topics = dict(state.topics)
        self._changes: list[Change] = []
        self.names_by_id = {topic.topic_id: topic.name for topic in state.topics.values()}
        self.partitions = sum(topic.partitions for topic in state.topics.values())
        self.text_bytes = sum(_text_bytes(topic) for topic in state.topics.values())
        self._folded = {_folded(name): name for name in state.topics}
        self.acls = AclDraft(state.acls)
        self.credentials = dict(state.credentials)
        self.quotas = {quota.entity: quota.values for quota in state.quotas}

    def take_changes(self) -> list[Change]:
        """What was changed since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def colliding_name(self, name: str) -> str | None:
        """A topic that differs from `name` only in '.' and '_': metric names could not tell them apart (KAFKA-2337)."""
        return self._folded.get(_folded(name))

    def check_room(self, before: Topic | None, after: Topic) -> None:
        """Raise Invalid if the catalogue would outgrow its bounds with `after` in the place of `before`."""
        if after.partitions > MAX_PARTITIONS_PER_TOPIC:
            raise Invalid(
                ErrorCode.INVALID_PARTITIONS,
                f"a topic may have {MAX_PARTITIONS_PER_TOPIC} partitions at most, not {after.partitions}",
            )
        if self.partitions + after.partitions - (before.partitions if before else 0) > MAX_PARTITIONS_PER_CLUSTER:
            raise Invalid(
                ErrorCode.POLICY_VIOLATION,
                f"the cluster may have {MAX_PARTITIONS_PER_CLUSTER} partitions at most and has {self.partitions}",
            )
        if self.text_bytes + _text_bytes(after) - (_text_bytes(before) if before else 0) > MAX_CATALOGUE_BYTES:
            raise Invalid(
                ErrorCode.POLICY_VIOLATION,
                f"names and settings of all topics may take {MAX_CATALOGUE_BYTES} bytes, and take {self.text_bytes}",
            )

    def note(self, change: Change) -> None:
        """A change that is in the draft already."""
        self._changes.append(change)

    def put(self, change: cluster.TopicChange, before: Topic | None, after: Topic | None) -> None:
        """Apply `change`, which makes `before` into `after` (None: there is no such topic)."""
        apply_change(change, self.topics, [])
        self._changes.append(change)
        if before is not None:
            del self.names_by_id[before.topic_id]
            del self._folded[_folded(before.name)]
            self.partitions -= before.partitions
            self.text_bytes -= _text_bytes(before)
        if after is not None:
            self.names_by_id[after.topic_id] = after.name
            self._folded[_folded(after.name)] = after.name
            self.partitions += after.partitions
            self.text_bytes += _text_bytes(after)


def decide(
    state: ClusterState, command: Command, new_topic_id: NewTopicId, now_ms: int, default_partitions: int = 1
) -> tuple[list[Change], CommandResult]:
    """What `command` changes in `state`, and its result."""
    changes, results = decide_all(Draft(state), [command], new_topic_id, now_ms, default_partitions)
    return changes, results[0]


def decide_all(
    draft: Draft,
    commands: Sequence[Command],
    new_topic_id: NewTopicId,
    now_ms: int,
    default_partitions: int = 1,
) -> tuple[list[Change], list[CommandResult]]:
    """What the commands of one request change, each decided on what those before it leave, and a result for each.
    `draft` has the changes in it afterwards.

    `new_topic_id` gives 16 random bytes; one that is taken is asked for again.
    """
    results = []
    draft.acls.begin_request()
    for position, command in enumerate(commands):
        try:
            if position >= MAX_COMMANDS:
                raise Invalid(ErrorCode.POLICY_VIOLATION, f"a request may hold {MAX_COMMANDS} changes at most")
            if isinstance(command, CreateAcls | DeleteAcls):
                results.append(_decide_acls(draft, command))
                continue
            if isinstance(command, AlterQuota):
                _alter_quota(draft, command)
                results.append(CommandResult())
                continue
            if isinstance(command, AlterCredentials):
                _alter_credentials(draft, command)
                results.append(CommandResult())
                continue
            results.append(CommandResult(topic=_decide_one(draft, command, new_topic_id, now_ms, default_partitions)))
        except Invalid as error:
            results.append(CommandResult(error_code=error.code, message=str(error)))
    return draft.take_changes(), results


def _decide_acls(draft: Draft, command: CreateAcls | DeleteAcls) -> CommandResult:
    if isinstance(command, CreateAcls):
        created = draft.acls.create(command.bindings)
        if created:
            draft.note(cluster.CreateAcls(created))
        return CommandResult()
    deleted = draft.acls.delete(command.filter)
    if deleted:
        draft.note(cluster.DeleteAcls(deleted))
    return CommandResult(acls=deleted)


def _alter_credentials(draft: Draft, command: AlterCredentials) -> None:
    said = draft.credentials.get(command.user, {})
    for mechanism, credential in command.credentials.items():
        has = said[mechanism] is not None if mechanism in said else mechanism in command.of_file
        if credential is None and not has:
            raise Invalid(ErrorCode.RESOURCE_NOT_FOUND, "Attempt to delete a user credential that does not exist")
    if command.user not in draft.credentials and len(draft.credentials) >= MAX_CREDENTIAL_USERS:
        raise Invalid(
            ErrorCode.POLICY_VIOLATION, f"the cluster may have {MAX_CREDENTIAL_USERS} users with a password at most"
        )
    for mechanism, credential in command.credentials.items():
        change: cluster.CredentialChange
        if credential is None and mechanism not in command.of_file:
            change = cluster.ForgetCredential(command.user, mechanism)
        else:
            # That a credential of the file is no more must be remembered, or the file would bring it back.
            change = cluster.SetCredential(command.user, mechanism, credential)
        cluster.apply_credential(change, draft.credentials)
        draft.note(change)


def _alter_quota(draft: Draft, command: AlterQuota) -> None:
    before = draft.quotas.get(command.entity, {})
    after = altered(before, command.changes)
    if not before and after and len(draft.quotas) >= MAX_QUOTAS:
        raise Invalid(ErrorCode.POLICY_VIOLATION, f"there may be quotas of {MAX_QUOTAS} entities at most")
    if after == before or command.validate_only:
        return
    if after:
        draft.quotas[command.entity] = after
    else:
        del draft.quotas[command.entity]
    draft.note(cluster.SetQuota(command.entity, after))


def _decide_one(
    draft: Draft,
    command: TopicCommand,
    new_topic_id: NewTopicId,
    now_ms: int,
    default_partitions: int,
) -> Topic:
    match command:
        case CreateTopic():
            return _create_topic(draft, command, new_topic_id, now_ms, default_partitions)
        case DeleteTopic():
            return _delete_topic(draft, command)
        case CreatePartitions():
            return _create_partitions(draft, command)
        case AlterConfigs():
            return _alter_configs(draft, command)


def _create_topic(
    draft: Draft, command: CreateTopic, new_topic_id: NewTopicId, now_ms: int, default_partitions: int
) -> Topic:
    name = command.name
    complaint = topic_name_error(name)
    if complaint is not None:
        raise Invalid(ErrorCode.INVALID_TOPIC_EXCEPTION, complaint)
    if name in draft.topics:
        raise Invalid(ErrorCode.TOPIC_ALREADY_EXISTS, f"Topic '{name}' already exists.")
    other = draft.colliding_name(name)
    if other is not None:
        raise Invalid(
            ErrorCode.INVALID_TOPIC_EXCEPTION,
            f"topic {name!r} collides with the existing topic {other!r}: '.' and '_' count as the same",
        )
    topic = Topic(
        name=name,
        topic_id=NO_TOPIC_ID if command.validate_only else _free_topic_id(draft, new_topic_id),
        partitions=_partitions_asked_for(command, default_partitions),
        configs=topic_configs.validated(command.configs),
        created_ms=now_ms,
    )
    draft.check_room(None, topic)
    if not command.validate_only:
        draft.put(cluster.CreateTopic(topic), None, topic)
    return topic


def _partitions_asked_for(command: CreateTopic, default_partitions: int) -> int:
    if command.assignments:
        if command.partitions != -1 or command.replication_factor != -1:
            raise Invalid(
                ErrorCode.INVALID_REQUEST,
                "with a manual assignment the number of partitions and the replication factor must be -1",
            )
        numbers = sorted(partition for partition, _ in command.assignments)
        if numbers != list(range(len(numbers))):
            raise Invalid(ErrorCode.INVALID_REPLICA_ASSIGNMENT, "assigned partitions must be 0, 1, 2 and so on")
        for partition, brokers in command.assignments:
            _check_replicas(partition, brokers)
        return len(numbers)
    if command.partitions != -1 and command.partitions < 1:
        raise Invalid(ErrorCode.INVALID_PARTITIONS, f"a topic can't have {command.partitions} partitions")
    if command.replication_factor != -1 and not 1 <= command.replication_factor <= MAX_REPLICATION_FACTOR:
        raise Invalid(
            ErrorCode.INVALID_REPLICATION_FACTOR, f"a replication factor can't be {command.replication_factor}"
        )
    return default_partitions if command.partitions == -1 else command.partitions


def _check_replicas(partition: int, brokers: Sequence[int]) -> None:
    if not brokers or len(set(brokers)) != len(brokers) or min(brokers) < 0:
        raise Invalid(
            ErrorCode.INVALID_REPLICA_ASSIGNMENT,
            f"partition {partition} must be assigned to brokers that differ, and to one at least",
        )


def _free_topic_id(draft: Draft, new_topic_id: NewTopicId) -> bytes:
    while True:
        topic_id = new_topic_id()
        assert len(topic_id) == 16
        if topic_id != NO_TOPIC_ID and topic_id not in draft.names_by_id:
            return topic_id


def _delete_topic(draft: Draft, command: DeleteTopic) -> Topic:
    name = command.name
    if command.topic_id is not None:
        if name is not None:
            raise Invalid(ErrorCode.INVALID_REQUEST, "a topic to delete is named by its name or by its id, not by both")
        name = draft.names_by_id.get(command.topic_id)
        if name is None:
            raise Invalid(ErrorCode.UNKNOWN_TOPIC_ID, "This server does not host this topic ID.")
    elif name is None:
        raise Invalid(ErrorCode.INVALID_REQUEST, "a topic to delete has neither name nor id")
    topic = _existing(draft, name)
    _refuse_internal(topic, "deleted")
    draft.put(cluster.DeleteTopic(topic.name, topic.topic_id), topic, None)
    return topic


def _create_partitions(draft: Draft, command: CreatePartitions) -> Topic:
    topic = _existing(draft, command.name)
    # The partition of a group is its hash modulo their number: with another number groups would lose their state.
    _refuse_internal(topic, "given more partitions")
    if command.count <= topic.partitions:
        raise Invalid(
            ErrorCode.INVALID_PARTITIONS,
            f"topic {topic.name!r} has {topic.partitions} partitions; {command.count} would not be more",
        )
    added = command.count - topic.partitions
    if command.assignments is not None:
        if len(command.assignments) != added:
            raise Invalid(
                ErrorCode.INVALID_REPLICA_ASSIGNMENT,
                f"{added} partitions are to be added, but {len(command.assignments)} are assigned",
            )
        for position, brokers in enumerate(command.assignments):
            _check_replicas(topic.partitions + position, brokers)
    after = msgspec.structs.replace(topic, partitions=command.count)
    draft.check_room(topic, after)
    if not command.validate_only:
        draft.put(cluster.SetPartitions(topic.name, command.count), topic, after)
    return after


def _alter_configs(draft: Draft, command: AlterConfigs) -> Topic:
    topic = _existing(draft, command.topic)
    _refuse_internal(topic, "changed in its settings")
    if command.replace_with is not None:
        configs = topic_configs.validated(command.replace_with)
    else:
        configs = topic_configs.altered(topic.configs, command.ops)
    after = msgspec.structs.replace(topic, configs=configs)
    draft.check_room(topic, after)
    if configs != topic.configs and not command.validate_only:
        draft.put(cluster.SetConfigs(topic.name, configs), topic, after)
    return after


def _existing(draft: Draft, name: str) -> Topic:
    topic = draft.topics.get(name)
    if topic is None:
        raise Invalid(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, "This server does not host this topic-partition.")
    return topic


def _refuse_internal(topic: Topic, verb: str) -> None:
    if topic.name in cluster.INTERNAL_TOPICS:
        raise Invalid(ErrorCode.INVALID_REQUEST, f"the internal topic {topic.name} can't be {verb}")


def _folded(name: str) -> str:
    return name.replace(".", "_")


def _text_bytes(topic: Topic) -> int:
    # Values are ASCII but for the few that nobody reads; four bytes are the most a character takes.
    return len(topic.name) + sum(len(name) + 4 * len(value) for name, value in topic.configs.items())


_encoder = msgspec.msgpack.Encoder()
_commands_decoder = msgspec.msgpack.Decoder(list[Command])
_results_decoder = msgspec.msgpack.Decoder(list[CommandResult])


def encode_commands(commands: Sequence[Command]) -> bytes:
    return _encoder.encode(list(commands))


def decode_commands(data: bytes) -> list[Command]:
    """Raises Corrupt."""
    try:
        return _commands_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"commands can't be read: {error}") from error


def encode_results(results: Sequence[CommandResult]) -> bytes:
    return _encoder.encode(list(results))


def decode_results(data: bytes) -> list[CommandResult]:
    """Raises Corrupt."""
    try:
        return _results_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"results of commands can't be read: {error}") from error

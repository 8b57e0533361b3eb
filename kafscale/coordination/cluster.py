"""The cluster's decisions as a value: `ClusterState`, the changes that lead from one version to the next, and their
bytes.

Pure: no store, no clock, no sockets. The bytes of version v of the cluster log are an encoded `Version`; state v is
state v-1 with its changes applied, or its snapshot where it carries one. Supervisor and workers apply the same changes
with the same function, so they can't disagree. What must always hold: a slot's epoch never falls; a topic id is never
used twice; the last assignment of a slot's list is its owner, earlier ones are logs that may still hold its newest
manifest.
"""

from __future__ import annotations

import re

import msgspec

from kafscale.coordination.quotas import ClientQuota, QuotaEntity
from kafscale.errors import Corrupt
from kafscale.protocol.acls import AclBinding

FORMAT_VERSION = 1
OFFSETS_TOPIC = "__consumer_offsets"
AUDIT_TOPIC = "__audit_log"
INTERNAL_TOPICS = frozenset({OFFSETS_TOPIC, AUDIT_TOPIC})
MAX_TOPIC_NAME = 249
_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]+")


class Assignment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A slot given to a worker incarnation: the log that is its, and the epoch under which it writes."""

    epoch: int
    node_id: int
    log_id: str


class Topic(msgspec.Struct, frozen=True):
    """A topic of the catalogue. `configs` holds only what was set; defaults are not stored."""

    name: str
    topic_id: bytes
    partitions: int
    configs: dict[str, str] = {}
    created_ms: int = 0


class CreateTopic(msgspec.Struct, frozen=True, tag=True):
    topic: Topic


class DeleteTopic(msgspec.Struct, frozen=True, tag=True):
    name: str
    topic_id: bytes


class SetPartitions(msgspec.Struct, frozen=True, tag=True):
    """Raise a topic's number of partitions to `partitions`."""

    name: str
    partitions: int


class SetConfigs(msgspec.Struct, frozen=True, tag=True):
    """Replace everything that was set on a topic."""

    name: str
    configs: dict[str, str]


class Assign(msgspec.Struct, frozen=True, tag=True):
    """Replace the assignment lists of some slots."""

    slots: dict[int, list[Assignment]]


class CreateAcls(msgspec.Struct, frozen=True, tag=True):
    """Kafka's ACLs that were not there before."""

    bindings: list[AclBinding]


class DeleteAcls(msgspec.Struct, frozen=True, tag=True):
    bindings: list[AclBinding]


class ScramCredential(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a password (RFC 5802): nothing that would let one log in."""

    salt: bytes
    stored_key: bytes
    server_key: bytes
    iterations: int

    def __repr__(self) -> str:
        return f"ScramCredential({self.iterations} iterations)"


class SetCredential(msgspec.Struct, frozen=True, tag=True):
    """A user's credential for one SCRAM mechanism. None: there is none, whatever a broker's bootstrap file says."""

    user: str
    mechanism: str
    credential: ScramCredential | None


class ForgetCredential(msgspec.Struct, frozen=True, tag=True):
    """Nothing is said any more of a user's credential for this mechanism."""

    user: str
    mechanism: str


class SetDecoyKey(msgspec.Struct, frozen=True, tag=True):
    """The secret that decoys for unknown users are made with. Set once."""

    key: bytes

    def __repr__(self) -> str:
        return "SetDecoyKey(…)"


class SetQuota(msgspec.Struct, frozen=True, tag=True):
    """Replace everything that is set for an entity of client quotas; nothing: there is no quota for it any more."""

    entity: QuotaEntity
    values: dict[str, float]


AclChange = CreateAcls | DeleteAcls
CredentialChange = SetCredential | ForgetCredential
TopicChange = CreateTopic | DeleteTopic | SetPartitions | SetConfigs | Assign
Change = TopicChange | AclChange | CredentialChange | SetDecoyKey | SetQuota
# user → SCRAM mechanism → credential, or None as `SetCredential` says.
Credentials = dict[str, dict[str, ScramCredential | None]]


class ClusterState(msgspec.Struct, kw_only=True):
    """Everything that the cluster log says at one version. Treated as immutable: `apply` makes a new one."""

    version: int
    cluster_id: str
    slot_count: int
    format_version: int = FORMAT_VERSION
    topics: dict[str, Topic] = {}
    slots: list[list[Assignment]] = []
    # Each once, in the order in which they were created. Workers' states have none: they go by what is compiled.
    acls: list[AclBinding] = []
    # Replaced when one changes, never changed.
    credentials: dict[str, dict[str, ScramCredential | None]] = {}
    decoy_key: bytes = b""
    # Each entity once. Replaced when one changes, never changed.
    quotas: list[ClientQuota] = []

    def owner(self, slot: int) -> Assignment | None:
        """The slot's current assignment; None before its first."""
        assignments = self.slots[slot]
        return assignments[-1] if assignments else None


class Version(msgspec.Struct, frozen=True):
    """What an object of the cluster log says. `writer_id` lets a writer recognise its own object in a read-back."""

    version: int
    writer_id: str
    written_ms: int
    changes: list[Change] = []
    snapshot: ClusterState | None = None


def slot_of(topic_id: bytes, partition: int, slot_count: int) -> int:
    """The slot of a partition: stable across processes and versions of the code."""
    return (int.from_bytes(topic_id[:8], "big") + partition) % slot_count


def apply(state: ClusterState, version: Version) -> ClusterState:
    """The state at `version`, given the one just before it (or any, where `version` carries a snapshot).

    Raises Corrupt where the version does not follow or breaks a rule that must hold.
    """
    if version.snapshot is not None:
        return version.snapshot
    if version.version != state.version + 1:
        raise Corrupt(f"cluster version {version.version} does not follow {state.version}")
    topics = dict(state.topics)
    slots = list(state.slots)
    acls = state.acls
    credentials = state.credentials
    decoy_key = state.decoy_key
    quotas: dict[QuotaEntity, ClientQuota] | None = None
    for change in version.changes:
        match change:
            case CreateAcls() | DeleteAcls():
                acls = apply_acls(change, acls)
            case SetCredential() | ForgetCredential():
                if credentials is state.credentials:
                    credentials = dict(credentials)
                apply_credential(change, credentials)
            case SetDecoyKey(key):
                decoy_key = decoy_key or key
            case SetQuota(entity, values):
                if quotas is None:
                    quotas = {quota.entity: quota for quota in state.quotas}
                apply_quota(entity, values, quotas)
            case _:
                apply_change(change, topics, slots)
    return ClusterState(
        version=version.version,
        cluster_id=state.cluster_id,
        slot_count=state.slot_count,
        format_version=state.format_version,
        topics=topics,
        slots=slots,
        acls=acls,
        credentials=credentials,
        decoy_key=decoy_key,
        quotas=state.quotas if quotas is None else list(quotas.values()),
    )


def apply_quota(entity: QuotaEntity, values: dict[str, float], quotas: dict[QuotaEntity, ClientQuota]) -> None:
    """Replace in place what is set for an entity, which keeps its place among the others."""
    if values:
        quotas[entity] = ClientQuota(entity, values)
    else:
        quotas.pop(entity, None)


def apply_credential(change: CredentialChange, credentials: Credentials) -> None:
    """Apply one change in place; what there was of the user stays as it is."""
    of_user = dict(credentials.get(change.user, {}))
    if isinstance(change, SetCredential):
        of_user[change.mechanism] = change.credential
    else:
        of_user.pop(change.mechanism, None)
    credentials[change.user] = of_user
    if not of_user:
        del credentials[change.user]


def apply_acls(change: AclChange, acls: list[AclBinding]) -> list[AclBinding]:
    """The ACLs after a change of them; a list of its own."""
    if isinstance(change, CreateAcls):
        return [*acls, *change.bindings]
    gone = frozenset(change.bindings)
    return [binding for binding in acls if binding not in gone]


def apply_change(change: TopicChange, topics: dict[str, Topic], slots: list[list[Assignment]]) -> None:
    """Apply one change in place. Raises Corrupt where it breaks a rule that must hold."""
    match change:
        case CreateTopic(topic):
            if topic.name in topics:
                raise Corrupt(f"cluster log creates topic {topic.name!r} twice")
            topics[topic.name] = topic
        case DeleteTopic(name, topic_id):
            if name in topics and topics[name].topic_id == topic_id:
                del topics[name]
        case SetPartitions(name, partitions):
            topics[name] = msgspec.structs.replace(topics[name], partitions=partitions)
        case SetConfigs(name, configs):
            topics[name] = msgspec.structs.replace(topics[name], configs=configs)
        case Assign(changed):
            for slot, assignments in changed.items():
                before = slots[slot]
                if before and assignments[-1].epoch < before[-1].epoch:
                    raise Corrupt(f"cluster log lowers the epoch of slot {slot}")
                slots[slot] = assignments


def topic_name_error(name: str) -> str | None:
    """Why `name` may not name a topic (Kafka's rule), or None."""
    if not name:
        return "a topic name can't be empty"
    if name in (".", ".."):
        return f"a topic can't be named {name!r}"
    if len(name) > MAX_TOPIC_NAME:
        return f"a topic name has at most {MAX_TOPIC_NAME} characters, this one has {len(name)}"
    if not _TOPIC_NAME.fullmatch(name):
        return "a topic name holds only ASCII letters, digits, '.', '_' and '-'"
    return None


_version_encoder = msgspec.msgpack.Encoder()
_version_decoder = msgspec.msgpack.Decoder(Version)
_state_decoder = msgspec.msgpack.Decoder(ClusterState)


def encode_version(version: Version) -> bytes:
    return _version_encoder.encode(version)


def decode_version(payload: bytes) -> Version:
    """Raises Corrupt."""
    try:
        return _version_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"a version of the cluster log can't be read: {error}") from error


def encode_state(state: ClusterState) -> bytes:
    return _version_encoder.encode(state)


def decode_state(payload: bytes) -> ClusterState:
    """Raises Corrupt."""
    try:
        return _state_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"a cluster state can't be read: {error}") from error


# For workers, of which each would have a copy of all ACLs that nobody looks at: what is said of them is passed over.


class _AclsCreated(msgspec.Struct, frozen=True, tag="CreateAcls"):
    """That ACLs were created, and not which."""


class _AclsDeleted(msgspec.Struct, frozen=True, tag="DeleteAcls"):
    """That ACLs were deleted, and not which."""


class _StateWithoutAcls(msgspec.Struct, kw_only=True):
    version: int
    cluster_id: str
    slot_count: int
    format_version: int = FORMAT_VERSION
    topics: dict[str, Topic] = {}
    slots: list[list[Assignment]] = []
    credentials: dict[str, dict[str, ScramCredential | None]] = {}
    decoy_key: bytes = b""
    quotas: list[ClientQuota] = []


class _VersionWithoutAcls(msgspec.Struct, frozen=True):
    version: int
    writer_id: str
    written_ms: int
    changes: list[TopicChange | CredentialChange | SetDecoyKey | SetQuota | _AclsCreated | _AclsDeleted] = []
    snapshot: _StateWithoutAcls | None = None


_version_without_acls_decoder = msgspec.msgpack.Decoder(_VersionWithoutAcls)


def decode_version_without_acls(payload: bytes) -> Version:
    """A version as a worker wants it. Raises Corrupt."""
    try:
        read = _version_without_acls_decoder.decode(payload)
    except msgspec.MsgspecError as error:
        raise Corrupt(f"a version of the cluster log can't be read: {error}") from error
    changes: list[Change] = [change for change in read.changes if not isinstance(change, _AclsCreated | _AclsDeleted)]
    snapshot = None if read.snapshot is None else ClusterState(**msgspec.structs.asdict(read.snapshot))
    return Version(read.version, read.writer_id, read.written_ms, changes, snapshot)


def encode_state_without_acls(state: ClusterState) -> bytes:
    """A state as a worker wants it."""
    return _version_encoder.encode(msgspec.structs.replace(state, acls=[]) if state.acls else state)

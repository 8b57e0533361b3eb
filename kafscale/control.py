"""What a supervisor and its workers say to each other, and how it is framed.

One stream socket per worker. A frame is a 4-byte big-endian length and a msgpack array tagged with its kind. The first
frame a worker receives is `Configure`. A worker that reads end-of-file exits: its supervisor is gone. Nothing of the
data plane passes here. Cluster state and catalogue commands travel as bytes that only `kafscale.coordination` reads.
"""

from __future__ import annotations

import struct

import msgspec

from kafscale.config import Settings

MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct(">I")


class NodeAddress(msgspec.Struct, frozen=True, array_like=True):
    """A Kafka node as clients are told of it: `host` and `port` where its broker has one listener, else `addresses`
    has them by the listener's name. `peer` is where workers of other brokers reach it ("host:port"; empty for nowhere),
    which no client is told."""

    node_id: int
    host: str
    port: int
    rack: str | None = None
    addresses: dict[str, tuple[str, int]] = {}
    peer: str = ""

    def at(self, listener: str) -> NodeAddress | None:
        """The node as clients of the listener are told of it; None if it has no such listener."""
        if not self.addresses:
            return self
        found = self.addresses.get(listener)
        return None if found is None else NodeAddress(self.node_id, *found, self.rack)


class ListenerSockets(msgspec.Struct, frozen=True):
    """A listener's sockets, as descriptors that a worker has inherited. `bootstrap_fds` are those of its shared port,
    by worker index; a worker accepts on its own, and on a sibling's between `AdoptListener` and `DropListener`.
    `private_fd` is the worker's own port, -1 behind a shared address."""

    name: str
    bootstrap_fds: list[int]
    private_fd: int


class PeerSockets(msgspec.Struct, frozen=True):
    """Where other workers come to a worker, as descriptors that it has inherited: `sibling_fd` for those of its broker
    (each one's socket has the name `sibling_name` and its index), `peer_fd` for those of others; -1 for none."""

    sibling_fd: int
    sibling_name: str
    peer_fd: int = -1


class TlsFiles(msgspec.Struct, frozen=True):
    """What the files of a listener with TLS hold (PEM); see `kafscale.security.tls.TlsMaterial`."""

    certificate: bytes
    key: bytes
    key_password: str | None = None
    client_ca: bytes | None = None
    revoked: bytes | None = None

    def __repr__(self) -> str:
        return "TlsFiles(…)"


class Credential(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a user's password, for one SCRAM mechanism."""

    user: str
    mechanism: str
    salt: bytes
    stored_key: bytes
    server_key: bytes
    iterations: int

    def __repr__(self) -> str:
        return f"Credential({self.user!r}, …)"


class Security(msgspec.Struct, frozen=True, tag=True):
    """To a worker: what is in the files of certificates, keys and credentials, all of it. Each replaces the one before.

    `tls` by the listener's name; `signing_keys` is the JWKS for OAUTHBEARER; `credentials` are the bootstrap file's.
    """

    tls: dict[str, TlsFiles] = {}
    signing_keys: bytes = b""
    credentials: list[Credential] = []

    def __repr__(self) -> str:
        return f"Security({', '.join(self.tls)}, …)"


class Configure(msgspec.Struct, frozen=True, tag=True):
    """To a new worker: who it is. Descriptors are inherited and named by number. The listeners in `settings` are
    complete, with the ports that were bound."""

    settings: Settings
    worker_index: int
    node_id: int
    log_id: str
    cluster_state: bytes
    nodes: list[NodeAddress]
    sockets: list[ListenerSockets]
    metrics_fd: int
    security: Security = Security()
    peers: PeerSockets | None = None
    # None where a worker has no siblings.
    census_fd: int | None = None
    quota_use_fd: int | None = None


class ClusterVersion(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the next version of the cluster log, as written there."""

    version: int
    payload: bytes


class Nodes(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the nodes that are alive now."""

    nodes: list[NodeAddress]


class Ping(msgspec.Struct, frozen=True, tag=True):
    """To a worker: answer with a `Pong` of the same number. Also the worker's lease, which counts from `heard_at`: when
    the supervisor last heard of it, in seconds of the machine's monotonic clock. A silent worker is replaced so long
    after that moment, not after the last ping; and a ping that lay in a stopped worker's socket proves nothing.
    """

    number: int
    heard_at: float


class AdoptListener(msgspec.Struct, frozen=True, tag=True):
    """To a worker: accept on the bootstrap sockets of the sibling of this index, which is down."""

    worker_index: int


class DropListener(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the sibling is back; stop accepting for it."""

    worker_index: int


class Drain(msgspec.Struct, frozen=True, tag=True):
    """To a worker: finish what was received, make it durable, seal the log, say `Drained` and exit 0."""


class CommandReply(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the outcome of its `CommandRequest`, one encoded result per command.

    `version` is the cluster version in which it took effect (0: nothing was written). It is sent after that version's
    `ClusterVersion`, so that a client that was told of a topic finds it on the worker that told it.
    """

    request_id: int
    version: int
    results: bytes


class AuditWritten(msgspec.Struct, frozen=True, tag=True):
    """To a worker: what it has sent to be put on record, up to its batch of this number, is."""

    number: int


class AuditCopy(msgspec.Struct, frozen=True, tag=True):
    """To a worker: audit records, each a line, for the internal topic; and how many got lost before these."""

    lines: bytes
    lost: int = 0


class PeerReleased(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the log of another has released these slots, slot → epoch of the assignment, in its object
    `sequence`. A hint of where to look: it saves a new owner the time until it looks by itself."""

    log_id: str
    slots: dict[int, int]
    sequence: int


class Pong(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: the loop runs. `store_ok` is false while the object store gives no answers."""

    number: int
    store_ok: bool


class Serving(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: every assigned slot is loaded and the worker accepts connections."""

    version: int


class CommandRequest(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: commands for the cluster log (topics, settings), encoded by `coordination.commands`."""

    request_id: int
    commands: bytes


class WorkerFenced(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: this incarnation met a seal in its log and stops."""

    reason: str


class StoreBroken(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: the store failed in a way that no process of this broker can trust it after (an fsync that
    failed: the kernel has forgotten what it could not write). The broker must stop."""

    reason: str


class Released(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: this worker's log has released these slots, slot → epoch of the assignment, in its object
    `sequence`, which counts."""

    log_id: str
    slots: dict[int, int]
    sequence: int


class KeysWanted(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: a client's token names a signing key that is not known; there may be newer keys."""


class AclsInForce(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: this worker goes by the snapshot of ACLs of this generation from now on."""

    generation: int


class AuditBatch(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: events to be put on record, encoded by `security.audit_event`; answered by `AuditWritten`.
    `lost`: how many more there were, since the batch before, for which there was no room."""

    number: int
    events: bytes
    lost: int = 0


class Drained(msgspec.Struct, frozen=True, tag=True):
    """To the supervisor: everything received is durable and answered; the worker exits."""


ToWorker = (
    Configure
    | ClusterVersion
    | Nodes
    | Ping
    | Security
    | AdoptListener
    | DropListener
    | Drain
    | CommandReply
    | AuditWritten
    | AuditCopy
    | PeerReleased
)
ToSupervisor = (
    Pong
    | Serving
    | CommandRequest
    | WorkerFenced
    | StoreBroken
    | Released
    | KeysWanted
    | AclsInForce
    | AuditBatch
    | Drained
)

_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: ToWorker | ToSupervisor) -> bytes:
    """One frame, length included."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"control frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into messages; `decoder` says of which direction."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[ToWorker] | msgspec.msgpack.Decoder[ToSupervisor]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[ToWorker | ToSupervisor]:
        """The messages that `data` completes, in order. Raises ValueError on an oversized frame and
        `msgspec.DecodeError` on bytes that are no message: the peer is not what it should be."""
        self._buffer += data
        messages: list[ToWorker | ToSupervisor] = []
        position = 0
        while len(self._buffer) - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, position)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"control frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
            end = position + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(self._decoder.decode(bytes(self._buffer[position + _LENGTH.size : end])))
            position = end
        del self._buffer[:position]
        return messages


def worker_side_reader() -> FrameReader:
    """Reads what a supervisor sends."""
    return FrameReader(msgspec.msgpack.Decoder(ToWorker))


def supervisor_side_reader() -> FrameReader:
    """Reads what a worker sends."""
    return FrameReader(msgspec.msgpack.Decoder(ToSupervisor))

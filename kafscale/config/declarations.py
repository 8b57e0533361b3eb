"""Every setting, declared once. Knows no environment, no file and no command line; `sources` reads those by this table.

To add a setting, add ONE line to `Settings`: its name (units last), its type, a `Setting` with the help text and the
bounds, and its default. From that line follow its flag (`--data-dir`), its variable (`KAFSCALE_DATA_DIR`), its key in
the TOML file (`data_dir`), its checks, `kafscale config`, `--help`, and docs/settings.md (write it anew with
`python -m kafscale config --markdown > docs/settings.md`). Types: int, bool, str, Endpoint, a Literal of texts,
or the listeners, each also `| None`, which is written `auto`: then `Setting.auto` says what is done instead. A rule
over two settings goes into `sources._check_together`.
"""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from kafscale.config.endpoint import Endpoint
from kafscale.config.listeners import ListenerSettings, listeners_of

MIB = 1024 * 1024
DAY_MS = 24 * 60 * 60 * 1000
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1

# node_id = broker_id * 100 + worker index, and a node id is an int32 on the wire.
WORKERS_MAX = 99
BROKER_ID_MAX = INT32_MAX // 100 - 1

_BUCKET = r"[a-z0-9A-Z][a-z0-9A-Z._-]{1,253}"
_ADDRESS = r"(https?://)?([A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}/?"
_ADDRESSES = rf"{_ADDRESS}(,{_ADDRESS})*"
_HOST = r"[A-Za-z0-9_.:-]{1,253}"
_AUDITED = r"(produce|consume|describe|group)(,(produce|consume|describe|group))*"
# Host names as botocore takes them: it refuses an underscore.
_URL = r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?"


class Setting(NamedTuple):
    """What a declaration says beside name, type and default. `low` and `high` bound integers, both included."""

    help: str
    low: int | None = None
    high: int | None = None
    auto: str = ""  # What happens when nothing, or "auto", is given.
    flag: str = ""  # Where it is not the name with dashes.
    also: tuple[str, ...] = ()  # Other variables read, after the setting's own.
    metavar: str = ""
    pattern: str = ""  # What a text must match as a whole.
    secret: bool = False  # Never shown, and no flag: a command line is visible to every user of a machine.
    blank_is_auto: bool = False  # An empty text is as good as none, as in KafScale.


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A broker's settings, complete and checked; sent to workers as msgpack. Limits are for each worker."""

    listen: Annotated[Endpoint, Setting("Where Kafka clients connect.")] = Endpoint("127.0.0.1", 9092)
    advertise: Annotated[
        Endpoint | None,
        Setting(
            "The address clients are told; required when listening on every address.",
            auto="the listen address; without a port, the listen port",
            metavar="HOST[:PORT]",
        ),
    ] = None
    worker_ports: Annotated[
        int | None,
        Setting("First of the workers' private ports.", 1, 65535, auto="listen port + 10000, or free ones"),
    ] = None
    listeners: Annotated[
        tuple[ListenerSettings, ...] | None,
        Setting(
            "Several listeners, each with its own protocol; see docs/security.md.",
            auto="one, of listen, advertise, worker_ports, and of what is set for TLS and SASL",
            metavar="NAME://HOST:PORT?…,…",
        ),
    ] = None
    shared_address: Annotated[
        bool,
        Setting(
            "The advertised address leads to any worker of any broker (a load balancer, one published port): clients "
            "are told of it alone, and workers pass on what concerns others."
        ),
    ] = False
    peer_host: Annotated[
        str | None,
        Setting(
            "The host at which other brokers reach this one, which must lead to where the first listener listens.",
            auto="the advertised host; with a shared address the listen host",
            pattern=_HOST,
            metavar="HOST",
        ),
    ] = None
    peer_ports: Annotated[
        int | None,
        Setting(
            "With a shared address, first of the ports at which other brokers reach the workers.",
            1,
            65535,
            auto="listen port + 20000, or free ones",
        ),
    ] = None
    metrics_addr: Annotated[
        Endpoint,
        Setting(
            "Where /metrics, /healthz and /readyz are served. In a cluster, datagrams of other brokers come to the "
            "same port number (UDP) of the first listener's host.",
            flag="--metrics",
        ),
    ] = Endpoint("127.0.0.1", 9404)
    broker_id: Annotated[
        int, Setting("This broker's number; its workers are nodes id * 100 + 0, 1, ….", 0, BROKER_ID_MAX)
    ] = 0
    rack: Annotated[
        str | None,
        Setting(
            "The zone that this broker runs in (Kafka: broker.rack). Consumers that state theirs (client.rack) read "
            "older data in it.",
            auto="none",
            pattern=r"[!-~]([ -~]{0,126}[!-~])?",
            metavar="NAME",
        ),
    ] = None
    workers: Annotated[
        int, Setting("Worker processes.", 1, WORKERS_MAX, auto="as many as CPUs by affinity and cgroup quota")
    ] = 1
    connections_max: Annotated[int, Setting("Client connections that the broker keeps open.", 1, 1_000_000)] = 20_000
    connections_idle_ms: Annotated[int, Setting("A connection silent for so long is closed.", 1000, INT32_MAX)] = (
        600_000
    )
    connections_max_per_address: Annotated[
        int | None,
        Setting(
            "Of these, from one client address (behind trusted proxies, the client's own).",
            1,
            1_000_000,
            auto="no limit of its own",
        ),
    ] = None
    connections_per_second_max: Annotated[
        int | None, Setting("Connections that the broker takes a second; more wait.", 1, 1_000_000, auto="no limit")
    ] = None
    frame_header_timeout_ms: Annotated[
        int, Setting("A request that has begun must be complete within this time.", 100, INT32_MAX)
    ] = 30_000
    socket_request_max_bytes: Annotated[int, Setting("Largest request.", 64 * 1024, INT32_MAX)] = 100 * MIB

    data_dir: Annotated[str, Setting("Where the data is kept.", metavar="DIR")] = "./data"
    cluster_namespace: Annotated[
        str,
        Setting(
            "Prefix of every object's key.",
            pattern=r"[a-z0-9][a-z0-9._-]{0,62}",
            metavar="NAME",
            also=("KAFSCALE_S3_NAMESPACE",),
        ),
    ] = "kafscale"
    slots: Annotated[int, Setting("Units of ownership; counts only when a cluster is first started.", 1, 16_384)] = 256
    flush_bytes: Annotated[
        int | None,
        Setting(
            "Write an object once so much is buffered.",
            4096,
            64 * MIB,
            auto="4 MiB in a local directory, 8 MiB on S3",
            also=("KAFSCALE_SEGMENT_BYTES",),
        ),
    ] = None
    flush_interval_ms: Annotated[
        int | None,
        Setting(
            "Write an object once its oldest record has waited so long.",
            0,
            60_000,
            auto="in a local directory at once when no write is in flight, on S3 250",
        ),
    ] = None
    # Takeover seals eight numbers at once, twice the most in flight: more than four would break the fence.
    max_in_flight_flushes: Annotated[int, Setting("Objects a worker writes at the same time.", 1, 4)] = 4
    produce_buffer_bytes: Annotated[
        int,
        Setting("Received and not yet durable data a worker holds; producers wait beyond.", 8 * MIB, 64 * 1024 * MIB),
    ] = 128 * MIB
    cache_bytes: Annotated[int, Setting("A worker's memory for recent data.", 8 * MIB, 1024 * 1024 * MIB)] = 256 * MIB
    checkpoint_interval_bytes: Annotated[int, Setting("Write a checkpoint after so many bytes.", MIB, INT64_MAX)] = (
        256 * MIB
    )
    checkpoint_interval_objects: Annotated[int, Setting("Write a checkpoint after so many objects.", 8, 100_000)] = 1000
    checkpoint_interval_ms: Annotated[
        int, Setting("Write a checkpoint after so long, if anything changed.", 100, DAY_MS)
    ] = 60_000

    sweep_interval_ms: Annotated[
        int, Setting("How often objects that ended workers left and nothing names are deleted.", 100, INT32_MAX)
    ] = 3_600_000
    sweep_grace_ms: Annotated[
        int, Setting("Objects younger than this are spared by that, for slow readers.", 0, INT32_MAX)
    ] = 600_000

    s3_bucket: Annotated[
        str | None,
        Setting("Keep the data in this S3 bucket.", auto="in the data directory", pattern=_BUCKET, metavar="NAME"),
    ] = None
    s3_region: Annotated[str | None, Setting("The bucket's region.", auto="as the AWS configuration says")] = None
    s3_endpoint: Annotated[
        str | None,
        Setting("Where the S3 API is, if not at AWS.", auto="AWS", pattern=_URL, metavar="URL"),
    ] = None
    s3_path_style: Annotated[bool, Setting("Name the bucket in the path, not in the host name.")] = False
    s3_access_key: Annotated[
        str | None,
        Setting("Access key.", auto="AWS's default chain: environment, profile, pod or instance", secret=True),
    ] = None
    s3_secret_key: Annotated[str | None, Setting("Its secret.", auto="likewise", secret=True)] = None
    s3_session_token: Annotated[str | None, Setting("A temporary key's token.", auto="none", secret=True)] = None
    s3_kms_arn: Annotated[
        str | None, Setting("Encrypt objects with this KMS key (SSE-KMS).", auto="as the bucket does by default")
    ] = None
    s3_concurrency: Annotated[int, Setting("Reads a worker has under way at the bucket at most.", 1, 1000)] = 64
    s3_timeout_ms: Annotated[int, Setting("A request that has no answer by then is given up.", 100, 300_000)] = 10_000
    s3_read_bucket: Annotated[
        str | None,
        Setting(
            "A replica of the bucket that older data is read from; what it lacks or has damaged comes from the bucket.",
            auto="none",
            pattern=_BUCKET,
            metavar="NAME",
        ),
    ] = None
    s3_read_region: Annotated[str | None, Setting("The replica's region.", auto="the bucket's")] = None
    s3_read_endpoint: Annotated[
        str | None, Setting("The replica's endpoint.", auto="the bucket's", pattern=_URL, metavar="URL")
    ] = None
    price_put_nanodollars: Annotated[
        int, Setting("Price of a PUT or LIST request, for the metric of cost.", 0, INT32_MAX)
    ] = 5000
    price_get_nanodollars: Annotated[int, Setting("Price of a GET request, likewise.", 0, INT32_MAX)] = 400
    price_transfer_nanodollars_per_mib: Annotated[
        int, Setting("Price of a mebibyte sent or read, likewise; none within a region.", 0, INT32_MAX)
    ] = 0
    s3_unsafe_unconditional_puts: Annotated[
        bool,
        Setting("Start although the store ignores If-None-Match. Only ever with ONE broker: nothing fences a second."),
    ] = False

    cluster_secret: Annotated[
        str | None,
        Setting(
            "By which the brokers of a cluster know each other; at least 16 characters. Several with commas while it "
            "is being changed: the first is used, all are accepted.",
            auto="as cluster_secret_file says, or none",
            secret=True,
        ),
    ] = None
    cluster_secret_file: Annotated[
        str | None, Setting("A file with it.", auto="none: brokers don't authenticate each other", metavar="FILE")
    ] = None
    etcd_endpoints: Annotated[
        str | None,
        Setting(
            "The etcd through which brokers that share a bucket meet; several with commas, https:// for TLS.",
            auto="none: this broker is the whole cluster",
            pattern=_ADDRESSES,
            metavar="HOST:PORT,…",
        ),
    ] = None
    etcd_username: Annotated[str | None, Setting("User at etcd.", auto="none")] = None
    etcd_password: Annotated[str | None, Setting("Its password.", auto="none", secret=True)] = None
    etcd_ca_file: Annotated[
        str | None, Setting("Certificates that etcd's must be signed by; turns TLS on.", auto="none", metavar="FILE")
    ] = None
    etcd_cert_file: Annotated[
        str | None, Setting("This broker's certificate for etcd; turns TLS on.", auto="none", metavar="FILE")
    ] = None
    etcd_key_file: Annotated[str | None, Setting("Its key.", auto="none", metavar="FILE")] = None
    etcd_lease_ttl_ms: Annotated[
        int, Setting("A broker silent for so long is lost, and others take its slots over.", 1000, 600_000)
    ] = 10_000

    auto_create_topics: Annotated[bool, Setting("Create a topic when a client first asks for it.")] = True
    auto_create_partitions: Annotated[int, Setting("Partitions of a topic created so.", 1, 10_000)] = 1
    message_max_bytes: Annotated[int, Setting("Largest record batch (Kafka: message.max.bytes).", 0, INT32_MAX)] = (
        1_048_588
    )
    fetch_max_bytes: Annotated[int, Setting("Most data in one fetch response.", 1024, INT32_MAX)] = 55 * MIB
    log_retention_ms: Annotated[int, Setting("Age at which records are deleted; -1 for never.", -1, INT64_MAX)] = (
        7 * DAY_MS
    )
    log_retention_check_interval_ms: Annotated[int, Setting("How often retention is applied.", 100, INT32_MAX)] = (
        300_000
    )
    log_retention_bytes: Annotated[
        int, Setting("Size above which a partition loses its oldest records; -1 for none.", -1, INT64_MAX)
    ] = -1

    offsets_topic_partitions: Annotated[
        int, Setting("Partitions of `__consumer_offsets`; counts only when it is created.", 1, 10_000)
    ] = 50
    offsets_retention_minutes: Annotated[int, Setting("How long an empty group's offsets are kept.", 1, INT32_MAX)] = (
        7 * 24 * 60
    )
    group_initial_rebalance_delay_ms: Annotated[
        int, Setting("How long an empty group waits for more members.", 0, 300_000)
    ] = 3000
    group_min_session_timeout_ms: Annotated[
        int, Setting("Least session timeout a member may ask for.", 1, INT32_MAX)
    ] = 6000
    group_max_session_timeout_ms: Annotated[
        int, Setting("Largest session timeout a member may ask for.", 1, INT32_MAX)
    ] = 1_800_000
    group_max_size: Annotated[int, Setting("Most members of a group.", 1, 100_000)] = 10_000

    allow_insecure: Annotated[
        bool,
        Setting("Listen without encryption or authentication on addresses that other machines reach."),
    ] = False
    handshake_timeout_ms: Annotated[
        int, Setting("Time for a PROXY header, and again for a TLS handshake.", 3000, 600_000)
    ] = 10_000
    authentication_timeout_ms: Annotated[
        int, Setting("Time from connecting to being authenticated, where a listener has SASL.", 1000, 600_000)
    ] = 30_000
    principal_source: Annotated[
        Literal["client_id", "remote_addr", "proxy_addr", "sasl", "mtls"] | None,
        Setting(
            "What a client is known by. A client id is what the client says of itself.",
            auto="sasl or mtls where a listener has it, else client_id",
        ),
    ] = None
    proxy_protocol: Annotated[
        bool, Setting("Expect a PROXY header (version 1 or 2) on every connection; needs trusted_proxies.")
    ] = False
    trusted_proxies: Annotated[
        str | None,
        Setting(
            "Addresses and networks of the proxies whose headers count; all others are refused then.",
            auto="none",
            metavar="ADDRESS,…",
        ),
    ] = None
    broker_tls_cert_file: Annotated[
        str | None,
        Setting(
            "Certificate chain (PEM) of listeners with TLS; turns TLS on for `listen`.", auto="none", metavar="FILE"
        ),
    ] = None
    broker_tls_key_file: Annotated[str | None, Setting("Its key (PEM).", auto="none", metavar="FILE")] = None
    broker_tls_key_password: Annotated[str | None, Setting("The key's password.", auto="none", secret=True)] = None
    broker_tls_key_password_file: Annotated[
        str | None, Setting("File with the key's password.", auto="none", metavar="FILE")
    ] = None
    broker_tls_client_ca_file: Annotated[
        str | None, Setting("CAs (PEM) that certificates of clients must be signed by.", auto="none", metavar="FILE")
    ] = None
    broker_tls_crl_file: Annotated[
        str | None,
        Setting("Revoked client certificates: a current list (PEM) of each of these CAs.", auto="none", metavar="FILE"),
    ] = None
    broker_tls_client_auth: Annotated[
        Literal["none", "requested", "required"] | None,
        Setting("Whether clients must show a certificate.", auto="required where a CA for them is set"),
    ] = None
    broker_tls_min_version: Annotated[Literal["1.2", "1.3"], Setting("Oldest version of TLS spoken.")] = "1.2"
    broker_tls_strict: Annotated[
        bool, Setting("Refuse client certificates that RFC 5280 does not allow. Off for CAs that don't follow it.")
    ] = True
    principal_mapping_rules: Annotated[
        str, Setting("From a client certificate's subject to a name (KIP-371).", metavar="RULE:…/…/,…,DEFAULT")
    ] = "DEFAULT"
    security_check_interval_ms: Annotated[
        int, Setting("How often files of certificates, keys and credentials are looked at for changes.", 100, 3_600_000)
    ] = 2000
    sasl_mechanisms: Annotated[
        str | None,
        Setting(
            "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER: those offered; turns SASL on for `listen`.",
            auto="none",
            metavar="MECHANISM,…",
        ),
    ] = None
    sasl_credentials_file: Annotated[
        str | None,
        Setting("A cluster's first users, as `kafscale credential` writes them.", auto="none", metavar="FILE"),
    ] = None
    connections_max_reauth_ms: Annotated[
        int, Setting("A client must authenticate again within this time (KIP-368); 0 for never.", 0, INT32_MAX)
    ] = 0
    connection_failed_authentication_delay_ms: Annotated[
        int, Setting("How long a client waits for the news that it was refused.", 100, 10_000)
    ] = 100
    sasl_oauthbearer_jwks_url: Annotated[
        str | None,
        Setting(
            "Where the keys are that tokens are signed with (https).", auto="sasl_oauthbearer_jwks_file", metavar="URL"
        ),
    ] = None
    sasl_oauthbearer_jwks_file: Annotated[
        str | None, Setting("File with these keys (a JWKS).", auto="none", metavar="FILE")
    ] = None
    sasl_oauthbearer_jwks_ca_file: Annotated[
        str | None, Setting("CAs (PEM) for that URL.", auto="those of the system", metavar="FILE")
    ] = None
    sasl_oauthbearer_jwks_refresh_ms: Annotated[int, Setting("How often the URL is read again.", 1000, DAY_MS)] = (
        3_600_000
    )
    sasl_oauthbearer_issuer: Annotated[
        str | None, Setting("The issuer (iss) of tokens that are taken.", auto="any")
    ] = None
    sasl_oauthbearer_audience: Annotated[
        str | None, Setting("The audience (aud) that tokens must be meant for.", auto="any")
    ] = None
    sasl_oauthbearer_clock_skew_ms: Annotated[
        int, Setting("By how much clocks may differ when a token's times are compared.", 0, 600_000)
    ] = 30_000
    sasl_oauthbearer_principal_claim: Annotated[str, Setting("The claim that names the principal.", metavar="NAME")] = (
        "sub"
    )
    sasl_oauthbearer_required_scope: Annotated[str | None, Setting("A scope that tokens must have.", auto="none")] = (
        None
    )

    acl_enabled: Annotated[bool, Setting("Authorize requests by ACLs. Without it everybody may do everything.")] = False
    acl_json: Annotated[
        str | None,
        Setting("KafScale's ACL document itself.", auto="acl_file", metavar="JSON", blank_is_auto=True),
    ] = None
    acl_file: Annotated[
        str | None,
        Setting("File with KafScale's ACL document.", auto="no document", metavar="FILE", blank_is_auto=True),
    ] = None
    acl_fail_open: Annotated[
        bool,
        Setting(
            "Do without KafScale's ACL document where it is missing or can't be read; else nothing is allowed then."
        ),
    ] = False
    acl_file_check_interval_ms: Annotated[
        int, Setting("How often acl_file is looked at for changes.", 50, 3_600_000)
    ] = 100
    kafka_acl_enabled: Annotated[
        bool | None,
        Setting("Go by Kafka's ACLs, which clients create, as well.", auto="where super_users is set"),
    ] = None
    super_users: Annotated[
        str | None,
        Setting(
            "Principals that may do everything, with semicolons between them.",
            auto="none",
            metavar="User:NAME;…",
        ),
    ] = None
    allow_everyone_if_no_acl_found: Annotated[
        bool, Setting("By Kafka's ACLs, everybody may do everything to what no ACL names.")
    ] = False

    audit_log: Annotated[
        Literal["off", "file", "stdout"],
        Setting("Where logins, denials, changes and reloads are put on record; see docs/audit.md."),
    ] = "off"
    audit_file: Annotated[str | None, Setting("That file.", auto="audit.log in the data directory", metavar="FILE")] = (
        None
    )
    audit_file_max_bytes: Annotated[int, Setting("Size at which a new file is begun; 0 for never.", 0, INT64_MAX)] = (
        100 * MIB
    )
    audit_files_kept: Annotated[int, Setting("Earlier files that are kept.", 1, 100_000)] = 100
    audit_topic: Annotated[
        bool, Setting("Copy every audit record into the internal topic __audit_log, for consumers.")
    ] = False
    audit_when_full: Annotated[
        Literal["deny", "block", "drop"],
        Setting("What becomes of requests whose record has no room: refused, held up, or served unrecorded."),
    ] = "deny"
    audit_queue_bytes: Annotated[
        int, Setting("Events a worker holds that are not yet written; beyond, it is full.", 16 * 1024, 1024 * MIB)
    ] = MIB
    audit_requests: Annotated[
        str | None,
        Setting(
            "Allowed requests that are put on record too: produce, consume, describe, group.",
            auto="none",
            pattern=_AUDITED,
            metavar="KIND,…",
        ),
    ] = None
    audit_anchor_interval_ms: Annotated[
        int, Setting("How often the newest record's hash is put into the bucket.", 100, DAY_MS)
    ] = 600_000

    allow_admin_apis: Annotated[
        bool,
        Setting(
            "Serve requests that change topics, their settings and records, groups and their offsets, ACLs, quotas and "
            "passwords."
        ),
    ] = True
    worker_hang_timeout_ms: Annotated[
        int, Setting("A worker that has not answered for so long is replaced.", 100, 600_000)
    ] = 5000
    slot_release_timeout_ms: Annotated[
        int, Setting("A worker that keeps slots given to another for so long has its log ended.", 100, 600_000)
    ] = 10_000
    drain_timeout_ms: Annotated[int, Setting("Time to finish work after SIGTERM.", 0, 3_600_000)] = 20_000
    log_level: Annotated[Literal["debug", "info", "warn", "error"], Setting("Least important lines logged.")] = "info"
    log_format: Annotated[
        Literal["auto", "json", "text"], Setting("Form of log lines; auto is text on a terminal, else json.")
    ] = "auto"

    @property
    def are_kafka_acls_on(self) -> bool:
        """Whether Kafka's ACLs, those of the catalogue, have a say."""
        wanted = self.super_users is not None if self.kafka_acl_enabled is None else self.kafka_acl_enabled
        return self.acl_enabled and wanted

    @property
    def advertised(self) -> Endpoint:
        """The bootstrap address to tell clients; its port is 0 while the listen port is chosen at binding."""
        if self.advertise is None:
            return self.listen
        return self.advertise if self.advertise.port else Endpoint(self.advertise.host, self.listen.port)

    @property
    def reached_at(self) -> str:
        """The host at which other brokers reach this one. Behind a shared address the advertised one leads to any."""
        if self.peer_host is not None:
            return self.peer_host
        listeners = listeners_of(self)
        is_shared = any(listener.shared_address for listener in listeners)
        return listeners[0].listen.host if is_shared else listeners[0].advertised.host


# The setting that opens each section of --help, `kafscale config` and docs/settings.md.
SECTIONS = {
    "listen": "Addresses and connections",
    "data_dir": "Storage",
    "s3_bucket": "S3",
    "cluster_secret": "Cluster",  # nosec B105
    "auto_create_topics": "Topics and records",
    "offsets_topic_partitions": "Consumer groups",
    "allow_insecure": "Security",
    "acl_enabled": "Authorization",
    "audit_log": "Audit",
    "allow_admin_apis": "Operation",
}


class Declaration(NamedTuple):
    """One setting as the reading and showing code sees it. `default` is None where `setting.auto` applies."""

    name: str
    kind: Literal["int", "bool", "str", "endpoint", "choice", "listeners"]
    choices: tuple[str, ...]
    default: Any
    setting: Setting

    @property
    def flag(self) -> str | None:
        """The long option, or None for a secret."""
        return None if self.setting.secret else self.setting.flag or "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "KAFSCALE_" + self.name.upper()

    @property
    def metavar(self) -> str:
        by_kind = {"int": "N", "bool": "true|false", "endpoint": "HOST:PORT", "choice": "|".join(self.choices)}
        return self.setting.metavar or by_kind.get(self.kind, "TEXT")


def declare(struct: type[msgspec.Struct]) -> tuple[Declaration, ...]:
    """Read the declarations off a Struct whose fields are Annotated with a `Setting`."""
    hints = typing.get_type_hints(struct, include_extras=True)
    return tuple(_declaration(field, hints[field.name]) for field in msgspec.structs.fields(struct))


def _declaration(field: msgspec.structs.FieldInfo, hint: Any) -> Declaration:
    value_type, setting = typing.get_args(hint)
    if typing.get_origin(value_type) in (typing.Union, types.UnionType):
        (value_type,) = (part for part in typing.get_args(value_type) if part is not types.NoneType)
        assert setting.auto, f"{field.name} may be None and must say what auto does"
    if typing.get_origin(value_type) is tuple:
        return Declaration(field.name, "listeners", (), None, setting)
    choices = typing.get_args(value_type) if typing.get_origin(value_type) is Literal else ()
    kinds: dict[Any, Any] = {int: "int", bool: "bool", str: "str", Endpoint: "endpoint"}
    default = None if setting.auto else field.default
    return Declaration(field.name, "choice" if choices else kinds[value_type], choices, default, setting)


DECLARATIONS = declare(Settings)

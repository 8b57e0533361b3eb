"""The one file that builds and parses object keys.

    {namespace}/cluster/{version:020d}                          a version of the cluster log
    {namespace}/log/{log_id}/{sequence:020d}                    an object of a worker's log
    {namespace}/ended/{log_id}/{0:020d}                         what that log says from its last checkpoint to its end
    {namespace}/manifest/{log_id}/{number:020d}                 manifests written by that log's worker
    {namespace}/pack/{log_id}/{number:020d}                     compacted batches of many partitions
    {namespace}/topics/{topic}/{topic_id}/{partition}/segment-{base_offset:020d}-{log_id}-{number}.kfs  (and .index)
    {namespace}/pids/{block:020d}                               a claimed block of producer ids
    {namespace}/audit/{broker_id:010d}/{sequence:020d}          an anchor of a broker's audit log
    {namespace}/probe/{name}                                    for moments: whether the store keeps its promises

Log ids are 32 hex digits (128 random bits), topic ids likewise. Topic names hold only [a-zA-Z0-9._-] and are neither
"." nor "..", so no name can leave its folder.
"""

from __future__ import annotations

import re

MAX_KEY_BYTES = 1024
_FOLDERS_AND_NAME = re.compile(r"(?:(?!\.{1,2}(?:/|\Z))[!-.0-~]{1,255}/)*(?!\.{1,2}\Z)[!-.0-~]{1,255}")


def check_key(key: str) -> None:
    """Raise ValueError unless `key` is one that every store takes: at most 1,024 printable ASCII characters without
    spaces, in parts of 1 to 255 between slashes, none of them "." or ".." (a part can't leave its folder)."""
    if len(key) > MAX_KEY_BYTES or not _FOLDERS_AND_NAME.fullmatch(key):
        raise ValueError(f"{key[:80]!r} can't be the key of an object")


class Keys:
    """Builds the keys of one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.cluster_prefix = f"{namespace}/cluster/"
        self.log_prefix = f"{namespace}/log/"
        self.ended_prefix = f"{namespace}/ended/"
        self.manifest_prefix = f"{namespace}/manifest/"
        self.pack_prefix = f"{namespace}/pack/"
        self.topics_prefix = f"{namespace}/topics/"
        self.pids_prefix = f"{namespace}/pids/"
        self.audit_prefix = f"{namespace}/audit/"

    def cluster(self, version: int) -> str:
        return f"{self.cluster_prefix}{version:020d}"

    def log(self, log_id: str, sequence: int) -> str:
        return f"{self.log_prefix}{log_id}/{sequence:020d}"

    def log_objects(self, log_id: str) -> str:
        return f"{self.log_prefix}{log_id}/"

    def ended(self, log_id: str) -> str:
        return f"{self.ended_prefix}{log_id}/{0:020d}"

    def manifest(self, log_id: str, number: int) -> str:
        return f"{self.manifest_prefix}{log_id}/{number:020d}"

    def pack(self, log_id: str, number: int) -> str:
        return f"{self.pack_prefix}{log_id}/{number:020d}"

    def segment(self, topic: str, topic_id: bytes, partition: int, base_offset: int, log_id: str, number: int) -> str:
        return (
            f"{self.topics_prefix}{topic}/{topic_id.hex()}/{partition}/segment-{base_offset:020d}-{log_id}-{number}.kfs"
        )

    def probe(self, name: str) -> str:
        return f"{self.namespace}/probe/{name}"

    def audit_anchors(self, broker_id: int) -> str:
        return f"{self.audit_prefix}{broker_id:010d}/"

    def audit_anchor(self, broker_id: int, sequence: int) -> str:
        return f"{self.audit_anchors(broker_id)}{sequence:020d}"

    def producer_ids(self, block: int) -> str:
        return f"{self.pids_prefix}{block:020d}"


def index_of(segment_key: str) -> str:
    """The key of the index that lies beside a segment."""
    return segment_key.removesuffix(".kfs") + ".index"


def sequence_of(key: str) -> int:
    """The number that ends a cluster, log, manifest, pack, pids or audit key."""
    return int(key[-20:])


def writer_of(key: str) -> str | None:
    """The id of the log whose worker wrote a log, manifest, pack or segment object, or that the object speaks of; None
    for other keys."""
    folder, _, name = key.rpartition("/")
    if name.startswith("segment-"):
        return name.removesuffix(".index").removesuffix(".kfs").rsplit("-", 2)[1]
    parts = folder.rsplit("/", 2)
    if len(parts) == 3 and parts[1] in ("log", "ended", "manifest", "pack"):
        return parts[2]
    return None

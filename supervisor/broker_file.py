"""`{data}/broker.json`: what runs here, for people and scripts. Written when ready, rewritten when a worker is
replaced, removed at the end. Blocks: called from a thread. A stale one, left by a killed supervisor, is recognised by
its pid."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

NAME = "broker.json"


class WorkerEntry(msgspec.Struct, frozen=True):
    index: int
    pid: int
    node_id: int
    port: int


class ListenerEntry(msgspec.Struct, frozen=True):
    """`ports` are the workers' private ones, by index."""

    name: str
    protocol: str
    listen: str
    advertised: str
    ports: list[int]


class BrokerFile(msgspec.Struct, frozen=True):
    """The file's content. Addresses are HOST:PORT, those of the first listener where there are several. `brokers` are
    those that were registered when it was written."""

    version: str
    supervisor_pid: int
    cluster_id: str
    broker_id: int
    brokers: list[int]
    listen: str
    advertised: str
    metrics: str
    metrics_port: int
    workers: list[WorkerEntry]
    listeners: list[ListenerEntry]


def write(root: Path, content: BrokerFile) -> None:
    """Replace the file in one step. Raises OSError."""
    temporary = root / f".{NAME}.{os.getpid()}"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    os.replace(temporary, root / NAME)


def remove(root: Path) -> None:
    (root / NAME).unlink(missing_ok=True)

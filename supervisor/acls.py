"""Who may what at this broker: the rules of all sources, compiled and handed to the workers whenever they have changed.

Owns KafScale's document as it was last found good, the catalogue's ACLs as last heard, and the newest snapshot in
sealed memory. Files are read and snapshots made in a thread; a change is in force on all workers within a second,
100,000 rules included. A document that has become unreadable changes nothing but an alarm: the last good one stays. One
that was so at the start denies everything, or, where `acl_fail_open` was asked for, has no say.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.coordination.cluster import ClusterState
from kafscale.logs import RateLimited
from kafscale.protocol.acls import AclBinding
from kafscale.security.acl_rules import RuleSet, parse_super_users
from kafscale.security.acl_sources import DocumentSource, LoadedDocument, read_document, understand_document
from kafscale.security.sealed_memory import open_sealed, seal
from kafscale.security.snapshot_compiler import compile_snapshot
from kafscale.storage.threads import Threads
from supervisor.child import Child
from supervisor.post import Post

log = logging.getLogger(__name__)

# A change of the ACLs is answered without having come into force everywhere after so long.
IN_FORCE_SECONDS_MAX: Final = 5.0
FAILURE_INTERVAL_SECONDS: Final = 60.0
DOCUMENT: Final = "ACL document"
# A file that was changed so shortly before it was read may be changed again without its time showing it.
SETTLED_NS: Final = 1_000_000_000


class Stamp(NamedTuple):
    """What tells a file from what it was before."""

    device: int
    inode: int
    size: int
    changed_ns: int


@dataclass(frozen=True)
class AclFigures:
    """How things stand, for metrics and probes."""

    is_on: bool = False
    generation: int = 0
    rules: int = 0
    bytes: int = 0
    compile_seconds: float = 0.0
    # Why nothing is allowed, or why the document has no say; and why the newest one is not taken over.
    denies_all: str = ""
    failed_open: str = ""
    problem: str = ""


class _Made(NamedTuple):
    """A snapshot, checked, in memory that nobody can change."""

    fd: int
    generation: int
    rules: int
    bytes: int
    seconds: float


class Acls:
    """`prepare` before the first worker is configured, then `run` until the broker drains, then `close`."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        on_reload: Callable[[str, str], None] = lambda what, cause: None,
    ) -> None:
        """`on_reload`, for an audit, gets what was read anew, and why it was refused if it was."""
        self._settings = settings
        self._clock = clock
        self._on_reload = on_reload
        self._threads = Threads("acls", 1)
        self._source = DocumentSource(
            is_enabled=settings.acl_enabled,
            json=settings.acl_json,
            file=settings.acl_file,
            fails_open=settings.acl_fail_open,
            is_optional=settings.are_kafka_acls_on,
        )
        self._super_users = parse_super_users(settings.super_users or "")
        self.posts: Sequence[Post] = ()
        self._document = LoadedDocument(None)
        self._problem = ""
        self._stamp: Stamp | None = None
        self._is_settled = True
        # Of the text that was last read.
        self._digest: bytes | None = None
        self._bindings: Sequence[AclBinding] = ()
        self._version = 0
        self._made: _Made | None = None
        # The version of the cluster log that the newest snapshot has in it.
        self._made_of = 0
        self._is_reload_asked_for = False
        self._has_failed = False
        self._failures = RateLimited(clock, FAILURE_INTERVAL_SECONDS)
        self._woken = asyncio.Event()
        # By process: the snapshot that it goes by.
        self._in_force: dict[int, int] = {}
        self._waiters: list[asyncio.Event] = []

    @property
    def is_on(self) -> bool:
        return self._settings.acl_enabled

    @property
    def figures(self) -> AclFigures:
        document, made = self._document, self._made
        return AclFigures(
            is_on=self.is_on,
            generation=0 if made is None else made.generation,
            rules=0 if made is None else made.rules,
            bytes=0 if made is None else made.bytes,
            compile_seconds=0.0 if made is None else made.seconds,
            denies_all="" if document.failed_open else document.problem,
            failed_open=document.problem if document.failed_open else "",
            problem=self._problem or ("they can't be compiled" if self._has_failed else ""),
        )

    # The rules

    async def prepare(self, state: ClusterState) -> None:
        """Make the first snapshot. Nothing that is wrong with a document stops the start: it denies."""
        if not self.is_on:
            return
        found = await self._threads.call(lambda: self._read_if_changed(asked=True))
        self._document = found or LoadedDocument(None)
        self._tell_of_document(self._document)
        self.heard_of(state)
        self._woken.clear()
        await self._make()

    def heard_of(self, state: ClusterState) -> None:
        """A version of the cluster log: what it says of ACLs is to be in force."""
        if not self.is_on or not self._settings.are_kafka_acls_on:
            return
        if state.acls is not self._bindings:
            self._bindings = state.acls
            self._woken.set()
        elif self._made_of == self._version:
            self._made_of = state.version
        self._version = state.version

    def reload(self) -> None:
        """Read the document again, whether it seems to have changed or not."""
        self._is_reload_asked_for = True
        self._woken.set()

    async def run(self) -> None:
        """Follow the rules' changes."""
        if not self.is_on:
            return
        while True:
            timer = self._clock.call_later(self._settings.acl_file_check_interval_ms / 1000, self._woken.set)
            try:
                await self._woken.wait()
            finally:
                timer.cancel()
            self._woken.clear()
            has_new_document = await self._look_at_document()
            if has_new_document or self._made_of != self._version or self._has_failed:
                await self._make_or_keep()

    async def close(self) -> None:
        await self._threads.close()
        if self._made is not None:
            os.close(self._made.fd)
            self._made = None

    async def _look_at_document(self) -> bool:
        """Read the document where it has, or may have, changed. Whether it is another and good."""
        asked, self._is_reload_asked_for = self._is_reload_asked_for, False
        found = await self._threads.call(lambda: self._read_if_changed(asked))
        if found is None:
            return False
        before = self._problem
        self._problem = found.problem
        if found.problem:
            if found.problem != before:
                self._on_reload(DOCUMENT, found.problem)
                log.critical(
                    "the ACL document can't be read; the one before stays in force",
                    extra={"source": found.source, "cause": found.problem},
                )
            return False
        self._on_reload(DOCUMENT, "")
        log.info("the ACL document was read again", extra={"source": found.source})
        self._document = found
        return True

    def _read_if_changed(self, asked: bool) -> LoadedDocument | None:
        """In a thread: the document, if it is another than the last one that was read, good or bad."""
        stamp = None if self._source.file is None else _stamp_of(self._source.file)
        if not asked and self._is_settled and stamp == self._stamp:
            return None
        # Before the file is read: what is written to it meanwhile is seen the next time.
        self._stamp = stamp
        now_ns = self._clock.wall_ms() * 10**6
        self._is_settled = stamp is None or now_ns - stamp.changed_ns > SETTLED_NS
        text = read_document(self._source)
        digest = b"" if text is None else hashlib.sha256(f"{text.problem}\0".encode() + text.data).digest()
        if digest == self._digest:
            return None
        self._digest = digest
        with _UninterruptedByCollections():
            return understand_document(self._source, text)

    def _tell_of_document(self, loaded: LoadedDocument) -> None:
        if loaded.problem and loaded.failed_open:
            message = "the ACL document can't be read and has no say, since acl_fail_open is set"
        elif loaded.problem:
            message = "the ACL document can't be read: nothing is allowed"
        else:
            return
        self._problem = loaded.problem
        self._on_reload(DOCUMENT, loaded.problem)
        log.critical(message, extra={"source": loaded.source, "cause": loaded.problem})

    async def _make_or_keep(self) -> None:
        try:
            await self._make()
            self._has_failed = False
        except Exception as error:  # noqa: BLE001 - whatever happens, the broker goes on with the rules that it has
            if not self._has_failed:
                self._on_reload("ACLs", repr(error))
            self._has_failed = True
            self._failures.log(
                log, logging.CRITICAL, "ACLs could not be compiled; those before stay in force", cause=repr(error)
            )

    async def _make(self) -> None:
        """Compile what is known now and hand it to the workers."""
        version, bindings = self._version, self._bindings
        rules = RuleSet(
            document=self._document.document,
            document_source=self._document.source,
            bindings=bindings if self._settings.are_kafka_acls_on else None,
            allow_everyone_if_no_acl_found=self._settings.allow_everyone_if_no_acl_found,
            super_users=self._super_users,
            broken="" if self._document.failed_open else self._document.problem,
        )
        generation = 1 if self._made is None else self._made.generation + 1
        made = await self._threads.call(lambda: _make(rules, generation, self._clock))
        before, self._made = self._made, made
        self._made_of = self._version if bindings is self._bindings else version
        for post in self.posts:
            if post.child is not None:
                self.hand_to(post.child)
        if before is not None:
            os.close(before.fd)
        log.info(
            "ACLs are compiled",
            extra={"generation": made.generation, "rules": made.rules, "seconds": round(made.seconds, 3)},
        )
        self._tell_waiters()

    # The workers

    def hand_to(self, child: Child) -> None:
        """Hand the newest snapshot to a worker."""
        if self._made is not None:
            child.send_descriptor(self._made.fd)

    def came_into_force(self, child: Child, generation: int) -> None:
        """A worker goes by this snapshot from now on."""
        self._in_force[child.pid] = generation
        self._tell_waiters()

    async def wait_until_in_force(self, version: int) -> None:
        """Return once all workers go by what the cluster log said of ACLs at `version`, or a while later."""
        if not self.is_on or not self._settings.are_kafka_acls_on:
            return
        woken = asyncio.Event()
        self._waiters.append(woken)
        timer = self._clock.call_later(IN_FORCE_SECONDS_MAX, woken.set)
        until = self._clock.monotonic() + IN_FORCE_SECONDS_MAX
        try:
            while not self._is_in_force(version) and self._clock.monotonic() < until:
                await woken.wait()
                woken.clear()
        finally:
            timer.cancel()
            self._waiters.remove(woken)

    def _is_in_force(self, version: int) -> bool:
        if self._made is None or self._made_of < version:
            return False
        pids = [post.child.pid for post in self.posts if post.serving and post.child is not None]
        return all(self._in_force.get(pid, 0) >= self._made.generation for pid in pids)

    def _tell_waiters(self) -> None:
        alive = {post.child.pid for post in self.posts if post.child is not None}
        self._in_force = {pid: generation for pid, generation in self._in_force.items() if pid in alive}
        for woken in self._waiters:
            woken.set()


def _make(rules: RuleSet, generation: int, clock: Clock) -> _Made:
    """In a thread. What was made is opened as a worker opens it before anybody gets it."""
    began = clock.monotonic()
    with _UninterruptedByCollections():
        fd = seal(compile_snapshot(rules, generation))
    try:
        snapshot = open_sealed(os.dup(fd))
    except BaseException:
        os.close(fd)
        raise
    return _Made(fd, generation, snapshot.rule_count, snapshot.size_bytes, clock.monotonic() - began)


class _UninterruptedByCollections:
    """Python's collector would walk a million new objects again and again, and find nothing."""

    def __enter__(self) -> None:
        self._was_enabled = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_enabled:
            gc.enable()


def _stamp_of(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

"""Goal: every object store keeps the promises of `kafscale/storage/store.py`. The same tests run over each of them."""

from __future__ import annotations

import asyncio
import string
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kafscale.clock import SystemClock
from kafscale.errors import ObjectExists, ObjectMissing
from kafscale.storage.bundles import BundlePolicy
from kafscale.storage.local import LocalStore
from kafscale.storage.memory import MemoryStore
from kafscale.storage.s3 import S3Store, S3Target
from kafscale.storage.store import ObjectStore, Purpose
from tests.s3_servers import make_bucket, moto

FLUSH, READ = Purpose.FLUSH, Purpose.COLD_READ
KINDS = ["memory", "local", "bundled", "s3"]
# Where the S3 server of this module's tests is.
ENDPOINTS: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def s3_server() -> Iterator[None]:
    with moto() as endpoint:
        ENDPOINTS.append(endpoint)
        yield
    ENDPOINTS.clear()


def new_bucket() -> S3Store:
    """A store in a bucket of its own."""
    bucket = make_bucket(ENDPOINTS[0], f"test-{uuid.uuid4().hex}")
    target = S3Target(bucket=bucket, endpoint=ENDPOINTS[0], path_style=True, access_key="key", secret_key="secret")
    return S3Store(target)


def run(kind: str, scenario: Callable[[ObjectStore], Awaitable[None]]) -> None:
    """Run the scenario against a new, empty store of that kind."""

    async def with_store(store: ObjectStore) -> None:
        try:
            await scenario(store)
        finally:
            await store.close()

    if kind == "memory":
        asyncio.run(with_store(MemoryStore(SystemClock())))
    elif kind == "s3":

        async def with_bucket() -> None:
            await with_store(new_bucket())

        asyncio.run(with_bucket())
    else:
        with tempfile.TemporaryDirectory() as root:
            # Small bundles, so that they are filled and filled anew.
            policy = BundlePolicy(object_bytes=8 << 10, bundle_bytes=32 << 10, bundles_max=3, after_puts=0)
            store = LocalStore(Path(root), bundles=policy)
            if kind == "bundled":
                store._bundles.prepare()
            asyncio.run(with_store(store))


# A part is never a prefix of a path: no key is both an object and a folder of others ("k" ends names, never folders).
KEYS = st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=3).map(lambda parts: "/".join(parts) + "k")
BODIES = st.one_of(st.binary(max_size=20), st.integers(0, 3).map(lambda n: b"x" * (n * 200_000 + 7)))
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.lists(BODIES, max_size=3)),
        st.tuples(st.just("delete"), st.lists(KEYS, max_size=3)),
        st.tuples(st.just("get"), KEYS),
        st.tuples(st.just("range"), KEYS, st.integers(0, 30), st.integers(0, 30)),
        st.tuples(st.just("tail"), KEYS, st.integers(0, 30)),
        st.tuples(st.just("exists"), KEYS),
        st.tuples(st.just("list"), st.one_of(st.just(""), KEYS.map(lambda key: key[:2])), st.one_of(st.just(""), KEYS)),
    ),
    max_size=30,
)


@pytest.mark.parametrize("kind", ["memory", "local", "bundled"])
@settings(max_examples=60)
@given(operations=OPERATIONS)
def test_behaves_like_a_dictionary(kind: str, operations: list) -> None:
    """Goal: any sequence of calls has the outcomes of the same calls on a dictionary from key to bytes."""
    compare_to_a_dictionary(kind, operations)


@settings(max_examples=15)
@given(operations=OPERATIONS)
def test_a_bucket_behaves_like_a_dictionary(operations: list) -> None:
    """Goal: the same over HTTP, where every call takes its time."""
    compare_to_a_dictionary("s3", operations)


def compare_to_a_dictionary(kind: str, operations: list) -> None:
    model: dict[str, bytes] = {}

    async def outcome(call: Awaitable) -> object:
        try:
            return await call
        except (ObjectExists, ObjectMissing) as error:
            return type(error)

    async def scenario(store: ObjectStore) -> None:
        for name, *arguments in operations:
            key = arguments[0]
            body = model.get(key) if isinstance(key, str) else None
            if name == "put":
                expected = ObjectExists if body is not None else None
                model.setdefault(key, b"".join(arguments[1]))
                assert await outcome(store.put_if_absent(key, arguments[1], FLUSH)) == expected
            elif name == "delete":
                for gone in key:
                    model.pop(gone, None)
                await store.delete(key, Purpose.SWEEP)
            elif name == "get":
                assert await outcome(store.get(key, READ)) == (ObjectMissing if body is None else body)
            elif name == "range":
                position, length = arguments[1:]
                expected = ObjectMissing if body is None else body[position : position + length]
                assert await outcome(store.get_range(key, position, length, READ)) == expected
            elif name == "tail":
                expected = ObjectMissing if body is None else (body[max(0, len(body) - arguments[1]) :], len(body))
                assert await outcome(store.get_tail(key, arguments[1], READ)) == expected
            elif name == "exists":
                assert await store.exists(key, READ) == (body is not None)
            else:
                found = await store.list(key, READ, arguments[1])
                expected = sorted(other for other in model if other.startswith(key) and other > arguments[1])
                assert [info.key for info in found] == expected
                assert [info.size for info in found] == [len(model[other]) for other in expected]

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_one_winner_of_many_creators(kind: str) -> None:
    """Goal: of concurrent creates of one key exactly one succeeds, and its bytes are the object's."""

    async def scenario(store: ObjectStore) -> None:
        for attempt in range(10):
            bodies = [bytes([number]) * (4000 + number) for number in range(24)]
            key = f"ns/log/{attempt:020d}"
            results = await asyncio.gather(
                *(store.put_if_absent(key, [body], FLUSH) for body in bodies), return_exceptions=True
            )
            winners = [number for number, result in enumerate(results) if result is None]
            assert len(winners) == 1
            assert sum(isinstance(result, ObjectExists) for result in results) == 23, results
            assert await store.get(key, READ) == bodies[winners[0]]

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_every_kind_and_number_are_joined(kind: str) -> None:
    """Goal: bytes, bytearrays and memoryviews, empty ones among them, more than one writev takes, are one object."""

    async def scenario(store: ObjectStore) -> None:
        parts: list = []
        for number in range(3000):
            body = bytes([number % 251]) * (number % 7)
            parts.append([body, bytearray(body), memoryview(body)][number % 3])
        parts.append(memoryview(bytearray(range(256)) * 3000)[5:-3])
        whole = b"".join(parts)
        await store.put_if_absent("many", parts, FLUSH)
        await store.put_if_absent("none", [], FLUSH)
        assert await store.get("many", READ) == whole
        assert await store.get_range("many", len(whole) - 3, 100, READ) == whole[-3:]
        assert await store.get_range("many", len(whole) + 3, 100, READ) == b""
        assert await store.get_tail("many", 5, READ) == (whole[-5:], len(whole))
        assert await store.get("none", READ) == b""

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "key",
    ["", "/", "a/", "/a", "a//b", ".", "..", "../a", "a/../b", "a/..", "./a", "a b", "a\0b", "ä", "a\n", "x" * 256],
)
def test_keys_that_could_leave_the_store_are_refused(kind: str, key: str) -> None:
    """Goal: no key names anything outside the store, in any call; the refusal is a ValueError and touches nothing."""

    async def scenario(store: ObjectStore) -> None:
        for call in (
            lambda: store.put_if_absent(key, [b"x"], FLUSH),
            lambda: store.get(key, READ),
            lambda: store.get_range(key, 0, 1, READ),
            lambda: store.get_tail(key, 1, READ),
            lambda: store.exists(key, READ),
            lambda: store.delete(["fine", key], Purpose.SWEEP),
        ):
            with pytest.raises(ValueError, match="key"):
                await call()
        assert await store.list("", READ) == []

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["../", "/", "a/../", "a//", "a/../../b"])
def test_a_listing_stays_inside(kind: str, prefix: str) -> None:
    """Goal: no prefix lists anything outside the store."""

    async def scenario(store: ObjectStore) -> None:
        with pytest.raises(ValueError, match="key"):
            await store.list(prefix, READ)

    run(kind, scenario)


TICK_MS = {"memory": 20, "local": 20, "bundled": 20, "s3": 1000}


@pytest.mark.parametrize("kind", KINDS)
def test_creation_time_is_the_clocks(kind: str) -> None:
    """Goal: created_ms lies between the clock's readings before and after the put, as exactly as a file system knows:
    the kernel stamps files with the time of its last tick, S3 objects with a second."""

    async def scenario(store: ObjectStore) -> None:
        clock = SystemClock()
        before = clock.wall_ms()
        await store.put_if_absent("a/b", [b"x"], FLUSH)
        after = clock.wall_ms()
        (info,) = await store.list("a", READ)
        assert before - TICK_MS[kind] <= info.created_ms <= after

    run(kind, scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_every_allowed_character_works(kind: str) -> None:
    """Goal: a key may hold any printable ASCII character but space."""

    async def scenario(store: ObjectStore) -> None:
        key = string.punctuation.replace("/", "") + "/" + string.ascii_letters + string.digits
        await store.put_if_absent(key, [b"x"], FLUSH)
        assert [info.key for info in await store.list("!", READ)] == [key]
        assert await store.get(key, READ) == b"x"

    run(kind, scenario)

"""Goal: whatever a bucket answers, or doesn't, comes out as what the callers must do; and nothing is tried twice."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from crc32c import crc32c

from kafscale.errors import (
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreIncapable,
    StoreRefused,
    StoreUnavailable,
    StoreUnclear,
)
from kafscale.storage.s3 import S3Store, S3Target
from kafscale.storage.store import ObjectStore, Purpose
from tests.unit.storage.scripted_s3 import (
    CHUNKED,
    PAGE,
    Respond,
    hang,
    one_after_the_other,
    raw,
    reset,
    reset_hard,
    serving,
    short,
    status,
)

HANG_SECONDS = 0.3


def asked(respond: Respond, call: Callable[[ObjectStore], Awaitable[object]]) -> tuple[object, list[bytes]]:
    """The outcome of a call (a result, or an error), and the requests that it made."""

    async def scenario() -> tuple[object, list[bytes]]:
        async with serving(respond) as (endpoint, requests):
            target = S3Target(
                bucket="bucket",
                endpoint=endpoint,
                path_style=True,
                access_key="key",
                secret_key="secret",
                kms_arn="arn:aws:kms:eu-west-1:1:key/2",
            )
            store = S3Store(target, connect_timeout_s=HANG_SECONDS, read_timeout_s=HANG_SECONDS)
            try:
                return await call(store), requests
            except StoreError as error:
                return error, requests
            finally:
                await store.close()

    return asyncio.run(scenario())


def put(store: ObjectStore) -> Awaitable[None]:
    return store.put_if_absent("ns/log/1", [b"some", b" bytes"], Purpose.FLUSH)


@pytest.mark.parametrize(
    ("respond", "expected"),
    [
        (status(412, "PreconditionFailed"), ObjectExists),
        (status(409, "ConditionalRequestConflict"), StoreUnclear),
        (status(500, "InternalError"), StoreUnclear),
        (status(503, "ServiceUnavailable"), StoreUnclear),
        (status(502, ""), StoreUnclear),
        (status(503, "SlowDown"), StoreUnavailable),
        (status(429, "TooManyRequests"), StoreUnavailable),
        (status(403, "AccessDenied"), StoreRefused),
        (status(404, "NoSuchBucket"), StoreRefused),
        (status(501, "NotImplemented"), StoreIncapable),
        (status(501, body=PAGE), StoreUnclear),
        (status(404, "NoSuchKey"), StoreUnclear),
        (status(404, body=b""), StoreUnclear),
        (status(404, body=PAGE), StoreUnclear),
        (raw(b"HTTP/1.1 2000 ?\r\n\r\n", is_over=True), StoreUnclear),
        (reset, StoreUnclear),
        (reset_hard, StoreUnclear),
        (hang, StoreUnclear),
    ],
)
def test_what_a_put_that_failed_means(respond: Respond, expected: type[StoreError]) -> None:
    """Goal: only an answer that says so means that nothing was applied; and each put goes out once, or twice where the
    HTTP client takes a broken connection for one that had been idle too long."""
    outcome, requests = asked(respond, put)
    assert type(outcome) is expected, outcome
    assert len(requests) == (2 if respond in (reset, reset_hard) else 1)


@pytest.mark.parametrize(
    ("respond", "expected"),
    [
        (status(404, "NoSuchKey"), ObjectMissing),
        (status(404, "NoSuchBucket"), StoreRefused),
        (status(404, body=b""), StoreUnavailable),
        (status(404, body=b"not found"), StoreUnavailable),
        (status(404, body=PAGE), StoreUnavailable),
        (raw(CHUNKED, is_over=True), StoreUnavailable),
        (raw(b"HTTP/1.1 200 OK\r\n\r\nhalf.", is_over=True), StoreUnavailable),
        (status(403, "AccessDenied"), StoreRefused),
        (status(500, "InternalError"), StoreUnavailable),
        (status(503, "SlowDown"), StoreUnavailable),
        (reset, StoreUnavailable),
        (reset_hard, StoreUnavailable),
        (hang, StoreUnavailable),
        (short, StoreUnavailable),
    ],
)
def test_what_a_read_that_failed_means(respond: Respond, expected: type[StoreError]) -> None:
    """Goal: a missing object is told from a store that gives no answer, and half an object is none."""
    outcome, requests = asked(respond, lambda store: store.get("ns/log/1", Purpose.COLD_READ))
    assert type(outcome) is expected, outcome
    assert len(requests) == (2 if respond in (reset, reset_hard) else 1)


@pytest.mark.parametrize(
    ("respond", "expected"),
    [
        (status(404, "NoSuchKey"), False),
        (status(200, body=b"x"), True),
        (status(206, body=b"x", more="content-range: bytes 0-0/9\r\n"), True),
        (status(416, "InvalidRange"), True),  # an empty object
        (status(404, "NoSuchBucket"), StoreRefused),
        (status(404, body=b""), StoreUnavailable),
        (status(404, body=PAGE), StoreUnavailable),
    ],
)
def test_whether_a_key_is_taken(respond: Respond, expected: object) -> None:
    """Goal: only the store's own word for it makes a key a free one. The end of a log may depend on it."""
    outcome, requests = asked(respond, lambda store: store.exists("ns/log/1", Purpose.RECOVERY))
    assert (outcome if isinstance(expected, bool) else type(outcome)) is expected
    assert len(requests) == 1


@pytest.mark.parametrize(
    "respond",
    [
        status(404, body=b""),
        status(404, body=PAGE),
        status(404, "NoSuchKey"),
        status(200, body=b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"),
        status(200, body=b"<ListBucketResult><Contents><Key>ns/a</Key></Contents></ListBucketResult>"),
        status(200, body=b"<ListBucketResult><Cont"),
        status(301, body=b"<Error><Code>PermanentRedirect</Code></Error>"),
        hang,
    ],
)
def test_what_a_listing_or_a_deletion_that_failed_means(respond: Respond) -> None:
    """Goal: whatever came instead of an answer, those who ask hear that the store is not to be had."""
    outcome, requests = asked(respond, lambda store: store.list("ns/", Purpose.SWEEP))
    assert type(outcome) is StoreUnavailable, outcome
    assert len(requests) <= 2
    outcome, _ = asked(respond, lambda store: store.delete(["ns/a"], Purpose.SWEEP))
    assert outcome is None or type(outcome) is StoreUnavailable, outcome


def test_a_tail_longer_than_the_object_is_the_object() -> None:
    """Goal: also from a store that takes such a range for none of the object."""
    respond = one_after_the_other(status(416, "InvalidRange"), status(200, body=b"abc"))
    outcome, _ = asked(respond, lambda store: store.get_tail("ns/log/1", 10, Purpose.RECOVERY))
    assert outcome == (b"abc", 3)


def test_a_body_in_chunks_is_read() -> None:
    """Goal: a proxy that does not pass the length on is no reason to read nothing."""
    outcome, _ = asked(raw(CHUNKED + b"0\r\n\r\n"), lambda store: store.get("ns/log/1", Purpose.COLD_READ))
    assert outcome == b"half."


def test_nobody_listens() -> None:
    """Goal: a put that never reached the store is known not to be applied."""

    async def scenario() -> None:
        target = S3Target(bucket="b", endpoint="http://127.0.0.1:1", path_style=True, access_key="k", secret_key="s")
        store = S3Store(target)
        try:
            with pytest.raises(StoreUnavailable, match="can't be reached"):
                await put(store)
        finally:
            await store.close()

    asyncio.run(scenario())


def test_a_put_says_what_the_store_must_check() -> None:
    """Goal: the condition, our own CRC32C and the key to encrypt with are in the one request; no second hash is."""
    outcome, (request,) = asked(status(200, body=b""), put)
    assert outcome is None
    head, _, body = request.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert body == b"some bytes"
    assert fields[b"if-none-match"] == b"*"
    crc = base64.b64encode(crc32c(b"some bytes").to_bytes(4, "big"))
    assert fields[b"x-amz-checksum-crc32c"] == crc.lower()
    assert fields[b"x-amz-server-side-encryption"] == b"aws:kms"
    assert fields[b"x-amz-server-side-encryption-aws-kms-key-id"] == b"arn:aws:kms:eu-west-1:1:key/2"
    # Nor is the store asked whether it wants the body: that would be a round trip more.
    assert b"content-md5" not in fields and b"expect" not in fields


def test_an_object_that_could_not_be_deleted_is_named() -> None:
    """Goal: a batch in which one key failed is no success."""
    answer = (
        b"<DeleteResult><Error><Key>ns/b</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    )
    outcome, _ = asked(status(200, body=answer), lambda store: store.delete(["ns/a", "ns/b"], Purpose.SWEEP))
    assert isinstance(outcome, StoreUnavailable)
    assert "ns/b: AccessDenied" in str(outcome)


def test_an_address_that_can_not_be_is_said_to_be_one() -> None:
    """Goal: an error of the store that names the address, not a surprise."""

    async def scenario() -> None:
        target = S3Target(bucket="b", endpoint="http://my_minio:9000", access_key="k", secret_key="s")
        store = S3Store(target)
        try:
            with pytest.raises(StoreError, match="my_minio"):
                await store.list("ns/", Purpose.CLUSTER)
        finally:
            await store.close()

    asyncio.run(scenario())


class Instance:
    """The metadata service of an EC2 instance with a role, and a bucket that takes one of the role's tokens."""

    def __init__(self) -> None:
        self.is_silent = False
        self.handed_out = 1
        self.taken = 1

    async def metadata(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        path = head.split(b" ")[1].decode()
        role = "/latest/meta-data/iam/security-credentials/"
        answers = {"/latest/api/token": "session", role: "writer", f"{role}writer": self._credentials()}
        await status(503 if self.is_silent else 200, body=answers[path].encode())(head, writer)

    def _credentials(self) -> str:
        expires = datetime.now(UTC) + timedelta(minutes=5)
        secrets = {"AccessKeyId": "key", "SecretAccessKey": "secret", "Token": f"token-{self.handed_out}"}
        return json.dumps({"Code": "Success", "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ"), **secrets})

    async def bucket(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        is_valid = f"x-amz-security-token: token-{self.taken}\r\n".encode() in head.lower()
        await (status(200, body=b"") if is_valid else status(400, "ExpiredToken"))(head, writer)


def on_instance(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scenario: Callable[[Instance, S3Store], Awaitable[None]]
) -> None:
    """Run the scenario with a store that has nothing but the instance's role to go by."""

    async def run() -> None:
        instance = Instance()
        async with serving(instance.metadata) as (metadata, _), serving(instance.bucket) as (bucket, _):
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata)
            store = S3Store(S3Target(bucket="bucket", endpoint=bucket, path_style=True))
            try:
                await scenario(instance, store)
            finally:
                await store.close()

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    # botocore stretches what expires soon to 17 minutes at least, and looks for others in the last 15: as if five
    # minutes had passed since it did.
    monkeypatch.setattr("botocore.utils.random.randint", lambda low, high: low - 300)
    asyncio.run(run())


def test_a_metadata_service_that_is_silent_at_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Goal: who was without credentials when it first asked has them once there are any, however many ask at once."""

    async def scenario(instance: Instance, store: S3Store) -> None:
        instance.is_silent = True
        outcomes = await asyncio.gather(*(put(store) for _ in range(5)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        assert "Unable to locate credentials" in str(outcomes[0])
        instance.is_silent = False
        await asyncio.gather(*(put(store) for _ in range(5)))

    on_instance(monkeypatch, tmp_path, scenario)


def test_credentials_that_expire(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Goal: they are fetched anew in time; while that can't be done, or brings what has expired, a put is known not to
    be applied; and then it goes on."""

    async def scenario(instance: Instance, store: S3Store) -> None:
        await put(store)
        instance.taken = 2
        with pytest.raises(StoreUnavailable, match="ExpiredToken"):
            await put(store)
        instance.handed_out = 2
        await put(store)
        instance.is_silent = True
        with pytest.raises(StoreUnavailable, match="credentials from iam-role"):
            await put(store)
        instance.is_silent = False
        await put(store)

    on_instance(monkeypatch, tmp_path, scenario)

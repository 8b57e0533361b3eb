"""An object store in an S3 bucket. The one file that knows aiobotocore.

It owns a client with its pool of connections, opened with the first call that finds credentials. What must always hold:
a put creates or fails, it never replaces (`If-None-Match: *`); what the store did not clearly answer is `StoreUnclear`
for a put and `StoreUnavailable` for everything else, whatever came instead of an answer; and an object is missing only
where the store says so of its key, with an error document. So HEAD, whose 404 has no document, is never used: a proxy's
404, or a bucket that is gone, must not pass for the end of a log.

It doesn't try again by itself: whoever calls knows better whether and when (`worker_log.py`, `takeover.py`,
`retrying.py`). Only the HTTP client beneath sends a request once more whose connection broke, since it may have been
idle too long: so a put may meet its own first try as `ObjectExists`, and callers read back before they believe in
another.

Bodies travel with their CRC32C, which the store checks; that and an unsigned payload cost a fraction of the hashes that
botocore would take by itself.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from socket import gaierror
from typing import Any

import msgspec
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from aiohttp import ClientConnectorError
from aiohttp import ClientError as TransportError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ProxyConnectionError,
    SSLError,
)
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
from kafscale.storage.keys import check_key
from kafscale.storage.metered import Meter
from kafscale.storage.store import DELETE_BATCH, Buffer, ObjectInfo, Purpose

# Connections beyond those that `concurrency` bounds: for flushes and decisions, which never wait for the others.
URGENT_CONNECTIONS = 16
_URGENT = frozenset({Purpose.FLUSH, Purpose.CHECKPOINT, Purpose.CLUSTER, Purpose.RECOVERY})
# The request never reached the store.
_NOT_SENT = (ConnectTimeoutError, ProxyConnectionError, SSLError)
# Nor is it known that it did where one of these comes.
_UNANSWERED = (*_NOT_SENT, EndpointConnectionError, HTTPClientError, TransportError, TimeoutError, OSError)
_MISSING = "NoSuchKey"
# With these nothing was applied, whatever the status.
_REFUSALS = frozenset({"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"})
# What a person must mend, by the status and by the code.
_FORBIDDEN = frozenset({301, 401, 403})
_HOPELESS = frozenset({"NoSuchBucket", "ExpiredToken", "InvalidToken", "AuthorizationHeaderMalformed"})


class S3Target(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket and how to reach it; None and "" leave it to the AWS defaults (environment, profile, instance)."""

    bucket: str
    region: str | None = None
    endpoint: str | None = None
    path_style: bool = False
    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None
    kms_arn: str | None = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}" + (f" at {self.endpoint}" if self.endpoint else "")


class S3Store:
    """Objects of one bucket; see `ObjectStore` for what each method promises."""

    def __init__(
        self,
        target: S3Target,
        *,
        concurrency: int = 64,
        connect_timeout_s: float = 3.0,
        read_timeout_s: float = 10.0,
        conditional_puts: bool = True,
        meter: Meter | None = None,
    ) -> None:
        """`concurrency` bounds requests that can wait (reading back, compaction, sweeping). Without `conditional_puts`
        a put looks first and then writes: for a store that ignores the condition, and a single broker. `meter` counts
        every request."""
        self._target = target
        self._conditional_puts = conditional_puts
        self._meter = meter or Meter.unread()
        self._timeout_s = connect_timeout_s + read_timeout_s
        self._config = AioConfig(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            max_pool_connections=concurrency + URGENT_CONNECTIONS,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            signature_version="s3v4",
            s3={"payload_signing_enabled": False, "addressing_style": "path" if target.path_style else "auto"},
        )
        self._patient = asyncio.Semaphore(concurrency)
        self._session = get_session()
        self._resources = AsyncExitStack()
        self._opening: asyncio.Task[Any] | None = None

    def __str__(self) -> str:
        return str(self._target)

    async def put_if_absent(self, key: str, parts: Sequence[Buffer], purpose: Purpose) -> None:
        check_key(key)
        if not self._conditional_puts and await self.exists(key, purpose):
            raise ObjectExists(f"object {key} exists")
        body = b"".join(parts)
        arguments: dict[str, Any] = {"Body": body, "ChecksumCRC32C": _encoded(crc32c(body))}
        if self._conditional_puts:
            arguments["IfNoneMatch"] = "*"
        if self._target.kms_arn:
            arguments |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self._target.kms_arn}
        async with self._asking("put", purpose, f"put {key}", len(body)) as client:
            await client.put_object(Bucket=self._target.bucket, Key=key, **arguments)

    async def get(self, key: str, purpose: Purpose) -> bytes:
        check_key(key)
        return (await self._read(key, None, purpose))[0]

    async def get_range(self, key: str, position: int, length: int, purpose: Purpose) -> bytes:
        check_key(key)
        if position < 0 or length < 0:
            raise ValueError(f"no range of {length} bytes at {position} can be read from {key}")
        # There is no range of no bytes.
        data, _ = await self._read(key, f"bytes={position}-{position + max(length, 1) - 1}", purpose)
        return data[:length]

    async def get_tail(self, key: str, length: int, purpose: Purpose) -> tuple[bytes, int]:
        check_key(key)
        if length < 0:
            raise ValueError(f"no tail of {length} bytes can be read from {key}")
        data, size = await self._read(key, f"bytes=-{max(length, 1)}", purpose)
        if not data:
            # It is empty, or the store has no tail that is longer than the object (rclone's).
            data, size = await self._read(key, None, purpose)
        return data if length else b"", size

    async def exists(self, key: str, purpose: Purpose) -> bool:
        check_key(key)
        async with self._asking("get", purpose, f"look for {key}") as client:
            try:
                await self._fetch(client, key, "bytes=0-0")
            except ClientError as error:
                if not _is_missing(error):
                    raise
                return False
            return True

    async def list(self, prefix: str, purpose: Purpose, start_after: str = "") -> list[ObjectInfo]:
        if prefix:
            check_key(prefix + "x")  # Some key begins so.
        arguments = {"Bucket": self._target.bucket, "Prefix": prefix}
        if start_after:
            arguments["StartAfter"] = start_after
        found: list[ObjectInfo] = []
        while True:
            async with self._asking("list", purpose, f"list {prefix}") as client:
                page = await client.list_objects_v2(**arguments)
                for entry in page.get("Contents", ()):
                    created_ms = int(entry["LastModified"].timestamp() * 1000)
                    found.append(ObjectInfo(entry["Key"], entry["Size"], created_ms))
                if not page.get("IsTruncated"):
                    # Directory buckets list in no order.
                    return sorted(found, key=lambda info: info.key)
                arguments["ContinuationToken"] = page["NextContinuationToken"]

    async def delete(self, keys: Sequence[str], purpose: Purpose) -> None:
        for key in keys:
            check_key(key)
        for start in range(0, len(keys), DELETE_BATCH):
            named = [{"Key": key} for key in keys[start : start + DELETE_BATCH]]
            async with self._asking("delete", purpose, f"delete {len(named)} objects") as client:
                answer = await client.delete_objects(
                    Bucket=self._target.bucket, Delete={"Objects": named, "Quiet": True}
                )
            kept = [error for error in answer.get("Errors", ()) if error.get("Code") != _MISSING]
            if kept:
                raise StoreUnavailable(
                    f"{self}: {len(kept)} of {len(named)} objects could not be deleted, the first,"
                    f" {kept[0].get('Key')}: {kept[0].get('Code')} {kept[0].get('Message')}"
                )
            self._meter.deleted(len(named))

    async def close(self) -> None:
        if self._opening is not None:
            await asyncio.gather(self._opening, return_exceptions=True)
        await self._resources.aclose()

    # The client

    @asynccontextmanager
    async def _asking(self, verb: str, purpose: Purpose, what: str, byte_count: int = 0) -> AsyncIterator[Any]:
        """The client, for one request, which is counted; what goes wrong comes out in terms of the store's errors."""
        with self._meter.request(verb, purpose, byte_count):
            try:
                if purpose in _URGENT:
                    yield await self._client()
                else:
                    async with self._patient:
                        yield await self._client()
            except Exception as error:
                raise self._meaning(error, what, is_write=verb == "put") from error

    async def _client(self) -> Any:
        opening = self._opening
        if opening is None:
            opening = self._opening = asyncio.ensure_future(self._open())
        try:
            return await asyncio.shield(opening)
        except Exception:
            # The next call opens it anew; one that waited for the same may have begun to already.
            if self._opening is opening:
                self._opening = None
            raise

    async def _open(self) -> Any:
        target = self._target
        if target.access_key is None and await self._session.get_credentials() is None:
            # A client would be without any for life, and the instance's may only be silent for the moment.
            raise NoCredentialsError
        client = self._session.create_client(
            "s3",
            region_name=target.region or ("us-east-1" if target.endpoint else None),
            endpoint_url=target.endpoint,
            aws_access_key_id=target.access_key,
            aws_secret_access_key=target.secret_key,
            aws_session_token=target.session_token,
            config=self._config,
        )
        opened = await self._resources.enter_async_context(client)
        opened.meta.events.register_last("before-call.s3", _send_body_at_once)
        opened.meta.events.register_last("before-call.s3.HeadBucket", _follow_no_redirect)
        return opened

    async def _read(self, key: str, byte_range: str | None, purpose: Purpose) -> tuple[bytes, int]:
        """The bytes, and the size of the whole object (0 where nothing of the range is in it)."""
        async with self._asking("get", purpose, f"get {key}") as client:
            data, size = await self._fetch(client, key, byte_range)
        self._meter.received(purpose, len(data))
        return data, size

    async def _fetch(self, client: Any, key: str, byte_range: str | None) -> tuple[bytes, int]:
        arguments = {} if byte_range is None else {"Range": byte_range}
        try:
            answer = await client.get_object(Bucket=self._target.bucket, Key=key, **arguments)
        except ClientError as error:
            if _status(error) != 416:
                raise
            return b"", 0
        data: bytes = await _whole(answer["Body"].read(), self._timeout_s)
        expected = answer.get("ContentLength")
        if expected is None and not _is_chunked(answer):
            raise TransportError(f"{key} came without its length")
        # The HTTP client has seen to it that there was a last chunk.
        expected = len(data) if expected is None else int(expected)
        if len(data) != expected:
            raise TransportError(f"{key} ended after {len(data)} of {expected} bytes")
        _, _, size = answer.get("ContentRange", "").rpartition("/")
        return data, int(size) if size.isdigit() else expected

    def _meaning(self, error: Exception, what: str, is_write: bool) -> StoreError:
        """What it means for the caller that a request came to this."""
        if isinstance(error, ClientError):
            return self._refused(error, what, is_write)
        if isinstance(error, _UNANSWERED):
            if _was_not_sent(error):
                return StoreUnavailable(f"{self} can't be reached: {error}")
            message = f"{self} did not answer ({what}): {error or type(error).__name__}"
        elif isinstance(error, BotoCoreError):
            # Found out before anything was sent: no credentials, a region or an endpoint that can't be.
            return StoreUnavailable(f"{self} can't be asked: {error}")
        else:
            # What came is no answer of S3's, and botocore stumbled over it, or this file did.
            message = f"{self} gave no sound answer ({what}): {error!r}"
        return StoreUnclear(message) if is_write else StoreUnavailable(message)

    def _refused(self, error: ClientError, what: str, is_write: bool) -> StoreError:
        """What an answer of the store means."""
        status, code = _status(error), _code(error)
        if _is_missing(error):
            return ObjectMissing(f"there is no object to {what}")
        if is_write and (status == 412 or code == "PreconditionFailed"):
            return ObjectExists(f"the key is taken ({what})")
        message = f"{self} refused to {what}: {status} {error}"
        if status == 501 and code == "NotImplemented":
            return StoreIncapable(message)
        if status in _FORBIDDEN or code in _HOPELESS:
            return StoreRefused(message)
        if is_write and code not in _REFUSALS and (status >= 500 or status in (404, 409)):
            # 409: a conditional request that ran beside another one. Either may have won.
            # 404: no answer of S3's to a put.
            return StoreUnclear(message)
        return StoreUnavailable(message)


async def _whole(reading: Awaitable[bytes], seconds: float) -> bytes:
    """A body that keeps trickling in is no answer either."""
    async with asyncio.timeout(seconds):
        return await reading


def _send_body_at_once(params: dict[str, Any], **_: object) -> None:
    """botocore would have the store asked first whether it wants the body: a round trip before every PUT, for the sake
    of bodies that are refused."""
    params["headers"].pop("Expect", None)


def _follow_no_redirect(params: dict[str, Any], **_: object) -> None:
    """botocore asks a bucket that it was sent away from for its region, and if it is sent away again, the same again,
    for ever."""
    params["context"].setdefault("s3_redirect", {})["redirected"] = True


def _is_chunked(answer: dict[str, Any]) -> bool:
    encoding: str = answer["ResponseMetadata"]["HTTPHeaders"].get("transfer-encoding", "")
    return encoding.lower().endswith("chunked")


def _was_not_sent(error: Exception) -> bool:
    """Whether the store can't have seen the request. A connection that is reset while an answer is awaited comes as
    EndpointConnectionError too: only its cause tells."""
    if isinstance(error, EndpointConnectionError):
        return isinstance(error.kwargs.get("error"), ClientConnectorError | gaierror)
    return isinstance(error, _NOT_SENT)


def _is_missing(error: ClientError) -> bool:
    return _code(error) == _MISSING and error.operation_name == "GetObject"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _encoded(crc: int) -> str:
    """As the x-amz-checksum-crc32c header has it: base64 of four big-endian bytes."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()

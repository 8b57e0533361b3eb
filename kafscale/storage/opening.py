"""Opens the object store that the settings name: a local directory, or an S3 bucket and what goes around it."""

from __future__ import annotations

import random
from pathlib import Path

from kafscale.clock import Clock
from kafscale.config import Settings
from kafscale.storage.keys import Keys
from kafscale.storage.local import LocalStore
from kafscale.storage.metered import Meter, MeteredStore
from kafscale.storage.probe import prove_conditional_puts
from kafscale.storage.store import ObjectStore

STORE_THREADS = 4
# Of the time that a request has, how much is for reaching the store at all.
_CONNECT_SHARE = 0.3


def open_store(
    settings: Settings, clock: Clock, random_source: random.Random, meter: Meter | None = None
) -> ObjectStore:
    """The store, every request to which `meter` counts; nothing is asked of it yet. Raises OSError where the data
    directory can't be made."""
    if settings.s3_bucket is None:
        local = LocalStore(Path(settings.data_dir), STORE_THREADS)
        return local if meter is None else MeteredStore(local, meter)
    # Takes a while to import, and not everybody needs it.
    from kafscale.storage.replica import ReplicaReads
    from kafscale.storage.retrying import RetryingStore
    from kafscale.storage.s3 import S3Store, S3Target

    meter = meter or Meter.unread()

    def bucket(name: str, region: str | None, endpoint: str | None) -> S3Store:
        seconds = settings.s3_timeout_ms / 1000
        return S3Store(
            S3Target(
                bucket=name,
                region=region,
                endpoint=endpoint,
                path_style=settings.s3_path_style,
                access_key=settings.s3_access_key,
                secret_key=settings.s3_secret_key,
                session_token=settings.s3_session_token,
                kms_arn=settings.s3_kms_arn,
            ),
            concurrency=settings.s3_concurrency,
            connect_timeout_s=seconds * _CONNECT_SHARE,
            read_timeout_s=seconds * (1 - _CONNECT_SHARE),
            conditional_puts=not settings.s3_unsafe_unconditional_puts,
            meter=meter,
        )

    store: ObjectStore = bucket(settings.s3_bucket, settings.s3_region, settings.s3_endpoint)
    if settings.s3_read_bucket is not None:
        replica = bucket(
            settings.s3_read_bucket,
            settings.s3_read_region or settings.s3_region,
            settings.s3_read_endpoint or settings.s3_endpoint,
        )
        store = ReplicaReads(store, replica, clock, meter)
    return RetryingStore(store, clock, random_source)


async def open_proven_store(
    settings: Settings, keys: Keys, clock: Clock, random_source: random.Random, meter: Meter
) -> ObjectStore:
    """The store as by `open_store`, asked to prove that of many who create an object one wins, unless a person has
    waived that. (A directory's file system proves it by being POSIX.) Raises OSError, StartError."""
    store = open_store(settings, clock, random_source, meter)
    if settings.s3_bucket is not None and not settings.s3_unsafe_unconditional_puts:
        try:
            await prove_conditional_puts(store, keys, clock, random_source)
        except BaseException:
            await store.close()
            raise
    return store

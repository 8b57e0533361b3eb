"""What /healthz and /readyz say, from what the supervisor knows. Pure.

Healthy: this loop runs, and no worker has been gone for 30 s. A worker that can't be replaced because the store gives
no answers is not held against the process: starting it anew would not help. Ready: every worker serves and the store
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import msgspec
import orjson

from supervisor.http import Response

GONE_SECONDS = 30.0


class WorkerHealth(msgspec.Struct, frozen=True):
    """`gone_seconds`: since the last incarnation ended, while there is no process; None where there is one."""

    index: int
    serving: bool
    store_ok: bool
    gone_seconds: float | None
    looping: bool
    trouble: str


def unhealthy_reasons(workers: Sequence[WorkerHealth], store_ok: bool) -> list[str]:
    return [
        f"worker {worker.index} has been gone for {worker.gone_seconds:.0f} s: it {worker.trouble}"
        for worker in workers
        if worker.gone_seconds is not None and worker.gone_seconds >= GONE_SECONDS and store_ok
    ]


def unready_reasons(workers: Sequence[WorkerHealth], store_ok: bool, draining: bool, denies_all: str = "") -> list[str]:
    """`denies_all`: why nobody is allowed anything, if so."""
    reasons = ["the broker is stopping"] if draining else []
    if denies_all:
        reasons.append(f"nothing is allowed, since the ACL document can't be read: {denies_all}")
    if not store_ok:
        reasons.append("the object store does not answer")
    for worker in workers:
        if not worker.serving:
            reasons.append(f"worker {worker.index} does not serve: it {worker.trouble}")
        elif not worker.store_ok:
            reasons.append(f"worker {worker.index} gets no answers from the object store")
        if worker.looping:
            reasons.append(f"worker {worker.index} is in a crash loop")
    return reasons


def page(word: str, reasons: Sequence[str]) -> Response:
    """`{"ready": true, "reasons": []}` with 200, or false, why, and 503; `word` is the first key."""
    status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
    return Response(status, "application/json", orjson.dumps({word: not reasons, "reasons": list(reasons)}) + b"\n")

"""Asking the coordinators of many groups at once, for the requests that name more than one group.

Groups of one shard are asked about together, shards side by side. Owns nothing and knows no API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from kafscale.errors import Retry
from kafscale.protocol.error_codes import ErrorCode
from workers.context import Context
from workers.groups import Call


async def ask_by_shard(
    context: Context,
    group_ids: Iterable[str],
    call: Callable[[tuple[str, ...]], Call],
    read: Callable[[Any], Iterable[tuple[str, Any]]],
) -> dict[str, Any]:
    """What the groups' shards say, by group id: a shard's word, or the ErrorCode for which it could not be asked.

    `call` makes the question for the groups of one shard, `read` takes its answer apart into (group id, word).
    """
    by_partition: dict[int, list[str]] = {}
    answers: dict[str, Any] = {}
    for group_id in dict.fromkeys(group_ids):
        try:
            by_partition.setdefault(context.groups.partition_of(group_id), []).append(group_id)
        except Retry as error:
            answers[group_id] = ErrorCode(error.code)

    async def ask(names: tuple[str, ...]) -> None:
        try:
            answers.update(read(await context.groups.request(names[0], call(names))))
        except Retry as error:
            answers.update(dict.fromkeys(names, ErrorCode(error.code)))

    await asyncio.gather(*(ask(tuple(names)) for names in by_partition.values()))
    return answers

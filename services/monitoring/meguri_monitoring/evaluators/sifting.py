"""Finds the requests that an evaluator cannot do, so that they hold up no others."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import polars as pl

from meguri_monitoring.evaluators import requests
from meguri_monitoring.evaluators.running import PlugInFailed

T = TypeVar("T")
Rows = Mapping[int, pl.DataFrame]
MOST = 20
"""Requests that are set aside at once. An evaluator that fails on more is broken itself, and waits until it is put right."""


async def sift(rows: Rows, attempt: Callable[[Rows], Awaitable[T]]) -> tuple[list[T], dict[str, str]]:
    """Return what was made of the requests that can be done, in their order, and by id why the others cannot.

    Raises PlugInFailed if none of those that were tried first can be done, or too many cannot.
    """
    ids = requests.ids(rows)
    for id_ in dict.fromkeys((ids[0], ids[-1])):
        try:
            await attempt(requests.only(rows, [id_]))
        except PlugInFailed as error:
            failure = error
        else:
            return await _halved(rows, ids, attempt, {})
    raise failure


async def _halved(
    rows: Rows, ids: list[str], attempt: Callable[[Rows], Awaitable[T]], failed: dict[str, str]
) -> tuple[list[T], dict[str, str]]:
    try:
        return [await attempt(requests.only(rows, ids))], failed
    except PlugInFailed as error:
        if len(ids) == 1:
            failed[ids[0]] = str(error)
            if len(failed) > MOST:
                raise
            return [], failed
    middle = len(ids) // 2
    first, _ = await _halved(rows, ids[:middle], attempt, failed)
    second, _ = await _halved(rows, ids[middle:], attempt, failed)
    return first + second, failed

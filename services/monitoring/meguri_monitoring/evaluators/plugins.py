"""Evaluators that are installed: entry points of `GROUP`, and of `WRITERS` under the same name for those that have one.

Only their own processes import them (`running.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

import polars as pl

from meguri_contracts.errors import Invalid

GROUP = "meguri.evaluators"
WRITERS = "meguri.writers"
REQUIRED = ("key", "time", "producer")
RESERVED = "_"

Evaluate = Callable[[pl.DataFrame], pl.DataFrame]
"""Predictions of one version of a model as they are kept, `numbered`, whole requests together; returns rows with the columns of
`REQUIRED` and whatever else: `key` is text and no other row has the same, ever."""
Write = Callable[[pl.DataFrame], pl.DataFrame]
"""The rows that were evaluated; returns those that go into the table."""


class NotInstalled(Invalid):
    def __init__(self, name: str) -> None:
        found = ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none"
        super().__init__(f"no evaluator {name!r} is installed; installed are: {found}")


@dataclass(frozen=True)
class Evaluator:
    """A plug-in. Its `write` gives back what it gets where the plug-in has none."""

    name: str
    evaluate: Evaluate
    write: Write


def is_installed(name: str) -> bool:
    """Whether there is an evaluator; nothing of it is imported."""
    return bool(entry_points(group=GROUP, name=name))


@cache
def load(name: str) -> Evaluator:
    """Return an installed evaluator. Raises NotInstalled, and whatever its module raises when it is imported."""
    found = {point.group: point for group in (GROUP, WRITERS) for point in entry_points(group=group, name=name)}
    if GROUP not in found:
        raise NotInstalled(name)
    return Evaluator(name, found[GROUP].load(), found[WRITERS].load() if WRITERS in found else _all)


def evaluated(evaluator: Evaluator, predictions: Mapping[int, pl.DataFrame]) -> pl.DataFrame | None:
    """Return the rows for predictions of several versions, in column `_version` which; None if there are none.

    Raises Invalid when they are not as they must be, and whatever the evaluator raises.
    """
    parts = [
        checked(evaluator.name, evaluator.evaluate(rows)).with_columns(pl.lit(version, pl.Int64).alias("_version"))
        for version, rows in predictions.items()
    ]
    rows = pl.concat([part for part in parts if part.height] or parts, how="diagonal_relaxed") if parts else None
    return checked(evaluator.name, rows, "_version") if rows is not None and rows.height else None


def written(evaluator: Evaluator, rows: pl.DataFrame) -> pl.DataFrame:
    """Return what the evaluator's writer leaves of the rows. Raises Invalid, and whatever the writer raises."""
    return checked(evaluator.name, evaluator.write(rows), "_version")


def checked(name: str, rows: object, *own: str) -> pl.DataFrame:
    """Return the rows of a plug-in. Raises Invalid when they are not as they must be."""
    if not isinstance(rows, pl.DataFrame):
        raise Invalid(f"evaluator {name!r} returned a {type(rows).__name__} and not a polars.DataFrame")
    if missing := [column for column in REQUIRED if column not in rows.columns]:
        raise Invalid(f"evaluator {name!r} returned no column {missing[0]!r}")
    if taken := [column for column in rows.columns if column.startswith(RESERVED) and column not in own]:
        raise Invalid(f"evaluator {name!r} returned a column {taken[0]!r}: names that begin with '_' are meguri's own")
    if rows.height and not isinstance(rows.schema["time"], pl.Datetime):
        raise Invalid(f"evaluator {name!r} returned a column 'time' that is {rows.schema['time']} and no time")
    keys = rows["key"]
    if rows.height and (keys.dtype != pl.String or keys.null_count() or keys.is_duplicated().any()):
        raise Invalid(f"evaluator {name!r} returned keys that are no text, missing, or there twice")
    return rows


def _all(rows: pl.DataFrame) -> pl.DataFrame:
    return rows

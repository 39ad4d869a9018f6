"""The Delta table of each evaluator of a model: its rows in the order in which they were made.

Beside what the evaluator gives, a row has `_version` (of the model), `_sequence` (of the last prediction that was evaluated
with it), `_trace` (where it was written) and `_left_out` (how many rows its writer left out of the same lot).
"""

import logging
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import polars as pl
from deltalake import CommitProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from meguri_chassis.delta import Table
from meguri_contracts.errors import Invalid, NotFound
from meguri_monitoring.predictions.writing import TableBusy, tidy

logger = logging.getLogger(__name__)

KEPT_HOURS = 30 * 24
"""For how long it is known what a table had before it was refilled."""
TRIES = 5
"""How often others may refill a table at the same time before it is left to them."""
_WRITER, _REFILLER = "evaluator", "refill"


def table_uri(data_url: str, model: str, evaluator: str) -> str:
    """Where the rows of an evaluator are kept."""
    return f"{data_url}/_measures/{model}/{evaluator}"


def kept_up_to(table_uri: str) -> int:
    """Return the sequence of the last prediction that the rows of a table are about; 0 when there is no table."""
    try:
        return Table(table_uri).transaction_version(_WRITER) or 0
    except TableNotFoundError:
        return 0


def scan(table_uri: str) -> pl.LazyFrame | None:
    """Return the rows of an evaluator; None without a table."""
    try:
        return pl.scan_delta(Table(table_uri))
    except TableNotFoundError:
        return None


def as_written(table_uri: str) -> pl.LazyFrame | None:
    """Return the rows of an evaluator without those that were filled in later; None without a table.

    Raises NotFound when the versions of the table from before that are gone.
    """
    try:
        table = Table(table_uri)
    except TableNotFoundError:
        return None
    try:
        refills = range(1, (table.transaction_version(_REFILLER) or 0) + 1)
        befores = [Table(table_uri, version=_refilled_at(table_uri, nth, table.version()) - 1) for nth in refills]
    except (DeltaError, TableNotFoundError) as error:
        raise NotFound(f"{table_uri} was filled in later, and cannot be read as it was before: {error}") from error
    parts, after = [], 0
    for one in (*befores, table):
        parts.append(pl.scan_delta(one).filter(pl.col("_sequence") > after))
        after = one.transaction_version(_WRITER) or 0
    return pl.concat(parts, how="diagonal") if len(parts) > 1 else parts[0]


def _refilled_at(table_uri: str, nth: int, version: int) -> int:
    """Return the version of a table that its nth refill made."""
    return bisect_left(range(version + 1), nth, key=partial(_refills, table_uri))


def _refills(table_uri: str, version: int) -> int:
    """How often a table was filled in by a version; 0 for one that is gone."""
    try:
        return Table(table_uri, version=version).transaction_version(_REFILLER) or 0
    except (DeltaError, TableNotFoundError):
        return 0


def latest(rows: pl.LazyFrame, last: int) -> pl.DataFrame:
    """Return the `last` latest rows, by time and key."""
    return rows.top_k(last, by=["time", "key"]).collect().sort("time", "key")


def append(table_uri: str, rows: pl.DataFrame, *, after: int, last: int) -> int:
    """Add the rows about predictions up to sequence `last` to a table that stands at `after`; return how many these are.

    Raises TableBusy when another replica was faster, Invalid when the columns have other types than before.
    """
    with _one_writer(table_uri, rows) as table:
        if (stands := table.transaction_version(_WRITER) or 0) != after:
            raise TableBusy(f"{table_uri} stands at {stands} and not at {after} any more")
        _write(table, rows, Transaction(_WRITER, last))
    return rows.height


def refill(table_uri: str, rows: pl.DataFrame) -> int:
    """Add those of the rows whose key the table does not have; return how many. Raises as `append` does."""
    for _ in range(TRIES - 1):
        try:
            return _refill(table_uri, rows)
        except TableBusy as error:
            logger.info("looked at again: %s", error)
    return _refill(table_uri, rows)


def _refill(table_uri: str, rows: pl.DataFrame) -> int:
    with _one_writer(table_uri, rows) as table:
        known = pl.scan_delta(table).select("key")
        missing = rows.lazy().join(known, on="key", how="anti", maintain_order="left").collect()
        if missing.height:
            _write(table, missing, Transaction(_REFILLER, (table.transaction_version(_REFILLER) or 0) + 1))
    return missing.height


@contextmanager
def _one_writer(table_uri: str, rows: pl.DataFrame) -> Iterator[Table]:
    # One handle from look to write: of two that saw the same table one conflicts.
    try:
        yield _opened(table_uri, rows)
    except CommitFailedError as error:
        raise TableBusy(f"{table_uri} has another writer: {error}") from error


def _opened(table_uri: str, like: pl.DataFrame) -> Table:
    try:
        return Table(table_uri)
    except TableNotFoundError:
        # Without tries of its own: of two that come first, the second would create the table over the first's.
        once = CommitProperties(max_commit_retries=0)
        schema = like.clear().to_arrow().schema
        found_by: dict[str, str | None] = {"delta.dataSkippingStatsColumns": "key,time,_sequence"}
        return Table.create(table_uri, schema=schema, mode="ignore", configuration=found_by, commit_properties=once)


def _write(table: Table, rows: pl.DataFrame, marker: Transaction) -> None:
    properties = CommitProperties(app_transactions=[marker])
    columns = dict(pl.scan_delta(table).collect_schema())
    added = set(rows.columns) - set(columns)
    try:
        rows = rows.cast({name: kind for name, kind in columns.items() if name in rows.columns})
        mode = "merge" if added or len(rows.columns) < len(columns) else None
        # Several chunks would be written side by side, in any order.
        whole = rows.rechunk().to_arrow()
        write_deltalake(table, whole, mode="append", schema_mode=mode, commit_properties=properties)
    except CommitFailedError:
        raise
    except (pl.exceptions.PolarsError, DeltaError) as error:
        raise Invalid(f"the rows do not fit their table: {error}") from error
    tidy(table, unused_hours=KEPT_HOURS)

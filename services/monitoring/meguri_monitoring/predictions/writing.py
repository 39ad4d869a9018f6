"""Adds predictions to the tables of their versions, and keeps these in good order."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import polars as pl
from deltalake import ColumnProperties, CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from meguri_contracts.errors import TemporaryError
from meguri_monitoring.predictions.predictions import DETAIL_TYPES, ENTITY, ROLE, SEQUENCE, Batch, ColumnDiffers
from meguri_monitoring.predictions.tables import WRITER

COMPACT_EVERY = 100
"""Commits of a table between two compactions; an append costs more with every small file."""
LARGE = 4 * 1024 * 1024
"""Bytes of a file that is left as it is."""
RETENTION_HOURS = 1
"""How long files and log entries stay that the newest state of a table does not need: for who reads an older one."""
ROW_GROUP = 50_000
"""Rows that are read together at least."""
HELD_OPEN = 32
"""Tables that are kept open: those that were written to last."""

_PROPERTIES = {
    # Columns whose ranges stand beside each file, so that only those are read that may have what is looked for; usual are 32.
    "delta.dataSkippingStatsColumns": f"prediction_id,time,{SEQUENCE}",
    "delta.logRetentionDuration": f"interval {RETENTION_HOURS} hours",
    "delta.deletedFileRetentionDuration": f"interval {RETENTION_HOURS} hours",
}
_ALIKE = {"time", "model", "version", "producer", ENTITY, ROLE, SEQUENCE, "label"}
"""Columns with few values. To look for those in a column of measurements costs more than all the rest of an append."""

Columns = dict[str, pl.DataType]


class TableBusy(TemporaryError):
    """Another writer of the same table was faster."""


@dataclass(frozen=True)
class _Opened:
    """A table as it was after our last commit."""

    table: DeltaTable
    columns: Columns
    version: int
    mark: tuple[int, int] | None
    """Of the file of that commit; None where that cannot be told. Another one there means another table."""


class Writer:
    """Appends to tables. It keeps them open, for to open one means to read its log; one thread at a time."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, _Opened] = OrderedDict()

    def append(self, table_uri: str, batches: Sequence[Batch]) -> int:
        """Add batches of one model version, in the order of the stream, to its table and return how many rows were new.

        Batches up to the last sequence that the table has are skipped, so a message that comes again changes nothing; one
        that comes late would be taken for a repeat. The table is made when there is none, gets the columns of
        `PREDICTION_DETAILS` when it is of before them, and is compacted now and then.
        Raises ColumnDiffers when the columns are not those of the table, TableBusy when another writer was faster.
        """
        if not batches:
            return 0
        try:
            return self._append(table_uri, batches)
        except CommitFailedError as error:
            raise TableBusy(f"{table_uri} has another writer: {error}") from error

    def _append(self, table_uri: str, batches: Sequence[Batch]) -> int:
        # One handle from check to write: two writers of the same sequence conflict instead of both succeeding.
        table, columns = self._opened(table_uri, batches[0].frame)
        known = table.transaction_version(WRITER) or 0
        fresh = [batch for batch in batches if batch.sequence > known]
        if not fresh:
            self._hold(table_uri, table, columns)
            return 0
        rows, columns, added = _rows(fresh, columns)
        write_deltalake(
            table,
            rows.to_arrow(),
            mode="append",
            schema_mode="merge" if added else None,
            commit_properties=CommitProperties(app_transactions=[Transaction(WRITER, fresh[-1].sequence)]),
            writer_properties=_written_as(tuple(columns)),
        )
        if table.version() % COMPACT_EVERY == 0:
            _compact(table, tuple(columns))
        self._hold(table_uri, table, columns)
        return rows.height

    def _opened(self, table_uri: str, like: pl.DataFrame) -> tuple[DeltaTable, Columns]:
        held = self._held.pop(table_uri, None)
        # One that was deleted meanwhile, and perhaps made again, says nothing when it is brought up to date.
        if held and held.mark and _mark(held.table, held.version) == held.mark:
            held.table.update_incremental()
            if held.table.version() == held.version:
                return held.table, held.columns
        table = _open(table_uri, like)
        return table, dict(pl.scan_delta(table).collect_schema())

    def _hold(self, table_uri: str, table: DeltaTable, columns: Columns) -> None:
        version = table.version()
        self._held[table_uri] = _Opened(table, columns, version, _mark(table, version))
        while len(self._held) > HELD_OPEN:
            self._held.popitem(last=False)


def _rows(batches: Sequence[Batch], columns: Columns) -> tuple[pl.DataFrame, Columns, bool]:
    """Return the rows for a table of these columns, its columns then, and whether there are new ones among them."""
    added = {name: kind for name, kind in DETAIL_TYPES.items() if name not in columns}
    columns = columns | added
    return pl.concat([_fitted(batch.frame, columns) for batch in batches]), columns, bool(added)


def _compact(table: DeltaTable, columns: tuple[str, ...]) -> None:
    """Put small files together, and remove those that nobody needs any more."""
    if odd := {name: value for name, value in _PROPERTIES.items() if table.metadata().configuration.get(name) != value}:
        table.alter.set_table_properties(odd)
    table.optimize.compact(target_size=LARGE, writer_properties=_written_as(columns))
    table.vacuum(retention_hours=RETENTION_HOURS, enforce_retention_duration=False, dry_run=False)


def _mark(table: DeltaTable, version: int) -> tuple[int, int] | None:
    place = urlsplit(table.table_uri)
    if place.scheme not in ("", "file"):
        return None
    try:
        found = (Path(unquote(place.path)) / "_delta_log" / f"{version:020}.json").stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


@cache
def _written_as(columns: tuple[str, ...]) -> WriterProperties:
    alike = ColumnProperties(dictionary_enabled=True)
    return WriterProperties(
        compression="LZ4_RAW",
        max_row_group_size=ROW_GROUP,
        default_column_properties=ColumnProperties(dictionary_enabled=False),
        column_properties={name: alike for name in columns if name in _ALIKE},
    )


def _open(table_uri: str, like: pl.DataFrame) -> DeltaTable:
    try:
        return DeltaTable(table_uri)
    except TableNotFoundError:
        # Without tries of its own: of two that come first, the second would create the table over the first's.
        once = CommitProperties(max_commit_retries=0)
        schema = like.clear().to_arrow().schema
        return DeltaTable.create(
            table_uri, schema=schema, mode="ignore", configuration=dict(_PROPERTIES), commit_properties=once
        )


def _fitted(frame: pl.DataFrame, columns: dict[str, pl.DataType]) -> pl.DataFrame:
    """Return the rows in the columns of a table. Raises ColumnDiffers where it would have to cut or guess without a word."""
    frame = frame.with_columns(
        pl.col(name).cast(kind)
        for name, kind in columns.items()
        if name in frame.columns and _is_safe(frame[name], kind)
    )
    if different := sorted(dict(set(frame.schema.items()) ^ set(columns.items()))):
        ours, theirs = (columns.get(different[0]) or "not" for columns in (frame.schema, columns))
        how = f"column {different[0]!r} is {ours} in predictions and {theirs} in their table"
        raise ColumnDiffers(different[0], how)
    return frame.select(list(columns))


def _is_safe(given: pl.Series, kind: pl.DataType) -> bool:
    """Whether each value is the same in the other type: tables of before had every feature as a number."""
    return given.null_count() == len(given) or (given.dtype == pl.Int64 and kind == pl.Float64)

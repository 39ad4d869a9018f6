"""Adds predictions to the tables of their versions, and keeps these in good order."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import polars as pl
from deltalake import ColumnProperties, CommitProperties, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from meguri_chassis.delta import Table
from meguri_contracts.errors import TemporaryError
from meguri_monitoring.predictions.predictions import DETAIL_TYPES, ENTITY, ROLE, SEQUENCE, Batch, ColumnDiffers
from meguri_monitoring.predictions.tables import WRITER

COMPACT_EVERY = 100
"""Commits of a table between two compactions; an append costs more with every small file."""
WHOLE_EVERY = 5_000
"""Commits between two that put files of `COMPACTED` bytes together, too. Else what is put together once would be written again
by each compaction until it is large: hundreds of times what the rows take."""
COMPACTED = 2 * 1024 * 1024
TIDY_EVERY = 1_000
"""Commits between two removals of files that are no longer of the table."""
UNUSED_HOURS = 1
"""Hours for which such files stay, for who began to read them; and the log of the table's changes. Of that usual are 30 days:
a file for each commit, among which every append would have to find the last."""
ROW_GROUP = 50_000
"""Rows that are read together at least."""
HELD_OPEN = 32
"""Tables that are kept open: those that were written to last."""

_FOUND_BY: dict[str, str | None] = {"delta.dataSkippingStatsColumns": f"prediction_id,time,{SEQUENCE}"}
"""Columns whose ranges stand beside each file, so that only those are read that may have what is looked for. Usual are 32."""
_ALIKE = {"time", "model", "version", "producer", ENTITY, ROLE, SEQUENCE, "label"}
"""Columns with few values. To look for those in a column of measurements costs more than all the rest of an append."""

Columns = dict[str, pl.DataType]

logger = logging.getLogger(__name__)


class TableBusy(TemporaryError):
    """Another writer of the same table was faster."""


@dataclass(frozen=True)
class _Opened:
    """A table as it was after our last commit."""

    table: Table
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
        written_as = _written_as(tuple(columns))
        write_deltalake(
            table,
            # Several chunks would be written side by side, in any order.
            rows.rechunk().to_arrow(),
            mode="append",
            schema_mode="merge" if added else None,
            commit_properties=CommitProperties(app_transactions=[Transaction(WRITER, fresh[-1].sequence)]),
            writer_properties=written_as,
        )
        tidy(table, written_as, unused_hours=UNUSED_HOURS)
        self._hold(table_uri, table, columns)
        return rows.height

    def _opened(self, table_uri: str, like: pl.DataFrame) -> tuple[Table, Columns]:
        held = self._held.pop(table_uri, None)
        # One that was deleted meanwhile, and perhaps made again, says nothing when it is brought up to date.
        if held and held.mark and _mark(held.table, held.version) == held.mark:
            held.table.update_incremental()
            if held.table.version() == held.version:
                return held.table, held.columns
        table = _open(table_uri, like)
        return table, dict(pl.scan_delta(table).collect_schema())

    def _hold(self, table_uri: str, table: Table, columns: Columns) -> None:
        version = table.version()
        self._held[table_uri] = _Opened(table, columns, version, _mark(table, version))
        while len(self._held) > HELD_OPEN:
            self._held.popitem(last=False)


def _rows(batches: Sequence[Batch], columns: Columns) -> tuple[pl.DataFrame, Columns, bool]:
    """Return the rows for a table of these columns, its columns then, and whether there are new ones among them."""
    added = {name: kind for name, kind in DETAIL_TYPES.items() if name not in columns}
    columns = columns | added
    return pl.concat([_fitted(batch.frame, columns) for batch in batches]), columns, bool(added)


def tidy(table: Table, written_as: WriterProperties | None = None, *, unused_hours: int) -> None:
    """Now and then put small files of a table together, and remove those that have not been of it for so many hours.

    What another writer does at the same time is left to it.
    """
    try:
        _tidy(table, table.version(), written_as, unused_hours)
    except CommitFailedError as error:
        logger.info("%s is tidied another time: %s", table.table_uri, error)


def _tidy(table: Table, version: int, written_as: WriterProperties | None, unused_hours: int) -> None:
    if version % COMPACT_EVERY == 0:
        size = None if version % WHOLE_EVERY == 0 else COMPACTED
        table.optimize.compact(target_size=size, writer_properties=written_as)
    if version % TIDY_EVERY == 0:
        forgets = _forgets(unused_hours)
        if not forgets.items() <= table.metadata().configuration.items():
            # A table of before.
            table.alter.set_table_properties(forgets)
        # All of them: who is killed in an append or a compaction leaves files that no log tells of.
        table.vacuum(unused_hours, dry_run=False, enforce_retention_duration=False, full=True)


def _forgets(unused_hours: int) -> dict[str, str]:
    kept = f"interval {unused_hours} hours"
    # The second is of what checkpoints say of files that are gone.
    return {"delta.logRetentionDuration": kept, "delta.deletedFileRetentionDuration": kept}


def _mark(table: Table, version: int) -> tuple[int, int] | None:
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


def _open(table_uri: str, like: pl.DataFrame) -> Table:
    try:
        return Table(table_uri)
    except TableNotFoundError:
        # Without tries of its own: of two that come first, the second would create the table over the first's.
        once = CommitProperties(max_commit_retries=0)
        schema = like.clear().to_arrow().schema
        return Table.create(
            table_uri,
            schema=schema,
            mode="ignore",
            configuration=_FOUND_BY | _forgets(UNUSED_HOURS),
            commit_properties=once,
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

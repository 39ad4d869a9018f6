"""The Delta table of a dataset, and the one of its quarantine.

Each commit carries the event that ingest says about it, so what the log must hold follows from the table: what a crash left
unsaid is found there and said again, word for word. A commit goes onto the version that its writer has seen or nowhere.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import obstore
import obstore.exceptions
import polars as pl
from deltalake import CommitProperties, Schema, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, SchemaMismatchError, TableNotFoundError

from meguri_chassis.delta import Table
from meguri_contracts.errors import Invalid, NotFound, TemporaryError
from meguri_contracts.events import Contribution, DataCommitted
from meguri_ingest.digests import chained, content_digest

WRITER = "meguri-ingest"
"""Whose transactions the commits of rows are; their number is the version."""
SAID = DataCommitted.type
"""Key of the event in the metadata of a commit."""

_STAMPS = {"_event": pl.String(), "_producer": pl.String(), "_arrived": pl.Datetime("us", "UTC")}
_PROPERTIES = {
    # A pinned version must stay readable; the default removes its log after 30 days and its files after 7.
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.deletedFileRetentionDuration": "interval 3650 days",
    # Keep a commit as cheap at the 500th as at the first (measured: 20 ms against 80 ms with the defaults).
    "delta.checkpointInterval": "20",
    "delta.dataSkippingNumIndexedCols": "0",
}


class LostRace(TemporaryError):
    """Another writer was faster; look at the table again."""

    def __init__(self, uri: str) -> None:
        super().__init__(
            f"{uri}: another writer has changed the table since it was opened; nothing was written, open it again"
        )


class StorageTrouble(TemporaryError):
    """The store below the table does not do as asked."""


class SchemaChanged(Invalid):
    """Rows whose columns are not those of the table."""


@dataclass(frozen=True)
class Batch:
    """The good rows of one arrival."""

    event: str
    """Id of the event that brought them."""
    producer: str
    good: pl.DataFrame
    quarantined: int = 0
    """Rows of the arrival that were set aside."""


class DatasetTable:
    """A look at the table at `uri`, a local path or the URL of an object store, and the way to its next versions.

    What is committed through it follows directly on what was seen when it was opened, or LostRace is raised. So whoever asks
    `said_since` first, publishes, and leaves out the events found there, commits each event once. Open a new one after an
    error, and for each round: a long-lived one becomes slow.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with _translated(uri):
            self._table = _opened(uri)

    @property
    def version(self) -> int:
        """The last version; -1 before the first."""
        return -1 if self._table is None else int(self._table.version())

    def said_since(self, version: int | None) -> list[DataCommitted]:
        """Return what was said about the versions after `version`, all for None; oldest first. Maintenance says nothing."""
        if self._table is None:
            return []
        first = 0 if version is None else version + 1
        with _translated(self.uri):
            said = (self._said(each) for each in range(first, self._table.version() + 1))
            return [event for event in said if event is not None]

    def commit(self, dataset: str, batches: Sequence[Batch], arrived: datetime) -> DataCommitted:
        """Append all `batches` as one version and return what is to be said about it.

        Rows get the columns `_event`, `_producer` and `_arrived`. Raises SchemaChanged before anything is written, LostRace
        and StorageTrouble; after the latter it may yet have been written, as `said_since` of a new look tells.
        """
        with _translated(self.uri):
            columns = self._require_same_columns(batches)
            if self._table is None:
                self._table = _created(self.uri, {**batches[0].good.schema, **_STAMPS})
            event = self._next(dataset, batches, pl.concat([batch.good.select(columns) for batch in batches]))
            rows = pl.concat(
                [_stamped(batch.good.select(columns), batch.event, batch.producer, arrived) for batch in batches]
            )
            _append(self._table, rows, Transaction(WRITER, event.version), {SAID: event.model_dump_json()}, retries=0)
            return event

    def _next(self, dataset: str, batches: Sequence[Batch], rows: pl.DataFrame) -> DataCommitted:
        assert self._table is not None
        last = self._table.transaction_version(WRITER)
        before = None if last is None else self._said(last)
        return DataCommitted(
            dataset=dataset,
            version=self._table.version() + 1,
            digest=chained(before.digest if before else "", content_digest(rows)),
            rows=rows.height,
            total_rows=rows.height + (before.total_rows if before else 0),
            events=tuple(
                Contribution(event=b.event, producer=b.producer, rows=b.good.height, quarantined=b.quarantined)
                for b in batches
            ),
        )

    def _said(self, version: int) -> DataCommitted | None:
        # Not by Table.history(): it numbers commits wrongly when another writer has moved on since the table was opened.
        root = self.uri if "://" in self.uri else Path(self.uri).absolute().as_uri()
        log = obstore.get(obstore.store.from_url(f"{root}/_delta_log"), f"{version:020}.json").bytes()
        commits = (json.loads(line).get("commitInfo", {}) for line in bytes(log).splitlines())
        texts = [commit[SAID] for commit in commits if SAID in commit]
        return DataCommitted.model_validate_json(texts[0]) if texts else None

    def _require_same_columns(self, batches: Sequence[Batch]) -> list[str]:
        stored = _types(batches[0].good.schema if self._table is None else self._table.schema())
        stored = {name: dtype for name, dtype in stored.items() if name not in _STAMPS}
        for batch in batches:
            arriving = _types(batch.good.schema)
            for name in {**stored, **arriving}:
                if stored.get(name) != arriving.get(name):
                    raise SchemaChanged(
                        f"{self.uri}: column {name!r} is {stored.get(name, 'not there')} in the table and "
                        f"{arriving.get(name, 'not there')} in event {batch.event}; a table keeps its columns: "
                        "for other columns, name another dataset"
                    )
        return list(stored)


def quarantine(uri: str, rows: pl.DataFrame, event: str, producer: str, arrived: datetime) -> None:
    """Append the bad `rows` of an event, columns `row` and `reason`, to the table at `uri`; once, however often it is called.

    Raises LostRace and StorageTrouble.
    """
    with _translated(uri):
        stamped = _stamped(rows.select("row", "reason"), event, producer, arrived)
        table = _opened(uri) or _created(uri, stamped.schema)
        if table.transaction_version(event) is None:
            _append(table, stamped, Transaction(event, 1), {}, retries=15)


def read(uri: str, version: int) -> pl.DataFrame:
    """Return the rows of a version of the table at `uri`, stamps included. Raises NotFound and StorageTrouble."""
    with _translated(uri):
        table = _opened(uri)
        if table is None or not 0 <= version <= table.version():
            raise NotFound(
                f"{uri} has no version {version}" + (f", the last is {table.version()}" if table else ": no table")
            )
        table.load_as_version(version)
        try:
            return pl.scan_delta(table).collect()
        except FileNotFoundError as error:
            raise NotFound(f"{uri}: files of version {version} were removed; versions in use must be kept") from error


def _opened(uri: str) -> Table | None:
    try:
        return Table(uri)
    except TableNotFoundError:
        return None


def _created(uri: str, columns: Mapping[str, pl.DataType]) -> Table:
    # Without tries of its own: of two that come first, the second would create the table over the first's.
    once = CommitProperties(max_commit_retries=0)
    schema = Schema.from_arrow(pl.Schema(columns))
    return Table.create(uri, schema, mode="error", configuration=_PROPERTIES, commit_properties=once)


def _append(table: Table, rows: pl.DataFrame, step: Transaction, metadata: dict[str, str], *, retries: int) -> None:
    # With 0 retries even maintenance in between is a lost race, and the version told in the metadata is the one written.
    properties = CommitProperties(custom_metadata=metadata, app_transactions=[step], max_commit_retries=retries)
    write_deltalake(table, rows, mode="append", commit_properties=properties)


def _stamped(rows: pl.DataFrame, event: str, producer: str, arrived: datetime) -> pl.DataFrame:
    stamps = zip(_STAMPS.items(), (event, producer, arrived.astimezone(UTC)), strict=True)
    return rows.with_columns(pl.lit(value, dtype).alias(name) for (name, dtype), value in stamps)


def _types(schema: Any) -> dict[str, str]:
    """Delta types by column name; of a polars schema, those that it is stored as."""
    fields = schema.fields if isinstance(schema, Schema) else Schema.from_arrow(schema).fields
    return {field.name: str(getattr(field.type, "type", field.type)) for field in fields}


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    try:
        yield
    except CommitFailedError as error:
        raise LostRace(uri) from error
    except SchemaMismatchError as error:
        raise SchemaChanged(f"{uri}: {_in_a_line(error)}") from error
    except (DeltaError, OSError, obstore.exceptions.BaseError) as error:
        if "table already exists" in str(error):
            raise LostRace(uri) from error
        raise StorageTrouble(f"{uri}: {_in_a_line(error)}") from error
    except Exception as error:
        # delta-rs raises a bare Exception for a value that it cannot cast.
        if type(error) is Exception:
            raise SchemaChanged(f"{uri}: {_in_a_line(error)}") from error
        raise


def _in_a_line(error: Exception) -> str:
    """The first line of an error and those that say what it came of, each behind an arrow."""
    first, *others = str(error).splitlines() or [type(error).__name__]
    causes = takewhile(lambda line: "↳" in line, others)
    return ": ".join([first, *(line.rpartition("↳")[2].removeprefix("\x1b[0m").strip() for line in causes)])[:300]

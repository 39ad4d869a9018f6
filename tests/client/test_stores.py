"""Tables copied while their owners go on writing."""

import asyncio
import os
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from meguri import stores
from tests.conftest import until

TABLE = "_predictions/m/v1"


@pytest.fixture
def table(tmp_path: Path) -> str:
    """The URI of a table that was written in ten commits: rows 0 to 9."""
    uri = str(tmp_path / "data" / TABLE)
    for row in range(10):
        write_deltalake(uri, pl.DataFrame({"row": [row]}).to_arrow(), mode="append")
    return uri


def rows(table: Path) -> list[int]:
    return sorted(pl.read_delta(str(table))["row"])


async def test_a_table_is_copied_whose_owner_removes_files_meanwhile(tmp_path, table):
    first = min(Path(path).name for path in DeltaTable(table).file_uris())
    DeltaTable(table).optimize.compact()
    copied = tmp_path / "copy" / TABLE
    copied.mkdir(parents=True)
    # Who opens a pipe waits for a reader: the copy stands still at the first file that is no longer needed.
    os.mkfifo(copied / first)

    copying = asyncio.create_task(asyncio.to_thread(stores.copy_tables, str(tmp_path / "data"), tmp_path / "copy", {}))
    await until(lambda: list(copied.glob("_delta_log/*.json")), "the copy at work")
    removed = DeltaTable(table).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
    assert first in removed
    (copied / first).read_bytes()
    await copying

    assert rows(copied) == list(range(10))


def test_a_log_is_copied_from_its_checkpoint_on_because_its_owner_removes_what_was_before(tmp_path, table):
    DeltaTable(table).create_checkpoint()
    write_deltalake(table, pl.DataFrame({"row": [10]}).to_arrow(), mode="append")

    stores.copy_tables(str(tmp_path / "data"), tmp_path / "copy", {})

    copied = tmp_path / "copy" / TABLE
    assert sorted(int(path.stem) for path in copied.glob("_delta_log/*.json")) == [9, 10]
    assert rows(copied) == list(range(11))

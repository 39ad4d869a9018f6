import shutil
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from meguri_monitoring.predictions import writing
from meguri_monitoring.predictions.writing import Writer
from tests.monitoring.batches import batches, write_as_before


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "table" / "v1")


def ids_in(uri: str) -> list[str]:
    return sorted(pl.scan_delta(uri).collect()["prediction_id"])


def test_writers_that_take_turns_see_each_other_s_rows(uri):
    one, other = Writer(), Writer()
    for sequence in range(1, 9):
        writer = one if sequence % 3 else other
        assert writer.append(uri, batches([f"{sequence}"], sequence)) == 1
        assert one.append(uri, batches([f"{sequence}"], sequence)) == 0

    assert ids_in(uri) == [str(sequence) for sequence in range(1, 9)]


def test_a_table_that_was_deleted_begins_anew(uri):
    writer = Writer()
    writer.append(uri, batches(["a"], 1))
    writer.append(uri, batches(["b"], 2))
    shutil.rmtree(uri)

    assert writer.append(uri, batches(["c"], 3)) == 1
    assert ids_in(uri) == ["c"]


def test_a_table_that_was_deleted_and_made_again_by_another_is_taken_as_it_is(uri):
    writer, other = Writer(), Writer()
    for sequence in (1, 2, 3):
        writer.append(uri, batches([f"old-{sequence}"], sequence))
    shutil.rmtree(uri)
    for sequence in (4, 5, 6):
        other.append(uri, batches([f"new-{sequence}"], sequence))

    assert writer.append(uri, batches(["c"], 7)) == 1
    assert ids_in(uri) == ["c", "new-4", "new-5", "new-6"]


def test_a_table_of_before_keeps_its_new_columns_while_it_stays_open(uri):
    write_as_before(uri, 1, "old")
    writer = Writer()
    for sequence in (2, 3):
        writer.append(uri, batches([f"{sequence}"], sequence))

    assert ids_in(uri) == ["2", "3", "old"]
    assert {"_entity", "_role", "_latency"} <= set(pl.scan_delta(uri).collect_schema())


def test_a_large_file_is_written_once(uri, monkeypatch):
    monkeypatch.setattr(writing, "COMPACT_EVERY", 3)
    monkeypatch.setattr(writing, "COMPACTED", 1000)
    writer = Writer()
    writer.append(uri, batches([f"large-{at}" for at in range(5000)], 1))
    (large,) = DeltaTable(uri).file_uris()
    for sequence in range(2, 9):
        writer.append(uri, batches([f"{sequence}"], sequence))

    assert large in DeltaTable(uri).file_uris()
    assert len(ids_in(uri)) == 5007


def test_more_tables_than_are_kept_open_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "HELD_OPEN", 2)
    writer = Writer()
    for sequence in (1, 2, 3):
        for name in "abcd":
            assert writer.append(str(tmp_path / name), batches([f"{sequence}"], sequence)) == 1

    assert all(ids_in(str(tmp_path / name)) == ["1", "2", "3"] for name in "abcd")

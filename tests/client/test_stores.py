"""Tables copied while their owners go on writing."""

import polars as pl
from deltalake import DeltaTable, write_deltalake

from meguri import stores


def test_a_table_is_copied_whose_owner_removes_files_meanwhile(tmp_path, monkeypatch):
    uri, copied = tmp_path / "data/_predictions/m/v1", tmp_path / "copy"
    for row in range(120):
        write_deltalake(str(uri), pl.DataFrame({"row": [row]}).to_arrow(), mode="append")
    DeltaTable(str(uri)).optimize.compact()
    listed = stores._paths

    def then_removed(store, below=None):
        paths = listed(store, below)
        if below != "_predictions/m/v1":
            return paths
        DeltaTable(str(uri)).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
        for old in uri.glob("_delta_log/0000000000000000000*.json"):
            old.unlink()
        return paths

    monkeypatch.setattr(stores, "_paths", then_removed)
    stores.copy_tables(str(tmp_path / "data"), copied, {})

    assert sorted(pl.read_delta(str(copied / "_predictions/m/v1"))["row"]) == list(range(120))

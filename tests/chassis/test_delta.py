"""Tables are read where a home may be: in folders with spaces and in any script."""

import polars as pl
import pytest
from deltalake import write_deltalake

from meguri_chassis.delta import Table


@pytest.mark.parametrize("folder", ["plain", "my projects", "巡り", "50% #1?", "a+b&c"])
def test_what_was_written_is_read(folder, tmp_path):
    place, rows = str(tmp_path / folder / "rows"), pl.DataFrame({"x": [1, 2, 3]})
    write_deltalake(place, rows)
    write_deltalake(Table(place), rows, mode="append")

    assert sorted(pl.scan_delta(Table(place)).collect()["x"]) == [1, 1, 2, 2, 3, 3]
    assert pl.scan_delta(Table(place, version=0)).collect()["x"].to_list() == [1, 2, 3]

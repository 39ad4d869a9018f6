"""The latest recorded requests of a model, to be asked of another version."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pyarrow as pa
import pytest

from meguri_contracts.errors import Invalid
from meguri_monitoring.predictions import recorded
from tests.conftest import until
from tests.monitoring.conftest import Monitoring, message, values

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


async def answered(monitoring: Monitoring, second: int, version: int, role: str | None, *ids: str, **columns) -> None:
    at = NOON + timedelta(seconds=second)
    rows = values(len(ids), second)
    await monitoring.predict(message(monitoring.model, rows, version=version, ids=ids, role=role, time=at, **columns))


async def kept(monitoring: Monitoring, last: int, rows: int) -> pa.Table:
    """What is recorded, once it is as many rows."""

    async def enough() -> pa.Table | None:
        answer = await monitoring.http.get(f"/models/{monitoring.model}/recorded", params={"last": last})
        if answer.status_code != 200:
            return None
        assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
        found = pa.ipc.open_stream(answer.content).read_all()
        return found if found.num_rows == rows else None

    return await until(enough, f"{rows} recorded rows")


async def test_the_latest_requests_come_by_time_and_id_whoever_answered_but_for_shadows(monitoring):
    await monitoring.roll_out(1, canary=2, shadow=3)
    await answered(monitoring, 2, 2, "canary", "d", "c")
    await answered(monitoring, 2, 3, "shadow", "d", "c")
    await answered(monitoring, 1, 1, None, "b", "a")
    await answered(monitoring, 3, 1, "champion", "e")

    found = await kept(monitoring, 10, 5)
    assert found.column_names == [
        "prediction_id",
        "time",
        "version",
        "producer",
        "_entity",
        "trace_id",
        "x",
        "y",
        "label",
        "probability",
    ]
    columns = ("prediction_id", "version", "_entity")
    assert list(zip(*(found[name].to_pylist() for name in columns), strict=True)) == [
        ("a", 1, None),
        ("b", 1, None),
        ("c", 2, "customer-7"),
        ("d", 2, "customer-7"),
        ("e", 1, "customer-7"),
    ]
    assert found["time"].to_pylist()[-1] == NOON + timedelta(seconds=3)
    assert found["x"].to_pylist()[-1] == values(1, 3)[0, 0]
    assert (await kept(monitoring, 2, 2))["prediction_id"].to_pylist() == ["d", "e"]


async def test_features_of_any_type_come_as_they_were_asked(monitoring):
    features = {"x": [0.5], "y": [1.5], "town": ["Kiel"], "open": [True], "count": [7]}
    await answered(monitoring, 1, 9, "champion", "a", **features)
    await until((monitoring.folder / f"data/_predictions/{monitoring.model}/v9").exists, "the table")
    await monitoring.roll_out(9)

    found = await kept(monitoring, 10, 1)
    assert found.select(list(features)).to_pylist() == [{"x": 0.5, "y": 1.5, "town": "Kiel", "open": True, "count": 7}]


async def test_what_cannot_be_given_is_said(monitoring):
    http, path = monitoring.http, f"/models/{monitoring.model}/recorded"

    assert (await http.get(path)).status_code == 404
    assert (await http.get(path, params={"last": recorded.MAX_ROWS + 1})).status_code == 422
    assert (await http.get(path, params={"last": 0})).status_code == 422


def rows(count: int, **columns) -> pl.LazyFrame:
    about = {"prediction_id": [f"{i:06}" for i in range(count)], "time": [NOON] * count, "version": [1] * count}
    more = {"producer": ["p"] * count, "_entity": [None] * count, "trace_id": [""] * count}
    frame = pl.DataFrame(about | more | columns | {"prediction": [0.5] * count})
    return frame.with_columns(pl.col("_entity").cast(pl.String)).lazy()


def test_versions_with_other_features_and_answers_have_nulls_where_they_know_nothing():
    old, new = rows(1, x=[1.0]).rename({"prediction": "label"}).with_columns(probability=pl.lit(0.5)), rows(1, z=["t"])

    found = recorded.latest([new, old], 2)
    assert found.columns[6:] == ["z", "x", "prediction", "label", "probability"]
    assert found.select("z", "x", "prediction").rows() == [("t", None, 0.5), (None, 1.0, None)]


def test_more_rows_than_a_record_batch_are_a_stream_of_several():
    given = recorded.latest([rows(25_000, x=[1.0] * 25_000)], 21_000)
    parts = list(recorded.arrow_stream(given))
    read = pa.ipc.open_stream(b"".join(parts)).read_all()

    assert (len(parts), read.num_rows) == (4, 21_000)
    assert read["prediction_id"].to_pylist() == [f"{i:06}" for i in range(4_000, 25_000)]


def test_more_values_than_memory_is_meant_for_are_refused_in_words(monkeypatch):
    monkeypatch.setattr(recorded, "MAX_VALUES", 80)

    with pytest.raises(Invalid, match="of 8 columns at most 10 rows"):
        recorded.latest([rows(3, x=[1.0] * 3)], 11)
    assert recorded.latest([rows(3, x=[1.0] * 3)], 10).height == 3

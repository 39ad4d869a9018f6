import io
import json
from contextlib import suppress
from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meguri_contracts.errors import Malformed
from meguri_ingest import reading
from meguri_ingest.reading import format_of, read_bytes, read_records

FRAME = pl.DataFrame({"n": [1.5, None], "i": [1, 2], "s": ["x", "é"], "b": [True, None]})


def written(frame: pl.DataFrame, how: str) -> bytes:
    buffer = io.BytesIO()
    getattr(frame, f"write_{how}")(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("how", "format"), [("parquet", "parquet"), ("ipc", "arrow"), ("ipc_stream", "arrow"), ("ndjson", "jsonl")]
)
def test_every_typed_format_gives_the_same_rows(how, format):
    assert read_bytes(written(FRAME, how), format).frame.equals(FRAME)


def test_csv_is_text_and_only_an_unquoted_empty_field_is_null():
    raw = read_bytes(b'\xef\xbb\xbfn,s\r\n1.5,"a, b"\r\n,""\r\n\r\n', "csv")

    assert raw.text
    assert raw.frame.rows() == [("1.5", "a, b"), (None, "")]


def test_types_of_json_are_kept():
    raw = read_records([{"a": 1, "b": True, "c": "5", "d": 1, "e": 1}, {"a": 2.5, "b": None, "d": "1", "e": 2**70}])

    assert raw.frame.schema == {"a": pl.Float64, "b": pl.Boolean, "c": pl.String, "d": pl.Object, "e": pl.Object}
    assert raw.frame["c"].to_list() == ["5", None]
    assert raw.frame["d"].to_list() == [1, "1"]


def test_a_large_integer_beside_a_float_keeps_its_last_digit():
    assert read_records([{"a": 2**53 + 1}, {"a": 0.5}]).frame["a"].to_list() == [2**53 + 1, 0.5]


def test_dates_times_and_categories_of_parquet_become_plain_ones():
    odd = pl.DataFrame(
        {
            "d": [date(2025, 1, 2)],
            "t": pl.Series([datetime(2025, 1, 2, 12, tzinfo=UTC)], dtype=pl.Datetime("ns", "Europe/Berlin")),
            "c": pl.Series(["x"], dtype=pl.Categorical),
        }
    )

    frame = read_bytes(written(odd, "parquet"), "parquet").frame

    assert frame.schema == {"d": pl.Datetime("us", "UTC"), "t": pl.Datetime("us", "UTC"), "c": pl.String}
    assert frame["d"].item() == datetime(2025, 1, 2, tzinfo=UTC)
    assert frame["t"].item() == odd["t"].item()


@pytest.mark.parametrize(
    ("data", "format", "says"),
    [
        (b"a,b\n1,2\n1,2,3\n", "csv", "line 3: 3 fields, but the header names 2"),
        (b'a,b\n1,"2\n', "csv", "line 2: unexpected end of data"),
        (b"a,b\n1,2\n\xff,3\n", "csv", "line 3: byte 0xff is not UTF-8"),
        (b"a,b,a\n1,2,3\n", "csv", "the column 'a' stands there twice"),
        (b"", "csv", "empty"),
        (b"x\x9cKL", "csv", "compressed"),
        (b'{"a": 1}\n\n{"a": }\n', "jsonl", "line 3: expected value"),
        (b'{"a": 1}\n[1]\n', "jsonl", "line 2: not a JSON object but [1]"),
        (b'{"a": "\\ud800"}\n', "jsonl", "line 1"),
        (b"no such thing at all", "parquet", "parquet: "),
        (b"", "arrow", "arrow: empty data"),
        (written(pl.DataFrame({"l": [[1]]}), "parquet"), "parquet", "column 'l' is of type List(Int64)"),
        (written(pl.select(t=pl.lit(2**60).cast(pl.Datetime("us"))), "ipc"), "arrow", "outside of the years 1 to 9999"),
        (b"", "xlsx", "known are csv, jsonl, parquet, arrow"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_place(data, format, says):
    with pytest.raises(Malformed) as refusal:
        read_bytes(data, format)
    assert says in str(refusal.value)


def test_a_damaged_parquet_file_never_takes_the_process_down():
    sound = written(FRAME, "parquet")
    refusals = []
    for place in range(8, len(sound), len(sound) // 5):
        damaged = bytearray(sound)
        damaged[place] ^= 0xFF
        try:
            read_bytes(bytes(damaged), "parquet")
        except Malformed as refusal:
            refusals.append(str(refusal))
    assert refusals
    assert all(refusal.startswith("parquet: ") for refusal in refusals)


def test_a_small_file_that_unpacks_to_more_than_the_memory_is_refused(monkeypatch):
    zeros = pl.repeat(0, 20_000_000, dtype=pl.Int64, eager=True)
    data = written(pl.DataFrame({f"c{i}": zeros for i in range(8)}), "parquet")
    monkeypatch.setattr(reading, "MEMORY", 1024**3)

    assert len(data) < 1_000_000
    with pytest.raises(Malformed, match="larger than 1 GiB"):
        read_bytes(data, "parquet")


def test_records_that_share_no_column_are_refused_instead_of_becoming_a_giant_table():
    with pytest.raises(Malformed, match="9000 records name 9000 different columns"):
        read_records([{f"c{i}": 1} for i in range(9000)])


def test_text_that_is_no_unicode_is_refused():
    for value in ("\ud800", ["\ud800"]):
        with pytest.raises(Malformed):
            read_records([{"a": value}])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=3), json_values, max_size=4), max_size=6))
def test_any_json_can_be_read_and_no_value_changes(records):
    frame = read_records(records).frame

    for name in frame.columns:
        expected = [record.get(name) for record in records]
        assert [json.dumps(float(v) if frame[name].dtype == pl.Float64 and v is not None else v) for v in expected] == [
            json.dumps(v) for v in frame[name]
        ]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet='a1,"\n\r\0 ', max_size=40).map(str.encode))
def test_any_bytes_are_rows_or_malformed(data):
    for kind in ("csv", "jsonl"):
        with suppress(Malformed):
            read_bytes(data, kind)


def test_the_format_follows_from_the_ending_unless_it_is_given():
    assert format_of("file:///in/A.CSV", None) == "csv"
    assert format_of("s3://b/x.ndjson", None) == "jsonl"
    assert format_of("s3://b/x.feather", None) == "arrow"
    assert format_of("file:///in/x.csv", "parquet") == "parquet"
    with pytest.raises(Malformed, match=r"known|\.csv, \.jsonl, \.ndjson, \.parquet"):
        format_of("file:///in/x.csv.gz", None)

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from meguri_contracts.events import Signature, Tensor
from meguri_inference import formats
from meguri_inference.formats import BadRows, format_of
from meguri_inference.pieces import features, pieces

NUMBERS = Signature(
    features=("x", "y"),
    input=Tensor(name="input", datatype="FP32", shape=(-1, 2)),
    outputs=(Tensor(name="label", datatype="INT64", shape=(-1,)),),
)


def mixed(*datatypes: Any) -> Signature:
    inputs = tuple(Tensor(name=f"f{at}", datatype=kind, shape=(-1, 1)) for at, kind in enumerate(datatypes))
    return NUMBERS.model_copy(
        update={"features": tuple(tensor.name for tensor in inputs), "input": inputs[0], "inputs": inputs}
    )


def table(count: int) -> pa.Table:
    numbers = np.arange(count) / 4
    return pa.table({"id": [f"i,{at}" for at in range(count)], "y": numbers, "x": np.arange(count)})


def write(folder: Path, format: str, data: pa.Table, chunk: int = 7) -> Path:
    path = folder / f"rows.{format}"
    match format:
        case "csv":
            pyarrow.csv.write_csv(data, path)
        case "jsonl":
            path.write_text("\n\n".join(json.dumps(row) for row in data.to_pylist()) + "\n")
        case "parquet":
            pq.write_table(data, path, row_group_size=chunk)
        case "feather":
            pyarrow.feather.write_feather(data, str(path), compression="zstd", chunksize=chunk)
        case "arrow":
            with pa.ipc.new_stream(path, data.schema) as stream:
                stream.write_table(data, max_chunksize=chunk)
    return path


def read(path: Path, signature: Signature = NUMBERS, **how: Any) -> list[pa.Table]:
    return list(pieces(path, format_of(path.name), signature, **how))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meguri_inference.pieces.PIECE_ROWS", 10)
    monkeypatch.setattr(formats, "PIECE_ROWS", 6)


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "feather", "arrow"])
def test_the_same_rows_come_in_the_same_pieces_whatever_the_format(tmp_path, format, small_pieces):
    found = read(write(tmp_path, format, table(45)), first=8, rows=25)

    assert [piece.num_rows for piece in found] == [10, 10, 5]
    assert [text for piece in found for text in piece.column("id").to_pylist()] == [f"i,{at}" for at in range(8, 33)]
    values = features(found[1], NUMBERS)
    assert list(values) == ["x", "y"]
    assert values["x"].dtype == np.float32
    assert values["x"].tolist() == list(range(18, 28))
    assert values["y"].tolist() == [at / 4 for at in range(18, 28)]


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "feather", "arrow"])
def test_only_the_columns_of_the_model_are_read_if_these_are_enough(tmp_path, format):
    (piece,) = read(write(tmp_path, format, table(3)), all_columns=False)

    assert piece.column_names == ["x", "y"]


def test_rows_that_are_not_there_are_no_rows(tmp_path):
    assert read(write(tmp_path, "parquet", table(3)), first=5, rows=2) == []
    assert read(write(tmp_path, "csv", table(0))) == []


def test_row_groups_before_the_first_row_are_not_read(tmp_path):
    path = write(tmp_path, "parquet", table(45), chunk=7)
    begin, batch = next(formats.read(path, "parquet", NUMBERS, first=30))

    assert (begin, batch.column("id")[0].as_py()) == (28, "i,28")


def test_a_large_row_group_is_not_held_in_memory(tmp_path):
    count = 1_000_000
    numbers = np.random.default_rng(0).random(count)
    path = write(tmp_path, "parquet", pa.table({"id": numbers, "x": numbers, "y": numbers}), chunk=count)
    before, held = pa.total_allocated_bytes(), []
    for _ in pieces(path, "parquet", NUMBERS):
        held.append(pa.total_allocated_bytes() - before)

    assert max(held) < path.stat().st_size / 2


def test_features_of_every_kind_are_read_from_text_and_from_types(tmp_path):
    signature = mixed("FP64", "INT64", "BOOL", "BYTES")
    data = pa.table({"f0": [1.5, 2.5], "f1": [1, 2], "f2": [True, False], "f3": ["a", "ü"]})
    for kind in ("csv", "jsonl", "parquet"):
        (piece,) = read(write(tmp_path, kind, data), signature)
        found = features(piece, signature)
        assert [list(values) for values in found.values()] == [[1.5, 2.5], [1, 2], [True, False], ["a", "ü"]]
    as_categories = data.set_column(3, "f3", data.column("f3").dictionary_encode())
    (piece,) = read(write(tmp_path, "parquet", as_categories), signature)
    assert features(piece, signature)["f3"].tolist() == ["a", "ü"]


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("x", [1.0, None], "row 11: column 'x' has no value"),
        ("x", [1.0, float("nan")], "row 11: column 'x' is nan, no finite number of FP32"),
        ("y", [1.0, 1e300], "row 11: column 'y' is 1e+300, no finite number of FP32"),
        ("y", [1, 2**24 + 1], "column 'y', after row 10: Integer value 16777217 not in range"),
    ],
)
def test_a_value_that_single_requests_may_not_have_is_refused_with_row_and_column(column, values, said):
    data = pa.table({"x": [1.0, 1.0], "y": [1.0, 1.0]} | {column: values})
    with pytest.raises(BadRows) as refusal:
        features(data, NUMBERS, first=10)
    assert str(refusal.value).startswith(said)


def test_an_input_whose_columns_do_not_fit_is_refused_with_the_column(tmp_path):
    without = table(2).drop_columns(["y"])
    texts = table(2).set_column(1, "y", pa.array(["a", "b"]))
    for kind in ("csv", "jsonl", "parquet", "arrow"):
        assert "column 'y' is missing in the input; it has id, x" in refused(write(tmp_path, kind, without))
        assert "column 'y' is " in refused(write(tmp_path, kind, texts))
    assert refused(write(tmp_path, "parquet", texts)) == "column 'y' is string in the input, the model takes FP32"
    assert refused(write(tmp_path, "csv", texts)) == "csv: line 2: column 'y' is 'a', which has the wrong type"
    assert refused(write(tmp_path, "jsonl", texts)) == "jsonl: line 1: column 'y' is 'a', the model takes FP32"


@pytest.mark.parametrize(
    ("format", "content", "said"),
    [
        ("csv", b"x,y,x\n1,2,3\n", "the column 'x' stands in the input twice"),
        ("csv", b"x,y\n1,2\n3\n", "csv: CSV parse error: Row #3: Expected 2 columns, got 1"),
        ("csv", b"", "column 'x' is missing in the input; it has none"),
        ("csv", b"x,y\n1,\xff\n", "csv: "),
        ("csv", b"\xffx,y\n1,2\n", "csv: byte 0xff is not UTF-8"),
        ("jsonl", b"", "jsonl: the file is empty"),
        ("jsonl", b'{"x": 1, "y": 2}\n[1]\n', "jsonl: line 2 is no object"),
        ("jsonl", b'{"x": 1, "y": 2}\n{"x": 1\n', "jsonl: line 2: "),
        ("jsonl", b'{"x": 1, "y": 2}\n{"x": 1, "z": 2}\n', "jsonl: line 2 has 'z', which the first line does not have"),
        ("jsonl", b'{"x": 1, "y": 16777217}\n', "jsonl: line 1: column 'y' is '16777217', the model takes FP32"),
        ("parquet", b"PAR1 and not more", "parquet: "),
        ("arrow", b"no arrow", "arrow: "),
        ("feather", b"ARROW1\0\0cut", "arrow: "),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, format, content, said):
    path = tmp_path / f"rows.{format}"
    path.write_bytes(content)

    assert refused(path).startswith(said)


def test_columns_that_the_model_does_not_take_are_text_if_the_format_knows_no_types(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"x": 1, "y": 2, "more": {"a": 1}}\n{"x": 1, "y": 2, "more": "text"}\n{"x": 1, "y": 2}\n')
    (piece,) = read(path)

    assert piece.column("more").to_pylist() == ['{"a":1}', "text", None]


def test_an_ending_that_stands_for_no_format_is_refused():
    assert format_of("s3://b/x.NDJSON") == "jsonl"
    with pytest.raises(BadRows, match=r"'x.xlsx' does not end in one of .csv"):
        format_of("x.xlsx")


def refused(path: Path) -> str:
    """What is said of a file, the same whether all of its columns are read or the model's only."""
    said = set()
    for every in (True, False):
        with pytest.raises(BadRows) as refusal:
            read_features(path, every)
        said.add(str(refusal.value))
    assert len(said) == 1
    return said.pop()


def read_features(path: Path, all_columns: bool) -> None:
    for piece in pieces(path, format_of(path.name), NUMBERS, all_columns=all_columns):
        features(piece, NUMBERS)

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from meguri_contracts.errors import Invalid, Malformed
from meguri_contracts.predictions import FEATURES, HEAD
from meguri_monitoring.predictions import tables, writing
from meguri_monitoring.predictions.predictions import read
from meguri_monitoring.predictions.tables import find
from meguri_monitoring.predictions.writing import TableBusy, Writer
from tests.monitoring.batches import NOON, OLDER, batches, sent, table, write_as_before


def append(uri: str, messages) -> int:
    return Writer().append(uri, messages)


def rows_of(uri) -> pl.DataFrame:
    return pl.read_delta(str(uri))


def test_a_message_becomes_the_rows_that_were_predicted():
    (batch,) = batches(["a", "b:0", "b:1"], 42, producers=["p", "q", "p"])

    assert (batch.model, batch.version, batch.sequence) == ("digits", 1, 42)
    assert batch.frame.select("x", "y").rows() == [(0.0, 0.5), (1.0, 0.5), (2.0, 0.5)]
    assert batch.frame["prediction_id"].to_list() == ["a", "b:0", "b:1"]
    assert batch.frame["producer"].to_list() == ["p", "q", "p"]
    assert batch.frame["sequence"].to_list() == [42] * 3


def test_a_message_of_two_versions_becomes_a_batch_of_each():
    batch_1, batch_2 = batches(["a", "b", "c"], 1, version=[1, 2, 1])

    assert (batch_1.version, batch_1.frame["prediction_id"].to_list()) == (1, ["a", "c"])
    assert (batch_2.version, batch_2.frame.select("prediction_id", "x", "y").rows()) == (2, [("b", 1.0, 0.5)])


def test_a_regression_is_read_as_well():
    rows = table(["a"]).drop_columns(["label", "probability"]).append_column("prediction", [[1.5]])
    (batch,) = read(sent(rows), 1)

    assert batch.frame.columns[-4:] == ["x", "y", "prediction", "sequence"]
    assert batch.frame["prediction"].to_list() == [1.5]


def test_narrow_types_and_dictionaries_are_read_and_missing_values_stay_missing():
    rows = table(["a", "b"], x=pa.array([1.5, None], pa.float32()), y=pa.array([1, 2], pa.int16()))
    rows = rows.set_column(2, "model", rows["model"].dictionary_encode())
    rows = rows.set_column(3, "version", rows["version"].cast(pa.int32()))
    (batch,) = read(sent(rows), 1)

    assert batch.frame.select("model", "version", "x", "y").rows() == [("digits", 1, 1.5, 1), ("digits", 1, None, 2)]
    assert batch.frame.schema["x"] == pl.Float64


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (table(["a"]).drop_columns(["probability"]), "predictions are prediction_id"),
        (table(["a"]).drop_columns(["time"]), "predictions are prediction_id"),
        (table(["a"]).drop_columns(["x", "y"]), "predictions are prediction_id"),
        (table(["a"], sequence=[1.0]), "'sequence' cannot be a feature"),
        (table(["a"], x=[[1.0]]), "wrong type"),
        (table([None]), "'prediction_id' is empty in 1"),
    ],
)
def test_other_columns_are_malformed(rows, reason):
    with pytest.raises(Malformed, match=reason):
        read(sent(rows), 1)


@pytest.mark.parametrize("data", [b"", b"nothing", sent(table(["a"]))[:200]])
def test_what_is_no_arrow_stream_is_malformed(data):
    with pytest.raises(Malformed, match="not an Arrow IPC stream"):
        read(data, 1)


def test_predictions_are_in_the_table_as_they_were_sent(tmp_path):
    (batch,) = batches(["a", "b"], 7)

    assert append(str(tmp_path), [batch]) == 2
    assert rows_of(tmp_path).equals(batch.frame)


def test_messages_that_come_again_change_nothing_however_they_are_grouped(tmp_path):
    one, two, three = (batches([f"{i}"], sequence=i)[0] for i in (1, 2, 3))

    assert append(str(tmp_path), [one, two]) == 2
    assert append(str(tmp_path), [one, two]) == 0
    assert append(str(tmp_path), [one, two, three]) == 1
    assert append(str(tmp_path), []) == 0
    assert sorted(rows_of(tmp_path)["prediction_id"]) == ["1", "2", "3"]


def test_writers_that_race_with_the_same_message_write_it_once(tmp_path):
    append(str(tmp_path), batches(["a"], 1))
    message = batches(["b", "c"], 2)
    start = Barrier(4)

    def write(_) -> int:
        start.wait()
        try:
            return append(str(tmp_path), message)
        except TableBusy:
            return 0

    with ThreadPoolExecutor(4) as writers:
        written = sum(writers.map(write, range(4)))

    assert written == 2
    assert sorted(rows_of(tmp_path)["prediction_id"]) == ["a", "b", "c"]


def test_many_appends_leave_few_files_and_still_know_what_came(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "COMPACT_EVERY", 5)
    for sequence in range(1, 13):
        append(str(tmp_path), batches([f"{sequence}"], sequence))

    assert len(DeltaTable(str(tmp_path)).file_uris()) < 6
    assert sorted(rows_of(tmp_path)["sequence"]) == list(range(1, 13))
    assert append(str(tmp_path), batches(["12"], 12)) == 0


def test_columns_that_are_not_those_of_the_table_are_refused_and_named(tmp_path):
    append(str(tmp_path), batches(["a"], 1))

    with pytest.raises(Invalid, match="column 'z' is Float64 in predictions and not in their table"):
        append(str(tmp_path), batches(["b"], 2, x=[1.0], y=[1.0], z=[1.0]))
    assert rows_of(tmp_path)["prediction_id"].to_list() == ["a"]


def test_a_prediction_is_found_by_its_id_and_by_that_of_its_request(tmp_path):
    append(str(tmp_path), batches(["a", *(f"b:{i}" for i in range(12)), "b:x:0", "bb:0", "c.*:0"], 1))

    assert find(str(tmp_path), "a")["prediction_id"] == "a"
    assert find(str(tmp_path), "b:11")["x"] == 12.0
    assert find(str(tmp_path), "b")["prediction_id"] == "b:0"
    assert find(str(tmp_path), "b:x")["prediction_id"] == "b:x:0"
    assert find(str(tmp_path), "c.*")["prediction_id"] == "c.*:0"
    assert find(str(tmp_path), "a")["time"] == NOON


def test_a_prediction_that_is_nowhere_is_none(tmp_path):
    assert find(str(tmp_path / "no-table"), "a") is None
    append(str(tmp_path), batches(["a", "b:0"], 1))

    assert [find(str(tmp_path), one) for one in ("z", "", "b:", "b:1", ":0")] == [None] * 5


# --- what is kept of each prediction since there are roles -------------------------------------------------------------


def detailed(ids, roles, entities=None, latencies=None, **more) -> pa.Table:
    """Rows as replicas send them that know of roles: three columns more, after those of every prediction."""
    rows = table(ids, **more)
    details = {
        "_entity": pa.array(entities or [None] * len(ids), pa.string()),
        "_role": pa.array(roles, pa.string()),
        "_latency": pa.array(latencies or [None] * len(ids), pa.int64()),
    }
    for at, (name, column) in enumerate(details.items()):
        rows = rows.add_column(6 + at, name, column)
    return rows


def test_entity_role_and_latency_are_read_and_filled_in_where_an_older_replica_sent_none():
    (new,) = read(sent(detailed(["a"], ["canary"], ["customer-7"], [1500])), 2)
    (old,) = batches(["b"], 1)

    columns = ("_entity", "_role", "_latency")
    assert new.frame.select(columns).row(0) == ("customer-7", "canary", 1500)
    assert old.frame.select(columns).row(0) == (None, "champion", None)
    assert old.frame.schema == new.frame.schema


def test_rows_of_a_shadow_are_kept_too():
    (batch,) = read(sent(detailed(["a", "b", "c"], ["arm", "shadow", "shadow"])), 1)

    assert batch.frame["prediction_id"].to_list() == ["a", "b", "c"]
    assert batch.frame["_role"].to_list() == ["arm", "shadow", "shadow"]


def test_text_and_booleans_stay_what_they_are():
    (batch,) = batches(["a", "b"], 1, x=[1, 2], town=["Kiel", None], open=[True, None])

    assert batch.frame.schema["x"] == pl.Int64
    assert batch.frame.select("town", "open").rows() == [("Kiel", True), (None, None)]


def test_predictions_on_text_alone_are_read():
    (batch,) = batches(["a", "b"], 1, town=["Kiel", "Ulm"])

    assert batch.frame["town"].to_list() == ["Kiel", "Ulm"]


def test_an_outlier_has_a_label_and_a_score():
    rows = table(["a"]).rename_columns({"probability": "score"})
    (batch,) = read(sent(rows), 1)

    assert batch.frame.select("label", "score").row(0) == ("7", 0.9)


def test_a_table_of_before_takes_rows_with_roles_and_without(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "COMPACT_EVERY", 3)
    uri = str(tmp_path)
    write_as_before(uri, 1, "old", x=[1], y=[0.5])
    (with_roles,) = read(sent(detailed(["new"], ["canary"], ["customer-7"], [1500], x=[2], y=[0.5])), 3)
    (without,) = batches(["older replica"], 2, x=[3.0], y=[0.5])
    (shadow,) = read(sent(detailed(["old"], ["shadow"])), 4)

    # Old and new messages in one append, and again after the table has the columns.
    assert append(uri, [without, with_roles]) == 2
    assert append(uri, [without, with_roles]) == 0
    assert append(uri, [shadow]) == 1
    given = tables.scan(uri).collect().sort("sequence")
    assert given.select("prediction_id", *OLDER, "x").rows() == [
        ("old", None, "champion", None, 1.0),
        ("older replica", None, "champion", None, 3.0),
        ("new", "customer-7", "canary", 1500, 2.0),
    ]
    assert tables.scan(uri, shadow=True).collect()["sequence"].to_list() == [4]
    assert tables.kept_up_to(uri) == 4
    assert find(uri, "old")["_role"] == "champion"
    assert find(uri, "old", shadow=True)["_role"] == "shadow"


def test_a_table_of_before_that_nobody_wrote_to_since_is_read(tmp_path):
    write_as_before(str(tmp_path), 1, "old")

    assert find(str(tmp_path), "old")["_role"] == "champion"
    assert find(str(tmp_path), "old", shadow=True) is None


def test_what_is_not_the_same_in_the_type_of_the_table_is_refused(tmp_path):
    append(str(tmp_path), batches(["a"], 1, x=[1], town=["Kiel"]))

    with pytest.raises(Invalid, match="column 'x' is Float64 in predictions and Int64 in their table"):
        append(str(tmp_path), batches(["b"], 2, x=[0.5], town=["Ulm"]))
    append(str(tmp_path), batches(["c"], 3, x=[2], town=pa.nulls(1)))
    assert rows_of(tmp_path).sort("sequence").select("x", "town").rows() == [(1, "Kiel"), (2, None)]


# --- messages that say once what their rows share ------------------------------------------------------------------------

PROCESS, SUFFIX = "0123abcd", "beef"
MICROSECONDS = int(NOON.timestamp()) * 1_000_000
DETAILS = {"model": "digits", "version": 1, "role": "canary", "process": PROCESS, "trace_suffix": SUFFIX}
OF_THREE = {**DETAILS, "producer": "scanner-a", "features": ("x", "y")}


def short(head=OF_THREE, **other) -> bytes:
    """A message of a request of one row and one of two; `other` columns come in place of the usual ones or are left out."""
    columns = {
        "time": pa.array([MICROSECONDS, MICROSECONDS + 1, MICROSECONDS + 1], pa.timestamp("us", "UTC")),
        "_number": pa.array([10, 11, 11], pa.int32()),
        "_row": pa.array([-1, 0, 1], pa.int32()),
        "producer": pa.nulls(3),
        "trace_id": pa.nulls(3),
        "_entity": pa.nulls(3),
        "_latency": pa.array([7, 8, 8], pa.int64()),
        FEATURES: pa.FixedSizeListArray.from_arrays(pa.array([0.0, 0.5, 1.0, 0.5, 2.0, 0.5], pa.float32()), 2),
        "label": ["7", "7", "7"],
        "probability": pa.array([0.5] * 3, pa.float32()),
    }
    kept = {name: column for name, column in (columns | other).items() if column is not None}
    return sent(pa.table(kept).replace_schema_metadata({HEAD: json.dumps(head)}))


def prediction_id(microseconds: int, number: int) -> str:
    return f"{microseconds:014x}{PROCESS}{number:06x}"


def test_what_rows_share_is_said_of_each_as_older_messages_do():
    one, two = prediction_id(MICROSECONDS, 10), prediction_id(MICROSECONDS + 1, 11)
    long = detailed([one, f"{two}:0", f"{two}:1"], ["canary"] * 3, latencies=[7, 8, 8])
    moments = [NOON, *[NOON + timedelta(microseconds=1)] * 2]
    long = long.set_column(1, "time", pa.array(moments, pa.timestamp("us", "UTC")))
    long = long.set_column(5, "trace_id", pa.array([one + SUFFIX, two + SUFFIX, two + SUFFIX]))
    long = long.set_column(long.num_columns - 1, "probability", pa.array([0.5] * 3))

    (new,), (old,) = read(short(), 5), read(sent(long), 5)

    assert (new.model, new.version, new.sequence) == ("digits", 1, 5)
    assert new.frame.equals(old.frame)
    assert new.frame.schema == old.frame.schema


def test_what_is_said_of_a_single_row_holds_for_that_row():
    (batch,) = read(
        short(
            DETAILS | {"features": ("x", "y")},
            producer=pa.array(["a", "b", "b"]),
            trace_id=pa.array(["own", "", None]),
            _entity=pa.array([None, "guest 7", "guest 7"]),
        ),
        5,
    )

    derived = prediction_id(MICROSECONDS + 1, 11) + SUFFIX
    assert batch.frame["producer"].to_list() == ["a", "b", "b"]
    assert batch.frame["trace_id"].to_list() == ["own", derived, derived]
    assert batch.frame["_entity"].to_list() == [None, "guest 7", "guest 7"]


def test_features_that_are_not_all_numbers_have_a_column_each():
    text = {"town": ["Kiel", None, "Ulm"], "open": [True, False, None], "label": ["7"] * 3, "probability": [0.5] * 3}
    columns = {FEATURES: None, "label": None, "probability": None}
    message = pa.ipc.open_stream(short(DETAILS | {"producer": "a"}, **columns)).read_all()
    for name, values in text.items():
        message = message.append_column(name, pa.array(values))

    (batch,) = read(sent(message), 5)

    assert batch.frame.select("town", "open").rows() == [("Kiel", True), (None, False), ("Ulm", None)]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (short({"model": "digits"}), "head of a message"),
        (short(OF_THREE | {"process": "Ümläut12"}), "head of a message"),
        (short(time=None), "begins with the columns time"),
        (short(_number=["a", "b", "c"]), "'_number' is string"),
        (short(_row=pa.array([None, 0, 1], pa.int32())), "'_row' is empty in 1"),
        (short(DETAILS | {"features": ("x", "y")}), "'producer' is empty in 3"),
        (short(OF_THREE | {"features": ("x",)}), "the 1 features of each prediction"),
        (short(OF_THREE | {"features": ("x", "x")}), "'x' cannot be a feature"),
        (short(OF_THREE | {"features": ("x", "sequence")}), "'sequence' cannot be a feature"),
        (short(**{FEATURES: [0.5, 1.5, 2.5]}), "the 2 features of each prediction"),
        (short(**{FEATURES: pa.array([[1.0, 2.0], None, [1.0, 2.0]], pa.list_(pa.float32(), 2))}), "empty in 1"),
        (short(probability=None), "predictions are prediction_id"),
    ],
)
def test_a_message_that_is_not_as_agreed_is_malformed(message, reason):
    with pytest.raises(Malformed, match=reason):
        read(message, 1)


def test_a_damaged_message_is_malformed_or_read_and_nothing_worse():
    random = np.random.default_rng(0)
    whole = np.frombuffer(short(_entity=pa.array(["a", "bc", "d"]), trace_id=pa.array(["x", "", "z"])), np.uint8)
    read_anyway = 0
    for _ in range(500):
        damaged = whole.copy()
        damaged[random.integers(0, len(whole), 3)] = random.integers(0, 256, 3)
        try:
            read_anyway += len(read(damaged.tobytes(), 1))
        except Malformed:
            continue

    assert read_anyway < 500


def test_files_of_a_wide_table_are_found_by_sequence(tmp_path):
    uri = f"{tmp_path}/t"
    for sequence in (1, 2):
        append(uri, batches([f"p{sequence}"], sequence, **{f"x_{n}": [0.5] for n in range(60)}))

    ranges = pl.DataFrame(DeltaTable(uri).get_add_actions(flatten=True))

    assert sorted(ranges["max.sequence"].to_list()) == [1, 2]
    assert tables.between(uri, 2, 2)["prediction_id"].to_list() == ["p2"]


def test_files_that_are_no_longer_of_a_table_are_removed(tmp_path, monkeypatch):
    for name, value in {"COMPACT_EVERY": 5, "TIDY_EVERY": 20, "UNUSED_HOURS": 0}.items():
        monkeypatch.setattr(writing, name, value)
    uri = str(tmp_path)
    write_as_before(uri, 1, "old", x=[1], y=[0.5])
    killed = tmp_path / "part-of-who-was-killed.parquet"
    killed.write_bytes(b"PAR1")
    for sequence in range(2, 251):
        append(uri, batches([f"{sequence}"], sequence))

    assert not killed.exists()
    assert len(list(tmp_path.glob("*.parquet"))) < 50
    assert len(list(tmp_path.glob("_delta_log/*.json"))) < 150
    assert tables.count(tables.scan(uri)) == tables.kept_up_to(uri) == 250


def test_what_was_put_together_is_not_written_again_by_each_compaction(tmp_path, monkeypatch):
    for name, value in {"COMPACT_EVERY": 5, "WHOLE_EVERY": 100, "COMPACTED": 30_000}.items():
        monkeypatch.setattr(writing, name, value)
    uri = str(tmp_path)
    for sequence in range(1, 90):
        append(uri, batches([f"{sequence}-{row}" for row in range(100)], sequence))

    sizes = [file.stat().st_size for file in tmp_path.glob("*.parquet")]
    assert max(sizes) < 2 * 30_000
    assert len(DeltaTable(uri).file_uris()) < 30
    assert tables.count(tables.scan(uri)) == 8900

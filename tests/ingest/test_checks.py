import json
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meguri_contracts.errors import Invalid
from meguri_contracts.spec import Dataset
from meguri_ingest.checks import TYPES, HopelessBatch, check
from meguri_ingest.reading import Raw, read_bytes, read_records


def dataset(max_bad_share: float = 1, **columns: dict) -> Dataset:
    return Dataset(name="things", columns=columns, max_bad_share=max_bad_share)


def reasons(raw: Raw, **columns: dict) -> list[str | None]:
    """Per row of the batch, why it is bad, or None."""
    bad = check(raw, dataset(**columns)).bad
    why = dict(zip(bad["index"], bad["reason"], strict=True))
    return [why.get(row) for row in range(raw.frame.height)]


def a(*values: object) -> Raw:
    return read_records([{"a": value} for value in values])


def test_good_rows_have_the_declared_columns_in_their_order_and_type():
    raw = read_records([{"t": "2025-01-02T03:04:05Z", "b": True, "s": "x", "i": 5.0, "n": 1}])
    declared = dataset(**{name[0]: {"type": name} for name in TYPES})

    good = check(raw, declared).good

    assert list(good.schema.items()) == [(kind[0], dtype) for kind, dtype in TYPES.items()]
    assert good.row(0) == (1.0, 5, "x", True, datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC))


def test_a_bad_row_is_set_aside_whole_with_its_first_reason():
    raw = read_records([{"a": 1, "b": "x"}, {"a": 17.5, "b": 5}, {"a": 3, "b": "y"}])

    checked = check(raw, dataset(a={"type": "number", "max": 16}, b={"type": "string"}))

    assert checked.good.rows() == [(1.0, "x"), (3.0, "y")]
    assert checked.bad.to_dicts() == [
        {"index": 1, "row": '{"a":17.5,"b":5}', "reason": "a: 17.5 is above the maximum 16"}
    ]


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("integer", 0.5, "a: 0.5 is not an integer of 64 bits"),
        ("integer", 2**63, "a: 9223372036854775808 is not an integer of 64 bits"),
        ("integer", "5", 'a: "5" is not an integer of 64 bits'),
        ("integer", True, "a: true is not an integer of 64 bits"),
        ("number", "5", 'a: "5" is not a number'),
        ("number", True, "a: true is not a number"),
        ("number", [1], "a: [1] is not a number"),
        ("number", float("nan"), "a: NaN is not a finite number"),
        ("number", float("-inf"), "a: -Infinity is not a finite number"),
        ("string", 5, "a: 5 is not a string"),
        ("boolean", 1, "a: 1 is not true or false"),
        ("boolean", "true", 'a: "true" is not true or false'),
        ("timestamp", 5, "a: 5 is not a timestamp such as 2025-01-31T12:00:00Z"),
        ("timestamp", "2025-02-30", 'a: "2025-02-30" is not a timestamp such as 2025-01-31T12:00:00Z'),
        ("timestamp", "0001-01-01T00:00:00+05:00", 'a: "0001-01-01T00:00:00+05:00" is not a timestamp'),
        ("number", None, "a: null is not allowed: the column is not nullable"),
    ],
)
def test_a_value_of_another_type_is_bad_alone_and_among_good_ones(kind, value, reason):
    good = {"integer": 5, "number": 0.5, "string": "x", "boolean": True, "timestamp": "2025-01-01"}[kind]

    assert reasons(a(value), a={"type": kind})[0].startswith(reason)
    among = reasons(a(good, value, good), a={"type": kind})
    assert (among[0], among[2]) == (None, None)
    assert among[1].startswith(reason)


def test_a_missing_key_is_null_and_null_is_fine_where_the_column_allows_it():
    raw = read_records([{"a": 1, "b": 2}, {"b": 2}, {"a": None, "b": 2}])
    declared = {"b": {"type": "number"}}

    assert reasons(raw, a={"type": "number", "nullable": True}, **declared) == [None, None, None]
    assert (
        reasons(raw, a={"type": "number"}, **declared)[1:] == ["a: null is not allowed: the column is not nullable"] * 2
    )


def test_ranges_include_their_ends():
    assert reasons(a(-1, 0, 16, 17), a={"type": "integer", "min": 0, "max": 16}) == [
        "a: -1 is below the minimum 0",
        None,
        None,
        "a: 17 is above the maximum 16",
    ]


def test_only_listed_values_pass():
    assert reasons(a("x", "z"), a={"type": "string", "values": ["x", "y"]}) == [None, 'a: "z" is not one of "x", "y"']
    assert reasons(a(1, 2), a={"type": "integer", "values": [1]}) == [None, "a: 2 is not one of 1"]
    assert reasons(a(None), a={"type": "integer", "values": [1], "nullable": True}) == [None]


def test_of_repeated_values_the_first_is_kept():
    assert reasons(a(1, 2, 1, None, None), a={"type": "integer", "unique": True, "nullable": True}) == [
        None,
        None,
        "a: 1 stands in an earlier row too and the column is unique",
        None,
        None,
    ]


def test_text_in_csv_may_be_a_number():
    raw = read_bytes(b'n,i,s,b,t\n 1e1 ,5.0,5,True,2025-01-01 10:00:00\n"",7,,false,2025-01-01\nx,0.5,y,1,z\n', "csv")
    nullable = {name[0]: {"type": name, "nullable": True} for name in TYPES}

    checked = check(raw, dataset(**nullable))

    assert checked.good.rows() == [
        (10.0, 5, "5", True, datetime(2025, 1, 1, 10, tzinfo=UTC)),
        (None, 7, None, False, datetime(2025, 1, 1, tzinfo=UTC)),
    ]
    assert checked.bad["reason"].to_list() == ['n: "x" is not a number']
    assert json.loads(checked.bad["row"].item()) == {"n": "x", "i": "0.5", "s": "y", "b": "1", "t": "z"}


def test_a_large_integer_in_csv_keeps_its_last_digit():
    checked = check(read_bytes(b"a\n9007199254740993\n9223372036854775808\n", "csv"), dataset(a={"type": "integer"}))

    assert checked.good["a"].to_list() == [9007199254740993]
    assert checked.bad["index"].to_list() == [1]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2025-01-31T12:00:00Z", datetime(2025, 1, 31, 12, tzinfo=UTC)),
        ("2025-01-31 12:00:00.000001+02:00", datetime(2025, 1, 31, 10, 0, 0, 1, tzinfo=UTC)),
        ("2025-01-31T12:00:00", datetime(2025, 1, 31, 12, tzinfo=UTC)),
        ("2025-01-31", datetime(2025, 1, 31, tzinfo=UTC)),
    ],
)
def test_timestamps_are_moments_in_utc(text, moment):
    assert check(a("2024-02-29T00:00:00Z", text), dataset(a={"type": "timestamp"})).good["a"][1] == moment


def test_columns_must_be_exactly_those_declared():
    declared = dataset(a={"type": "number"}, b={"type": "number"})

    with pytest.raises(HopelessBatch, match="lacks b and has undeclared c, _event;"):
        check(read_records([{"a": 1, "c": 1, "_event": "x"}]), declared)
    with pytest.raises(HopelessBatch, match="empty"):
        check(read_records([]), declared)
    with pytest.raises(HopelessBatch, match="empty"):
        check(read_bytes(b"a,b\n", "csv"), declared)


def test_a_batch_with_too_large_a_share_of_bad_rows_is_refused_with_its_most_frequent_reasons():
    raw = read_records([{"a": 1}] * 4 + [{"a": 99}] * 3 + [{"a": -5}] * 2 + [{"a": "x"}])
    column = {"type": "integer", "min": 0, "max": 16}

    with pytest.raises(HopelessBatch) as refusal:
        check(raw, dataset(max_bad_share=0.5, a=column))

    assert str(refusal.value) == (
        "6 of 10 rows are bad, at most 50% may be: a is above the maximum 16 (3 rows, first 99); "
        'a is below the minimum 0 (2 rows, first -5); a is not an integer of 64 bits (1 rows, first "x")'
    )
    assert check(raw, dataset(max_bad_share=0.6, a=column)).good.height == 4


json_values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(json_values, min_size=1, max_size=8), st.sampled_from(list(TYPES)), st.booleans())
def test_every_row_is_good_or_bad_and_never_both(values, kind, nullable):
    checked = check(a(*values), dataset(a={"type": kind, "nullable": nullable, "unique": True}))

    good = [value for row, value in enumerate(values) if row not in checked.bad["index"]]
    assert checked.good["a"].dtype == TYPES[kind]
    assert checked.good.height + checked.bad.height == len(values)
    if kind != "timestamp":
        assert checked.good["a"].to_list() == [float(v) if kind == "number" and v is not None else v for v in good]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text(alphabet='0a.-e:T", ', max_size=6), min_size=2, max_size=2), max_size=6))
def test_any_csv_is_judged_without_a_crash(rows):
    text = "a,b\n" + "\n".join(",".join('"' + field.replace('"', '""') + '"' for field in row) for row in rows) + "\n"
    for kind in TYPES:
        with suppress(Invalid):
            check(read_bytes(text.encode(), "csv"), dataset(a={"type": kind}, b={"type": "string"}))

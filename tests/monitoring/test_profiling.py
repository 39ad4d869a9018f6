import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meguri_chassis.profiles import profile_of
from meguri_contracts.errors import Invalid, Malformed
from meguri_monitoring.profiles.profiling import (
    MAX_PRODUCERS,
    OTHERS,
    SAMPLES,
    Share,
    by_producer,
    merged,
    profile,
    share_from_bytes,
    share_to_bytes,
)

ROWS = np.random.default_rng(3).normal(size=(3_000, 2))
REFERENCE = profile_of(("x", "y"), ROWS[:500])
PRODUCERS = ["abcab"[i % 5] for i in range(len(ROWS))]
FRAME = pl.DataFrame(
    {
        "prediction_id": [f"id-{i}" for i in range(len(ROWS))],
        "producer": PRODUCERS,
        "trace_id": [f"trace-{i}" for i in range(len(ROWS))],
        "y": ROWS[:, 1],
        "x": ROWS[:, 0],
    }
)


def contents(shares: dict[str, Share]) -> dict[str, tuple[bytes, tuple[str, ...], tuple[str, ...]]]:
    return {name: (share.profile.to_json(), share.samples, share.traces) for name, share in shares.items()}


def cut(frame: pl.DataFrame, cuts: list[int]) -> list[pl.DataFrame]:
    ends = [*sorted(cuts), frame.height]
    return [frame[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def test_each_producer_has_its_rows_and_its_latest_ids_and_traces():
    shares = by_producer(REFERENCE, FRAME[:1_000])
    mine = [i for i in range(1_000) if PRODUCERS[i] == "c"]
    expected = REFERENCE.like()
    expected.update(ROWS[mine])

    assert list(shares) == ["a", "b", "c"]
    assert shares["c"].profile.to_json() == expected.to_json()
    assert shares["c"].samples == tuple(f"id-{i}" for i in mine[-SAMPLES:])
    assert shares["c"].traces == tuple(f"trace-{i}" for i in mine[-SAMPLES:])


def test_the_profile_of_all_rows_is_that_of_all_rows():
    expected = REFERENCE.like()
    expected.update(ROWS[:1_000])

    assert profile(REFERENCE, FRAME[:1_000]).to_json() == expected.to_json()


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 1_000), max_size=8))
def test_parts_that_are_merged_in_order_are_the_whole_to_the_byte(cuts):
    parts = [by_producer(REFERENCE, part) for part in cut(FRAME[:1_000], cuts)]

    assert contents(merged(parts)) == contents(by_producer(REFERENCE, FRAME[:1_000]))


def test_merging_leaves_the_parts_as_they_were():
    parts = [by_producer(REFERENCE, part) for part in cut(FRAME, [1_400])]
    before = [contents(part) for part in parts]
    merged(parts)

    assert [contents(part) for part in parts] == before


@pytest.mark.parametrize("rows", [0, 10, 3_000])
def test_a_share_read_back_is_the_same(rows):
    for share in [*by_producer(REFERENCE, FRAME[:rows]).values(), Share(REFERENCE.like())]:
        data = share_to_bytes(share)

        assert contents({"it": share_from_bytes(data)}) == contents({"it": share})
        assert share_to_bytes(share_from_bytes(data)) == data


def test_a_crowd_of_producers_does_not_grow_a_window_without_end():
    crowd = FRAME[:500].with_columns(producer=pl.Series([f"producer-{i}" for i in range(500)]))
    whole = by_producer(REFERENCE, crowd)
    parts = merged(by_producer(REFERENCE, part) for part in cut(crowd, [100, 400]))

    for shares in (whole, parts):
        assert len(shares) == MAX_PRODUCERS + 1
        assert sum(share.profile.rows for share in shares.values()) == 500
        assert shares[OTHERS].profile.rows == 500 - MAX_PRODUCERS


def test_values_that_are_not_there_are_missing():
    gaps = FRAME[:100].with_columns(x=pl.when(pl.int_range(100) < 30).then(None).otherwise(pl.col("x")))

    assert profile(REFERENCE, gaps).features["x"].missing == 30


def test_rows_that_do_not_fit_the_reference_are_refused():
    with pytest.raises(Invalid, match="no column 'x'"):
        profile(REFERENCE, FRAME.drop("x"))
    with pytest.raises(Invalid, match="'x' is String"):
        by_producer(REFERENCE, FRAME.with_columns(pl.col("x").cast(pl.String)))


@pytest.mark.parametrize("data", [b"", b"no", REFERENCE.to_bytes()])
def test_what_is_no_share_is_malformed(data):
    with pytest.raises(Malformed, match="not a producer's share"):
        share_from_bytes(data)


MIXED = FRAME.with_columns(
    plan=pl.Series([["basic", "plus", None][i % 3] for i in range(len(ROWS))]),
    open=pl.Series([i % 4 == 0 for i in range(len(ROWS))]),
    label=pl.Series([i % 2 for i in range(len(ROWS))]),
    probability=pl.Series([0.5 + i / 10_000 for i in range(len(ROWS))]),
)
OF_ALL = profile_of(
    ("x", "y"),
    ROWS[:500],
    {"plan": ["basic", "plus", None] * 50, "open": ["false", "true"] * 50},
    {"label": ["0", "1", "2"] * 30, "probability": np.linspace(0.5, 1.0, 100)},
)


def test_categories_and_answers_are_counted_too():
    counted = profile(OF_ALL, MIXED[:600])

    assert counted.categories["plan"].table() == {"basic": 200, "plus": 200}
    assert counted.categories["plan"].missing == 200
    assert counted.categories["open"].table() == {"false": 450, "true": 150}
    assert counted.outputs["label"].table() == {"0": 300, "1": 300}
    assert counted.outputs["probability"].n == 600


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 1_000), max_size=8))
def test_parts_with_categories_and_answers_are_the_whole_to_the_byte_too(cuts):
    parts = [by_producer(OF_ALL, part) for part in cut(MIXED[:1_000], cuts)]
    whole = by_producer(OF_ALL, MIXED[:1_000])

    assert contents(merged(parts)) == contents(whole)
    for name, share in whole.items():
        alone = profile(OF_ALL, MIXED[:1_000].filter(pl.col("producer") == name))
        assert alone.to_json() == share.profile.to_json()


def test_a_reference_of_before_may_have_booleans_as_numbers():
    old = profile_of(("x", "open"), np.column_stack([ROWS[:500, 0], np.arange(500) % 2]))

    assert profile(old, MIXED[:400]).features["open"].few == {0.0: 300, 1.0: 100}

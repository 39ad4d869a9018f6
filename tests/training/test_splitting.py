from datetime import date

import numpy as np
import polars as pl
import pytest
from sklearn.datasets import load_digits

from meguri_contracts.errors import Invalid
from meguri_training.splitting import holdout_mask, row_hashes

DIGITS = pl.DataFrame(load_digits().data, schema=[f"pixel_{i}" for i in range(64)])
MIXED = pl.DataFrame({"a": [1, 2, 3], "b": [True, False, None], "c": ["x", None, "y"], "d": [0.5, float("nan"), -0.0]})


def test_the_hashes_are_those_of_every_release():
    assert row_hashes(MIXED, MIXED.columns, seed=7).tolist() == [
        15451351612134378975,
        11356770060293826335,
        9956216135314093833,
    ]


def test_about_the_share_asked_for_is_held_out():
    for share in (0.1, 0.25, 0.5):
        assert holdout_mask(DIGITS, DIGITS.columns, share, seed=0).mean() == pytest.approx(share, abs=0.03)


def test_a_row_stays_on_its_side_whatever_else_arrives_and_in_whatever_order():
    order = np.random.default_rng(0).permutation(DIGITS.height)
    whole = holdout_mask(DIGITS, DIGITS.columns, 0.25, seed=0)

    assert (holdout_mask(DIGITS[:100], DIGITS.columns, 0.25, seed=0) == whole[:100]).all()
    assert (holdout_mask(DIGITS[order], DIGITS.columns, 0.25, seed=0) == whole[order]).all()


def test_a_larger_share_holds_out_the_same_rows_and_more():
    small = holdout_mask(DIGITS, DIGITS.columns, 0.1, seed=0)

    assert holdout_mask(DIGITS, DIGITS.columns, 0.3, seed=0)[small].all()


def test_neither_the_type_nor_the_order_of_columns_matters():
    as_integers = DIGITS.cast(pl.Int64)

    assert (row_hashes(as_integers, DIGITS.columns[::-1], 0) == row_hashes(DIGITS, DIGITS.columns, 0)).all()


def test_another_seed_is_another_split():
    same = holdout_mask(DIGITS, DIGITS.columns, 0.5, seed=0) == holdout_mask(DIGITS, DIGITS.columns, 0.5, seed=1)

    assert same.mean() == pytest.approx(0.5, abs=0.05)


def test_values_that_trade_columns_make_another_row():
    frame = pl.DataFrame({"a": [1.0, 2.0], "b": [2.0, 1.0]})

    assert len(set(row_hashes(frame, ["a", "b"], seed=0).tolist())) == 2


def test_minus_zero_is_zero_and_null_is_neither_zero_nor_nan():
    frame = pl.DataFrame({"a": [0.0, -0.0, None, float("nan"), -float("nan")]})
    zero, minus, null, nan, minus_nan = row_hashes(frame, ["a"], seed=0).tolist()

    assert zero == minus
    assert nan == minus_nan
    assert len({zero, null, nan}) == 3


def test_a_column_that_cannot_be_hashed_is_named():
    with pytest.raises(Invalid, match="'when' holds Date"):
        row_hashes(pl.DataFrame({"when": [date(2024, 1, 1)]}), ["when"], seed=0)

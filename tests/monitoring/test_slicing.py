"""Quality is told apart by categories as they are, and by numbers in quarters of the reference."""

import math

import polars as pl
import pytest

from meguri_chassis.profiles import profile_of
from meguri_monitoring.quality.slicing import NONE, quarters, value_of


def slices(values: list, limits: tuple[float, ...]) -> list[str]:
    frame = pl.DataFrame({"x": values}, strict=False)
    return frame.select(value_of("x", frame.schema["x"], limits).alias("slice"))["slice"].to_list()


def test_numbers_are_in_the_quarters_of_the_reference():
    limits = quarters(profile_of(["x"], [[float(one)] for one in range(1, 101)]), "x")

    assert limits == (25.0, 50.0, 75.0)
    assert slices([1.0, 25.0, 26.0, 75.0, 76.0, None, math.nan], limits) == [
        "<= 25",
        "<= 25",
        "25 to 50",
        "50 to 75",
        "> 75",
        NONE,
        NONE,
    ]


def test_a_row_on_a_limit_is_below_it_whatever_the_precision():
    limits = quarters(profile_of(["x"], [[0.1], [0.7], [0.7], [0.9]]), "x")

    assert slices([0.1, 0.7, 0.9], limits) == ["<= 0.1", "0.1 to 0.7", "> 0.7"]


@pytest.mark.parametrize(
    ("values", "expected"), [(["a", None], ["a", NONE]), ([True, False], ["true", "false"]), ([1, 2], ["1", "2"])]
)
def test_what_has_no_quarters_is_told_apart_by_its_value(values, expected):
    assert slices(values, ()) == expected
    assert quarters(profile_of(["y"], [[1.0]]), "x") == ()

"""By what quality is told apart: categories and booleans by their value, numbers by the quarters of the reference profile."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import polars as pl

from meguri_chassis.profiles import NumericProfile, Profile

NONE = "(none)"
"""The value of a slice where a row has none."""


def quarters(reference: Profile, feature: str) -> tuple[float, ...]:
    """Return the three limits between the quarters of a feature, fewer where they are the same; none of what is no number."""
    profile = reference.features.get(feature)
    if not isinstance(profile, NumericProfile) or not profile.n:
        return ()
    values, weights = profile.weighted
    reached = np.cumsum(weights) / weights.sum()
    limits = (values[np.searchsorted(reached, share)] for share in (0.25, 0.5, 0.75))
    return tuple(dict.fromkeys(float(limit) for limit in limits))


def value_of(feature: str, kind: pl.DataType, limits: Sequence[float]) -> pl.Expr:
    """Return the slice that a row is in, as text: a category, `true`, or `<= 1`, `1 to 2`, `2 to 3`, `> 3`.

    `limits` are between the quarters; a row on one is below it.
    """
    if not kind.is_numeric() or not limits:
        return pl.col(feature).cast(pl.String).fill_null(NONE)
    # As the reference has it: a row on a limit is on it in both.
    column = pl.col(feature).cast(pl.Float32).fill_nan(None)
    names = [f"<= {limits[0]:g}", *(f"{low:g} to {high:g}" for low, high in pairwise(limits)), f"> {limits[-1]:g}"]
    value = pl.lit(names[-1])
    for limit, name in reversed(list(zip(limits, names, strict=False))):
        value = pl.when(column <= pl.lit(limit, pl.Float32)).then(pl.lit(name)).otherwise(value)
    return pl.when(column.is_null()).then(pl.lit(NONE)).otherwise(value)

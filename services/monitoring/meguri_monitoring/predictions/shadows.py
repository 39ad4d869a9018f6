"""How far the answers of a shadow are from those that were given in their place, counted again from what is kept."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from meguri_monitoring.predictions.predictions import parts_of

NOTABLE = 1e-3
"""Predictions that differ by more than this are different answers."""


def disagreement(shadow: pl.LazyFrame, given: Sequence[pl.LazyFrame], worst: int) -> dict[str, Any]:
    """Hold the rows of a shadow against the answers with the same prediction ids; also return the `worst` pairs.

    A pair disagrees when the labels differ, or predictions by more than `NOTABLE`. The difference is that of the predictions,
    or of the largest probabilities or scores.
    """
    answers = pl.concat([_comparable(one, "given") for one in given])
    pairs = _comparable(shadow, "shadow").join(answers, on="prediction_id")
    pairs = pairs.with_columns((pl.col("shadow") - pl.col("given")).abs().alias("difference"))
    labels_differ = pl.col("shadow_label").ne_missing(pl.col("given_label"))
    # Without labels both are null and the same.
    one_has_none = pl.col("shadow_label").is_null() & (pl.col("shadow").is_null() != pl.col("given").is_null())
    too_far = pl.col("shadow_label").is_null() & (pl.col("difference") > NOTABLE).fill_null(value=False)
    pairs = pairs.with_columns((labels_differ | one_has_none | too_far).alias("disagreed"))
    counts = pairs.select(
        pl.len().alias("pairs"),
        pl.col("disagreed").sum(),
        pl.col("difference").mean().alias("mean_difference"),
    )
    order = ["disagreed", "difference", "prediction_id"]
    far = pairs.sort(order, descending=[True, True, False], nulls_last=True).head(worst)
    counted, rows = pl.collect_all([counts, far], engine="streaming")
    return counted.row(0, named=True) | {"worst": rows.to_dicts()}


def _comparable(rows: pl.LazyFrame, side: str) -> pl.LazyFrame:
    """Prediction id, time and version, label and number of the answers of a version, called after their side."""
    _, answer = parts_of(rows.collect_schema().names())
    label = pl.col(answer[0]).cast(pl.String) if len(answer) == 2 else pl.lit(None, pl.String)
    return rows.select(
        "prediction_id",
        *(["time"] if side == "shadow" else []),
        pl.col("version").alias(f"{side}_version"),
        label.alias(f"{side}_label"),
        pl.col(answer[-1]).cast(pl.Float64).fill_nan(None).alias(side),
    )

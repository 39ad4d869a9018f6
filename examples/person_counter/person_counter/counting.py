"""The evaluator: windows in which the detector saw a person become boxes, and the boxes of a frame a number of persons."""

import logging
import os

import numpy as np
import polars as pl

from person_counter.windows import BROAD, LEFTS, TALL, TOPS

logger = logging.getLogger(__name__)

SAME_RIGHT, SAME_DOWN = 12, 24
"""Two windows that are no further apart than this, in pixels, show the same person."""
SWITCH = "MEGURI_PERSON_COUNTER_MAX"
"""Environment variable that breaks the writer: rows with more persons than this are dropped."""

_ID = pl.col("prediction_id").str.split(":")


def evaluate(predictions: pl.DataFrame) -> pl.DataFrame:
    """Return a row per frame: its boxes with their scores, how many persons these are, and the mean score."""
    rows = predictions.with_columns(key=_ID.list.first(), window=_ID.list.last().cast(pl.Int64))
    return pl.DataFrame([_frame(frame) for frame in rows.partition_by("key", maintain_order=True)])


def write(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that are kept: all of them, unless the switch is on."""
    most = os.environ.get(SWITCH)
    kept = rows.filter(pl.col("persons") <= int(most)) if most else rows
    if lost := rows.height - kept.height:
        logger.error("dropped %d rows: more than %s persons", lost, most)
    return kept


def _frame(windows: pl.DataFrame) -> dict[str, object]:
    first = windows.row(0, named=True)
    found = windows.filter(pl.col("label") == 1).sort("probability", descending=True)
    boxes = _boxes(found["window"].to_numpy(), found["probability"].to_numpy())
    return {
        "key": first["key"],
        "time": first["time"],
        "producer": first["producer"],
        "frame": first["_entity"],
        "persons": len(boxes),
        "mean_score": float(np.mean([box["score"] for box in boxes])) if boxes else None,
        "boxes": boxes,
    }


def _boxes(windows: np.ndarray, scores: np.ndarray) -> list[dict[str, float]]:
    """Return the windows with the best scores among those that show the same person."""
    kept: list[int] = []
    for window in windows:
        right, down = np.abs(LEFTS[kept] - LEFTS[window]), np.abs(TOPS[kept] - TOPS[window])
        if not np.any((right <= SAME_RIGHT) & (down <= SAME_DOWN)):
            kept.append(int(window))
    score = dict(zip(windows.tolist(), scores.tolist(), strict=True))
    return [
        {"left": int(LEFTS[n]), "top": int(TOPS[n]), "width": BROAD, "height": TALL, "score": score[n]} for n in kept
    ]

"""The evaluator: windows in which the detector saw a person become boxes, and the boxes of a frame a number of persons."""

import polars as pl

from person_counter.windows import BROAD, LEFTS, TALL, TOPS

SAME_RIGHT, SAME_DOWN = 12, 24
"""Two windows that are no further apart than this, in pixels, show the same person."""


def evaluate(predictions: pl.DataFrame) -> pl.DataFrame:
    """Return a row per frame: its boxes with their scores, and how many persons these are."""
    return pl.DataFrame([_frame(windows) for windows in predictions.partition_by("_request", maintain_order=True)])


def _frame(windows: pl.DataFrame) -> dict[str, object]:
    about = windows.row(0, named=True)
    boxes = _boxes(windows.filter(pl.col("label") == 1).sort("probability", descending=True))
    return {
        "key": about["_request"],
        "time": about["time"],
        "producer": about["producer"],
        "frame": about["_entity"],
        "persons": len(boxes),
        "boxes": boxes,
    }


def _boxes(found: pl.DataFrame) -> list[dict[str, float]]:
    """Return the windows with the best scores among those that show the same person."""
    kept: list[dict[str, float]] = []
    for n, score in found.select("_row", "probability").iter_rows():
        left, top = int(LEFTS[n]), int(TOPS[n])
        if all(abs(left - one["left"]) > SAME_RIGHT or abs(top - one["top"]) > SAME_DOWN for one in kept):
            kept.append({"left": left, "top": top, "width": BROAD, "height": TALL, "score": score})
    return kept

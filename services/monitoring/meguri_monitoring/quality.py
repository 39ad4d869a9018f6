"""How good the answers of a version are, by the labels that arrived.

What is counted follows from labels and predictions alone, whatever was counted before: nothing is counted twice.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from meguri_contracts.events import ArmQuality
from meguri_monitoring.predictions import SEQUENCE, parts_of

_LABELS = {"prediction_id": pl.String(), "_text": pl.String(), "_number": pl.Float64()}


@dataclass(frozen=True)
class Measured:
    """What labels say of the versions of a plan."""

    arms: tuple[ArmQuality, ...]
    """The champion first."""
    labels: int
    """All that there are, of predictions of these versions or not."""

    @property
    def counted(self) -> int:
        return counted(self.arms)


def counted(arms: Iterable[ArmQuality]) -> int:
    """Return the labels that were counted for any of the versions."""
    return sum(arm.labels for arm in arms)


def as_text(label: float | int | bool | str) -> str:
    """Return a label as it is compared with an answer that is text: `7`, `0.5`, `true`."""
    if isinstance(label, bool):
        return "true" if label else "false"
    if isinstance(label, float) and label.is_integer():
        return f"{label:.0f}"
    return str(label)


def as_number(label: float | int | bool | str) -> float | None:
    """Return a label as it is compared with an answer that is a number or a boolean; None if it is none, or infinite."""
    if isinstance(label, str) and label.lower() in ("true", "false"):
        label = label.lower() == "true"
    try:
        number = float(label)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def label_frame(parts: Iterable[Sequence[tuple[str, str, float | None]]]) -> pl.DataFrame:
    """Return prediction ids, texts and numbers of labels as a frame."""
    frames = [pl.DataFrame(part, schema=_LABELS, orient="row") for part in parts]
    return pl.concat(frames) if frames else pl.DataFrame(schema=_LABELS)


def of_version(version: int, answers: pl.LazyFrame | None, labels: pl.DataFrame) -> ArmQuality:
    """Return what the labels say of a version by the answers that it gave."""
    scores = _scores(answers, labels) if answers is not None else []
    # Sums that do not depend on the order: the same rows have the same sum.
    total, squares = math.fsum(scores), math.fsum(score * score for score in scores)
    return ArmQuality(version=version, labels=len(scores), total=total, squares=squares)


def _scores(answers: pl.LazyFrame, labels: pl.DataFrame) -> list[float]:
    schema = answers.collect_schema()
    _, (answer, *_) = parts_of(schema.names())
    score = _score(answer, schema[answer]).alias("_score")
    labelled = answers.select("prediction_id", SEQUENCE, answer).join(labels.lazy(), on="prediction_id")
    # A prediction that was published twice is still one.
    first = labelled.sort(SEQUENCE).unique("prediction_id", keep="first").select(score)
    return first.filter(pl.col("_score").is_finite()).collect(engine="streaming")["_score"].to_list()


def _score(answer: str, kind: pl.DataType) -> pl.Expr:
    text, number = pl.col("_text"), pl.col("_number")
    if answer == "prediction":
        return -(pl.col(answer) - number).abs()
    right = pl.col(answer) == text if kind == pl.String else pl.col(answer).cast(pl.Float64) == number
    return right.fill_null(value=False).cast(pl.Float64)

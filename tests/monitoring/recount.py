"""Quality counted anew from the log and the tables of predictions, with scikit-learn, as somebody would who trusts nobody."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
from sklearn import metrics

from meguri_contracts.events import LabelsArrived
from tests.monitoring.conftest import Monitoring

Row = dict[str, Any]


async def labelled(monitoring: Monitoring, versions: Sequence[int]) -> dict[int, list[tuple[Row, Any]]]:
    """The rows of each version that have a label, with it."""
    rows = {version: monitoring.kept(version).to_dicts() for version in versions}
    answers = [row for of in rows.values() for row in of if row["_role"] != "shadow"]
    truth: dict[Any, tuple[Any, Any]] = {}
    for message in await monitoring.wire.heard(LabelsArrived, monitoring.model):
        for one in message.event.labels:  # type: ignore[attr-defined]
            as_of = None if one.prediction_id else one.time or message.time
            rank = (message.sequence, as_of is None, as_of)
            truth[one.prediction_id or (one.entity, as_of)] = (rank, one.label)
    about: dict[str, tuple[Any, Any]] = {}
    for key, (rank, label) in truth.items():
        id_ = key if isinstance(key, str) else _meant(answers, *key)
        if id_ and (id_ not in about or rank > about[id_][0]):
            about[id_] = (rank, label)
    return {
        version: [(row, about[row["prediction_id"]][1]) for row in of if row["prediction_id"] in about]
        for version, of in rows.items()
    }


def _meant(answers: Sequence[Row], entity: str, as_of: Any) -> str | None:
    before = [row for row in answers if row["_entity"] == entity and row["time"] <= as_of]
    return max(before, key=lambda row: (row["time"], row["prediction_id"]))["prediction_id"] if before else None


def of_classes(pairs: Sequence[tuple[Row, Any]]) -> dict[str, float]:
    true, said = [str(label) for _, label in pairs], [str(row["label"]) for row, _ in pairs]
    right = [one == other for one, other in zip(true, said, strict=True)]
    sure = np.array([row["probability"] for row, _ in pairs])
    bins = np.minimum((sure * 10).astype(int), 9)
    off = [
        abs(np.mean(np.array(right)[bins == one]) - sure[bins == one].mean()) * sum(bins == one) for one in set(bins)
    ]
    return {
        "accuracy": metrics.accuracy_score(true, said),
        "f1_macro": metrics.f1_score(true, said, average="macro", zero_division=0),
        "log_loss": metrics.log_loss(right, sure, labels=[False, True]),
        "calibration_error": float(sum(off)) / len(pairs),
    }


def of_numbers(pairs: Sequence[tuple[Row, Any]]) -> dict[str, float]:
    true, said = [float(label) for _, label in pairs], [row["prediction"] for row, _ in pairs]
    return {
        "mae": metrics.mean_absolute_error(true, said),
        "rmse": metrics.root_mean_squared_error(true, said),
        "r2": metrics.r2_score(true, said),
    }


def of_outliers(pairs: Sequence[tuple[Row, Any]]) -> dict[str, float]:
    true, said = [bool(label) for _, label in pairs], [bool(row["label"]) for row, _ in pairs]
    return {
        "accuracy": metrics.accuracy_score(true, said),
        "precision": metrics.precision_score(true, said),
        "recall": metrics.recall_score(true, said),
        "f1": metrics.f1_score(true, said),
    }


METRICS: dict[str, Callable[[Sequence[tuple[Row, Any]]], dict[str, float]]] = {
    "classification": of_classes,
    "regression": of_numbers,
    "outliers": of_outliers,
}


def quarter(values: pl.Series, value: float) -> int:
    """Which quarter of a reference a value is in, from 0; a value on a limit is below it."""
    limits = np.quantile(values.to_numpy().astype(np.float32), [0.25, 0.5, 0.75], method="inverted_cdf")
    return int(np.searchsorted(limits, value, "left"))

"""Quality counted anew from the log and the tables of predictions, with scikit-learn, as somebody would who trusts nobody."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from sklearn import metrics

from meguri_contracts.events import Label, LabelsArrived
from tests.monitoring.conftest import Monitoring

Row = dict[str, Any]
Pairs = Sequence[tuple[Row, Any]]
LARGEST = 1e140
"""What is farther off than this is no number that anybody means."""


@dataclass(frozen=True)
class Said:
    """Labels of one event of the log."""

    sequence: int
    time: datetime
    labels: tuple[Label, ...]


def quality(task: str, kept: Mapping[int, list[Row]], said: Sequence[Said]) -> dict[tuple[int, bool], dict[str, Any]]:
    """By version, and whether as a shadow: answers, labels, coverage and metrics."""
    pairs = _labelled(kept, said)
    found = {}
    for version, of in kept.items():
        for shadow in (False, True):
            rows = [row for row in of if (row["_role"] == "shadow") == shadow]
            own = [(row, label) for row, label in pairs[version] if (row["_role"] == "shadow") == shadow]
            own = [(row, label) for row, label in own if is_comparable(task, row, label)]
            if rows:
                found[version, shadow] = {
                    "answers": len(rows),
                    "labels": len(own),
                    "coverage": len(own) / len(rows),
                    "metrics": METRICS[task](own) if own else {},
                }
    return found


async def labelled(monitoring: Monitoring, versions: Sequence[int]) -> dict[int, list[tuple[Row, Any]]]:
    """The rows of each version that have a label, with it."""
    said = [
        Said(message.sequence, message.time, message.event.labels)  # type: ignore[attr-defined]
        for message in await monitoring.wire.heard(LabelsArrived, monitoring.model)
    ]
    return _labelled({version: _kept(monitoring, version) for version in versions}, said)


def _labelled(rows: Mapping[int, list[Row]], said: Sequence[Said]) -> dict[int, list[tuple[Row, Any]]]:
    answers = [row for of in rows.values() for row in of if row["_role"] != "shadow"]
    truth: dict[Any, tuple[Any, Any]] = {}
    for message in said:
        for one in message.labels:
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


def _kept(monitoring: Monitoring, version: int) -> list[Row]:
    try:
        return monitoring.kept(version).to_dicts()
    except FileNotFoundError:
        return []


def _meant(answers: Sequence[Row], entity: str, as_of: Any) -> str | None:
    before = [row for row in answers if row["_entity"] == entity and row["time"] <= as_of]
    return max(before, key=lambda row: (row["time"], row["prediction_id"]))["prediction_id"] if before else None


def is_comparable(task: str, row: Row, label: Any) -> bool:
    """Whether a label says anything of an answer: not one that is no number where there should be one, or is NaN."""
    number = _number(label)
    if number is not None and math.isnan(number):
        return False
    if task != "regression":
        return True
    return number is not None and abs(number) <= LARGEST and abs(number - row["prediction"]) <= LARGEST


def _number(label: Any) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _class(value: Any, like: Any) -> str:
    """A class by name: 1, 1.0, "1" and true are the same where classes are numbers."""
    if isinstance(like, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    named = {"true": 1.0, "false": 0.0}.get(str(value).lower(), _number(value))
    return str(value) if named is None else str(float(named))


def of_classes(pairs: Pairs) -> dict[str, float]:
    true = [_class(label, row["label"]) for row, label in pairs]
    said = [_class(row["label"], row["label"]) for row, _ in pairs]
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


def of_two_classes(pairs: Pairs) -> dict[str, float]:
    """Where each label is one of two classes, the log loss is that of the whole distribution."""
    found = of_classes(pairs)
    names = ["no", "yes"]
    if all(label in names for _, label in pairs):
        sure = [(row["probability"], 1 - row["probability"]) for row, _ in pairs]
        both = [one if row["label"] == "no" else one[::-1] for one, (row, _) in zip(sure, pairs, strict=True)]
        found["log_loss"] = metrics.log_loss([label for _, label in pairs], both, labels=names)
    return found


def of_numbers(pairs: Pairs) -> dict[str, float]:
    true, said = [float(label) for _, label in pairs], [row["prediction"] for row, _ in pairs]
    spread = len(set(true)) > 1
    return {
        "mae": metrics.mean_absolute_error(true, said),
        "rmse": metrics.root_mean_squared_error(true, said),
    } | ({"r2": metrics.r2_score(true, said)} if spread else {})


def of_outliers(pairs: Pairs) -> dict[str, float]:
    true = [_class(label, True) == "1.0" for _, label in pairs]
    said = [bool(row["label"]) for row, _ in pairs]
    found = {"accuracy": metrics.accuracy_score(true, said)}
    if any(said):
        found["precision"] = metrics.precision_score(true, said)
    if any(true):
        found["recall"] = metrics.recall_score(true, said)
    return found | ({"f1": metrics.f1_score(true, said)} if any(true) or any(said) else {})


METRICS: dict[str, Callable[[Pairs], dict[str, float]]] = {
    "classification": of_classes,
    "classes": of_classes,
    "binary": of_two_classes,
    "regression": of_numbers,
    "outliers": of_outliers,
}


def quarter(values: pl.Series, value: float) -> int:
    """Which quarter of a reference a value is in, from 0; a value on a limit is below it."""
    limits = np.quantile(values.to_numpy().astype(np.float32), [0.25, 0.5, 0.75], method="inverted_cdf")
    return int(np.searchsorted(limits, value, "left"))

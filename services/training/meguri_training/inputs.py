"""What goes into a model: the tensors of its signature, and rows in their types.

A model is trained on exactly what its tensors carry, so that serving shows it nothing else.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from meguri_contracts.events import Signature, Tensor
from meguri_contracts.spec import ColumnType, ModelSpec
from meguri_training import estimators, reading

Rows = NDArray[Any]
"""Shape [n, features]: of float32 or float64, or objects where some features are texts."""

_CATEGORIES = ("BYTES", "BOOL")
_UNSEEN = "meguri: a text that was not there in training"

DTYPES: dict[str, type[Any]] = {
    "FP32": np.float32,
    "FP64": np.float64,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "BYTES": np.object_,
}


def tensors_of(spec: ModelSpec) -> tuple[Tensor, ...]:
    """Return the one tensor of all features, or one for each when some are texts."""
    real: Any = "FP32" if estimators.is_single(spec.estimator) else "FP64"
    types = {name: spec.dataset.columns[name].type for name in spec.feature_names}
    if ColumnType.string not in types.values():
        return (Tensor(name="input", datatype=real, shape=(-1, len(types))),)
    datatypes = {ColumnType.string: "BYTES", ColumnType.integer: "INT64", ColumnType.boolean: "BOOL"}
    return tuple(Tensor(name=name, datatype=datatypes.get(kind, real), shape=(-1, 1)) for name, kind in types.items())


def tensors_in(signature: Signature) -> tuple[Tensor, ...]:
    """Return the same of a model that is there already."""
    return signature.inputs or (signature.input,)


def are_texts(tensors: Sequence[Tensor]) -> list[bool]:
    return [tensor.datatype == "BYTES" for tensor in tensors]


def rows(frame: pl.DataFrame, features: Sequence[str], tensors: Sequence[Tensor]) -> Rows:
    """Return the features of a frame as the tensors carry them.

    Raises MissingValues for numbers, and Invalid for columns of another type or with very many texts.
    """
    if not any(are_texts(tensors)):
        return reading.numbers(frame, features).astype(DTYPES[tensors[0].datatype], copy=False)
    table = np.empty((frame.height, len(features)), dtype=object)
    for at, (name, tensor) in enumerate(zip(features, tensors, strict=True)):
        table[:, at] = _column(frame, name, tensor)
    return table


def feeds(rows: Rows, tensors: Sequence[Tensor]) -> dict[str, NDArray[Any]]:
    """Return rows as an array for each tensor."""
    if rows.dtype != object:
        return {tensors[0].name: rows}
    return {tensor.name: rows[:, [at]].astype(DTYPES[tensor.datatype]) for at, tensor in enumerate(tensors)}


def example(rows: Rows, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return of each feature the median, or the most frequent value of texts."""
    if rows.dtype != object:
        return tuple(_median(rows).tolist())
    columns = (rows[:, at].astype(DTYPES[tensor.datatype]) for at, tensor in enumerate(tensors))
    return tuple(_most_frequent(c) if c.dtype == object else _median(c).item() for c in columns)


def with_unseen_texts(rows: Rows, tensors: Sequence[Tensor]) -> Rows:
    """Return rows and, where some features are texts, the same rows once more with texts that nobody has seen."""
    if rows.dtype != object:
        return rows
    unseen = rows.copy()
    unseen[:, are_texts(tensors)] = _UNSEEN
    return np.concatenate([rows, unseen])


def numeric(rows: Rows, features: Sequence[str], tensors: Sequence[Tensor]) -> tuple[list[str], NDArray[Any]]:
    """Return the features that are numbers, and their values."""
    if rows.dtype != object:
        return list(features), rows
    kept = [at for at, tensor in enumerate(tensors) if tensor.datatype not in _CATEGORIES]
    return [features[at] for at in kept], rows[:, kept].astype(np.float64)


def categories(rows: Rows, features: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, list[str]]:
    """Return the other features, texts and booleans, as predictions have them when they are read as texts."""
    if rows.dtype != object:
        return {}
    return {
        name: [str(value).lower() if tensor.datatype == "BOOL" else value for value in rows[:, at]]
        for at, (name, tensor) in enumerate(zip(features, tensors, strict=True))
        if tensor.datatype in _CATEGORIES
    }


def _column(frame: pl.DataFrame, name: str, tensor: Tensor) -> NDArray[Any]:
    if tensor.datatype == "BYTES":
        return reading.texts(frame, name)
    values = reading.numbers(frame, [name])[:, 0]
    # Through doubles an integer of more than 53 bits would become another.
    exact = frame[name].to_numpy() if tensor.datatype == "INT64" and frame.schema[name].is_integer() else values
    return exact.astype(DTYPES[tensor.datatype])


def _median(values: NDArray[Any]) -> Any:
    # One that occurs, not a point between two: of booleans that is the more frequent one.
    return np.quantile(values, 0.5, axis=0, method="inverted_cdf")


def _most_frequent(texts: NDArray[Any]) -> str:
    distinct, counts = np.unique(texts, return_counts=True)
    return str(distinct[counts.argmax()])

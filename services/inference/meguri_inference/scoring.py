"""The answers of a loaded version to many rows, as arrays and as columns. Long: call it in a thread."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from meguri_contracts.events import Tensor
from meguri_inference.predicting import LoadedModel
from meguri_inference.tensors import Array


def answers(model: LoadedModel, features: Mapping[str, Array]) -> dict[str, Array]:
    """Return each output of a model for the rows whose features these are. Raises NoAnswer."""
    if model.signature.inputs:
        x = np.empty((len(next(iter(features.values()))), len(features)), object)
        for at, values in enumerate(features.values()):
            x[:, at] = values
    else:
        x = np.ascontiguousarray(np.stack(list(features.values()), axis=1))
    batch = model.compute([x])
    return {tensor.name: values for tensor, values in zip(model.signature.outputs, batch.outputs, strict=True)}


def columns(model: LoadedModel, given: Mapping[str, Array]) -> dict[str, pa.Array]:
    """Return the answers as columns: a list for an output of several values a row, and the largest of `probabilities`."""
    found: dict[str, pa.Array] = {}
    for tensor in model.signature.outputs:
        values = given[tensor.name]
        if tensor.name == "probabilities":
            found["probability"] = pa.array(values.max(axis=1))
        found[tensor.name] = _column(tensor, values)
    return found


def no_columns(model: LoadedModel) -> dict[str, pa.Array]:
    """The same columns for no rows."""
    return columns(model, {tensor.name: _none(tensor) for tensor in model.signature.outputs})


def _column(tensor: Tensor, values: Array) -> pa.Array:
    if _width(tensor) > 1:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), _width(tensor))
    flat = values.reshape(-1)
    return pa.array(flat.tolist(), pa.string()) if tensor.datatype == "BYTES" else pa.array(flat)


def _width(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape[1:]))


def _none(tensor: Tensor) -> Array:
    kinds = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_, "BYTES": np.object_}
    return np.zeros((1, *tensor.shape[1:]), kinds[tensor.datatype])[:0]

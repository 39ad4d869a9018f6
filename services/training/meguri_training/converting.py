"""A fitted estimator as ONNX, with outputs `label` and `probabilities`, `prediction`, or `label` and `score`."""

import json
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper
from skl2onnx import convert_sklearn
from skl2onnx.common import tree_ensemble
from skl2onnx.common.data_types import (
    DoubleTensorType,
    FloatTensorType,
    StringTensorType,
)

from meguri_contracts.events import Tensor
from meguri_contracts.spec import Task
from meguri_training import evaluating

OPSET = {"": 19, "ai.onnx.ml": 3}
_CAST = {"INT64": TensorProto.INT64, "BOOL": TensorProto.BOOL}
_OURS = "meguri_"
"""Begins the names of what is added to a graph."""


def convert(model: Any, tensors: Sequence[Tensor], task: Task, classes: NDArray[Any] | None, *, single: bool) -> bytes:
    """Return the model as ONNX that computes in single or double precision; the same model gives the same bytes.

    Raises whatever the converter raises.
    """
    # The converter mixes up numbers of several types, so it sees one, and the others are cast to it.
    real = FloatTensorType if single else DoubleTensorType
    types = {"BYTES": StringTensorType}
    proto = convert_sklearn(
        model,
        name="meguri",  # else a random one
        initial_types=[
            (tensor.name, types.get(tensor.datatype, real)([None, *tensor.shape[1:]])) for tensor in tensors
        ],
        final_types=[(name, None) for name in evaluating.OUTPUTS[task]],
        options={id(model): {"zipmap": False}} if task == "classification" else None,
        target_opset=OPSET,
    )
    _put_inputs_right(proto, tensors)
    if classes is not None:
        proto.metadata_props.add(key=evaluating.CLASSES, value=json.dumps(classes.tolist()))
    if task == "outliers":
        _say_who_is_one(proto)
    # The converter writes them in the order of a set, which differs from process to process.
    opsets = sorted(proto.opset_import, key=lambda opset: opset.domain)
    del proto.opset_import[:]
    proto.opset_import.extend(opsets)
    return bytes(proto.SerializeToString(deterministic=True))


def _put_inputs_right(proto: ModelProto, tensors: Sequence[Tensor]) -> None:
    """Let the graph take the inputs under their names, which the converter simplifies, and in their types."""
    graph = proto.graph
    names, casts = {}, []
    for taken, tensor in zip(graph.input, tensors, strict=True):
        names[taken.name] = tensor.name
        if tensor.datatype in _CAST:
            names[taken.name] = inner = _OURS + tensor.name
            real = taken.type.tensor_type.elem_type
            casts.append(helper.make_node("Cast", [tensor.name], [inner], name=f"{_OURS}cast_{tensor.name}", to=real))
            taken.type.tensor_type.elem_type = _CAST[tensor.datatype]
        taken.name = tensor.name
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _say_who_is_one(proto: ModelProto) -> None:
    """Put `label`, 1 for an outlier and 0 for others, in the place of scikit-learn's -1 and 1, and make both outputs flat."""
    graph = proto.graph
    real = next(output for output in graph.output if output.name == "score").type.tensor_type.elem_type
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [_OURS + name if name in evaluating.OUTPUTS["outliers"] else name for name in names]
    zero, flat, is_one, number = (_OURS + name for name in ("zero", "flat", "is_one", "number"))
    graph.initializer.append(helper.make_tensor(zero, TensorProto.INT64, [], [0]))
    graph.initializer.append(helper.make_tensor(flat, TensorProto.INT64, [1], [-1]))
    graph.node.extend(
        [
            helper.make_node("Less", [_OURS + "label", zero], [is_one], name=_OURS + "compare"),
            helper.make_node("Cast", [is_one], [number], name=_OURS + "count", to=TensorProto.INT64),
            helper.make_node("Reshape", [number, flat], ["label"], name=_OURS + "flatten_label"),
            helper.make_node("Reshape", [_OURS + "score", flat], ["score"], name=_OURS + "flatten_score"),
        ]
    )
    del graph.output[:]
    graph.output.extend(
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("score", real, [None]),
        ]
    )


def _repair_trees() -> None:
    """Make skl2onnx convert HistGradientBoosting, and convert it exactly.

    It hands on numpy booleans, which protobuf refuses, and rounds thresholds up as well as down; the other trees it
    already rounds down, so that `x <= threshold` says the same for every single-precision x.
    """
    add_node = tree_ensemble.add_node

    def add_plain_node(*args: Any, nodes_missing_value_tracks_true: object = 0, **kwargs: Any) -> None:
        kwargs["adjust_threshold_for_sklearn"] = True
        add_node(*args, nodes_missing_value_tracks_true=int(bool(nodes_missing_value_tracks_true)), **kwargs)

    tree_ensemble.add_node = add_plain_node


_repair_trees()

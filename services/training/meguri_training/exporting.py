"""A fitted estimator as files: ONNX for serving, checked against scikit-learn, and skops for science; never pickle."""

import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from io import BytesIO
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import skops.io
from numpy.typing import NDArray
from skl2onnx import convert_sklearn
from skl2onnx.common import tree_ensemble
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from skops.io.exceptions import UntrustedTypesFoundException

from meguri_contracts.errors import PermanentError
from meguri_contracts.events import Signature, Tensor
from meguri_training import evaluating
from meguri_training.estimators import Rows, Task
from meguri_training.reading import Target

MAX_DIFFERENCE = 1e-3
"""Largest parity that is still the same model: of probabilities, or of predictions in standard deviations of the target."""
OPSET = {"": 19, "ai.onnx.ml": 3}
TRUSTED = (
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
)
"""Types beside the ones that skops trusts by itself that a file of ours may hold."""

_DATATYPES = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
}
_SCHEMA = "schema.json"
_ADDRESS = re.compile(r'(?<="__id__": )\d+|(?<="file": ")\d+(?=\.)')
_ADDRESS_OF_FILE = re.compile(r"^\d+(?=\.)")
_LIBRARIES = ("scikit-learn", "numpy", "scipy", "skl2onnx", "onnx", "onnxruntime", "skops", "polars")


class NotExportable(PermanentError):
    def __init__(self, what: str, error: Exception) -> None:
        reason = str(error).strip().partition("\n")[0][:300]
        super().__init__(f"the fitted model cannot be written as {what}: {type(error).__name__}: {reason}")


class NotFaithful(PermanentError):
    """The ONNX model does not answer as scikit-learn does, so serving it would be serving something else."""

    def __init__(self, difference: float, mislabelled: int, rows: int) -> None:
        super().__init__(
            f"ONNX and scikit-learn differ by {difference:.2g} (at most {MAX_DIFFERENCE:g} is allowed) and in "
            f"{mislabelled} of {rows} labels on the hold-out; choose another estimator or other parameters, or scale"
        )


@dataclass(frozen=True)
class Exported:
    """An ONNX file; `parity` is the largest difference from scikit-learn on the hold-out."""

    onnx: bytes
    signature: Signature
    parity: float


def export(model: Any, features: Sequence[str], rows: Rows, target: Target, expected: evaluating.Answers) -> Exported:
    """Return the model as ONNX with input `input` and outputs `label` and `probabilities`, or `prediction`.

    `rows` are those of the hold-out in the model's own precision, `expected` what scikit-learn answered on them. The same
    model gives the same bytes. Raises NotExportable or NotFaithful.
    """
    task: Task = "regression" if expected.classes is None else "classification"
    data = _converted(model, rows, expected.classes)
    try:
        session = evaluating.open_onnx(data)
    except Exception as error:  # its errors have no common base, and each means the same here
        raise NotExportable("ONNX", error) from error
    given = evaluating.ask_onnx(session, rows, task)
    return Exported(data, _signature(features, session), parity(expected, given, target))


def parity(expected: evaluating.Answers, given: evaluating.Answers, target: Target) -> float:
    """Return the largest difference of probabilities, or of predictions in standard deviations of the target.

    Raises NotFaithful when it is above MAX_DIFFERENCE or labels differ that were no tie.
    """
    rows = len(expected.answers)
    if expected.probabilities is None or given.probabilities is None or expected.classes is None:
        difference = float(np.abs(expected.answers - given.answers).max() / (target.std() or 1.0))
        mislabelled = 0
    else:
        difference = float(np.abs(expected.probabilities - given.probabilities).max())
        chosen = np.searchsorted(expected.classes, given.answers)
        lost = expected.probabilities.max(axis=1) - expected.probabilities[np.arange(rows), chosen]
        mislabelled = int(((given.answers != expected.answers) & (lost > MAX_DIFFERENCE)).sum())
    if mislabelled or not difference <= MAX_DIFFERENCE:  # so that NaN is refused too
        raise NotFaithful(difference, mislabelled, rows)
    return difference


def dump(model: Any) -> bytes:
    """Return the estimator as a skops file. The same model gives the same bytes.

    Raises NotExportable when it holds types that are not in TRUSTED.
    """
    data = _reproducible(skops.io.dumps(model))
    try:
        skops.io.loads(data, trusted=TRUSTED)
    except UntrustedTypesFoundException as error:
        raise NotExportable("skops", error) from error
    return data


def _reproducible(data: bytes) -> bytes:
    """Number the parts of a skops file, which names them after memory addresses, and take the time off them."""
    numbers: dict[str, str] = {}
    with ZipFile(BytesIO(data)) as written:
        schema = _ADDRESS.sub(
            lambda found: numbers.setdefault(found[0], f"{len(numbers)}"), written.read(_SCHEMA).decode()
        )
        parts = {
            _ADDRESS_OF_FILE.sub(lambda found: numbers[found[0]], name): written.read(name)
            for name in written.namelist()
        }
    numbered = BytesIO()
    with ZipFile(numbered, "w") as file:
        for name, part in sorted((parts | {_SCHEMA: schema.encode()}).items()):
            file.writestr(ZipInfo(name), part)
    return numbered.getvalue()


def environment() -> dict[str, str]:
    """Return the versions of Python and of the libraries that have a say in a fit."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}}


_version = cache(version)  # reads files


def _converted(model: Any, rows: Rows, classes: NDArray[Any] | None) -> bytes:
    tensor = FloatTensorType if rows.dtype == np.float32 else DoubleTensorType
    try:
        proto = convert_sklearn(
            model,
            name="meguri",  # else a random one
            initial_types=[("input", tensor([None, rows.shape[1]]))],
            final_types=[("prediction", None)] if classes is None else [("label", None), ("probabilities", None)],
            options=None if classes is None else {id(model): {"zipmap": False}},
            target_opset=OPSET,
        )
    except Exception as error:  # its errors have no common base, and each means the same here
        raise NotExportable("ONNX", error) from error
    if classes is not None:
        proto.metadata_props.add(key=evaluating.CLASSES, value=json.dumps(classes.tolist()))
    # The converter writes them in the order of a set, which differs from process to process.
    opsets = sorted(proto.opset_import, key=lambda opset: opset.domain)
    del proto.opset_import[:]
    proto.opset_import.extend(opsets)
    return bytes(proto.SerializeToString(deterministic=True))


def _signature(features: Sequence[str], session: Any) -> Signature:
    return Signature(
        features=tuple(features),
        input=_tensor(session.get_inputs()[0]),
        outputs=tuple(_tensor(output) for output in session.get_outputs()),
    )


def _tensor(value: Any) -> Tensor:
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return Tensor(name=value.name, datatype=_DATATYPES[value.type], shape=shape)


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

"""What a model answers on the hold-out, and how good that is: the same measures for scikit-learn and for ONNX."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from meguri_contracts.errors import PermanentError
from meguri_contracts.spec import Task
from meguri_training.inputs import Rows
from meguri_training.reading import Target

CLASSES = "meguri.classes"
"""Where an ONNX file of ours names its classes: a JSON list in the order of the probabilities."""
OUTPUTS: dict[Task, tuple[str, ...]] = {
    "classification": ("label", "probabilities"),
    "regression": ("prediction",),
    "outliers": ("label", "score"),
}
"""What a model answers with."""
_SMALLEST = float(np.finfo(np.float64).eps)
"""A true class is never taken for less probable, as in scikit-learn: being sure and wrong costs 36, not infinity."""


class NotComparable(PermanentError):
    """The champion cannot be measured on this hold-out."""


@dataclass(frozen=True)
class Answers:
    """Answers of shape [n]; of a classifier also probabilities [n, classes] and the classes that they belong to.

    About outliers the answer is 1 for one and 0 for others; `scores` [n] are the lower, the more a row is one.
    """

    answers: NDArray[Any]
    probabilities: NDArray[np.floating[Any]] | None = None
    classes: NDArray[Any] | None = None
    scores: NDArray[np.floating[Any]] | None = None


def ask(model: Any, rows: Rows, task: Task) -> Answers:
    """Let a fitted scikit-learn estimator answer."""
    if task == "regression":
        return Answers(np.asarray(model.predict(rows), dtype=np.float64).reshape(-1))
    if task == "outliers":
        outlying = np.asarray(model.predict(rows) == -1, dtype=np.int64)
        return Answers(outlying, scores=np.asarray(model.decision_function(rows), dtype=np.float64))
    return Answers(model.predict(rows), model.predict_proba(rows), model.classes_)


def open_onnx(data: bytes) -> Any:
    """Return an ONNX Runtime session on one thread. Raises what ONNX Runtime raises when it cannot load the model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def ask_onnx(session: Any, feeds: dict[str, NDArray[Any]], task: Task) -> Answers:
    """Let an ONNX model answer to an array for each of its inputs.

    Raises NotComparable when it takes others, or is no model of this task with named classes.
    """
    taken = {entry.name: entry.shape[1] for entry in session.get_inputs()}
    given = {name: values.shape[1] for name, values in feeds.items()}
    if taken != given:
        raise NotComparable(f"the model takes inputs of these widths: {taken}, its signature says {given}")
    outputs = tuple(output.name for output in session.get_outputs())
    check_outputs(outputs, task)
    got = dict(zip(outputs, session.run(None, feeds), strict=True))
    rows = len(next(iter(feeds.values())))
    if strange := {name: values.shape for name, values in got.items() if len(values) != rows}:
        raise NotComparable(f"the model answers {rows} rows with outputs of these shapes: {strange}")
    if task == "regression":
        return Answers(got["prediction"].reshape(-1).astype(np.float64))
    if task == "outliers":
        return Answers(got["label"], scores=got["score"].astype(np.float64))
    named = session.get_modelmeta().custom_metadata_map.get(CLASSES)
    if named is None:
        raise NotComparable(f"the model does not name its classes in its metadata ({CLASSES})")
    return Answers(got["label"], got["probabilities"], np.array(json.loads(named), dtype=got["label"].dtype))


def check_outputs(outputs: Sequence[str], task: Task) -> None:
    """Raises NotComparable for outputs that are not those of the task."""
    if tuple(outputs) != OUTPUTS[task]:
        raise NotComparable(
            f"the model answers with {', '.join(outputs)}; for {task} it should be {', '.join(OUTPUTS[task])}"
        )


def measure(target: Target | None, given: Answers) -> dict[str, float]:
    """Return the metrics that `meguri_contracts.spec.ModelSpec.metrics` names. Raises NotComparable for labels of another type.

    Only outliers can be without a target.
    """
    if given.scores is not None:
        return _outliers(target, given.answers, given.scores)
    assert target is not None
    if given.probabilities is None or given.classes is None:
        return _regression(target, given.answers)
    if target.dtype.kind != given.classes.dtype.kind:
        raise NotComparable(
            f"the model answers with labels like {given.classes.tolist()[0]!r}, the target has {target.tolist()[0]!r}"
        )
    there, missed, wrong = _counts(target, given.answers)
    right = there - missed
    present = there > 0
    return {
        "accuracy": float(right.sum() / len(target)),
        "balanced_accuracy": float((right[present] / there[present]).mean()),
        "f1_macro": float((2 * right / (2 * right + missed + wrong)).mean()),
        "log_loss": log_loss(target, given.probabilities, given.classes),
    }


def columns(given: Answers) -> dict[str, list[str] | NDArray[np.floating[Any]]]:
    """Return the answers as predictions have them: `prediction`, or `label`, as text, and `probability` or `score`."""
    if given.probabilities is None and given.scores is None:
        return {"prediction": given.answers}
    # Served are texts or integers.
    labels = given.answers if given.answers.dtype.kind in "OU" else given.answers.astype(np.int64)
    second = (
        {"score": given.scores} if given.probabilities is None else {"probability": given.probabilities.max(axis=1)}
    )
    return {"label": [str(label) for label in labels.tolist()], **second}


def log_loss(target: Target, probabilities: NDArray[np.floating[Any]], classes: NDArray[Any]) -> float:
    """Return the mean of -ln(probability of the true class), in nats.

    A class that the model has never heard of has probability zero, which counts as 2.2e-16. `classes` are sorted.
    """
    column = np.minimum(np.searchsorted(classes, target), len(classes) - 1)
    heard = classes[column] == target
    true = np.where(heard, probabilities[np.arange(len(target)), column].astype(np.float64), 0.0)
    return float(-np.log(np.clip(true, _SMALLEST, 1.0)).mean())


def _counts(target: Target, answers: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return per class that occurs in either: rows that have it, of these the missed ones, and those wrongly given it."""
    classes, codes = np.unique(np.concatenate([target, answers]), return_inverse=True)
    true, said = np.split(codes, 2)
    there, missed, wrong = (
        np.bincount(c, minlength=len(classes)) for c in (true, true[true != said], said[true != said])
    )
    return there, missed, wrong


def _regression(target: Target, answers: NDArray[Any]) -> dict[str, float]:
    error = target - answers
    spread = float(np.square(target - target.mean()).sum())
    squared = float(np.square(error).sum())
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt(squared / len(target))),
        # Without spread there is nothing to explain: as scikit-learn, 1 for a perfect answer and 0 otherwise.
        "r2": 1 - squared / spread if spread else float(squared == 0),
    }


def _outliers(target: Target | None, answers: NDArray[Any], scores: NDArray[np.floating[Any]]) -> dict[str, float]:
    share = {"outlier_share": float(answers.mean())}
    if target is None:
        return share
    # The lower a score, the more a row is an outlier.
    return share | {
        "roc_auc": float(roc_auc_score(target, -scores)),
        "average_precision": float(average_precision_score(target, -scores)),
    }

"""A fitted estimator as files: ONNX for serving where that answers as scikit-learn does, and skops; never pickle."""

import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from io import BytesIO
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import skops.io
from skops.io.exceptions import UntrustedTypesFoundException

from meguri_contracts.errors import PermanentError
from meguri_contracts.events import Engine, Tensor
from meguri_contracts.spec import Task
from meguri_contracts.trusted import TRUSTED_TYPES
from meguri_training import converting, evaluating, inputs
from meguri_training.evaluating import Answers
from meguri_training.inputs import Rows
from meguri_training.reading import Target

MAX_DIFFERENCE = 1e-3
"""Largest parity that is still the same model: of probabilities, or of predictions in standard deviations of the target."""

_DATATYPES = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int64)": "INT64",
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
            f"{mislabelled} of {rows} labels on the hold-out"
        )


@dataclass(frozen=True)
class Exported:
    """The files of a model. `onnx` is None, and `reason` says why, when it is scikit-learn that serves.

    `parity` is the largest difference between what is served and the model that was trained, on the hold-out.
    """

    onnx: bytes | None
    skops: bytes
    outputs: tuple[Tensor, ...]
    parity: float
    engine: Engine
    reason: str = ""


def export(
    model: Any, tensors: Sequence[Tensor], rows: Rows, target: Target | None, task: Task, single: bool
) -> Exported:
    """Return the model as skops, and as ONNX if there is one that answers as scikit-learn does.

    `rows` are those of the hold-out as the tensors carry them; `single` says in which precision ONNX computes. The same
    model gives the same bytes. Raises NotExportable when there can be no skops file.
    """
    skops = dump(model)
    rows = inputs.with_unseen_texts(rows, tensors)
    expected = evaluating.ask(model, rows, task)
    try:
        with _refusals_of("ONNX"):
            onnx = converting.convert(model, tensors, task, expected.classes, single=single)
            session = evaluating.open_onnx(onnx)
            given = evaluating.ask_onnx(session, inputs.feeds(rows, tensors), task)
        difference = parity(expected, given, target)
    except (NotExportable, NotFaithful) as error:
        difference = parity(expected, evaluating.ask(load(skops), rows, task), target)
        return Exported(None, skops, _outputs(expected, task), difference, "scikit-learn", str(error))
    return Exported(onnx, skops, tuple(_tensor(output) for output in session.get_outputs()), difference, "onnx")


def parity(expected: Answers, given: Answers, target: Target | None) -> float:
    """Return the largest difference of probabilities, of predictions in standard deviations of the target, or of scores in
    standard deviations of the scores.

    Raises NotFaithful when it is above MAX_DIFFERENCE or labels differ that were no tie.
    """
    rows = len(expected.answers)
    if expected.scores is not None and given.scores is not None:
        spread = float(expected.scores.std()) or 1.0
        difference = float(np.abs(expected.scores - given.scores).max() / spread)
        lost = np.abs(expected.scores) / spread
    elif expected.probabilities is not None and given.probabilities is not None and expected.classes is not None:
        difference = float(np.abs(expected.probabilities - given.probabilities).max())
        chosen = np.searchsorted(expected.classes, given.answers)
        lost = expected.probabilities.max(axis=1) - expected.probabilities[np.arange(rows), chosen]
    else:
        assert target is not None
        difference = float(np.abs(expected.answers - given.answers).max() / (target.std() or 1.0))
        lost = np.zeros(rows)
    mislabelled = int(((given.answers != expected.answers) & (lost > MAX_DIFFERENCE)).sum())
    if mislabelled or not difference <= MAX_DIFFERENCE:  # so that NaN is refused too
        raise NotFaithful(difference, mislabelled, rows)
    return difference


def dump(model: Any) -> bytes:
    """Return the estimator as a skops file. The same model gives the same bytes.

    Raises NotExportable when it holds types that are not trusted.
    """
    data = _reproducible(skops.io.dumps(model))
    load(data)
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


def load(data: bytes) -> Any:
    """Return the estimator of a skops file. Raises NotExportable when it holds types that are not trusted."""
    try:
        return skops.io.loads(data, trusted=TRUSTED_TYPES)
    except UntrustedTypesFoundException as error:
        raise NotExportable("skops", error) from error


@contextmanager
def _refusals_of(format: str) -> Iterator[None]:
    """Say what the libraries say, whatever they raise: their errors have no common base, and each means the same here."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise NotExportable(format, error) from error


def _outputs(expected: Answers, task: Task) -> tuple[Tensor, ...]:
    """The outputs of a model that scikit-learn serves, in the shapes that they would have in ONNX."""
    if task == "regression":
        return (Tensor(name="prediction", datatype="FP64", shape=(-1, 1)),)
    label = Tensor(name="label", datatype="BYTES" if expected.answers.dtype == object else "INT64", shape=(-1,))
    if expected.classes is None:
        return (label, Tensor(name="score", datatype="FP64", shape=(-1,)))
    return (label, Tensor(name="probabilities", datatype="FP64", shape=(-1, len(expected.classes))))


def _tensor(value: Any) -> Tensor:
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return Tensor(name=value.name, datatype=_DATATYPES[value.type], shape=shape)

"""A model version in memory: loaded, tried, and ready to compute."""

import math
import time
from collections.abc import Sequence
from typing import Self

import numpy as np

from meguri_contracts.errors import Invalid
from meguri_contracts.events import Deployed, Signature, Tensor
from meguri_contracts.spec import SCORE
from meguri_inference.engines import Engine, open_engine
from meguri_inference.prediction_log import RESERVED_COLUMNS
from meguri_inference.protocol import Batch, Codec
from meguri_inference.tensors import FLOATS, Array

CALIBRATED_ROWS = 64
"""Rows whose cost, beside that of one row, tells what a call and a row cost."""

_ANSWERS = ({"label", "probabilities"}, {"label", SCORE}, {"label"}, {"prediction"})
_MEMORY = 0.1
"""Weight of the newest call in what is known of the cost."""
_OVERHEAD_BYTES = 1024 * 1024
_FILE_TO_MEMORY = 3
"""About how much more a loaded model takes than its file."""


class Unservable(Invalid):
    def __init__(self, name: str, version: int, reason: str) -> None:
        super().__init__(f"model {name!r} version {version} cannot be served: {reason}")


class NoAnswer(Invalid):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"model {name!r} has no answer to these values: {reason}")


class LoadedModel:
    """One version, ready to compute. `bytes` is about what it takes in memory."""

    def __init__(self, name: str, deployed: Deployed, engine: Engine, size: int) -> None:
        self.name = name
        self.deployed = deployed
        self.version = deployed.version
        self.signature = deployed.signature
        self.codec = Codec(name, deployed.version, deployed.signature)
        self.bytes = _OVERHEAD_BYTES + _FILE_TO_MEMORY * size
        self._engine = engine
        self._real = [at for at, tensor in enumerate(self.signature.outputs) if tensor.datatype in FLOATS]
        self._call_seconds = self._row_seconds = 0.0
        self._slowness = 1.0

    @classmethod
    def load(cls, deployed: Deployed, name: str, data: bytes) -> Self:
        """Load the file of a version and try it on its example. Raises Unservable when it is not what the signature says.

        Takes milliseconds to seconds: call it in a thread.
        """
        try:
            _check_signature(deployed.signature)
            model = cls(name, deployed, open_engine(deployed, data), len(data))
            example = example_of(deployed.signature)
            # Two rows, or a graph that folds its rows into one would not show it.
            tried = model.compute([example, example])
            for tensor, values in zip(deployed.signature.outputs, tried.outputs, strict=True):
                _check_shape(tensor, values.shape)
        except Invalid as error:
            raise Unservable(name, deployed.version, str(error)) from error
        model._calibrate(example)
        return model

    def seconds(self, rows: int) -> float:
        """About how long it takes to compute so many rows; of an engine that blocks nobody knows, so infinitely long."""
        return math.inf if self._engine.blocks else self._slowness * self._estimate(rows)

    def compute(self, xs: Sequence[Array]) -> Batch:
        """Return the rows of all `xs` with their outputs. Raises NoAnswer, in any thread."""
        batch, seconds = self._run(xs)
        self._slowness += (seconds / self._estimate(len(batch.x)) - self._slowness) * _MEMORY
        for at in self._real:
            values = batch.outputs[at]
            # The sum of squares is cheap and not finite if any value is not, or if it is merely very large.
            if not math.isfinite(np.vdot(values, values)) and not np.isfinite(values).all():
                name = self.signature.outputs[at].name
                raise NoAnswer(self.name, f"{name} would be infinite or not a number")
        return batch

    def _calibrate(self, example: Array) -> None:
        """Measure what a call and a row cost. Real rows may cost more than the example: `_slowness` follows them."""
        one, many = ([example] * rows for rows in (1, CALIBRATED_ROWS))
        one_seconds, many_seconds = (min(self._run(xs)[1] for _ in range(3)) for xs in (one, many))
        self._row_seconds = max(many_seconds - one_seconds, 0) / (CALIBRATED_ROWS - 1)
        self._call_seconds = one_seconds
        self._slowness = 1.0

    def _estimate(self, rows: int) -> float:
        return self._call_seconds + rows * self._row_seconds or 1e-6

    def _run(self, xs: Sequence[Array]) -> tuple[Batch, float]:
        """Return all rows with their outputs, and the seconds of this thread: waiting for others makes no model slow."""
        started = time.thread_time()
        try:
            x = xs[0] if len(xs) == 1 else np.concatenate(xs)
            outputs = self._engine.run(x)
        except Exception as error:  # those of engines have no common base
            raise NoAnswer(self.name, str(error)) from error
        return Batch(x, outputs), time.thread_time() - started


def example_of(signature: Signature) -> Array:
    """Return a row that the model can answer, of shape (1, features): the signature's own, or zeros."""
    if signature.inputs:
        values = signature.example or tuple("" if tensor.datatype == "BYTES" else 0 for tensor in signature.inputs)
        row = np.empty((1, len(values)), object)
        row[0] = values
        return row
    values = signature.example or (0,) * len(signature.features)
    return np.array([values], FLOATS[signature.input.datatype])


def _check_signature(signature: Signature) -> None:
    tensor, features = signature.input, signature.features
    if not signature.inputs:
        if tensor.datatype not in FLOATS:
            raise Invalid(f"input {tensor.name!r} is {tensor.datatype}; {' and '.join(FLOATS)} can be served")
        if tensor.shape != (-1, len(features)):
            raise Invalid(f"input {tensor.name!r} has shape {tensor.shape}, its {len(features)} features need [-1, n]")
    elif tuple(one.name for one in signature.inputs) != features:
        raise Invalid("its inputs are not named like its features")
    if signature.example and len(signature.example) != len(features):
        raise Invalid(f"its example has {len(signature.example)} values for {len(features)} features")
    if len(set(features)) != len(features):
        raise Invalid("two features have the same name")
    if (names := {output.name for output in signature.outputs}) not in _ANSWERS:
        known = "label and probabilities, label and score, label, or prediction"
        raise Invalid(f"outputs {sorted(names)}; {known} are known")
    if taken := (RESERVED_COLUMNS | (names & {SCORE})).intersection(features):
        raise Invalid(f"feature {min(taken)!r} is named like a column of the prediction log; rename it in the spec")
    for output in signature.outputs:
        expected = {"label": ("INT64", "BYTES", "BOOL")}.get(output.name, tuple(FLOATS))
        if output.datatype not in expected:
            raise Invalid(f"output {output.name!r} is {output.datatype}; {', '.join(expected)} can be served")


def _check_shape(tensor: Tensor, found: tuple[int, ...]) -> None:
    """Hold the shape of two answered rows against the signature; -1 is the row dimension."""
    if tensor.shape[:1] != (-1,) or found != (2, *tensor.shape[1:]):
        raise Invalid(f"output {tensor.name!r} has shape {list(found)} for two rows, not {list(tensor.shape)}")
    if len(found) != 2 if tensor.name == "probabilities" else found not in ((2,), (2, 1)):
        raise Invalid(f"output {tensor.name!r} has shape {list(tensor.shape)}; one value a row can be served")

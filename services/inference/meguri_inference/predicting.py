"""A model version in memory: what arrives in one turn of the event loop goes through ONNX Runtime together."""

import asyncio
import math
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Self

import numpy as np
import onnxruntime

from meguri_contracts.errors import Invalid
from meguri_contracts.events import Deployed, Signature, Tensor
from meguri_inference.prediction_log import RESERVED_COLUMNS
from meguri_inference.protocol import FLOATS, Answer, Array, Batch, Codec

MAX_BATCHED_ROWS = 64
"""A request with more rows gains nothing from company and goes to a thread by itself."""
MAX_LOOP_SECONDS = 0.0005
"""A call that is expected to take longer goes to a thread, so that the loop goes on accepting and answering."""

_DATATYPES = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
}
_ANSWERS = ({"label", "probabilities"}, {"label"}, {"prediction"})
_MEMORY = 0.1
"""Weight of the newest call in what is known of the cost."""


_Waiting = tuple[Array, asyncio.Future[Answer]]


class Unservable(Invalid):
    def __init__(self, name: str, version: int, reason: str) -> None:
        super().__init__(f"model {name!r} version {version} cannot be served: {reason}")


class NoAnswer(Invalid):
    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"model {name!r} has no answer to these values: {reason}")


class LoadedModel:
    """One version, ready to answer. Belongs to the event loop that calls `predict`."""

    def __init__(self, name: str, deployed: Deployed, session: Any) -> None:
        self.name = name
        self.deployed = deployed
        self.version = deployed.version
        self.signature = deployed.signature
        self.codec = Codec(name, deployed.version, deployed.signature)
        self._session = session
        self._input = self.signature.input.name
        self._outputs = [tensor.name for tensor in self.signature.outputs]
        self._real = [at for at, tensor in enumerate(self.signature.outputs) if tensor.datatype in FLOATS]
        self._call_seconds = self._row_seconds = 0.0
        self._slowness = 1.0
        self._waiting: list[_Waiting] = []
        self._away = False

    @classmethod
    def load(cls, deployed: Deployed, name: str, onnx: bytes) -> Self:
        """Load `onnx` and try it on rows of zeros. Raises Unservable when it is not what the signature says.

        Takes milliseconds to seconds: call it in a thread.
        """
        try:
            _check_signature(deployed.signature)
            session = _session(onnx)
            _check_graph(deployed.signature, session)
            model = cls(name, deployed, session)
            zero = np.zeros((1, len(deployed.signature.features)), FLOATS[deployed.signature.input.datatype])
            # Two rows, or a graph that folds its rows into one would not show it.
            tried, _ = model._run([zero, zero])
            for tensor, values in zip(deployed.signature.outputs, tried.outputs, strict=True):
                _check_shape(tensor, values.shape)
        except Invalid as error:
            raise Unservable(name, deployed.version, str(error)) from error
        model._calibrate(zero)
        return model

    def predict(self, x: Array) -> asyncio.Future[Answer]:
        """Return the answer to the rows of `x`, shape (rows, features), of the model's type; else NoAnswer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        if len(x) > MAX_BATCHED_ROWS:
            self._compute_in_thread([(x, future)])
        else:
            self._waiting.append((x, future))
            if len(self._waiting) == 1 and not self._away:
                loop.call_soon(self._answer_waiting)
        return future

    def _answer_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        xs = [x for x, _ in batch]
        if self._slowness * self._estimate(sum(map(len, xs))) > MAX_LOOP_SECONDS:
            # One batch at a time: what arrives meanwhile makes the next one.
            self._away = True
            self._compute_in_thread(batch).add_done_callback(self._come_back)
        else:
            _settle(batch, self._compute(xs))

    def _compute_in_thread(self, batch: list[_Waiting]) -> "asyncio.Future[list[Answer | Exception]]":
        work = asyncio.get_running_loop().run_in_executor(None, self._compute, [x for x, _ in batch])
        work.add_done_callback(lambda done: _settle(batch, done.result()))
        return work

    def _come_back(self, _: object) -> None:
        self._away = False
        if self._waiting:
            self._answer_waiting()

    def _compute(self, xs: Sequence[Array]) -> list[Answer | Exception]:
        """Answer all of `xs` in one call; if that fails, each by itself, so that nobody pays for another's rows."""
        try:
            batch, seconds = self._run(xs)
            slowness = seconds / self._estimate(len(batch.x))
            self._slowness += (slowness - self._slowness) * _MEMORY
            self._check_finite(batch)
            return self._share_out(batch, [len(x) for x in xs])
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits for an answer is told
            return [error] if len(xs) == 1 else [self._compute([x])[0] for x in xs]

    def _calibrate(self, zero: Array) -> None:
        """Measure what a call and a row cost. Real rows may cost more than zeros: `_slowness` follows them."""
        one, many = ([zero] * rows for rows in (1, MAX_BATCHED_ROWS))
        one_seconds, many_seconds = (min(self._run(xs)[1] for _ in range(3)) for xs in (one, many))
        self._row_seconds = max(many_seconds - one_seconds, 0) / (MAX_BATCHED_ROWS - 1)
        self._call_seconds = one_seconds

    def _estimate(self, rows: int) -> float:
        return self._call_seconds + rows * self._row_seconds

    def _share_out(self, batch: Batch, shares: list[int]) -> list[Answer | Exception]:
        """Give each of those who share `batch` the rows that are his."""
        if len(shares) == 1:
            return [Answer(batch, 0, shares[0], self.codec.write(batch.outputs))]
        written = self.codec.write_rows(batch.outputs)
        if len(shares) == len(batch.x):
            return [Answer(batch, at, 1, texts) for at, texts in enumerate(zip(*written, strict=True))]
        return [
            Answer(batch, end - rows, rows, [b",".join(texts[end - rows : end]) for texts in written])
            for rows, end in zip(shares, accumulate(shares), strict=True)
        ]

    def _run(self, xs: Sequence[Array]) -> tuple[Batch, float]:
        """Return all rows with their outputs, and the seconds of this thread: waiting for others makes no model slow."""
        started = time.thread_time()
        try:
            x = xs[0] if len(xs) == 1 else np.concatenate(xs)
            outputs = self._session.run(self._outputs, {self._input: x})
        except Exception as error:  # ONNX Runtime's have no common base
            raise NoAnswer(self.name, str(error)) from error
        return Batch(x, outputs), time.thread_time() - started

    def _check_finite(self, batch: Batch) -> None:
        for at in self._real:
            values = batch.outputs[at]
            # The sum of squares is cheap and not finite if any value is not, or if it is merely very large.
            if not math.isfinite(np.vdot(values, values)) and not np.isfinite(values).all():
                raise NoAnswer(self.name, f"{self._outputs[at]} would be infinite or not a number")


def _settle(batch: list[_Waiting], answers: list[Answer | Exception]) -> None:
    for (_, future), answer in zip(batch, answers, strict=True):
        if future.done():
            continue  # its caller was cancelled
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def _session(onnx: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(onnx, options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's have no common base
        raise Invalid(f"ONNX Runtime cannot load it: {error}") from error


def _check_signature(signature: Signature) -> None:
    tensor, features = signature.input, signature.features
    if tensor.datatype not in FLOATS:
        raise Invalid(f"input {tensor.name!r} is {tensor.datatype}; {' and '.join(FLOATS)} can be served")
    if tensor.shape != (-1, len(features)):
        raise Invalid(f"input {tensor.name!r} has shape {tensor.shape}, its {len(features)} features need [-1, n]")
    if len(set(features)) != len(features):
        raise Invalid("two features have the same name")
    if taken := RESERVED_COLUMNS.intersection(features):
        raise Invalid(f"feature {min(taken)!r} is named like a column of the prediction log; rename it in the spec")
    if (names := {output.name for output in signature.outputs}) not in _ANSWERS:
        raise Invalid(f"outputs {sorted(names)}; label and probabilities, label, or prediction are known")
    for output in signature.outputs:
        expected = {"label": ("INT64", "BYTES", "BOOL")}.get(output.name, tuple(FLOATS))
        if output.datatype not in expected:
            raise Invalid(f"output {output.name!r} is {output.datatype}; {', '.join(expected)} can be served")


def _check_graph(signature: Signature, session: Any) -> None:
    if [node.name for node in session.get_inputs()] != [signature.input.name]:
        raise Invalid(
            f"the graph takes {[n.name for n in session.get_inputs()]}, the signature {signature.input.name!r}"
        )
    nodes = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
    for tensor in (signature.input, *signature.outputs):
        if tensor.name not in nodes:
            raise Invalid(
                f"the graph has no output {tensor.name!r}; it gives {[n.name for n in session.get_outputs()]}"
            )
        node = nodes[tensor.name]
        if (found := _DATATYPES.get(node.type, node.type)) != tensor.datatype:
            raise Invalid(f"{tensor.name!r} is {found} in the graph and {tensor.datatype} in the signature")
    stated, width = session.get_inputs()[0].shape, len(signature.features)
    # What is not a number in the graph's shape may be any.
    if len(stated) != 2 or isinstance(stated[0], int) or (isinstance(stated[1], int) and stated[1] != width):
        raise Invalid(f"the graph takes shape {stated}, the signature says {list(signature.input.shape)}")


def _check_shape(tensor: Tensor, found: tuple[int, ...]) -> None:
    """Hold the shape of two answered rows against the signature; -1 is the row dimension."""
    if tensor.shape[:1] != (-1,) or found != (2, *tensor.shape[1:]):
        raise Invalid(f"output {tensor.name!r} has shape {list(found)} for two rows, not {list(tensor.shape)}")
    if len(found) != 2 if tensor.name == "probabilities" else found not in ((2,), (2, 1)):
        raise Invalid(f"output {tensor.name!r} has shape {list(tensor.shape)}; one value a row can be served")

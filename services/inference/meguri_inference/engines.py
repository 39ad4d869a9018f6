"""What computes the answers of a model: ONNX Runtime, or scikit-learn where ONNX cannot say the same.

scikit-learn and its 100 MB are only imported when the first model needs them.
"""

import threading
from typing import Any, Protocol

import numpy as np
import onnxruntime

from meguri_contracts.errors import Invalid
from meguri_contracts.events import Deployed, Signature, Tensor
from meguri_contracts.spec import SCORE
from meguri_contracts.trusted import TRUSTED_TYPES
from meguri_inference.protocol import Outputs
from meguri_inference.tensors import Array

DTYPES: dict[str, type[Any]] = {
    "FP32": np.float32,
    "FP64": np.float64,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "BYTES": np.object_,
}
"""What the values of a tensor are in memory."""

_DATATYPES = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
}


class Engine(Protocol):
    """Answers rows. Any thread may ask, several at once."""

    blocks: bool
    """Whether a call may take long whatever was measured, and therefore belongs in a thread."""

    def run(self, x: Array) -> Outputs:
        """Return the outputs of the signature in their order, rows first, of rows (n, features): of the input's type, or
        objects where there is an input for each feature. Raises what the engine raises."""
        ...


def open_engine(deployed: Deployed, data: bytes) -> Engine:
    """Return the engine of a version with `data`, its `served` file. Raises Invalid when it cannot be what is said of it."""
    if deployed.engine == "onnx":
        return OnnxEngine(deployed.signature, data)
    return SklearnEngine(deployed.signature, data)


def inputs_of(signature: Signature) -> tuple[Tensor, ...]:
    """Return the one input of all features, or one for each."""
    return signature.inputs or (signature.input,)


class OnnxEngine:
    """A graph in ONNX Runtime, on the thread that asks."""

    blocks = False

    def __init__(self, signature: Signature, onnx: bytes) -> None:
        self._session = _session(onnx)
        _check_graph(signature, self._session)
        self._outputs = [tensor.name for tensor in signature.outputs]
        self._input = signature.input.name
        self._columns = [(tensor.name, DTYPES[tensor.datatype]) for tensor in signature.inputs]

    def run(self, x: Array) -> Outputs:
        if self._columns:
            feeds = {name: x[:, [at]].astype(dtype) for at, (name, dtype) in enumerate(self._columns)}
        else:
            feeds = {self._input: x}
        outputs: Outputs = self._session.run(self._outputs, feeds)
        return outputs


class SklearnEngine:
    """A fitted estimator out of a skops file, on one core."""

    blocks = True

    def __init__(self, signature: Signature, skops: bytes) -> None:
        # Here and not above: most replicas never need it.
        import sklearn  # noqa: PLC0415

        self._model = _estimator(skops)
        self._config = sklearn.config_context
        self._limited = threading.local()
        self._outputs = signature.outputs
        self._finds_outliers = any(tensor.name == SCORE for tensor in signature.outputs)
        if (width := getattr(self._model, "n_features_in_", None)) != len(signature.features):
            raise Invalid(f"the estimator takes {width} features, the signature says {len(signature.features)}")
        for tensor in signature.outputs:
            if not hasattr(self._model, _METHODS.get(tensor.name, "")):
                raise Invalid(f"the estimator cannot give the output {tensor.name!r}")

    def run(self, x: Array) -> Outputs:
        self._limit_threads()
        with self._config(assume_finite=True):
            return [self._output(tensor, x) for tensor in self._outputs]

    def _output(self, tensor: Tensor, x: Array) -> Array:
        values = getattr(self._model, _METHODS[tensor.name])(x)
        if tensor.name == "label" and self._finds_outliers:
            values = values == -1
        return np.asarray(values, DTYPES[tensor.datatype]).reshape(len(x), *tensor.shape[1:])

    def _limit_threads(self) -> None:
        """Keep this thread's calls on one core. OpenMP counts for each thread by itself."""
        if not hasattr(self._limited, "here"):
            from threadpoolctl import threadpool_limits  # noqa: PLC0415

            self._limited.here = threadpool_limits(1)


_METHODS = {
    "label": "predict",
    "prediction": "predict",
    "probabilities": "predict_proba",
    SCORE: "decision_function",
}


def _estimator(skops: bytes) -> Any:
    import skops.io as skops_io  # noqa: PLC0415

    try:
        model = skops_io.loads(skops, trusted=TRUSTED_TYPES)
    except Exception as error:  # skops's have no common base, and a file may be broken in any way
        raise Invalid(f"scikit-learn cannot load it: {type(error).__name__}: {error}") from error
    if not hasattr(model, "get_params"):
        raise Invalid(f"the skops file holds no estimator but {type(model).__name__}")
    return model.set_params(**{name: 1 for name in model.get_params() if name.rpartition("__")[2] == "n_jobs"})


def _session(onnx: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(onnx, options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's have no common base
        raise Invalid(f"ONNX Runtime cannot load it: {error}") from error


def _check_graph(signature: Signature, session: Any) -> None:
    inputs = inputs_of(signature)
    taken, said = [node.name for node in session.get_inputs()], [tensor.name for tensor in inputs]
    if sorted(taken) != sorted(said):
        raise Invalid(f"the graph takes {taken}, the signature {said}")
    nodes = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
    for tensor in (*inputs, *signature.outputs):
        if tensor.name not in nodes:
            raise Invalid(
                f"the graph has no output {tensor.name!r}; it gives {[n.name for n in session.get_outputs()]}"
            )
        node = nodes[tensor.name]
        if (found := _DATATYPES.get(node.type, node.type)) != tensor.datatype:
            raise Invalid(f"{tensor.name!r} is {found} in the graph and {tensor.datatype} in the signature")
    for tensor in inputs:
        stated, width = nodes[tensor.name].shape, tensor.shape[-1]
        # What is not a number in the graph's shape may be any.
        if len(stated) != 2 or isinstance(stated[0], int) or (isinstance(stated[1], int) and stated[1] != width):
            raise Invalid(f"the graph takes {tensor.name!r} of shape {stated}, the signature says {list(tensor.shape)}")

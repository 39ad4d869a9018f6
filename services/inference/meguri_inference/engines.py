"""What computes the answers of a model."""

from typing import Any, Protocol

import onnxruntime

from meguri_contracts.errors import Invalid
from meguri_contracts.events import Deployed, Signature
from meguri_inference.protocol import Outputs
from meguri_inference.tensors import Array

_DATATYPES = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
}


class Engine(Protocol):
    """Computes outputs from rows, in any thread."""

    def run(self, x: Array) -> Outputs:
        """Return the outputs for the rows of `x`, in the order of the signature."""


def open_engine(deployed: Deployed, data: bytes) -> Engine:
    """Return what computes the answers of a version whose file is `data`. Raises Invalid that says why it cannot."""
    session = _session(data)
    _check_graph(deployed.signature, session)
    return OnnxEngine(session, deployed.signature)


class OnnxEngine:
    """ONNX Runtime on one thread."""

    def __init__(self, session: Any, signature: Signature) -> None:
        self._session = session
        self._input = signature.input.name
        self._outputs = [tensor.name for tensor in signature.outputs]

    def run(self, x: Array) -> Outputs:
        outputs: Outputs = self._session.run(self._outputs, {self._input: x})
        return outputs


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

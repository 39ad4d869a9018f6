"""What V2 clients may ask about a server and its models: metadata, Triton's configuration, the index of the repository."""

from collections.abc import Iterable
from typing import Any

from meguri_contracts.events import Deployed, Tensor
from meguri_inference import __version__

EXTENSIONS = ("binary_tensor_data", "model_configuration")
"""What is spoken beyond V2 itself. The index is there too, but no `model_repository`: nothing can be loaded through it."""


def server_metadata() -> dict[str, Any]:
    """Return the answer to `GET /v2`."""
    return {"name": "meguri", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata(name: str, deployed: Deployed) -> dict[str, Any]:
    """Return the answer to `GET /v2/models/<name>`. Features in one tensor stand by name in its parameters.

    The model's own parameters say what computes its answers, why that is not ONNX Runtime, and a row that it can answer.
    """
    signature = deployed.signature
    inputs = [tensor.model_dump(mode="json") for tensor in _inputs(deployed)]
    if not signature.inputs:
        inputs[0]["parameters"] = {"features": list(signature.features)}
    parameters: dict[str, Any] = {"engine": deployed.engine}
    if deployed.engine_reason:
        parameters["engine_reason"] = deployed.engine_reason
    if signature.example:
        parameters["example"] = dict(zip(signature.features, signature.example, strict=True))
    if signature.classes:
        parameters["classes"] = list(signature.classes)
    return {
        "name": name,
        "versions": [str(deployed.version)],
        "platform": _PLATFORMS[deployed.engine],
        "inputs": inputs,
        "outputs": [tensor.model_dump(mode="json") for tensor in signature.outputs],
        "parameters": parameters,
    }


def model_config(name: str, deployed: Deployed) -> dict[str, Any]:
    """Return the answer to `GET /v2/models/<name>/config`, as Triton's measuring tools read it."""
    return {
        "name": name,
        "platform": _PLATFORMS[deployed.engine],
        "backend": _BACKENDS[deployed.engine],
        "version_policy": {"specific": {"versions": [deployed.version]}},
        "max_batch_size": 0,
        "input": [_configured(tensor) for tensor in _inputs(deployed)],
        "output": [_configured(tensor) for tensor in deployed.signature.outputs],
    }


def repository_index(served: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    """Return the answer to `POST /v2/repository/index`."""
    return [{"name": name, "version": str(version), "state": "READY", "reason": ""} for name, version in served]


_PLATFORMS = {"onnx": "onnx_onnxv1", "scikit-learn": "sklearn_skops"}
_BACKENDS = {"onnx": "onnxruntime", "scikit-learn": "python"}


def _inputs(deployed: Deployed) -> tuple[Tensor, ...]:
    return deployed.signature.inputs or (deployed.signature.input,)


def _configured(tensor: Tensor) -> dict[str, Any]:
    # The row dimension is stated too, because max_batch_size is 0: any number of rows, within the service's limit.
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": list(tensor.shape)}

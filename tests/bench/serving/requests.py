"""The requests that are sent, and whether the first answer says what scikit-learn says."""

import json
from typing import Any

import httpx
import numpy as np

from tests.bench.serving.load import Request
from tests.bench.serving.models import Model
from tests.bench.serving.servers import Server

JSON = {"Content-Type": "application/json"}
HEADER_LENGTH = "Inference-Header-Content-Length"
TOLERANCE = 1e-5
"""Difference of probabilities: ONNX Runtime adds up the trees of a forest in single precision."""
DTYPES: dict[str, Any] = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64}


class NotMeasured(Exception):
    """What should be measured is not there; the message says why."""


def to_us(model: Model, rows: int) -> Request:
    """Return the V2 request for the model's first `rows` rows, in JSON."""
    return Request(
        _path(model), json.dumps({"inputs": [_tensor(model, rows, data=_values(model, rows))]}).encode(), JSON
    )


def to_us_binary(model: Model, rows: int) -> Request:
    """Return the same with binary tensors, for a binary answer."""
    dtype = DTYPES[model.fitted.signature.input.datatype]
    tensor = model.rows[:rows].astype(dtype).tobytes()
    outputs = [{"name": t.name, "parameters": {"binary_data": True}} for t in model.fitted.signature.outputs]
    head = {"inputs": [_tensor(model, rows, parameters={"binary_data_size": len(tensor)})], "outputs": outputs}
    envelope = json.dumps(head).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(envelope))}
    return Request(_path(model), envelope + tensor, headers)


def to_them(model: Model, rows: int) -> Request:
    """Return the request to the server written by hand."""
    return Request("/predict", json.dumps({"rows": model.rows[:rows].tolist()}).encode(), JSON)


def check(server: Server, request: Request, model: Model, rows: int) -> None:
    """Ask once and hold the answer against scikit-learn. Raises NotMeasured, or AssertionError when it is wrong."""
    url = f"http://127.0.0.1:{server.port}{request.path}"
    answer = httpx.post(url, content=request.body, headers=dict(request.headers), timeout=60)
    if not answer.is_success:
        raise NotMeasured(f"the request is refused: {answer.text[:120]}")
    labels, probabilities = _read(answer)
    expected = model.estimator.predict_proba(model.rows[:rows])
    assert np.abs(probabilities.reshape(expected.shape) - expected).max() <= TOLERANCE, (probabilities, expected)
    assert (labels == model.estimator.classes_[expected.argmax(axis=1)]).all(), labels


def _read(answer: httpx.Response) -> tuple[Any, Any]:
    if length := answer.headers.get(HEADER_LENGTH):
        return _read_binary(answer.content, int(length))
    given = answer.json()
    if "outputs" in given:
        given = {output["name"]: output["data"] for output in given["outputs"]}
        return np.array(given["label"]), np.array(given["probabilities"])
    return np.array(given["labels"]), np.array(given["probabilities"])


def _read_binary(content: bytes, at: int) -> tuple[Any, Any]:
    found: dict[str, Any] = {}
    for output in json.loads(content[:at])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        found[output["name"]] = np.frombuffer(content[at : at + size], DTYPES[output["datatype"]])
        at += size
    return found["label"], found["probabilities"]


def _path(model: Model) -> str:
    return f"/v2/models/{model.name}/infer"


def _tensor(model: Model, rows: int, **more: Any) -> dict[str, Any]:
    given = model.fitted.signature.input
    return {"name": given.name, "shape": [rows, model.rows.shape[1]], "datatype": given.datatype, **more}


def _values(model: Model, rows: int) -> list[float]:
    return model.rows[:rows].ravel().tolist()

"""Real models for the tests of inference: fitted with scikit-learn, exported with skl2onnx, as training does."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import uvloop
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge

from meguri_contracts.events import Artifact, Deployed, Signature, Tensor
from meguri_inference.predicting import LoadedModel
from meguri_inference.tensors import FLOATS
from tests.inference.batches import Batching
from tests.inference.replicas import PREDICTION, Outlet, Replica, graph
from tests.services import name, wire

IRIS = ("sepal_length", "sepal_width", "petal_length", "petal_width")


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """Have tests run in the loop that the service runs in."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass(frozen=True)
class Fitted:
    """An estimator and what inference is given of it. `x` are rows to try."""

    name: str
    estimator: Any
    x: np.ndarray
    deployed: Deployed
    onnx: bytes

    def load(self) -> LoadedModel:
        return LoadedModel.load(self.deployed, self.name, self.onnx)

    def body(self, rows: np.ndarray, **more: Any) -> dict[str, Any]:
        """A V2 request for `rows`."""
        datatype = self.deployed.signature.input.datatype
        tensor = {"name": "x", "shape": list(rows.shape), "datatype": datatype, "data": rows.ravel().tolist()}
        return {"inputs": [tensor], **more}


def deployed(datatype: str, features: tuple[str, ...], *outputs: Tensor, version: int = 3) -> Deployed:
    artifact = Artifact(uri="file:///nowhere", digest="0" * 64, size=0)
    given = Tensor(name="x", datatype=datatype, shape=(-1, len(features)))
    signature = Signature(features=features, input=given, outputs=outputs)
    return Deployed(version=version, run="run-1", onnx=artifact, profile=artifact, signature=signature)


def fitted(name: str, estimator: Any, x: np.ndarray, y: np.ndarray, features: tuple[str, ...], datatype: str) -> Fitted:
    estimator.fit(x, y)
    tensor_type = {"FP32": FloatTensorType, "FP64": DoubleTensorType}[datatype]
    options: dict[str, Any] = {"initial_types": [("x", tensor_type([None, x.shape[1]]))]}
    if hasattr(estimator, "classes_"):
        label = "INT64" if np.issubdtype(estimator.classes_.dtype, np.integer) else "BYTES"
        outputs = (
            Tensor(name="label", datatype=label, shape=(-1,)),
            Tensor(name="probabilities", datatype=datatype, shape=(-1, len(estimator.classes_))),
        )
        options["options"] = {id(estimator): {"zipmap": False}}
    else:
        outputs = (Tensor(name="prediction", datatype=datatype, shape=(-1, 1)),)
        options["final_types"] = [("prediction", tensor_type([None, 1]))]
    onnx = to_onnx(estimator, **options).SerializeToString()
    return Fitted(name, estimator, x.astype(FLOATS[datatype]), deployed(datatype, features, *outputs), onnx)


@pytest.fixture(scope="session")
def iris() -> Fitted:
    """A linear model in FP64 with integer labels."""
    x, y = load_iris(return_X_y=True)
    return fitted("iris", LogisticRegression(max_iter=1000), x, y, IRIS, "FP64")


@pytest.fixture(scope="session")
def contrary() -> Fitted:
    """What has learned to take one flower for another."""
    x, y = load_iris(return_X_y=True)
    return fitted("iris", LogisticRegression(max_iter=1000), x, (y + 1) % 3 * (y > 0), IRIS, "FP64")


@pytest.fixture(scope="session")
def flowers() -> Fitted:
    """The same with text for labels."""
    data = load_iris()
    return fitted("flowers", LogisticRegression(max_iter=1000), data.data, data.target_names[data.target], IRIS, "FP64")


@pytest.fixture(scope="session")
def forest() -> Fitted:
    """Trees in FP32, large enough to take milliseconds for thousands of rows."""
    x, y = load_iris(return_X_y=True)
    return fitted("forest", RandomForestClassifier(100, random_state=0), x, y, IRIS, "FP32")


@pytest.fixture(scope="session")
def ridge() -> Fitted:
    """A regressor in FP64."""
    x, y = load_diabetes(return_X_y=True)
    return fitted("ridge", Ridge(), x, y, tuple(f"f{i}" for i in range(10)), "FP64")


@pytest.fixture
async def outlet() -> Outlet:
    return Outlet()


@pytest.fixture
async def replica(outlet) -> Replica:
    return Replica(outlet=outlet)


@pytest.fixture
def picky(iris) -> LoadedModel:
    """Looks its answer up by the row's only feature; has answers to 0, 1 and 2, and fails on everything else."""
    deployed = iris.deployed.model_copy(
        update={
            "signature": Signature(
                features=("key",), input=Tensor(name="x", datatype="FP32", shape=(-1, 1)), outputs=(PREDICTION,)
            )
        }
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["index", "flat"], ["keys"]),
        helper.make_node("Gather", ["table", "keys"], ["prediction"]),
    ]
    initializers = [
        helper.make_tensor("table", TensorProto.FLOAT, [3], [10, 11, float("nan")]),
        helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
    ]
    return LoadedModel.load(deployed, "picky", graph(deployed, nodes, initializers))


@pytest.fixture
async def batching(broker, tmp_path) -> AsyncIterator[Batching]:
    async with wire(broker) as beside:
        yield Batching(beside, tmp_path, broker, name("m"))

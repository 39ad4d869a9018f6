import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from meguri_contracts.errors import Invalid
from meguri_contracts.events import Deployed, Tensor
from meguri_inference.predicting import LoadedModel, NoAnswer, Unservable
from tests.inference.replicas import PREDICTION, graph


def changed(deployed: Deployed, **signature) -> Deployed:
    return deployed.model_copy(update={"signature": deployed.signature.model_copy(update=signature)})


@pytest.mark.parametrize("which", ["iris", "flowers", "forest"])
def test_rows_that_are_computed_together_have_the_answers_that_scikit_learn_gives(which, request):
    fitted = request.getfixturevalue(which)
    xs = [fitted.x[:1], fitted.x[60:70], fitted.x[140:141]]
    x = np.concatenate(xs)

    batch = fitted.load().compute(xs)

    label, probabilities = batch.outputs
    assert batch.x.tolist() == x.tolist()
    assert label.tolist() == fitted.estimator.predict(x).tolist()
    np.testing.assert_allclose(probabilities, fitted.estimator.predict_proba(x), atol=1e-5)


def test_a_regressor_answers_as_scikit_learn_does(ridge):
    (prediction,) = ridge.load().compute([ridge.x[:50]]).outputs

    np.testing.assert_allclose(prediction.reshape(-1), ridge.estimator.predict(ridge.x[:50]), rtol=1e-9)


@pytest.mark.parametrize("bad", [99, 2], ids=["the call fails", "the answer is not a number"])
def test_rows_that_a_model_has_no_answer_to_are_refused(picky, bad):
    assert picky.compute([np.array([[0], [1]], np.float32)]).outputs[0].tolist() == [10, 11]
    with pytest.raises(NoAnswer, match="has no answer to these values"):
        picky.compute([np.array([[0], [bad]], np.float32)])


def test_a_model_whose_calls_take_long_is_expected_to_take_long(forest):
    model = forest.load()
    at_first = model.seconds(1)
    engine = model._engine

    class Slow:
        blocks = False

        def run(self, x):
            end = time.thread_time() + 100 * at_first
            while time.thread_time() < end:
                pass
            return engine.run(x)

    model._engine = Slow()
    for _ in range(10):
        model.compute([forest.x[:1]])

    assert model.seconds(1) > 10 * at_first
    assert model.seconds(100) > model.seconds(1)


def unservable(deployed: Deployed, onnx_bytes: bytes) -> str:
    with pytest.raises(Unservable) as caught:
        LoadedModel.load(deployed, "iris", onnx_bytes)
    assert isinstance(caught.value, Invalid)
    return str(caught.value)


def test_bytes_that_are_no_graph_are_refused(iris):
    assert "ONNX Runtime cannot load it" in unservable(iris.deployed, b"not a graph")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features": ("a", "b", "c")}, "its 3 features"),
        ({"features": ("a", "b", "c", "c")}, "same name"),
        ({"features": ("a", "b", "c", "time")}, "'time'"),
        ({"input": Tensor(name="y", datatype="FP64", shape=(-1, 4))}, "the graph takes ['x']"),
        ({"input": Tensor(name="x", datatype="FP32", shape=(-1, 4))}, "FP64 in the graph and FP32"),
        ({"input": Tensor(name="x", datatype="INT64", shape=(-1, 4))}, "is INT64"),
        ({"outputs": (Tensor(name="scores", datatype="FP64", shape=(-1,)),)}, "['scores']"),
        ({"outputs": (Tensor(name="prediction", datatype="FP64", shape=(-1,)),)}, "no output 'prediction'"),
        ({"outputs": (Tensor(name="label", datatype="BYTES", shape=(-1,)),)}, "INT64 in the graph and BYTES"),
        ({"outputs": (Tensor(name="label", datatype="FP64", shape=(-1,)),)}, "can be served"),
        ({"outputs": (Tensor(name="label", datatype="INT64", shape=(-1, 2)),)}, "has shape [2]"),
        ({"outputs": (Tensor(name="label", datatype="INT64", shape=(1,)),)}, "has shape [2]"),
    ],
)
def test_a_signature_that_the_graph_does_not_keep_is_refused(iris, change, says):
    assert says in unservable(changed(iris.deployed, **change), iris.onnx)


def test_a_graph_of_another_width_is_refused(iris):
    wide = tuple("abcde")
    given = Tensor(name="x", datatype="FP64", shape=(-1, 5))

    assert "shape" in unservable(changed(iris.deployed, features=wide, input=given), iris.onnx)


def test_a_graph_that_folds_its_rows_is_refused(iris):
    given = Tensor(name="x", datatype="FP32", shape=(-1, 4))
    deployed = changed(iris.deployed, input=given, outputs=(PREDICTION,))
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "flat"], ["prediction"]),
    ]
    folding = graph(deployed, nodes, [helper.make_tensor("flat", TensorProto.INT64, [1], [-1])])
    onnx.checker.check_model(onnx.load_from_string(folding))

    assert "has shape [1] for two rows" in unservable(deployed, folding)

import asyncio

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from meguri_contracts.errors import Invalid
from meguri_contracts.events import Deployed, Signature, Tensor
from meguri_inference.predicting import LoadedModel, NoAnswer, Unservable

PREDICTION = Tensor(name="prediction", datatype="FP32", shape=(-1,))


def changed(deployed: Deployed, **signature) -> Deployed:
    return deployed.model_copy(update={"signature": deployed.signature.model_copy(update=signature)})


def graph(deployed: Deployed, nodes, initializers=(), shape=(None,)) -> bytes:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, len(deployed.signature.features)])
    told = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, shape)
    made = helper.make_graph(nodes, "g", [given], [told], list(initializers))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


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


@pytest.mark.parametrize("which", ["iris", "flowers", "forest"])
async def test_each_of_many_callers_gets_the_answer_to_its_own_rows(which, request):
    fitted = request.getfixturevalue(which)
    model = fitted.load()
    rng = np.random.default_rng(0)
    questions = [fitted.x[rng.integers(0, len(fitted.x), rows)] for rows in rng.choice([1, 1, 2, 7, 64, 65, 200], 60)]

    answers = await asyncio.gather(*(model.predict(x) for x in questions))

    for x, answer in zip(questions, answers, strict=True):
        label, probabilities = answer.outputs
        assert label.tolist() == fitted.estimator.predict(x).tolist()
        np.testing.assert_allclose(probabilities, fitted.estimator.predict_proba(x), atol=1e-5)


async def test_a_regressor_answers_as_scikit_learn_does(ridge):
    (prediction,) = (await ridge.load().predict(ridge.x[:50])).outputs

    np.testing.assert_allclose(prediction.reshape(-1), ridge.estimator.predict(ridge.x[:50]), rtol=1e-9)


async def test_what_arrives_in_one_turn_of_the_loop_is_computed_together(iris):
    model = iris.load()

    first, second = await asyncio.gather(model.predict(iris.x[:1]), model.predict(iris.x[1:3]))
    later = await model.predict(iris.x[:1])

    assert first.batch is second.batch
    assert later.batch is not first.batch


async def test_a_request_of_many_rows_is_computed_by_itself(iris):
    model = iris.load()

    few, many = await asyncio.gather(model.predict(iris.x[:1]), model.predict(iris.x[:65]))

    assert len(few.batch.x) == 1
    assert len(many.batch.x) == 65


async def test_the_loop_turns_while_many_rows_are_computed(forest):
    model = forest.load()
    answer = model.predict(np.repeat(forest.x, 40, axis=0))

    turns = 0
    while not answer.done():
        turns += 1
        await asyncio.sleep(0)

    assert turns > 20
    assert len(answer.result().outputs[0]) == 6000


async def test_a_model_that_has_become_slow_leaves_the_loop_even_for_one_row(forest):
    model = forest.load()
    model._row_seconds = 0.01
    answers = [model.predict(forest.x[:1])]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not answers[0].done()
    answers.append(model.predict(forest.x[50:51]))

    labels = [answer.outputs[0][0] for answer in await asyncio.gather(*answers)]

    assert labels == forest.estimator.predict(forest.x[[0, 50]]).tolist()


@pytest.mark.parametrize("bad", [99, 2], ids=["the call fails", "the answer is not a number"])
async def test_rows_without_an_answer_spoil_nobody_elses(picky, bad):
    keys = [0, 1, bad, 1, 0]

    answers = await asyncio.gather(
        *(picky.predict(np.array([[key]], np.float32)) for key in keys), return_exceptions=True
    )

    assert isinstance(answers[2], NoAnswer)
    assert [answer.outputs[0].tolist() for answer in answers if not isinstance(answer, NoAnswer)] == [
        [10],
        [11],
        [11],
        [10],
    ]


async def test_a_caller_that_was_cancelled_does_not_hurt_the_others(iris):
    model = iris.load()
    gone, there = model.predict(iris.x[:1]), model.predict(iris.x[:1])
    gone.cancel()

    assert (await there).outputs[0].tolist() == [0]


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

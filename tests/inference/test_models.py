import pytest

from meguri_contracts.errors import NotFound
from meguri_inference.models import Models


def next_version(fitted):
    deployed = fitted.deployed.model_copy(update={"version": 4})
    return type(fitted)(fitted.name, fitted.estimator, fitted.x, deployed, fitted.onnx)


def test_nobody_answers_for_an_unknown_model_and_the_served_ones_are_named(iris, ridge):
    models = Models()
    with pytest.raises(NotFound, match="none yet"):
        models.get("iris")
    models.swap("ridge", ridge.load())
    models.swap("iris", iris.load())

    with pytest.raises(NotFound, match="served are: iris, ridge"):
        models.get("digits")
    assert models.names == ("iris", "ridge")


def test_only_the_served_version_answers(iris):
    models = Models()
    models.swap("iris", loaded := iris.load())

    assert models.get("iris") is models.get("iris", "3") is loaded
    with pytest.raises(NotFound, match=r"version 2 of model 'iris' is not served here; version 3 is"):
        models.get("iris", "2")


def test_a_model_is_ready_from_its_first_swap(iris):
    models = Models()
    assert not models.ready("iris")

    models.swap("iris", iris.load())

    assert models.ready("iris")
    assert models.ready("iris", "3")
    assert not models.ready("iris", "4")


async def test_a_request_in_hand_finishes_on_the_version_it_began_with(iris):
    models = Models()
    models.swap("iris", old := iris.load())
    answer = models.get("iris").predict(iris.x[:1])

    assert models.swap("iris", new := next_version(iris).load()) is old

    assert models.get("iris") is new
    assert (await answer).outputs[0].tolist() == [0]

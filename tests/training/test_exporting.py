import json

import numpy as np
import pytest
import skops.io
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, mean_absolute_error, r2_score
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from meguri_contracts.spec import Estimator
from meguri_training import estimators, evaluating, exporting

IRIS, SPECIES = load_iris(return_X_y=True)
DIGITS, DIGIT = load_digits(return_X_y=True)
DIABETES, PROGRESS = load_diabetes(return_X_y=True)
QUICK = {
    "HistGradientBoostingClassifier": {"max_iter": 5},
    "GradientBoostingClassifier": {"n_estimators": 5},
    "RandomForestClassifier": {"n_estimators": 10},
    "ExtraTreesClassifier": {"n_estimators": 10},
    "AdaBoostClassifier": {"n_estimators": 10},
    "MLPClassifier": {"hidden_layer_sizes": [8], "max_iter": 50},
    "MLPRegressor": {"hidden_layer_sizes": [8], "max_iter": 50},
}


def trained(name, rows, target, task="classification", **given):
    """Fit on the even rows; return everything that `export` takes, of the odd ones."""
    spec = Estimator(name=name, params=given.pop("params", QUICK.get(name, {})), **given)
    inputs = estimators.as_input(spec, rows)
    with threadpool_limits(1):
        model = estimators.build(spec, task, seed=0).fit(inputs[::2], target[::2])
    names = [f"x{i}" for i in range(rows.shape[1])]
    return model, names, inputs[1::2], target[1::2], evaluating.ask(model, inputs[1::2], task)


@pytest.mark.parametrize("name", sorted(estimators.KNOWN["classification"]))
def test_every_classifier_answers_through_onnx_as_in_scikit_learn(name):
    labels = np.array(["setosa", "versicolor", "virginica"], dtype=object)[SPECIES]
    model, features, rows, target, expected = trained(name, IRIS, labels)
    exported = exporting.export(model, features, rows, target, expected)
    served = evaluating.ask_onnx(evaluating.open_onnx(exported.onnx), rows, "classification")

    assert exported.parity < 1e-5
    assert (served.answers == expected.answers).all()
    assert served.classes.tolist() == ["setosa", "versicolor", "virginica"]
    assert np.allclose(served.probabilities, expected.probabilities, atol=1e-5)


@pytest.mark.parametrize("name", sorted(estimators.KNOWN["regression"]))
def test_every_regressor_answers_through_onnx_as_in_scikit_learn(name):
    model, features, rows, target, expected = trained(name, DIABETES, PROGRESS, task="regression")
    exported = exporting.export(model, features, rows, target, expected)
    served = evaluating.ask_onnx(evaluating.open_onnx(exported.onnx), rows, "regression")

    assert exported.parity < 1e-5
    assert np.allclose(served.answers, expected.answers, rtol=1e-4)


@pytest.mark.parametrize("name", sorted({*estimators.KNOWN["classification"], *estimators.KNOWN["regression"]}))
def test_every_estimator_is_dumped_and_comes_back_by_trusted_types_alone(name):
    task = "classification" if name in estimators.KNOWN["classification"] else "regression"
    rows, target = (IRIS, SPECIES) if task == "classification" else (DIABETES, PROGRESS)
    model, _, held, _, expected = trained(name, rows, target, task=task)
    back = skops.io.loads(exporting.dump(model), trusted=exporting.TRUSTED)

    assert (back.predict(held) == expected.answers).all()


def test_a_type_that_is_not_on_the_list_is_not_dumped():
    with pytest.raises(exporting.NotExportable, match=r"skops: UntrustedTypes.*numpy\.poly1d"):
        exporting.dump({"surprise": np.poly1d})


def test_trees_branch_alike_where_a_feature_needs_more_than_single_precision():
    rng = np.random.default_rng(0)
    seconds = 1.7e9 + rng.uniform(0, 1e6, 3000)
    rows = np.column_stack([seconds, rng.normal(size=3000)])
    target = ((seconds > 1.7e9 + 5e5) ^ (rows[:, 1] > 0)).astype(np.int64)
    exported = exporting.export(*trained("HistGradientBoostingClassifier", rows, target))

    assert exported.parity < 1e-5


def test_a_classifier_has_a_label_and_probabilities():
    signature = exporting.export(*trained("LogisticRegression", DIGITS, DIGIT, scale=True, params={})).signature
    label, probabilities = signature.outputs

    assert signature.features == tuple(f"x{i}" for i in range(64))
    assert (signature.input.name, signature.input.datatype, signature.input.shape) == ("input", "FP64", (-1, 64))
    assert (label.name, label.datatype, label.shape) == ("label", "INT64", (-1,))
    assert (probabilities.name, probabilities.datatype, probabilities.shape) == ("probabilities", "FP64", (-1, 10))


def test_labels_that_are_texts_are_bytes_in_the_signature():
    labels = np.array(["no", "yes"], dtype=object)[(SPECIES > 0).astype(int)]

    assert exporting.export(*trained("DecisionTreeClassifier", IRIS, labels)).signature.outputs[0].datatype == "BYTES"


@pytest.mark.parametrize(("name", "datatype"), [("Ridge", "FP64"), ("DecisionTreeRegressor", "FP32")])
def test_a_regressor_has_one_prediction_per_row(name, datatype):
    signature = exporting.export(*trained(name, DIABETES, PROGRESS, task="regression")).signature
    (prediction,) = signature.outputs

    assert signature.input.datatype == datatype
    assert (prediction.name, prediction.datatype, prediction.shape) == ("prediction", datatype, (-1, 1))


def test_a_model_that_onnx_computes_otherwise_is_refused_with_the_numbers():
    params = {"weights": "distance"}  # skl2onnx weighs otherwise

    with pytest.raises(exporting.NotFaithful, match=r"differ by 0\.\d+ \(at most 0\.001 is allowed\)"):
        exporting.export(*trained("KNeighborsRegressor", DIABETES, PROGRESS, task="regression", params=params))


def test_a_model_that_has_no_onnx_is_refused_by_name():
    _, features, rows, target, expected = trained("LogisticRegression", IRIS, SPECIES)

    with pytest.raises(exporting.NotExportable, match="cannot be written as ONNX"):
        exporting.export(LinearSVC().fit(rows, target), features, rows, target, expected)


ODDS = np.array([[0.6, 0.4], [0.5, 0.5], [0.1, 0.9]])
SURE = evaluating.Answers(np.array([0, 0, 1]), ODDS, np.array([0, 1]))


def test_labels_may_differ_where_the_odds_are_even():
    other = evaluating.Answers(np.array([0, 1, 1]), ODDS, np.array([0, 1]))

    assert exporting.parity(SURE, other, np.array([0, 0, 1])) == 0


def test_labels_may_not_differ_elsewhere():
    other = evaluating.Answers(np.array([1, 0, 1]), ODDS, np.array([0, 1]))

    with pytest.raises(exporting.NotFaithful, match="1 of 3 labels"):
        exporting.parity(SURE, other, np.array([0, 0, 1]))


@pytest.mark.parametrize("wrong", [0.2, np.nan])
def test_probabilities_may_not_differ_by_more_than_the_tolerance(wrong):
    other = evaluating.Answers(SURE.answers, ODDS + np.array([[0, 0], [0, 0], [0, wrong]]), np.array([0, 1]))

    with pytest.raises(exporting.NotFaithful, match="differ by"):
        exporting.parity(SURE, other, np.array([0, 0, 1]))


def test_predictions_are_compared_in_standard_deviations_of_the_target():
    target = np.array([0.0, 2000.0])  # deviation 1000
    near, far = evaluating.Answers(target + 0.5), evaluating.Answers(target + 2)

    assert exporting.parity(evaluating.Answers(target), near, target) == pytest.approx(0.5e-3)
    with pytest.raises(exporting.NotFaithful):
        exporting.parity(evaluating.Answers(target), far, target)


def test_metrics_are_those_of_scikit_learn():
    _, _, _, target, given = trained("GaussianNB", DIGITS, DIGIT)
    metrics = evaluating.measure(target, given)

    assert metrics["accuracy"] == pytest.approx(accuracy_score(target, given.answers))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(target, given.answers))
    assert metrics["f1_macro"] == pytest.approx(f1_score(target, given.answers, average="macro"))
    assert metrics["log_loss"] == pytest.approx(sklearn_log_loss(target, given.probabilities))


def test_metrics_of_a_regression_are_those_of_scikit_learn():
    _, _, _, target, given = trained("Ridge", DIABETES, PROGRESS, task="regression")
    metrics = evaluating.measure(target, given)

    assert metrics["mae"] == pytest.approx(mean_absolute_error(target, given.answers))
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((target - given.answers) ** 2)))
    assert metrics["r2"] == pytest.approx(r2_score(target, given.answers))


def test_a_class_that_is_missing_in_the_hold_out_weighs_nothing_and_one_unknown_to_the_model_costs():
    known = evaluating.Answers(
        np.array(["a", "b"], object), np.array([[0.9, 0.1], [0.2, 0.8]]), np.array(["a", "b"], object)
    )
    only_a, with_c = np.array(["a", "a"], object), np.array(["a", "c"], object)

    assert evaluating.measure(only_a, known)["balanced_accuracy"] == 0.5
    assert evaluating.measure(only_a, known)["log_loss"] == pytest.approx(-np.log([0.9, 0.2]).mean())
    assert evaluating.measure(with_c, known)["accuracy"] == 0.5
    assert evaluating.measure(with_c, known)["log_loss"] == pytest.approx((-np.log(0.9) + 36.04) / 2, abs=0.01)


def test_labels_of_another_type_cannot_be_compared():
    with pytest.raises(evaluating.NotComparable, match="labels like 0, the target has 'a'"):
        evaluating.measure(np.array(["a", "b", "a"], object), SURE)


def test_a_file_names_its_classes():
    exported = exporting.export(*trained("LogisticRegression", IRIS, SPECIES))
    metadata = evaluating.open_onnx(exported.onnx).get_modelmeta().custom_metadata_map

    assert json.loads(metadata["meguri.classes"]) == [0, 1, 2]


def test_the_environment_names_what_has_a_say_in_a_fit():
    assert exporting.environment().keys() >= {"python", "scikit-learn", "numpy", "skl2onnx", "onnxruntime", "skops"}

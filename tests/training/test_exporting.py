import json
import re

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)
from sklearn.metrics import log_loss as sklearn_log_loss
from threadpoolctl import threadpool_limits

from meguri_contracts.events import Tensor
from meguri_contracts.spec import Estimator
from meguri_training import estimators, evaluating, exporting, inputs

IRIS, SPECIES = load_iris(return_X_y=True)
DIGITS, DIGIT = load_digits(return_X_y=True)
DIABETES, PROGRESS = load_diabetes(return_X_y=True)
QUICK = {
    "HistGradientBoostingClassifier": {"max_iter": 5},
    "HistGradientBoostingRegressor": {"max_iter": 5},
    "GradientBoostingClassifier": {"n_estimators": 5},
    "GradientBoostingRegressor": {"n_estimators": 5},
    "RandomForestClassifier": {"n_estimators": 10},
    "RandomForestRegressor": {"n_estimators": 10},
    "ExtraTreesClassifier": {"n_estimators": 10},
    "ExtraTreesRegressor": {"n_estimators": 10},
    "AdaBoostClassifier": {"n_estimators": 10},
    "AdaBoostRegressor": {"n_estimators": 10},
    "IsolationForest": {"n_estimators": 10},
    "MLPClassifier": {"hidden_layer_sizes": [8], "max_iter": 50},
    "MLPRegressor": {"hidden_layer_sizes": [8], "max_iter": 50},
    "QuadraticDiscriminantAnalysis": {"reg_param": 0.1},
}
WITHOUT_ONNX = {"NearestCentroid", "KernelRidge", "EllipticEnvelope", "QuadraticDiscriminantAnalysis"}
"""The last has one, with its labels in a row instead of a column."""
OF_TWO_CLASSES = {"LinearDiscriminantAnalysis"}
"""Has an ONNX that gives other probabilities when there are two classes."""


def trained(name, rows, target, task="classification", **given):
    """Fit on the even rows; return everything that `export` takes, of the odd ones, and what is expected."""
    spec = Estimator(name=name, params=given.pop("params", QUICK.get(name, {})), **given)
    single = estimators.is_single(spec)
    datatype = "FP32" if single else "FP64"
    table = rows.astype(inputs.DTYPES[datatype])
    with threadpool_limits(1):
        model = estimators.build(spec, task, seed=0)
        model = model.fit(table[::2]) if task == "outliers" else model.fit(table[::2], target[::2])
    tensors = (Tensor(name="input", datatype=datatype, shape=(-1, rows.shape[1])),)
    return (model, tensors, table[1::2], target[1::2], task, single), evaluating.ask(model, table[1::2], task)


def served(exported, tensors, rows, task):
    """What the engine of an export answers."""
    if exported.engine == "onnx":
        return evaluating.ask_onnx(evaluating.open_onnx(exported.onnx), inputs.feeds(rows, tensors), task)
    assert exported.onnx is None
    return evaluating.ask(exporting.load(exported.skops), rows, task)


def engine(name):
    return "scikit-learn" if name in WITHOUT_ONNX else "onnx"


@pytest.mark.parametrize("name", sorted(estimators.KNOWN["classification"]))
def test_every_classifier_answers_as_in_scikit_learn(name):
    labels = np.array(["setosa", "versicolor", "virginica"], dtype=object)[SPECIES]
    (model, tensors, rows, target, task, single), expected = trained(name, IRIS, labels)
    exported = exporting.export(model, tensors, rows, target, task, single)
    given = served(exported, tensors, rows, task)

    assert (exported.engine, exported.parity < 1e-5) == (engine(name), True)
    assert (given.answers == expected.answers).all()
    assert given.classes.tolist() == ["setosa", "versicolor", "virginica"]
    assert np.allclose(given.probabilities, expected.probabilities, atol=1e-5)


@pytest.mark.parametrize("name", sorted(estimators.KNOWN["regression"]))
def test_every_regressor_answers_as_in_scikit_learn(name):
    (model, tensors, rows, target, task, single), expected = trained(name, DIABETES, PROGRESS, task="regression")
    exported = exporting.export(model, tensors, rows, target, task, single)

    assert (exported.engine, exported.parity < 1e-5) == (engine(name), True)
    assert np.allclose(served(exported, tensors, rows, task).answers, expected.answers, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(estimators.KNOWN["outliers"]))
def test_every_finder_of_outliers_answers_as_in_scikit_learn(name):
    (model, tensors, rows, _, task, single), _ = trained(name, IRIS, SPECIES, task="outliers")
    exported = exporting.export(model, tensors, rows, None, task, single)
    given = served(exported, tensors, rows, task)

    assert (exported.engine, exported.parity < 1e-4) == (engine(name), True)
    assert [(tensor.name, tensor.shape) for tensor in exported.outputs] == [("label", (-1,)), ("score", (-1,))]
    assert given.answers.tolist() == (model.predict(rows) == -1).astype(int).tolist()
    assert np.allclose(given.scores, model.decision_function(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, known in estimators.KNOWN.items() for name in known])
def test_every_estimator_is_dumped_and_comes_back_by_trusted_types_alone(task, name):
    rows, target = (DIABETES, PROGRESS) if task == "regression" else (IRIS, SPECIES)
    (model, _, held, *_), expected = trained(name, rows, target, task=task)
    back = exporting.load(exporting.dump(model))

    assert (evaluating.ask(back, held, task).answers == expected.answers).all()


@pytest.mark.parametrize("task", list(estimators.KNOWN))
def test_every_estimator_takes_texts_among_its_features(task):
    rng = np.random.default_rng(0)
    rows = np.empty((200, 3), object)
    rows[:, 0], rows[:, 1], rows[:, 2] = rng.random(200), rng.integers(0, 9, 200), rng.choice(["a", "", "ß 你"], 200)
    target = (rows[:, 0] + (rows[:, 2] == "a") > 0.9).astype(np.int64) + 1
    for name in estimators.KNOWN[task]:
        estimator = Estimator(name=name, params=QUICK.get(name, {}))
        real = "FP32" if estimators.is_single(estimator) else "FP64"
        names = (("x", real), ("count", "INT64"), ("city", "BYTES"))
        tensors = tuple(Tensor(name=name, datatype=datatype, shape=(-1, 1)) for name, datatype in names)
        rows[:, 0] = rows[:, 0].astype(inputs.DTYPES[real])
        model = estimators.build(estimator, task, seed=0, texts=inputs.are_texts(tensors))
        _ = model.fit(rows[:120]) if task == "outliers" else model.fit(rows[:120], target[:120])
        fresh = rows[120:].copy()
        fresh[0, 2] = "never seen"
        expected = evaluating.ask(model, fresh, task)
        exported = exporting.export(model, tensors, fresh[1:], target[121:], task, real == "FP32")

        assert exported.engine == ("scikit-learn" if name in OF_TWO_CLASSES else engine(name)), name
        assert served(exported, tensors, fresh, task).answers == pytest.approx(expected.answers, rel=1e-3), name


def test_a_type_that_is_not_on_the_list_is_not_dumped():
    with pytest.raises(exporting.NotExportable, match=r"skops: UntrustedTypes.*numpy\.poly1d"):
        exporting.dump({"surprise": np.poly1d})


def test_trees_branch_alike_where_a_feature_needs_more_than_single_precision():
    rng = np.random.default_rng(0)
    seconds = 1.7e9 + rng.uniform(0, 1e6, 3000)
    rows = np.column_stack([seconds, rng.normal(size=3000)])
    target = ((seconds > 1.7e9 + 5e5) ^ (rows[:, 1] > 0)).astype(np.int64)
    exported = exporting.export(*trained("HistGradientBoostingClassifier", rows, target)[0])

    assert (exported.engine, exported.parity < 1e-5) == ("onnx", True)


def test_a_classifier_has_a_label_and_probabilities():
    outputs = exporting.export(*trained("LogisticRegression", DIGITS, DIGIT, scale=True, params={})[0]).outputs
    label, probabilities = outputs

    assert (label.name, label.datatype, label.shape) == ("label", "INT64", (-1,))
    assert (probabilities.name, probabilities.datatype, probabilities.shape) == ("probabilities", "FP64", (-1, 10))


@pytest.mark.parametrize("name", ["DecisionTreeClassifier", "NearestCentroid"])
def test_labels_that_are_texts_are_bytes_in_the_signature(name):
    labels = np.array(["no", "yes"], dtype=object)[(SPECIES > 0).astype(int)]

    assert exporting.export(*trained(name, IRIS, labels)[0]).outputs[0].datatype == "BYTES"


@pytest.mark.parametrize(
    ("name", "datatype"), [("Ridge", "FP64"), ("DecisionTreeRegressor", "FP32"), ("KernelRidge", "FP64")]
)
def test_a_regressor_has_one_prediction_per_row(name, datatype):
    (prediction,) = exporting.export(*trained(name, DIABETES, PROGRESS, task="regression")[0]).outputs

    assert (prediction.name, prediction.datatype, prediction.shape) == ("prediction", datatype, (-1, 1))


def test_a_model_that_onnx_computes_otherwise_is_left_to_scikit_learn_with_the_numbers():
    params = {"weights": "distance"}  # skl2onnx weighs otherwise
    (model, tensors, rows, target, task, single), _ = trained(
        "KNeighborsRegressor", DIABETES, PROGRESS, task="regression", params=params
    )
    exported = exporting.export(model, tensors, rows, target, task, single)

    assert (exported.engine, exported.onnx, exported.parity) == ("scikit-learn", None, 0.0)
    assert re.match(r"ONNX and scikit-learn differ by 0\.\d+ \(at most 0\.001 is allowed\)", exported.reason)
    assert (served(exported, tensors, rows, task).answers == model.predict(rows)).all()


@pytest.mark.parametrize("name", sorted(OF_TWO_CLASSES))
def test_a_graph_that_is_only_right_for_many_classes_is_not_served_for_two(name):
    (model, tensors, rows, target, task, single), expected = trained(name, IRIS, (SPECIES > 0).astype(int))
    exported = exporting.export(model, tensors, rows, target, task, single)

    assert exported.engine == "scikit-learn"
    assert "differ by 0.0" in exported.reason
    assert (served(exported, tensors, rows, task).probabilities == expected.probabilities).all()


def test_texts_that_nobody_has_seen_are_part_of_the_check():
    rows = np.array([["a"], ["b"], ["a"]], object)
    tensors = (Tensor(name="city", datatype="BYTES", shape=(-1, 1)),)

    assert inputs.with_unseen_texts(rows, tensors)[:3].tolist() == rows.tolist()
    assert not {"a", "b"} & set(inputs.with_unseen_texts(rows, tensors)[3:, 0])


def test_a_model_that_has_no_onnx_is_left_to_scikit_learn_by_name():
    exported = exporting.export(*trained("NearestCentroid", IRIS, SPECIES)[0])

    assert (exported.engine, exported.onnx) == ("scikit-learn", None)
    assert "cannot be written as ONNX: MissingShapeCalculator" in exported.reason
    assert "NearestCentroid" in exported.reason


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
    (*_, target, _, _), given = trained("GaussianNB", DIGITS, DIGIT)
    metrics = evaluating.measure(target, given)

    assert metrics["accuracy"] == pytest.approx(accuracy_score(target, given.answers))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(target, given.answers))
    assert metrics["f1_macro"] == pytest.approx(f1_score(target, given.answers, average="macro"))
    assert metrics["log_loss"] == pytest.approx(sklearn_log_loss(target, given.probabilities))


def test_metrics_of_a_regression_are_those_of_scikit_learn():
    (*_, target, _, _), given = trained("Ridge", DIABETES, PROGRESS, task="regression")
    metrics = evaluating.measure(target, given)

    assert metrics["mae"] == pytest.approx(mean_absolute_error(target, given.answers))
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((target - given.answers) ** 2)))
    assert metrics["r2"] == pytest.approx(r2_score(target, given.answers))


def test_metrics_of_outliers_are_those_of_scikit_learn_where_a_target_tells_them():
    (*_, target, _, _), given = trained("IsolationForest", IRIS, (SPECIES == 2).astype(int), task="outliers")
    metrics = evaluating.measure(target, given)

    assert evaluating.measure(None, given) == {"outlier_share": given.answers.mean()}
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(target, -given.scores))
    assert metrics["average_precision"] == pytest.approx(average_precision_score(target, -given.scores))


def test_scores_are_compared_in_their_standard_deviations():
    scores = np.array([-1000.0, 1000.0])
    sure = evaluating.Answers(np.array([1, 0]), scores=scores)

    assert exporting.parity(sure, evaluating.Answers(sure.answers, scores=scores + 0.5), None) == pytest.approx(5e-4)
    with pytest.raises(exporting.NotFaithful, match="1 of 2 labels"):
        exporting.parity(sure, evaluating.Answers(np.array([0, 0]), scores=scores), None)


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
    exported = exporting.export(*trained("LogisticRegression", IRIS, SPECIES)[0])
    metadata = evaluating.open_onnx(exported.onnx).get_modelmeta().custom_metadata_map

    assert json.loads(metadata["meguri.classes"]) == [0, 1, 2]


def test_the_environment_names_what_has_a_say_in_a_fit():
    assert exporting.environment().keys() >= {"python", "scikit-learn", "numpy", "skl2onnx", "onnxruntime", "skops"}

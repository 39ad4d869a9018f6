import numpy as np
import pytest
from sklearn.svm import SVC

from meguri_contracts.errors import Invalid
from meguri_contracts.estimators import ESTIMATORS, OURS
from meguri_contracts.spec import Estimator
from meguri_training import estimators

ROWS = np.array([[0.1, 1.0], [0.2, 0.0], [0.9, 1.0], [1.1, 0.0]])
LABELS = np.array([0, 0, 1, 1])


def test_parameters_and_seed_reach_the_estimator():
    model = estimators.build(
        Estimator(name="RandomForestClassifier", params={"n_estimators": 7}), "classification", seed=3
    )

    assert (model.n_estimators, model.random_state) == (7, 3)


def test_an_estimator_without_randomness_gets_no_seed():
    assert (
        estimators.build(Estimator(name="GaussianNB"), "classification", seed=3).fit(ROWS, LABELS).score(ROWS, LABELS)
        == 1
    )


def test_scale_puts_a_scaler_first():
    model = estimators.build(Estimator(name="LogisticRegression", scale=True), "classification", seed=0).fit(
        ROWS, LABELS
    )

    assert np.allclose(model[0].transform(ROWS).mean(axis=0), 0)


def test_svc_gives_probabilities():
    rows, labels = np.repeat(ROWS, 5, axis=0), np.repeat(LABELS, 5)
    model = estimators.build(Estimator(name="SVC", params={"C": 3.0}), "classification", seed=0).fit(rows, labels)

    assert model.predict_proba(rows).shape == (20, 2)
    assert isinstance(model.estimator, SVC)
    assert model.estimator.C == 3.0


@pytest.mark.parametrize(
    ("task", "name"), [(task, name) for task, known in estimators.KNOWN.items() for name in sorted(known)]
)
def test_every_name_on_the_list_can_be_built_for_its_task_only(task, name):
    assert hasattr(estimators.build(Estimator(name=name), task, seed=0), "fit")
    for other in estimators.KNOWN.keys() - {task}:
        with pytest.raises(Invalid, match=f"{name} is for {task}; for {other} there are"):
            estimators.build(Estimator(name=name), other, seed=0)


@pytest.mark.parametrize("name", sorted(estimators.KNOWN["classification"]))
def test_every_classifier_gives_probabilities(name):
    rows, labels = np.repeat(ROWS, 5, axis=0), np.repeat(LABELS, 5)
    params = {"reg_param": 0.1} if name == "QuadraticDiscriminantAnalysis" else {}
    model = estimators.build(Estimator(name=name, params=params), "classification", seed=0).fit(rows, labels)

    assert model.predict_proba(rows).shape == (20, 2)


def test_texts_become_categories_beside_the_numbers():
    table = np.array([[0.5, "a"], [1.5, "b"], [2.5, ""]], object)
    model = estimators.build(
        Estimator(name="Ridge", scale=True), "regression", seed=0, texts=[False, True]
    ).fit(table, [1, 2, 3])  # fmt: skip

    assert model[0].transform(np.array([[1.5, "b"], [1.5, "c"]], object)).tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(Invalid, match=r"'KMeans' is unknown.*GaussianNB.*RandomForestClassifier"):
        estimators.build(Estimator(name="KMeans"), "classification", seed=0)


def test_an_unknown_parameter_is_answered_with_the_known_ones():
    with pytest.raises(Invalid, match="Ridge has no 'alhpa'; it has alpha,"):
        estimators.build(Estimator(name="Ridge", params={"alhpa": 1}), "regression", seed=0)


@pytest.mark.parametrize("name", ["n_jobs", "random_state"])
def test_what_the_platform_decides_cannot_be_a_parameter(name):
    with pytest.raises(Invalid, match=f"{name} cannot be set"):
        estimators.build(Estimator(name="RandomForestClassifier", params={name: 2}), "classification", seed=0)


@pytest.mark.parametrize("value", [print, SVC(), [SVC()], {"a": [print]}, {None: 1}, b"bytes", {1, 2}])
def test_a_parameter_that_is_no_plain_value_is_refused(value):
    with pytest.raises(Invalid, match="C is not a number, text, list or mapping"):
        estimators.build(Estimator(name="SVC", params={"C": value}), "classification", seed=0)


def test_trees_refuse_to_be_scaled():
    with pytest.raises(Invalid, match="scaling changes nothing"):
        estimators.build(Estimator(name="DecisionTreeRegressor", scale=True), "regression", seed=0)


def test_an_estimator_of_outliers_can_be_asked_about_new_rows():
    with pytest.raises(Invalid, match="novelty cannot be set"):
        estimators.build(Estimator(name="LocalOutlierFactor", params={"novelty": False}), "outliers", seed=0)

    assert estimators.build(Estimator(name="LocalOutlierFactor"), "outliers", seed=0).novelty


def test_trees_are_single_and_the_others_double():
    assert estimators.is_single(Estimator(name="ExtraTreesRegressor"))
    assert not estimators.is_single(Estimator(name="Ridge"))


def test_what_a_spec_may_name_and_set_is_what_training_can_build():
    built = {
        task: {name: cls().get_params(deep=False).keys() - OURS.keys() for name, cls in known.items()}
        for task, known in estimators.KNOWN.items()
    }

    assert {
        task: {name: set(params.split()) for name, params in known.items()} for task, known in ESTIMATORS.items()
    } == built

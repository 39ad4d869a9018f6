"""Estimators that a spec may name: those seen to be served as scikit-learn answers, by ONNX Runtime or by itself.

Precision is decided here, before the fit. Trees are trained on single precision, because that is what the tree nodes of
ONNX compare: a split then lies between two singles and serving takes the same branch. Everything else is trained on doubles.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sklearn import (
    covariance,
    discriminant_analysis,
    ensemble,
    kernel_ridge,
    linear_model,
    naive_bayes,
    neighbors,
    neural_network,
    svm,
    tree,
)
from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from meguri_contracts import spec
from meguri_contracts.errors import Invalid
from meguri_contracts.estimators import OURS
from meguri_contracts.spec import Task


def _by_name(*classes: type[Any]) -> dict[str, type[Any]]:
    return {cls.__name__: cls for cls in classes}


_TREES: dict[Task, dict[str, type[Any]]] = {
    "classification": _by_name(
        ensemble.AdaBoostClassifier,
        ensemble.BaggingClassifier,
        ensemble.ExtraTreesClassifier,
        ensemble.GradientBoostingClassifier,
        ensemble.HistGradientBoostingClassifier,
        ensemble.RandomForestClassifier,
        tree.DecisionTreeClassifier,
    ),
    "regression": _by_name(
        ensemble.AdaBoostRegressor,
        ensemble.BaggingRegressor,
        ensemble.ExtraTreesRegressor,
        ensemble.GradientBoostingRegressor,
        ensemble.HistGradientBoostingRegressor,
        ensemble.RandomForestRegressor,
        tree.DecisionTreeRegressor,
    ),
    "outliers": _by_name(ensemble.IsolationForest),
}
_OTHERS: dict[Task, dict[str, type[Any]]] = {
    "classification": _by_name(
        discriminant_analysis.LinearDiscriminantAnalysis,
        discriminant_analysis.QuadraticDiscriminantAnalysis,
        linear_model.LogisticRegression,
        linear_model.Perceptron,
        linear_model.RidgeClassifier,
        linear_model.SGDClassifier,
        naive_bayes.BernoulliNB,
        naive_bayes.ComplementNB,
        naive_bayes.GaussianNB,
        naive_bayes.MultinomialNB,
        neighbors.KNeighborsClassifier,
        neighbors.NearestCentroid,
        neural_network.MLPClassifier,
        svm.LinearSVC,
        svm.NuSVC,
        svm.SVC,
    ),
    "regression": _by_name(
        kernel_ridge.KernelRidge,
        linear_model.ARDRegression,
        linear_model.BayesianRidge,
        linear_model.ElasticNet,
        linear_model.GammaRegressor,
        linear_model.HuberRegressor,
        linear_model.Lars,
        linear_model.Lasso,
        linear_model.LassoLars,
        linear_model.LinearRegression,
        linear_model.OrthogonalMatchingPursuit,
        linear_model.PoissonRegressor,
        linear_model.QuantileRegressor,
        linear_model.RANSACRegressor,
        linear_model.Ridge,
        linear_model.SGDRegressor,
        linear_model.TheilSenRegressor,
        linear_model.TweedieRegressor,
        neighbors.KNeighborsRegressor,
        neural_network.MLPRegressor,
        svm.LinearSVR,
        svm.NuSVR,
        svm.SVR,
    ),
    "outliers": _by_name(
        covariance.EllipticEnvelope,
        linear_model.SGDOneClassSVM,
        neighbors.LocalOutlierFactor,
        svm.OneClassSVM,
    ),
}
KNOWN: dict[Task, dict[str, type[Any]]] = {task: _TREES[task] | _OTHERS[task] for task in _TREES}
"""The allow-list: classes by task and name."""

# ONNX Runtime has no support vectors of doubles for regressions and outliers.
_SINGLE = {name for trees in _TREES.values() for name in trees} | {"NuSVR", "OneClassSVM", "SVR"}


def build(estimator: spec.Estimator, task: Task, seed: int, texts: Sequence[bool] = ()) -> Any:
    """Return the unfitted estimator, behind a step that scales and makes categories of texts where that is asked for.

    `texts` tells of each feature whether it is one. A classifier that knows no probabilities is calibrated so that it does.
    Raises Invalid for a name that is unknown or of another task, and for parameters that do not exist, are no plain
    values, or are not the spec's to set. Whether a value fits its parameter is only seen by scikit-learn, in the fit.
    """
    cls = _class(estimator.name, task)
    if estimator.scale and estimator.name in _TREES[task]:
        raise Invalid(f"estimator.scale: {estimator.name} splits on order alone, scaling changes nothing; leave it out")
    known = cls().get_params(deep=False)
    _check_params(estimator, known)
    ours = {name: value for name, value in (("random_state", seed), ("novelty", True)) if name in known}
    model = cls(**estimator.params, **ours)
    if is_classifier(model) and not hasattr(model, "predict_proba"):
        model = CalibratedClassifierCV(model, ensemble=False)
    before = _before(texts, scale=estimator.scale)
    return make_pipeline(before, model) if before else model


def is_single(estimator: spec.Estimator) -> bool:
    """Return whether this estimator is trained, checked and served in single precision."""
    return estimator.name in _SINGLE


def _before(texts: Sequence[bool], *, scale: bool) -> Any:
    if not any(texts):
        return StandardScaler() if scale else None
    numbers, words = ([at for at, is_text in enumerate(texts) if is_text is wanted] for wanted in (False, True))
    categories = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    steps = [("numbers", StandardScaler() if scale else "passthrough", numbers), ("texts", categories, words)]
    return ColumnTransformer([step for step in steps if step[2]])


def _class(name: str, task: Task) -> type[Any]:
    if cls := KNOWN[task].get(name):
        return cls
    if other := next((t for t, classes in KNOWN.items() if name in classes), None):
        raise Invalid(f"estimator.name: {name} is for {other}; for {task} there are {_listed(KNOWN[task])}")
    raise Invalid(f"estimator.name: {name!r} is unknown; for {task} there are {_listed(KNOWN[task])}")


def _check_params(estimator: spec.Estimator, known: Mapping[str, object]) -> None:
    for name, value in estimator.params.items():
        if name in OURS:
            raise Invalid(f"estimator.params: {name} cannot be set: {OURS[name]}")
        if name not in known:
            raise Invalid(
                f"estimator.params: {estimator.name} has no {name!r}; it has {_listed(known.keys() - OURS.keys())}"
            )
        if not _is_plain(value):
            raise Invalid(f"estimator.params: {name} is not a number, text, list or mapping of those")


def _is_plain(value: object) -> bool:
    match value:
        case None | bool() | int() | float() | str():
            return True
        case list() | tuple():
            return all(_is_plain(item) for item in value)
        case dict():
            return all(isinstance(key, str | int) and _is_plain(item) for key, item in value.items())
    return False


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))

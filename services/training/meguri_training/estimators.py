"""Estimators that a spec may name: those seen to give the same answers as ONNX, each built with the spec's parameters.

Precision is decided here, before the fit. Trees are trained on single precision, because that is what the tree nodes of
ONNX compare: a split then lies between two singles and serving takes the same branch. Everything else is trained on doubles.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import (
    BayesianRidge,
    ElasticNet,
    HuberRegressor,
    Lasso,
    LinearRegression,
    LogisticRegression,
    Ridge,
)
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from meguri_contracts import spec
from meguri_contracts.errors import Invalid

Task = Literal["classification", "regression"]
Rows = NDArray[np.float32] | NDArray[np.float64]
"""Feature values of shape [n, features]."""


def _by_name(*classes: type[Any]) -> dict[str, type[Any]]:
    return {cls.__name__: cls for cls in classes}


_TREES: dict[Task, dict[str, type[Any]]] = {
    "classification": _by_name(
        AdaBoostClassifier,
        DecisionTreeClassifier,
        ExtraTreesClassifier,
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
        RandomForestClassifier,
    ),
    "regression": _by_name(
        AdaBoostRegressor,
        DecisionTreeRegressor,
        ExtraTreesRegressor,
        GradientBoostingRegressor,
        HistGradientBoostingRegressor,
        RandomForestRegressor,
    ),
}
_OTHERS: dict[Task, dict[str, type[Any]]] = {
    "classification": _by_name(GaussianNB, KNeighborsClassifier, LogisticRegression, MLPClassifier, SVC),
    "regression": _by_name(
        BayesianRidge,
        ElasticNet,
        HuberRegressor,
        KNeighborsRegressor,
        Lasso,
        LinearRegression,
        MLPRegressor,
        Ridge,
        SVR,
    ),
}
KNOWN: dict[Task, dict[str, type[Any]]] = {task: _TREES[task] | _OTHERS[task] for task in _TREES}
"""The allow-list: classes by task and name."""

_SINGLE = {name for trees in _TREES.values() for name in trees} | {"SVR"}  # ONNX Runtime has no SVMRegressor of doubles
_OURS = {
    "n_jobs": "a fit has one core; add replicas instead",
    "random_state": "it is validation.seed",
    "probability": "SVC always gives probabilities here",
}


def build(estimator: spec.Estimator, task: Task, seed: int) -> Any:
    """Return the unfitted estimator, or a pipeline that scales first.

    Raises Invalid for a name that is unknown or of the other task, and for parameters that do not exist, are no plain
    values, or are not the spec's to set. Whether a value fits its parameter is only seen by scikit-learn, in the fit.
    """
    cls = _class(estimator.name, task)
    if estimator.scale and estimator.name in _TREES[task]:
        raise Invalid(f"estimator.scale: {estimator.name} splits on order alone, scaling changes nothing; leave it out")
    known = cls().get_params(deep=False)
    _check_params(estimator, known)
    model = cls(**estimator.params, **({"random_state": seed} if "random_state" in known else {}))
    if cls is SVC:
        model = CalibratedClassifierCV(model, ensemble=False)
    return make_pipeline(StandardScaler(), model) if estimator.scale else model


def as_input(estimator: spec.Estimator, rows: NDArray[np.float64]) -> Rows:
    """Return rows in the precision that this estimator is trained, checked and served in."""
    return rows.astype(np.float32) if estimator.name in _SINGLE else rows


def _class(name: str, task: Task) -> type[Any]:
    if cls := KNOWN[task].get(name):
        return cls
    if other := next((t for t, classes in KNOWN.items() if name in classes), None):
        raise Invalid(f"estimator.name: {name} is for {other}; for {task} there are {_listed(KNOWN[task])}")
    raise Invalid(f"estimator.name: {name!r} is unknown; for {task} there are {_listed(KNOWN[task])}")


def _check_params(estimator: spec.Estimator, known: Mapping[str, object]) -> None:
    for name, value in estimator.params.items():
        if name in _OURS:
            raise Invalid(f"estimator.params: {name} cannot be set: {_OURS[name]}")
        if name not in known:
            raise Invalid(
                f"estimator.params: {estimator.name} has no {name!r}; it has {_listed(known.keys() - _OURS.keys())}"
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

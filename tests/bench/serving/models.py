"""The models that are served in the measurements, fitted and exported by training's own code."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import skops.io
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_iris, make_classification

from meguri_contracts.spec import ModelSpec, Monitor
from meguri_contracts.trusted import TRUSTED_TYPES
from meguri_training.fitting import Fitted, Job, fit

MANY = 256
"""Rows of a large request."""


@dataclass(frozen=True)
class Model:
    """A fitted model and rows to ask it about, `MANY` if nothing else is said."""

    name: str
    spec: ModelSpec
    fitted: Fitted
    rows: NDArray[np.float64]

    @cached_property
    def estimator(self) -> Any:
        """What scikit-learn fitted."""
        return skops.io.loads(self.fitted.skops, trusted=TRUSTED_TYPES)


def iris(folder: Path) -> Model:
    """Logistic regression, 4 features, 3 classes."""
    estimator = {"name": "LogisticRegression", "scale": True}
    x, y = load_iris(return_X_y=True)
    return _train("iris", x, y, estimator, folder)


def cancer(folder: Path) -> Model:
    """A random forest of 100 trees, 30 features, 2 classes."""
    estimator = {"name": "RandomForestClassifier", "params": {"n_estimators": 100}}
    x, y = load_breast_cancer(return_X_y=True)
    return _train("cancer", x, y, estimator, folder)


def wide(folder: Path, asked: int, monitor: Monitor = Monitor()) -> Model:
    """Logistic regression, 20 features, 2 classes, and `asked` rows to ask it about."""
    x, y = make_classification(4000, 20, n_informative=10, random_state=0)
    model = _train("wide", x, y, {"name": "LogisticRegression", "scale": True}, folder, asked)
    return replace(model, spec=model.spec.model_copy(update={"monitor": monitor}))


def _train(
    name: str, x: NDArray[Any], y: NDArray[Any], estimator: dict[str, Any], folder: Path, asked: int = MANY
) -> Model:
    features = [f"f{at}" for at in range(x.shape[1])]
    columns = {feature: {"type": "number"} for feature in features} | {"y": {"type": "integer"}}
    spec = ModelSpec.model_validate(
        {
            "model": name,
            "task": "classification",
            "dataset": {"name": name, "columns": columns},
            "target": "y",
            "estimator": estimator,
            "gate": "accuracy >= 0",
        }
    )
    # The same rows each time: another measurement may have written them.
    table = folder / f"data-{name}"
    pl.DataFrame(x, features).with_columns(pl.Series("y", y)).write_delta(str(table), mode="ignore")
    fitted = fit(Job(run=f"{name}-1", spec=spec, table_uri=str(table), dataset_version=0))
    rows = x[np.random.default_rng(0).integers(0, len(x), asked)]
    return Model(name, spec, fitted, np.ascontiguousarray(rows, np.float64))

"""How near served models come to scikit-learn: each trained on real rows and asked about rows that nobody has seen.

`python -m tests.training.parity` writes the table of docs/models.md.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from sklearn import datasets

from meguri_contracts.events import Artifact, Deployed
from meguri_contracts.spec import ModelSpec
from meguri_inference.predicting import LoadedModel
from meguri_training import evaluating, exporting, fitting, inputs
from meguri_training.fitting import Fitted, Job

TYPES = {pl.Boolean: "boolean", pl.String: "string", pl.Int64: "integer", pl.Float64: "number"}
GATES = {"classification": "accuracy > 0", "regression": "mae > 0", "outliers": "outlier_share < 1"}
FRESH = 3
"""Every third row is kept from the dataset, so neither training nor its hold-out has seen it."""


@dataclass(frozen=True)
class Case:
    """A model to train. `told` is what else the table says of it."""

    data: str
    estimator: str
    params: dict[str, Any] = field(default_factory=dict)
    scale: bool = False
    task: str = "classification"

    @property
    def named(self) -> str:
        told = ", ".join(("scaled",) * self.scale + tuple(f"{name}={value}" for name, value in self.params.items()))
        return f"{self.estimator} ({told})" if told else self.estimator


@dataclass(frozen=True)
class Parity:
    """What came of a case: who answers, and the largest difference from scikit-learn over rows that nobody has seen."""

    precision: str
    engine: str
    reason: str
    difference: float
    mislabelled: int


CASES = (
    Case("cancer", "LogisticRegression", scale=True),
    Case("digits", "LinearSVC", scale=True),
    Case("iris", "LinearDiscriminantAnalysis"),
    Case("cancer", "RandomForestClassifier"),
    Case("wine", "GradientBoostingClassifier"),
    Case("cancer", "HistGradientBoostingClassifier"),
    Case("seconds", "HistGradientBoostingClassifier"),
    Case("wine", "SVC", scale=True),
    Case("digits", "KNeighborsClassifier"),
    Case("wine", "MLPClassifier", {"max_iter": 300}, scale=True),
    Case("iris", "GaussianNB"),
    Case("cellar", "LogisticRegression", scale=True),
    Case("cellar", "RandomForestClassifier"),
    Case("cellar", "HistGradientBoostingClassifier"),
    Case("diabetes", "Ridge", task="regression"),
    Case("patients", "Ridge", scale=True, task="regression"),
    Case("diabetes", "RandomForestRegressor", task="regression"),
    Case("diabetes", "HistGradientBoostingRegressor", task="regression"),
    Case("diabetes", "SVR", {"C": 100}, task="regression"),
    Case("cancer", "IsolationForest", {"n_estimators": 20}, task="outliers"),
    Case("cellar", "IsolationForest", {"n_estimators": 20}, task="outliers"),
    Case("wine", "LocalOutlierFactor", scale=True, task="outliers"),
    Case("iris", "OneClassSVM", {"nu": 0.1}, task="outliers"),
    Case("digits", "KNeighborsClassifier", {"weights": "distance"}),
    Case("cancer", "LinearDiscriminantAnalysis"),
    Case("cellar", "NearestCentroid", scale=True),
    Case("diabetes", "KernelRidge", {"kernel": "rbf", "gamma": 10.0}, task="regression"),
    Case("patients", "KNeighborsRegressor", {"weights": "distance"}, scale=True, task="regression"),
    Case("iris", "EllipticEnvelope", task="outliers"),
)


def frame(data: str) -> pl.DataFrame:
    """Real rows, the target in the last column. A `cellar` and `patients` have texts, integers and booleans among them."""
    match data:
        case "cellar":
            wine = frame("wine")
            return wine.select(
                pl.col("x9").cut([3.5, 6.0], labels=["pale", "medium", "deep"]).cast(pl.String).alias("shade"),
                pl.col("x12").cast(pl.Int64).alias("proline"),
                (pl.col("x0") > 13).alias("strong"),
                pl.col("x6", "x10", "y"),
            )
        case "patients":
            rows = frame("diabetes")
            return rows.select(
                pl.when(pl.col("x1") > 0).then(pl.lit("♀")).otherwise(pl.lit("♂")).alias("sex"), "x2", "x8", "y"
            )
        case "seconds":
            cancer = frame("cancer")
            return cancer.select((1.7e9 + pl.col("x3") * 100).floor().alias("seconds"), "x0", "y")
    loaded = {"cancer": datasets.load_breast_cancer, "wine": datasets.load_wine, "iris": datasets.load_iris}
    loaded |= {"digits": datasets.load_digits, "diabetes": datasets.load_diabetes}
    rows, target = loaded[data](return_X_y=True)
    return pl.DataFrame(rows, schema=[f"x{i}" for i in range(rows.shape[1])]).with_columns(y=target)


def train(case: Case, rows: pl.DataFrame, folder: str) -> tuple[ModelSpec, Fitted]:
    rows.write_delta(folder)
    spec = ModelSpec.model_validate(
        {
            "model": "test",
            "task": case.task,
            "dataset": {"name": "test", "columns": {name: {"type": TYPES[type(t)]} for name, t in rows.schema.items()}},
            "features": rows.columns[:-1],
            "target": None if case.task == "outliers" else "y",
            "estimator": {"name": case.estimator, "params": case.params, "scale": case.scale},
            "gate": GATES[case.task],
        }
    )
    return spec, fitting.fit(Job("run", spec, folder, 0))


def load(fitted: Fitted) -> LoadedModel:
    """Return the model as inference serves it, of the same bytes."""
    file = Artifact(uri="file:///nowhere", digest="0" * 64, size=0)
    deployed = Deployed(
        version=1,
        run="run",
        onnx=None if fitted.onnx is None else file,
        skops=file,
        profile=file,
        signature=fitted.signature,
        engine=fitted.engine,
        engine_reason=fitted.engine_reason,
    )
    return LoadedModel.load(deployed, "test", fitted.skops if fitted.onnx is None else fitted.onnx)


def measure(case: Case) -> Parity:
    """Train, load as inference does, and compare with what scikit-learn itself says about fresh rows."""
    rows = frame(case.data).with_row_index()
    is_fresh = pl.col("index") % FRESH == 0
    with TemporaryDirectory() as folder:
        spec, fitted = train(case, rows.filter(~is_fresh).drop("index"), folder)
    tensors = inputs.tensors_in(fitted.signature)
    x = inputs.rows(rows.filter(is_fresh), spec.feature_names, tensors)
    outputs = load(fitted).compute([x]).outputs
    served = dict(zip((tensor.name for tensor in fitted.signature.outputs), outputs, strict=True))
    expected = evaluating.ask(exporting.load(fitted.skops), x, spec.task)
    difference, mislabelled = _compared(expected, served, rows["y"].to_numpy())
    reals = {tensor.datatype for tensor in tensors} & {"FP32", "FP64"}
    return Parity(reals.pop(), fitted.engine, fitted.engine_reason, difference, mislabelled)


def _compared(expected: evaluating.Answers, served: dict[str, Any], target: Any) -> tuple[float, int]:
    if "prediction" in served:
        return float(np.abs(served["prediction"].reshape(-1) - expected.answers).max() / target.std()), 0
    wrong = int((served["label"] != expected.answers).sum())
    if "score" in served:
        return float(np.abs(served["score"] - expected.scores).max() / expected.scores.std()), wrong
    return float(np.abs(served["probabilities"] - expected.probabilities).max()), wrong


HEAD = "| estimator | rows | input | engine | largest difference |\n| --- | --- | --- | --- | --- |\n"


def line(case: Case, found: Parity) -> str:
    return f"| {case.named} | {case.data} | {found.precision} | {found.engine} | {_bound(found.difference)} |"


def _bound(difference: float) -> str:
    """The next power of ten, which is the same on every machine."""
    return "0" if difference == 0 else f"< 1e{math.floor(math.log10(difference)) + 1}"


def documented(page: Path) -> dict[tuple[str, str], Sequence[str]]:
    """Return of each estimator and rows in the table of a page: input, engine, and the difference that it stays below."""
    table = page.read_text().partition(HEAD)[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    return {(name, rows): rest for name, rows, *rest in cells}


if __name__ == "__main__":
    sys.stdout.write(HEAD + "".join(line(case, measure(case)) + "\n" for case in CASES))

"""Engines by themselves: what they refuse, and that any thread may ask. That they agree with scikit-learn: tests/training."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import skops.io
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from meguri_contracts.errors import Invalid
from meguri_contracts.events import Artifact, Deployed, Signature, Tensor
from meguri_inference import documents
from meguri_inference.engines import open_engine
from meguri_inference.predicting import LoadedModel, Unservable
from meguri_training.fitting import Fitted
from tests.training import parity
from tests.training.parity import Case

FILE = Artifact(uri="file:///nowhere", digest="0" * 64, size=0)
X = np.random.default_rng(0).normal(size=(50, 2))


def served(case: Case, folder: Path) -> tuple[pl.DataFrame, Fitted, LoadedModel]:
    rows = parity.frame(case.data)
    _, fitted = parity.train(case, rows, str(folder))
    return rows, fitted, parity.load(fitted)


def deployed(*outputs: Tensor, features: tuple[str, ...] = ("a", "b")) -> Deployed:
    """A version that scikit-learn serves."""
    taken = Tensor(name="input", datatype="FP64", shape=(-1, len(features)))
    signature = Signature(features=features, input=taken, outputs=outputs)
    return Deployed(
        version=1, run="r", onnx=None, skops=FILE, profile=FILE, signature=signature, engine="scikit-learn"
    )  # fmt: skip


PREDICTION = Tensor(name="prediction", datatype="FP64", shape=(-1, 1))
LABEL = Tensor(name="label", datatype="INT64", shape=(-1,))
SCORE = Tensor(name="score", datatype="FP64", shape=(-1,))
LINE = skops.io.dumps(LinearRegression().fit(X, X[:, 0]))


def refused(said: Deployed, data: bytes) -> str:
    with pytest.raises(Invalid) as caught:
        open_engine(said, data)
    with pytest.raises(Unservable):
        LoadedModel.load(said, "m", data)
    return str(caught.value)


def test_an_estimator_answers_in_the_shape_of_the_signature():
    (prediction,) = LoadedModel.load(deployed(PREDICTION), "m", LINE).compute([X[:3], X[3:5]]).outputs

    assert prediction.shape == (5, 1)
    assert prediction[:, 0] == pytest.approx(X[:5, 0])


@pytest.mark.parametrize(
    ("said", "data", "why"),
    [
        (deployed(PREDICTION), b"no zip", "scikit-learn cannot load it: BadZipFile"),
        (deployed(PREDICTION), skops.io.dumps(np.poly1d), "UntrustedTypesFoundException"),
        (deployed(PREDICTION), skops.io.dumps([1, 2]), "holds no estimator but list"),
        (deployed(PREDICTION, features=("a", "b", "c")), LINE, "takes 2 features, the signature says 3"),
        (deployed(LABEL, SCORE), LINE, "cannot give the output 'score'"),
        (deployed(PREDICTION), skops.io.dumps(StandardScaler().fit(X)), "cannot give the output 'prediction'"),
    ],
    ids=["broken", "a type that is not trusted", "no estimator", "another width", "another task", "no predictor"],
)
def test_a_file_that_is_not_what_the_signature_says_is_refused(said, data, why):
    assert why in refused(said, data)


def test_a_score_may_not_be_called_like_a_feature():
    with pytest.raises(Unservable, match="'score' is named like a column"):
        LoadedModel.load(deployed(LABEL, SCORE, features=("a", "score")), "m", LINE)


@pytest.mark.parametrize(
    "case",
    [Case("cellar", "NearestCentroid", scale=True), Case("cellar", "RandomForestClassifier")],
    ids=["scikit-learn", "onnx"],
)
def test_many_threads_may_ask_at_once(tmp_path, case):
    _, fitted, model = served(case, tmp_path)
    example = np.array([fitted.signature.example], object)
    others = np.repeat(example, 40, axis=0)
    others[::2, 0] = "a shade that nobody has seen"
    alone = model.compute([others]).outputs

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: model.compute([others]).outputs, range(20)))

    assert all(np.array_equal(a, b) for answer in together for a, b in zip(answer, alone, strict=True))


def test_scikit_learn_leaves_the_loop_and_onnx_does_not(tmp_path):
    _, _, slow = served(Case("iris", "NearestCentroid"), tmp_path / "1")
    _, _, quick = served(Case("iris", "GaussianNB"), tmp_path / "2")

    assert slow.seconds(1) == float("inf")
    assert quick.seconds(1) < float("inf")


def test_a_thread_computes_on_one_core():
    model, seen = LoadedModel.load(deployed(PREDICTION), "m", LINE), []

    def ask() -> None:
        model.compute([X])
        seen.extend(pool["num_threads"] for pool in threadpool_info())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()

    assert set(seen) == {1}


def test_labels_of_outliers_are_ones_and_zeros(tmp_path):
    rows, fitted, model = served(Case("iris", "EllipticEnvelope", task="outliers"), tmp_path)
    label, score = model.compute([rows.drop("y").to_numpy()]).outputs

    assert fitted.engine == "scikit-learn"
    assert set(label.tolist()) == {0, 1}
    assert ((score < 0) == (label == 1)).all()


def test_the_metadata_says_what_answers_and_why(tmp_path):
    _, fitted, model = served(Case("cellar", "NearestCentroid", scale=True), tmp_path)
    told = documents.model_metadata("m", model.deployed)

    assert told["platform"] == "sklearn_skops"
    assert told["parameters"]["engine"] == "scikit-learn"
    assert "cannot be written as ONNX" in told["parameters"]["engine_reason"]
    assert [tensor["name"] for tensor in told["inputs"]] == list(fitted.signature.features)


def test_scikit_learn_is_not_imported_before_a_model_needs_it():
    heavy = "import sys, meguri_inference.app; print(*{'sklearn', 'scipy', 'skops'} & sys.modules.keys())"

    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, check=True).stdout.split() == []

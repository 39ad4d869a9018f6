import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import polars as pl
import pytest
from sklearn.datasets import load_diabetes, load_digits, load_iris

from meguri_chassis.profiles import Profile
from meguri_contracts.spec import ModelSpec
from meguri_training import fitting
from meguri_training.fitting import CannotFit, Job

IRIS, SPECIES = load_iris(return_X_y=True)
FLOWERS = pl.DataFrame(IRIS, schema=["a", "b", "c", "d"]).with_columns(species=SPECIES)
TYPES = {pl.Boolean: "boolean", pl.String: "string", pl.Int64: "integer", pl.Float64: "number"}


def job(folder, *frames, estimator="LogisticRegression", **changes):
    """Write frames as versions of a Delta table and ask for a fit on the last; the last column is the target."""
    for frame in frames:
        frame.write_delta(folder, mode="append")
    schema = frames[-1].schema
    spec = {
        "model": "test",
        "task": "classification",
        "dataset": {"name": "test", "columns": {name: {"type": TYPES[type(t)]} for name, t in schema.items()}},
        "target": list(schema)[-1],
        "estimator": {"name": estimator} if isinstance(estimator, str) else estimator,
        "gate": "mae > 0" if changes.get("task") == "regression" else "accuracy > 0",
        **changes,
    }
    return Job("run", ModelSpec.model_validate(spec), str(folder), len(frames) - 1)


def against(challenger, champion):
    return replace(challenger, champion_onnx=champion.onnx, champion_signature=champion.signature)


def test_a_fit_gives_files_and_measures(tmp_path):
    fitted = fitting.fit(job(tmp_path, FLOWERS))

    assert fitted.candidate.keys() == {"accuracy", "balanced_accuracy", "f1_macro", "log_loss"}
    assert fitted.candidate["accuracy"] > 0.85
    assert fitted.train_rows + fitted.holdout_rows == 150
    assert fitted.champion is None
    assert fitted.parity < 1e-9
    assert fitted.signature.features == ("a", "b", "c", "d")
    assert 0 < fitted.fit_seconds < fitted.seconds
    assert Profile.from_json(fitted.profile).rows == fitted.train_rows


def test_a_regression_is_measured_in_its_own_metrics(tmp_path):
    rows, target = load_diabetes(return_X_y=True)
    frame = pl.DataFrame(rows).with_columns(progress=target)
    fitted = fitting.fit(job(tmp_path, frame, estimator="Ridge", task="regression"))

    assert fitted.candidate.keys() == {"mae", "rmse", "r2"}
    assert fitted.candidate["r2"] > 0.2


@pytest.mark.parametrize(
    "estimator",
    ["LogisticRegression", "RandomForestClassifier", "HistGradientBoostingClassifier", "MLPClassifier", "SVC"],
)
def test_the_same_job_gives_the_same_bytes_in_whatever_order_its_rows_arrived(tmp_path, estimator):
    shuffled = FLOWERS.sample(fraction=1.0, shuffle=True, seed=1)
    first = fitting.fit(job(tmp_path / "1", FLOWERS, estimator=estimator))
    other = fitting.fit(job(tmp_path / "2", shuffled[:60], shuffled[60:], estimator=estimator))

    assert other.onnx == first.onnx
    assert other.profile == first.profile
    assert other.candidate == first.candidate


def test_the_same_job_gives_the_same_bytes_in_another_process(tmp_path):
    asked = job(tmp_path, FLOWERS, estimator="RandomForestClassifier")
    script = "import pickle, sys; from meguri_training.fitting import fit; " \
        "pickle.dump(fit(pickle.load(sys.stdin.buffer)), sys.stdout.buffer)"  # fmt: skip
    elsewhere = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(asked),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "123"},
    )

    there, here = pickle.loads(elsewhere.stdout), fitting.fit(asked)
    times = {"seconds": 0.0, "fit_seconds": 0.0}
    assert replace(there, **times) == replace(here, **times)


def test_another_seed_gives_another_model(tmp_path):
    asked = job(tmp_path, FLOWERS, estimator="RandomForestClassifier")
    other = replace(
        asked, spec=job(tmp_path / "2", FLOWERS, estimator="RandomForestClassifier", validation={"seed": 1}).spec
    )

    assert fitting.fit(asked).onnx != fitting.fit(other).onnx


def test_an_earlier_version_of_the_dataset_is_read_as_it_was(tmp_path):
    both = job(tmp_path, FLOWERS[:100], FLOWERS[100:])
    earlier = fitting.fit(replace(both, dataset_version=0))

    assert earlier.train_rows + earlier.holdout_rows == 100
    assert fitting.fit(both).onnx != earlier.onnx


@pytest.mark.parametrize("estimator", ["LogisticRegression", "ExtraTreesClassifier"])
def test_the_champion_is_measured_on_the_rows_that_the_candidate_is_measured_on(tmp_path, estimator):
    asked = job(tmp_path, FLOWERS, estimator=estimator)
    champion = fitting.fit(asked)
    again = fitting.fit(against(asked, champion))

    assert again.champion == pytest.approx(again.candidate, rel=1e-4)


def test_a_champion_takes_its_features_by_name(tmp_path):
    asked = job(tmp_path, FLOWERS)
    turned = fitting.fit(job(tmp_path / "2", FLOWERS.select("d", "b", "c", "a", "species")))
    fewer = fitting.fit(replace(asked, spec=job(tmp_path / "3", FLOWERS, features=["d", "c"]).spec))

    assert fitting.fit(against(asked, turned)).champion["accuracy"] > 0.85
    assert fitting.fit(against(asked, fewer)).champion["accuracy"] > 0.85


def test_a_champion_may_need_a_column_that_the_candidate_does_not(tmp_path):
    champion = fitting.fit(job(tmp_path, FLOWERS))
    fewer = replace(job(tmp_path / "2", FLOWERS, features=["d", "c"]), table_uri=str(tmp_path))

    assert fitting.fit(against(fewer, champion)).champion["accuracy"] > 0.85


def test_a_champion_whose_feature_is_gone_cannot_be_compared(tmp_path):
    champion = fitting.fit(job(tmp_path, FLOWERS))

    with pytest.raises(CannotFit, match="champion needs 'a', which the dataset no longer has"):
        fitting.fit(against(job(tmp_path / "2", FLOWERS.drop("a")), champion))


def test_a_champion_that_never_heard_of_a_class_loses_these_rows(tmp_path):
    champion = fitting.fit(job(tmp_path / "1", FLOWERS.filter(pl.col("species") < 2)))
    fitted = fitting.fit(against(job(tmp_path / "2", FLOWERS), champion))

    assert fitted.champion["accuracy"] < 0.8 < fitted.candidate["accuracy"]
    assert fitted.champion["log_loss"] > 5


@pytest.mark.parametrize(
    ("labels", "datatype"),
    [
        (pl.col("species") > 0, "INT64"),
        (pl.col("species").replace_strict({0: "setosa", 1: "versicolor", 2: "virginica"}), "BYTES"),
        (pl.col("species").cast(pl.Float64), "INT64"),
    ],
    ids=["boolean", "text", "number"],
)
def test_labels_may_be_of_any_type_that_names_classes(tmp_path, labels, datatype):
    asked = job(tmp_path, FLOWERS.with_columns(species=labels))
    fitted = fitting.fit(asked)

    assert fitted.signature.outputs[0].datatype == datatype
    assert fitting.fit(against(asked, fitted)).champion == pytest.approx(fitted.candidate, rel=1e-4)


def test_booleans_are_features(tmp_path):
    frame = FLOWERS.with_columns(a=pl.col("a") > 5.8)

    assert fitting.fit(job(tmp_path, frame)).candidate["accuracy"] > 0.85


REFUSALS = {
    "too few rows": (FLOWERS[::15], {}, "rows to train on and .* held out; at least"),
    "one class": (FLOWERS[:50], {}, "every row to train on has species = 0"),
    "null": (
        FLOWERS.with_columns(b=pl.when(pl.col("b") > 4).then(None).otherwise("b")),
        {},
        "'b' has no usable value in 3 of",
    ),
    "nan": (FLOWERS.with_columns(c=pl.lit(float("nan"))), {}, "'c' has no usable value in 150 of 150"),
    "null label": (FLOWERS.with_columns(species=pl.lit(None, pl.Int64)), {}, "'species' has no usable value"),
    "fractions": (FLOWERS.with_columns(species=pl.col("species") / 2), {}, "'species' has fractions"),
    "unknown estimator": (FLOWERS, {"estimator": "KMeans"}, "'KMeans' is unknown"),
    "unknown parameter": (FLOWERS, {"estimator": {"name": "SVC", "params": {"c": 1}}}, "SVC has no 'c'"),
    "bad parameter": (
        FLOWERS,
        {"estimator": {"name": "SVC", "params": {"C": -1}}},
        "SVC cannot be fitted.*'C' parameter",
    ),
    "more neighbours than rows": (
        FLOWERS,
        {"estimator": {"name": "KNeighborsClassifier", "params": {"n_neighbors": 1000}}},
        "KNeighborsClassifier cannot be fitted.*n_neighbors",
    ),
    "not the same in ONNX": (
        FLOWERS,
        {"estimator": {"name": "KNeighborsClassifier", "params": {"weights": "distance"}}},
        "ONNX and scikit-learn differ by",
    ),
}


@pytest.mark.parametrize(("frame", "changes", "reason"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_job_that_cannot_succeed_says_why(tmp_path, frame, changes, reason):
    with pytest.raises(CannotFit, match=reason):
        fitting.fit(job(tmp_path, frame, **changes))


def test_a_version_that_is_not_there_says_so(tmp_path):
    with pytest.raises(CannotFit, match="version 7 of the table"):
        fitting.fit(replace(job(tmp_path, FLOWERS), dataset_version=7))


def test_a_version_whose_files_were_swept_away_says_so(tmp_path):
    asked = job(tmp_path, FLOWERS)
    for file in tmp_path.glob("*.parquet"):
        file.unlink()

    with pytest.raises(CannotFit, match="version 0 of the table"):
        fitting.fit(asked)


def test_a_column_that_the_rows_do_not_have_says_so(tmp_path):
    fewer = job(tmp_path, FLOWERS.drop("a"))

    with pytest.raises(CannotFit, match="column 'a' is not in version 0"):
        fitting.fit(replace(fewer, spec=job(tmp_path / "2", FLOWERS).spec))


def test_files_and_refusals_come_back_from_a_worker_process(tmp_path):
    digits, digit = load_digits(return_X_y=True)
    good = job(tmp_path / "1", pl.DataFrame(digits[:500]).with_columns(digit=digit[:500]))
    bad = job(tmp_path / "2", FLOWERS[:50])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=fitting.warm_up) as pool:
        assert pool.submit(fitting.fit, good).result().candidate["accuracy"] > 0.9
        with pytest.raises(CannotFit, match="at least two classes"):
            pool.submit(fitting.fit, bad).result()


def test_the_service_can_name_a_fit_without_carrying_scikit_learn():
    heavy = "import sys, meguri_training.fitting; print(*{'sklearn', 'polars', 'onnxruntime'} & sys.modules.keys())"

    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, check=True).stdout.split() == []

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
from meguri_training import fitting, reading
from meguri_training.fitting import CannotFit, Champion, Job

IRIS, SPECIES = load_iris(return_X_y=True)
FLOWERS = pl.DataFrame(IRIS, schema=["a", "b", "c", "d"]).with_columns(species=SPECIES)
FOREST = {"name": "IsolationForest", "params": {"n_estimators": 10}}
"""A few trees: of a hundred, the conversion into ONNX alone takes seconds."""
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
    file = champion.skops if champion.onnx is None else champion.onnx
    return replace(challenger, champion=Champion(champion.engine, file, champion.signature))


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
    ("changes", "columns"),
    [
        ({}, {"label": ("0", "1", "2"), "probability": None}),
        ({"estimator": "Ridge", "task": "regression"}, {"prediction": None}),
        ({"estimator": FOREST, "task": "outliers", "target": None}, {"label": ("0", "1"), "score": None}),
    ],
    ids=["classification", "regression", "outliers"],
)
def test_the_profile_has_the_answers_to_rows_that_were_held_out(tmp_path, changes, columns):
    gate = {"gate": "outlier_share < 1", "features": ["a", "b", "c", "d"]} if "target" in changes else {}
    fitted = fitting.fit(job(tmp_path, FLOWERS, **changes, **gate))
    outputs = Profile.from_json(fitted.profile).outputs

    assert {name: getattr(output, "known", None) for name, output in outputs.items()} == columns
    assert {output.n for output in outputs.values()} == {fitted.holdout_rows}


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


CITIES = FLOWERS.with_columns(
    city=pl.Series(["Zürich", "", "Kyōto"] * 50), early=pl.col("a") > 5.8, count=pl.int_range(150) % 7
).select("city", "a", "early", "count", "species")


@pytest.mark.parametrize(("estimator", "real"), [("RidgeClassifier", "FP64"), ("RandomForestClassifier", "FP32")])
def test_texts_are_features_and_every_feature_is_then_an_input(tmp_path, estimator, real):
    asked = job(tmp_path, CITIES, estimator=estimator)
    fitted = fitting.fit(asked)
    signature = fitted.signature

    assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in signature.inputs] == [
        ("city", "BYTES", (-1, 1)),
        ("a", real, (-1, 1)),
        ("early", "BOOL", (-1, 1)),
        ("count", "INT64", (-1, 1)),
    ]
    assert signature.input == signature.inputs[0]
    assert fitted.engine == "onnx"
    profile = Profile.from_json(fitted.profile)
    assert list(profile.features) == ["a", "count"]
    assert {name: feature.known for name, feature in profile.categories.items()} == {
        "city": ("Kyōto", "Zürich"),
        "early": ("false", "true"),
    }
    assert profile.categories["city"].missing > 0
    assert {feature.rows for feature in profile.inputs.values()} == {fitted.train_rows}
    assert fitting.fit(against(asked, fitted)).champion == pytest.approx(fitted.candidate, rel=1e-4)


@pytest.mark.parametrize("estimator", ["LogisticRegression", "RandomForestClassifier"])
def test_beside_texts_there_may_be_integers_and_booleans_alone(tmp_path, estimator):
    fitted = fitting.fit(job(tmp_path, CITIES.drop("a"), estimator=estimator))

    assert [tensor.datatype for tensor in fitted.signature.inputs] == ["BYTES", "BOOL", "INT64"]
    assert (fitted.engine, fitted.parity < 1e-6) == ("onnx", True)


@pytest.mark.parametrize("name", ["input", "variable", "scores", "größe (in m) / 2", "label_tensor", "meguri_city"])
def test_a_feature_may_be_called_anything(tmp_path, name):
    fitted = fitting.fit(job(tmp_path, CITIES.rename({"a": name})))

    assert [tensor.name for tensor in fitted.signature.inputs] == ["city", name, "early", "count"]
    assert fitted.engine == "onnx", fitted.engine_reason


def test_the_same_job_on_texts_gives_the_same_bytes(tmp_path):
    shuffled = CITIES.sample(fraction=1.0, shuffle=True, seed=1)
    first = fitting.fit(job(tmp_path / "1", CITIES, estimator="LogisticRegression"))
    other = fitting.fit(job(tmp_path / "2", shuffled, estimator="LogisticRegression"))

    assert (first.onnx, first.skops, first.signature) == (other.onnx, other.skops, other.signature)


def test_all_features_may_be_texts(tmp_path):
    frame = CITIES.select(pl.col("a").round(1).cast(pl.String), "species")
    fitted = fitting.fit(job(tmp_path, frame))

    assert [tensor.datatype for tensor in fitted.signature.inputs] == ["BYTES"]
    profile = Profile.from_json(fitted.profile)
    assert (profile.features, profile.rows) == ({}, fitted.train_rows)


def test_a_text_that_is_missing_is_the_empty_text(tmp_path):
    frame = CITIES.with_columns(city=pl.when(pl.col("city") != "").then("city"))
    fitted = fitting.fit(job(tmp_path, frame, features=["city"]))

    assert frame["city"].null_count() == 50
    assert reading.texts(frame, "city").tolist() == CITIES["city"].to_list()
    assert fitted.train_rows + fitted.holdout_rows == 150


def test_the_example_is_a_row_that_is_common(tmp_path):
    frame = CITIES.with_columns(city=pl.when(pl.col("count") < 5).then(pl.lit("Kyōto")).otherwise("city"))
    mixed = fitting.fit(job(tmp_path / "1", frame, estimator="RandomForestClassifier")).signature.example
    numbers = fitting.fit(job(tmp_path / "2", FLOWERS)).signature.example

    assert mixed == ("Kyōto", pytest.approx(5.8, abs=0.2), mixed[2], 3)
    assert [type(value) for value in mixed] == [str, float, bool, int]
    assert numbers == pytest.approx((5.8, 3.0, 4.35, 1.3), abs=0.3)


@pytest.mark.parametrize("estimator", [FOREST, "EllipticEnvelope"], ids=["IsolationForest", "EllipticEnvelope"])
def test_outliers_are_found_without_a_target(tmp_path, estimator):
    asked = job(
        tmp_path,
        FLOWERS,
        estimator=estimator,
        task="outliers",
        target=None,
        features=["a", "b"],
        gate="outlier_share < 1",
    )
    fitted = fitting.fit(asked)

    assert fitted.candidate.keys() == {"outlier_share"}
    assert 0 < fitted.candidate["outlier_share"] < 0.5
    assert [tensor.name for tensor in fitted.signature.outputs] == ["label", "score"]
    assert fitting.fit(against(asked, fitted)).champion == pytest.approx(fitted.candidate, rel=1e-4)


def test_a_target_tells_how_well_outliers_are_found_and_is_not_learned_from(tmp_path):
    frame = FLOWERS.filter(pl.int_range(150) < 60).with_columns(species=pl.col("species") > 0)
    changes = {"estimator": FOREST, "task": "outliers", "gate": "roc_auc > 0"}
    named = fitting.fit(job(tmp_path / "1", frame, **changes))
    changes |= {"target": None, "features": ["a", "b", "c", "d"], "gate": "outlier_share < 1"}
    unnamed = fitting.fit(job(tmp_path / "2", frame, **changes))

    assert named.candidate.keys() == {"outlier_share", "roc_auc", "average_precision"}
    assert named.candidate["roc_auc"] > 0.8
    assert named.onnx == unnamed.onnx


NEIGHBOURS = {"name": "KNeighborsClassifier", "params": {"weights": "distance"}}


def test_a_model_that_onnx_computes_otherwise_is_served_by_scikit_learn(tmp_path):
    fitted = fitting.fit(job(tmp_path, FLOWERS, estimator=NEIGHBOURS))

    assert (fitted.engine, fitted.onnx, fitted.parity) == ("scikit-learn", None, 0)
    assert "ONNX and scikit-learn differ by" in fitted.engine_reason
    assert [tensor.name for tensor in fitted.signature.outputs] == ["label", "probabilities"]


@pytest.mark.parametrize("first", [NEIGHBOURS, "GaussianNB"], ids=["scikit-learn", "onnx"])
@pytest.mark.parametrize("second", [NEIGHBOURS, "GaussianNB"], ids=["scikit-learn", "onnx"])
def test_champions_of_either_engine_are_measured(tmp_path, first, second):
    champion = fitting.fit(job(tmp_path / "1", FLOWERS, estimator=first))
    candidate = fitting.fit(against(job(tmp_path / "2", FLOWERS, estimator=second), champion))

    assert candidate.champion == pytest.approx(champion.candidate, rel=1e-4)


def test_a_champion_of_another_task_cannot_be_compared(tmp_path):
    champion = fitting.fit(job(tmp_path / "1", FLOWERS))
    outliers = {"estimator": FOREST, "task": "outliers", "target": None, "gate": "outlier_share < 1"}

    with pytest.raises(CannotFit, match="answers with label, probabilities; for outliers it should be label, score"):
        fitting.fit(against(job(tmp_path / "2", FLOWERS, **outliers), champion))


REFUSALS = {
    "too many categories": (
        pl.DataFrame({"id": [f"user {n}" for n in range(1500)], "y": [n % 2 for n in range(1500)]}),
        {},
        "'id' has 1500 different texts, at most 1000 can be categories",
    ),
    "outliers of three kinds": (
        FLOWERS,
        {"estimator": FOREST, "task": "outliers", "gate": "roc_auc > 0"},
        "'species' of outliers must be true or 1",
    ),
    "no outliers to find": (
        FLOWERS[:50],
        {"estimator": FOREST, "task": "outliers", "gate": "roc_auc > 0"},
        "every row held out has species = 0",
    ),
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

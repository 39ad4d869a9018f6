import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import Ridge

from meguri_inference.comparing import MEDIA_TYPE, NotComparable, NotRecorded, compare, digest
from meguri_inference.formats import BadRows
from meguri_inference.predicting import LoadedModel
from tests.inference.batches import Batching
from tests.inference.compared import FEATURES, classifier, grid, recorded, stream
from tests.inference.conftest import Fitted, fitted


def regressor(slope: float) -> Fitted:
    x = grid(50)
    return fitted("line", Ridge(alpha=1e-9), x, slope * x[:, 0], FEATURES, "FP64")


def loaded(fitted: Fitted, version: int) -> LoadedModel:
    return LoadedModel.load(fitted.deployed.model_copy(update={"version": version}), fitted.name, fitted.onnx)


def test_a_version_agrees_with_itself():
    report = compare(loaded(classifier(0), 1), loaded(classifier(0), 2), recorded(grid(100)))

    assert (report["rows"], report["scored"], report["disagreed"], report["largest_difference"]) == (100, 100, 0, 0)
    assert (report["slices"], report["worst"]) == ([], [])
    assert all(cell["a"] == cell["b"] for cell in report["confusion"])


def test_it_says_how_often_and_where_labels_differ():
    x = grid(1000)
    a, b = classifier(0), classifier(1)
    report = compare(loaded(a, 1), loaded(b, 2), recorded(x))
    ours, theirs = a.estimator.predict(x), b.estimator.predict(x)
    apart = np.abs(a.estimator.predict_proba(x) - b.estimator.predict_proba(x)).max(axis=1)

    assert report["disagreed"] == int((ours != theirs).sum())
    assert report["share"] == pytest.approx((ours != theirs).mean())
    assert report["mean_difference"] == pytest.approx(apart.mean(), abs=1e-6)
    assert report["largest_difference"] == pytest.approx(apart.max(), abs=1e-6)
    cells = {(cell["a"], cell["b"]): cell["rows"] for cell in report["confusion"]}
    assert cells["0", "1"] == int(((ours == 0) & (theirs == 1)).sum())
    assert sum(cells.values()) == 1000
    assert report["worst"][0]["prediction_id"] == f"p-{int(np.argmax(np.where(ours != theirs, apart, 0))):04d}"
    assert report["worst"][0]["a"] != report["worst"][0]["b"]


def test_predictions_disagree_when_they_differ_by_more_than_the_rule_says():
    x = np.column_stack([np.array([0.0005, 0.5, -0.002]), np.zeros(3)])
    report = compare(loaded(regressor(1), 1), loaded(regressor(2), 2), recorded(x))

    assert "predictions differ by more than 0.001" in report["rule"]
    assert report["disagreed"] == 2
    assert report["largest_difference"] == pytest.approx(0.5, abs=1e-6)
    assert [row["prediction_id"] for row in report["worst"]] == ["p-0001", "p-0002", "p-0000"]
    assert report["confusion"] == []


def test_the_slices_in_which_versions_disagree_most_come_first():
    x = np.abs(grid(400)) + 0.1
    x[:100, 1] *= -1  # here, and only here, the signs of both features differ
    producers = ["lamp"] * 90 + ["scanner"] * 290 + ["rare"] * 20
    report = compare(loaded(classifier(0), 1), loaded(classifier(1), 2), recorded(x, producer=producers))
    first = report["slices"][0]

    assert {(one["by"], one["slice"]) for one in report["slices"][:2]} >= {("producer", "lamp")}
    assert (first["share"], first["rows"]) == (1, max(one["rows"] for one in report["slices"] if one["share"] == 1))
    assert first["lift"] == pytest.approx(1 / report["share"])
    assert "rare" not in [one["slice"] for one in report["slices"]], "20 rows say little"
    assert sum(one["rows"] for one in report["slices"] if one["by"] == "y") <= 400


def test_rows_without_a_value_are_counted_with_the_reason():
    x = grid(50)
    x[:3, 0], x[2:5, 1] = np.nan, np.inf
    nulls = pa.array([None, *x[1:, 1]])
    report = compare(loaded(classifier(0), 1), loaded(classifier(1), 2), recorded(x, y=nulls))

    assert (report["rows"], report["scored"]) == (50, 45)
    assert report["unscored"] == {"no value in 'x'": 3, "no value in 'y'": 2}


def test_the_report_is_the_same_every_time_and_the_digest_is_of_its_canonical_json():
    rows = recorded(grid(20_000))
    first, second = [compare(loaded(classifier(0), 1), loaded(classifier(1), 2), rows) for _ in range(2)]
    text = json.dumps({k: v for k, v in first.items() if k != "digest"}, sort_keys=True, separators=(",", ":"))

    assert first == second
    assert first["digest"] == hashlib.sha256(text.encode()).hexdigest()
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})


def test_a_feature_that_was_not_recorded_is_named():
    with pytest.raises(NotRecorded, match="version 2 takes 'z', which the recorded rows do not have"):
        compare(loaded(classifier(0), 1), loaded(classifier(0, ("x", "z")), 2), recorded(grid(10)))


def test_what_cannot_be_compared_is_refused():
    a = loaded(classifier(0), 1)
    with pytest.raises(NotComparable, match="one version says labels, the other numbers"):
        compare(a, loaded(regressor(1), 2), recorded(grid(10)))
    with pytest.raises(NotComparable, match="none can be answered"):
        compare(a, a, recorded(grid(0)))
    with pytest.raises(BadRows, match="no Arrow IPC stream"):
        compare(a, a, b"something else")
    with pytest.raises(BadRows, match="no column 'producer'"):
        compare(a, a, stream(pa.table({"prediction_id": ["a"]})))
    with pytest.raises(BadRows, match="column 'x'"):
        compare(a, a, recorded(grid(3), x=["a", "b", "c"]))


async def test_any_replica_compares_versions_of_the_log_and_comes_to_the_same_digest(batching: Batching):
    await batching.register(classifier(0), 1)
    await batching.register(classifier(1), 2)
    path, headers = f"/models/{batching.model}/compare", {"Content-Type": MEDIA_TYPE}
    reports = []
    for replica in ("one", "two"):
        async with batching.replica(replica) as http:
            answer = await http.post(path, params={"a": 1, "b": 2}, content=recorded(grid(500)), headers=headers)
            missing = await http.post(path, params={"a": 1, "b": 9}, content=recorded(grid(5)), headers=headers)
            reports.append(answer.json())

    assert (answer.status_code, missing.status_code) == (200, 404)
    assert reports[0] == reports[1]
    assert (reports[0]["model"], reports[0]["a"], reports[0]["b"], reports[0]["rows"]) == (batching.model, 1, 2, 500)
    assert len(reports[0]["digest"]) == 64


async def test_a_body_that_is_too_large_to_compare_is_refused(batching: Batching, monkeypatch):
    monkeypatch.setenv("MEGURI_INFERENCE_MAX_COMPARED_BYTES", "100")
    async with batching.replica() as http:
        answer = await http.post(
            f"/models/{batching.model}/compare", params={"a": 1, "b": 2}, content=recorded(grid(50))
        )

    assert (answer.status_code, "at most" in answer.text or "larger than the 100 bytes" in answer.text) == (413, True)

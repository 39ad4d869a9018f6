import json

import numpy as np
import polars as pl
import pytest

from meguri_chassis.profiles import profile_of
from meguri_monitoring.profiles.profiling import by_producer
from meguri_monitoring.verdicts.evidence import evidence
from meguri_monitoring.verdicts.judging import judge
from tests.monitoring.three_producers import OF_B, REFERENCE, RULE, WINDOW, changed, rows


def of(frame: pl.DataFrame) -> dict:
    shares = by_producer(REFERENCE, frame)
    found = evidence(judge(3, 5, WINDOW, shares, REFERENCE, RULE), shares, REFERENCE)
    return json.loads(json.dumps(found, allow_nan=False))


def test_the_histograms_of_a_feature_that_moved_have_every_row():
    frame = changed(age=pl.when(OF_B).then(pl.col("age") + 1.5).otherwise("age"))
    (age,) = of(frame)["subjects"]

    assert (age["about"], age["subject"], age["method"]) == ("drift", "age", "ks or wasserstein")
    assert age["score"] > age["threshold"]
    assert len(age["bins"]) == len(age["reference"]["counts"]) == len(age["current"]["counts"]) == 10
    assert age["bins"][0].startswith("up to -1.")
    assert age["bins"][-1].startswith("above 1.")
    assert sum(age["reference"]["counts"]) == 3_000
    assert sum(age["current"]["counts"]) == 600
    assert age["current"]["mean"] == pytest.approx(frame["age"].mean(), rel=1e-4)


def test_each_producer_has_its_rows_and_its_part():
    found = of(changed(age=pl.when(OF_B).then(pl.col("age") + 1.5).otherwise("age")))
    (age,) = found["subjects"]

    assert {name: one["rows"] for name, one in age["producers"].items()} == {"a": 200, "b": 200, "c": 200}
    assert age["producers"]["b"]["mean"] == pytest.approx(1.5, abs=0.3)
    assert age["producers"]["b"]["contribution"] > 0.9 > age["producers"]["a"]["contribution"]
    assert found["producers"]["b"]["samples"] == ["p-586", "p-589", "p-592", "p-595", "p-598"]
    assert found["producers"]["b"]["traces"] == ["t-586", "t-589", "t-592", "t-595", "t-598"]


def test_categories_are_named_those_that_are_new_too():
    found = of(changed(plan=pl.when(OF_B).then(pl.lit("gold")).otherwise("plan")))
    plan = next(one for one in found["subjects"] if one["about"] == "categories")

    assert plan["bins"] == ["basic", "plus", "pro", "not in the reference"]
    assert plan["current"]["counts"][-1] == 200
    assert plan["strangers"] == {"gold": 200}
    assert sum(plan["current"]["counts"]) + plan["current"]["missing"] == 600


def test_a_feature_without_any_values_has_empty_bins():
    (visits,) = of(changed(visits=pl.lit(None, pl.Float64)))["subjects"]

    assert visits["about"] == "missing"
    assert (visits["current"]["missing"], sum(visits["current"]["counts"])) == (600, 0)


def test_a_value_that_many_rows_have_is_a_bin_of_its_own():
    values = np.concatenate([np.zeros(500), np.linspace(1, 2, 500)])
    reference = profile_of(["x"], values[:, None])
    about = {"producer": ["a"] * 1_000, "prediction_id": ["p"] * 1_000, "trace_id": ["t"] * 1_000}
    shares = by_producer(reference, pl.DataFrame({"x": values + 1, **about}))
    (x,) = evidence(judge(3, 5, WINDOW, shares, reference, RULE), shares, reference)["subjects"]

    assert x["bins"][:2] == ["up to 0", "0"]
    assert (x["reference"]["counts"][1], x["current"]["counts"][1]) == (500, 0)


def test_of_a_quiet_window_there_is_little_to_tell():
    found = of(rows(600, 1))

    assert found["subjects"] == []
    assert found["rows"] == {"reference": 3_000, "current": 600}

"""The model spec: what is understood, and what is said about the mistakes that people make."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from meguri_contracts.spec import MAX_COLUMNS, ModelSpec, expand

ROOT = Path(__file__).parents[2]
SPECS = sorted([*ROOT.glob("models/*.yaml"), *ROOT.glob("examples/**/*.yaml")])

NUMBER = {"type": "number"}


def spec(**changes: Any) -> ModelSpec:
    columns = {"x_{0..1}": NUMBER, "y": NUMBER}
    return ModelSpec.model_validate(
        {
            "model": "m",
            "task": "regression",
            "dataset": {"name": "d", "columns": columns},
            "target": "y",
            "estimator": {"name": "Ridge"},
            "gate": "r2 >= 0.5",
            **changes,
        }
    )


def dataset(**columns: Any) -> dict[str, Any]:
    return {"name": "d", "columns": {"x": NUMBER, "y": NUMBER, **columns}}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_specs_of_the_repository_are_valid(path):
    found = ModelSpec.model_validate(yaml.safe_load(path.read_text()))

    assert found.feature_names
    assert ModelSpec.model_validate_json(found.model_dump_json()) == found


def test_the_spec_of_the_first_run_is_among_them():
    assert ROOT / "models/digits.yaml" in SPECS


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("age", ["age"]),
        ("p_{0..2}", ["p_0", "p_1", "p_2"]),
        ("p_{8..11}", ["p_8", "p_9", "p_10", "p_11"]),
        ("{3..3}", ["3"]),
        ("r{0..1}c{5..6}", ["r0c5", "r0c6", "r1c5", "r1c6"]),
        ("p_{0..2", ["p_{0..2"]),
        ("p_{a..b}", ["p_{a..b}"]),
        ("", [""]),
    ],
)
def test_a_range_stands_for_its_names_both_ends_included(pattern, names):
    assert expand(pattern) == names


@pytest.mark.parametrize("pattern", ["p{3..1}", f"p{{0..{MAX_COLUMNS}}}", "p{0..9999}{0..9999}", "p{0..9}" * 30])
def test_a_range_that_falls_or_is_too_long_is_refused_before_it_is_made(pattern):
    with pytest.raises(ValueError, match="must rise and stand for at most 10000 names"):
        expand(pattern)


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(1, 9)), max_size=4))
def test_ranges_stand_for_the_product_of_their_lengths_each_name_once(ranges):
    names = expand("-".join(f"{{{first}..{first + count - 1}}}" for first, count in ranges))

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"(\d+(-\d+)*)?", name) for name in names)


def test_all_columns_but_the_target_are_features_when_none_are_named():
    assert spec().feature_names == ("x_0", "x_1")


def test_features_keep_the_order_in_which_they_are_named():
    assert spec(features=("x_1", "x_0")).feature_names == ("x_1", "x_0")


def test_strings_are_features():
    assert spec(dataset=dataset(city={"type": "string"})).feature_names == ("x", "city")


def test_a_score_is_only_reserved_where_outliers_have_one():
    assert spec(dataset=dataset(score=NUMBER)).feature_names == ("x", "score")


def test_outliers_need_no_target_and_are_then_measured_by_their_share_alone():
    found = spec(task="outliers", target=None, gate="outlier_share < 0.2")

    assert found.feature_names == ("x_0", "x_1", "y")
    assert found.metrics == ("outlier_share",)


def test_a_target_of_outliers_is_no_feature_and_adds_metrics():
    found = spec(
        task="outliers", target="bad", gate="roc_auc > 0.8", dataset=dataset(bad={"type": "boolean"}), features=None
    )

    assert found.feature_names == ("x", "y")
    assert found.metrics == ("outlier_share", "roc_auc", "average_precision")


MISTAKES = {
    "a field that does not exist": ({"estimater": {}}, "estimater.*not permitted"),
    "a name with capitals": ({"model": "Digits"}, "model.*match pattern"),
    "a target that is no column": ({"target": "z"}, "'z' is not a column of dataset 'd'"),
    "a feature that is no column": ({"features": ["x_7"]}, "'x_7' is not a column of dataset 'd'"),
    "the target as a feature": ({"features": ["x_0", "y"]}, "the target 'y' is also a feature"),
    "a feature named twice": ({"features": ["x_{0..1}", "x_0"]}, "feature 'x_0' is named twice"),
    "no feature": ({"features": []}, "at least one feature"),
    "only the target": ({"dataset": {"name": "d", "columns": {"y": NUMBER}}}, "at least one feature"),
    "no column": ({"dataset": {"name": "d", "columns": {}}}, "columns.*at least 1 item"),
    "a time as a feature": ({"dataset": dataset(at={"type": "timestamp"})}, "'at': timestamps cannot be features"),
    "a regression without a target": ({"target": None}, "target: a regression needs one"),
    "outliers named by a number": ({"task": "outliers", "gate": "roc_auc > 0"}, "'y' of outliers must be a boolean"),
    "a metric that needs a target": (
        {"task": "outliers", "target": None, "gate": "roc_auc > 0.8"},
        "'roc_auc' is no metric of outliers without a target; known are outlier_share",
    ),
    "a feature of outliers like their score": (
        {
            "task": "outliers",
            "target": None,
            "gate": "outlier_share < 1",
            "dataset": dataset(score=NUMBER),
            "features": ["score"],
        },
        "'score' is called like",
    ),
    "a type that does not exist": ({"dataset": dataset(x={"type": "float"})}, "'number', 'integer'"),
    "a range of text": ({"dataset": dataset(x={"type": "string", "min": 0})}, "min and max need a number or integer"),
    "a column of meguri's own": ({"dataset": dataset(_event=NUMBER)}, "begin with '_': '_event'"),
    "a feature like a prediction's column": ({"dataset": dataset(version=NUMBER)}, "'version' is called like"),
    "too many columns": ({"dataset": dataset(**{"a{0..9998}": NUMBER})}, "10001 columns, at most 10000"),
    "a falling range": ({"features": ["x_{1..0}"]}, "must rise"),
    "a metric of the other task": (
        {"gate": "accuracy > 0.9"},
        "'accuracy' is no metric of a regression; known are mae",
    ),
    "a gate without a comparison": ({"gate": "r2"}, "gate.*not a comparison"),
    "no row kept out": ({"validation": {"holdout": 0}}, "holdout.*greater than 0"),
    "a distance of numbers for a text": (
        {
            "dataset": {"name": "d", "columns": {"x_0": NUMBER, "plan": {"type": "string"}, "y": NUMBER}},
            "monitor": {"methods": {"plan": {"method": "ks"}}},
        },
        "ks is for numbers, and 'plan' is a string",
    ),
    "a window that cannot be judged": ({"monitor": {"window_rows": 100}}, "window_rows 100 is below min_rows 200"),
}


def test_what_the_first_release_did_not_know_stands_in_a_spec_only_if_it_says_something():
    before = {"model", "task", "dataset", "features", "target", "estimator", "validation", "gate", "retrain", "monitor"}
    news = {"rollout": {"strategy": "canary"}, "log": "none"}

    assert set(spec().model_dump()) == before
    assert set(json.loads(spec(**news).model_dump_json())) == before | set(news)
    for one in (spec(), spec(**news)):
        assert ModelSpec.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize(("changes", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_what_would_be_right(changes, said):
    with pytest.raises(ValidationError) as failure:
        spec(**changes)

    assert re.search(said, str(failure.value), re.DOTALL)

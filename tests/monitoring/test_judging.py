import numpy as np
import polars as pl
import pytest

from meguri_chassis.profiles import Profile, profile_of
from meguri_contracts.spec import Method, Monitor
from meguri_monitoring.profiles.profiling import by_producer, merged
from meguri_monitoring.verdicts.judging import Judged, judge
from tests.monitoring.three_producers import NUMBERS, OF_B, REFERENCE, RULE, WINDOW, changed, reference_of, rows


def window(frame: pl.DataFrame, rule: Monitor = RULE, reference: Profile = REFERENCE) -> Judged:
    return judge(3, 5, WINDOW, by_producer(reference, frame), reference, rule)


def moved(judged: Judged) -> dict[str, list[str]]:
    kinds = dict.fromkeys(finding.about for finding in judged.findings if finding.moved)
    return {kind: [finding.subject for finding in judged.moved(kind)] for kind in kinds}


@pytest.mark.parametrize("n", [600, 6_000])
def test_rows_like_the_references_are_quiet(n):
    for seed in range(1, 30 if n < 1_000 else 5):
        judged = window(rows(n, seed))

        assert judged.judged
        assert (moved(judged), judged.culprits) == ({}, {})


def test_a_shift_of_one_producer_is_drift_of_that_feature_by_that_producer():
    judged = window(changed(age=pl.when(OF_B).then(pl.col("age") + 1.5).otherwise("age")))
    culprit = judged.culprits["drift"]

    assert moved(judged) == {"drift": ["age"]}
    assert (culprit.producer, culprit.share > 0.9) == ("b", True)
    assert culprit.samples == ("p-586", "p-589", "p-592", "p-595", "p-598")
    assert culprit.traces == ("t-586", "t-589", "t-592", "t-595", "t-598")


def test_answers_that_move_while_the_features_do_not_are_about_the_prediction():
    judged = window(
        changed(label=pl.when(pl.col("label") == 2).then(0).otherwise("label"), probability=pl.col("probability") * 0.7)
    )

    assert moved(judged) == {"prediction": ["probability", "label"]}
    assert "prediction" not in moved(window(changed(label=pl.lit(0)), replace_rule(prediction=False)))


def test_values_that_go_missing_are_missing_and_no_drift():
    judged = window(changed(spend=pl.when(OF_B & (pl.int_range(pl.len()) % 2 == 0)).then(None).otherwise("spend")))

    assert moved(judged) == {"missing": ["spend"]}
    assert judged.culprits["missing"].producer == "b"
    assert judged.moved("missing")[0].score == pytest.approx(1 / 6, abs=0.01)


def test_texts_that_go_missing_are_too():
    judged = window(changed(plan=pl.when(pl.int_range(pl.len()) % 4 == 0).then(pl.lit("")).otherwise("plan")))

    assert moved(judged) == {"missing": ["plan"]}


def test_categories_that_training_never_saw_are_named_and_attributed():
    judged = window(changed(plan=pl.when(OF_B & (pl.int_range(pl.len()) < 30)).then(pl.lit("gold")).otherwise("plan")))

    assert moved(judged) == {"categories": ["plan"]}
    assert judged.culprits["categories"].producer == "b"


def test_categories_in_other_shares_are_drift():
    judged = window(changed(plan=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("pro")).otherwise("plan")))

    assert moved(judged)["drift"] == ["plan"]
    assert judged.moved("drift")[0].method == "jensen-shannon"


def test_a_feature_with_many_rare_categories_is_quiet():
    def visitors(n: int, seed: int) -> pl.DataFrame:
        names = np.random.default_rng(seed).zipf(1.5, size=n) % 5_000
        return rows(n, seed).with_columns(plan=pl.Series([f"visitor-{name}" for name in names]))

    reference = reference_of(visitors(3_000, 0))

    assert [moved(window(visitors(600, seed), RULE, reference)) for seed in range(1, 20)] == [{}] * 19


def replace_rule(**changes) -> Monitor:
    return RULE.model_copy(update=changes)


def test_features_to_ignore_are_not_judged():
    judged = window(changed(age=pl.col("age") + 2), replace_rule(ignore=("age", "p_{0..3}")))

    assert moved(judged) == {}
    assert "age" not in {finding.subject for finding in judged.findings}


@pytest.mark.parametrize("method", ["ks", "wasserstein", "psi", "jensen-shannon"])
def test_a_feature_is_judged_by_the_method_of_the_spec(method):
    def found(threshold: float):
        rule = replace_rule(methods={"age": Method(method=method, threshold=threshold)})
        judged = window(changed(age=pl.col("age") + 0.6), rule)
        return next(finding for finding in judged.findings if finding.subject == "age")

    assert (found(0.1).method, found(0.1).moved, found(0.1).p_value) == (method, True, None)
    assert not found(5.0).moved


@pytest.mark.parametrize("method", ["psi", "jensen-shannon"])
def test_categories_are_judged_by_the_method_of_the_spec(method):
    rule = replace_rule(methods={"plan": Method(method=method, threshold=0.15)})
    judged = window(changed(plan=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("pro")).otherwise("plan")), rule)

    assert moved(judged)["drift"] == ["plan"]
    assert judged.moved("drift")[0].method == method


def test_too_few_rows_are_no_verdict():
    judged = window(rows(RULE.min_rows - 1, 1))

    assert (judged.judged, judged.findings, judged.culprits) == (False, (), {})
    assert judged.why == "the window has 199 rows, a verdict needs 200 (monitor.min_rows)"


def test_too_small_a_reference_is_no_verdict_either_and_said():
    judged = window(rows(600, 1), reference=reference_of(rows(30, 0)))

    assert not judged.judged
    assert judged.why == "the reference has 30 rows, a verdict needs 200 (monitor.min_rows)"
    assert window(rows(600, 1)).why == ""


def test_what_is_told_of_a_window_is_kept():
    shares = by_producer(REFERENCE, rows(600, 1))
    judged = judge(3, 5, WINDOW, shares, REFERENCE, RULE, began="2026-05-01", ended="2026-05-02", seconds=3.5, late=2)

    assert (judged.version, judged.number, judged.window) == (3, 5, WINDOW)
    assert (judged.began, judged.ended, judged.seconds, judged.late) == ("2026-05-01", "2026-05-02", 3.5, 2)


def test_a_reference_of_numbers_alone_judges_them_alone():
    frame = rows(3_000, 0)
    before = profile_of(NUMBERS, frame.select(NUMBERS).to_numpy())
    old = Profile.from_dict({"features": before.to_dict()["features"]})
    judged = window(changed(label=pl.lit(0), plan=pl.lit("gold"), age=pl.col("age") + 1), RULE, old)

    assert {finding.subject for finding in judged.findings} == set(NUMBERS)
    assert moved(judged) == {"drift": ["age"]}


def test_a_verdict_does_not_depend_on_the_parts_that_the_window_was_counted_in():
    frame = changed(age=pl.col("age") + 0.4, plan=pl.lit("pro"))
    parts = merged(by_producer(REFERENCE, part) for part in (frame[:100], frame[100:101], frame[101:]))

    assert judge(3, 5, WINDOW, parts, REFERENCE, RULE) == window(frame)


def test_more_producers_share_what_they_moved_together():
    judged = window(changed(age=pl.when(pl.col("producer") != "a").then(pl.col("age") + 1.5).otherwise("age")))

    assert judged.culprits["drift"].producer in "bc"
    assert 0.1 < judged.culprits["drift"].share < 0.6

import math

import numpy as np
import pytest
from scipy import stats

from meguri_chassis.profiles import Profile, profile_of
from meguri_contracts.errors import Invalid
from meguri_contracts.spec import Monitor
from meguri_monitoring.verdicts.drift import Verdict, compare, contributions

RULE = Monitor()
NAMES = ["a", "b", "c"]


def normal(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, len(NAMES)))


REFERENCE = profile_of(NAMES, normal(800))


def live(rows: np.ndarray, reference: Profile = REFERENCE) -> Profile:
    profile = reference.like()
    profile.update(rows)
    return profile


def one(reference: np.ndarray, rows: np.ndarray) -> Verdict:
    before = profile_of(["x"], reference[:, None])
    return compare(before, live(rows[:, None], before), RULE)


def test_distances_are_those_of_scipy():
    rows = normal(500, seed=1) * 1.3 + 0.2
    verdict = compare(REFERENCE, live(rows), RULE)

    for column, expected, feature in zip(rows.T, normal(800).T, verdict.features, strict=True):
        test = stats.ks_2samp(expected, column)
        assert feature.ks == pytest.approx(test.statistic, abs=1e-9)
        assert test.pvalue <= feature.p_value <= 1.5 * test.pvalue
        assert feature.wasserstein == pytest.approx(
            stats.wasserstein_distance(expected, column) / expected.std(), rel=1e-5
        )


def test_distances_of_many_rows_are_those_of_scipy_within_the_sketches_error():
    before, after = np.random.default_rng(0).normal(size=60_000), np.random.default_rng(1).normal(0.3, 1.0, size=30_000)
    feature = one(before, after).features[0]

    assert feature.ks == pytest.approx(stats.ks_2samp(before, after).statistic, abs=0.006)
    assert feature.wasserstein == pytest.approx(0.3, abs=0.03)
    assert feature.drifted


def test_the_same_distribution_is_quiet():
    verdicts = [compare(REFERENCE, live(normal(500, seed)), RULE) for seed in range(1, 60)]

    assert all(verdict.judged for verdict in verdicts)
    assert not any(verdict.moved for verdict in verdicts)


def test_features_that_moved_are_named_worst_first():
    rows = normal(500, seed=1) + np.array([0.6, 0.0, 1.2])
    verdict = compare(REFERENCE, live(rows), RULE)

    assert [feature.feature for feature in verdict.drifted] == ["c", "a"]
    assert verdict.moved


def test_too_few_rows_are_no_verdict_and_not_a_quiet_one():
    few = compare(REFERENCE, live(normal(RULE.min_rows - 1) + 9), RULE)
    enough = compare(REFERENCE, live(normal(RULE.min_rows) + 9), RULE)

    assert (few.judged, few.moved, few.features, few.rows) == (False, False, (), RULE.min_rows - 1)
    assert (enough.judged, enough.moved) == (True, True)
    assert not compare(profile_of(NAMES, normal(50)), live(normal(500)), RULE).judged


def test_a_significant_difference_too_small_to_matter_is_quiet():
    before = np.random.default_rng(0).normal(size=20_000)
    feature = one(before, before * 1.0 + 0.06).features[0]

    assert feature.p_value < RULE.p_value
    assert not feature.drifted


def test_the_more_features_the_more_evidence_each_needs():
    before, after = normal(800), normal(300, seed=1) + np.array([0.22, 0.0, 0.0])
    wide = profile_of([f"f{i}" for i in range(900)], np.tile(before, 300))
    alone, crowd = one(before[:, 0], after[:, 0]), compare(wide, live(np.tile(after, 300), wide), RULE)

    assert alone.moved
    assert crowd.features[0].p_value == alone.features[0].p_value
    assert not crowd.moved


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_constant_that_changes_has_drifted_whatever_its_unit(scale):
    before = np.full(500, 3.0 * scale)
    changed = one(before, np.full(500, 4.0 * scale)).features[0]
    same = one(before, np.full(500, 3.0 * scale)).features[0]

    assert changed.drifted
    assert changed.wasserstein == pytest.approx(2.0)
    assert (same.drifted, same.distance) == (False, 0.0)


def test_one_odd_row_in_a_constant_is_no_drift():
    assert not one(np.zeros(500), np.r_[np.zeros(499), 1e6]).moved


def test_values_that_go_missing_are_no_drift_of_the_others():
    rows = normal(500, seed=1)
    rows[:150, 1] = np.nan
    verdict = compare(REFERENCE, live(rows), RULE)
    gone = compare(REFERENCE, live(np.full((500, 3), np.nan)), RULE)

    assert verdict.features[1].ks == pytest.approx(stats.ks_2samp(normal(800)[:, 1], rows[150:, 1]).statistic, abs=1e-9)
    assert not verdict.moved
    assert [(feature.ks, feature.p_value, feature.drifted) for feature in gone.features] == [(0.0, 1.0, False)] * 3


def test_a_feature_of_only_one_side_is_refused():
    with pytest.raises(Invalid, match="'d' is a feature of only one"):
        compare(REFERENCE, profile_of([*NAMES, "d"], np.zeros((300, 4))), RULE)


def test_the_producer_that_moved_contributes_the_most():
    shares = contributions(
        REFERENCE,
        {"x": live(normal(170, 1)), "y": live(normal(170, 2) + np.array([0.0, 2.0, 0.0])), "z": live(normal(170, 3))},
        ["b"],
    )

    assert shares[0].producer == "y"
    assert shares[0].share > 0.6
    assert all(share.share < 0 for share in shares[1:])


@pytest.mark.parametrize("rows", [34, 167])
def test_the_others_are_not_blamed_for_what_is_chance(rows):
    shares = []
    for seed in range(20):
        producers = {name: live(normal(rows, 10 * seed + at)) for at, name in enumerate("xz")}
        moved = live(normal(rows, 10 * seed + 9) + np.array([0.0, 1.5, 0.0]))
        shares.append(contributions(REFERENCE, {**producers, "y": moved}, ["b"])[0])

    assert {share.producer for share in shares} == {"y"}
    assert sum(share.share >= 0.9 for share in shares) >= 18


def test_a_distance_within_chance_is_attributed_too():
    shares = contributions(REFERENCE, {"x": live(normal(100, 1)), "y": live(normal(100, 2) + 0.1)}, NAMES)

    assert shares[0].share != 0


def test_producers_that_moved_alike_share_alike():
    shares = contributions(REFERENCE, {name: live(normal(250, 5) + 1) for name in "xyz"}, NAMES)

    assert [share.share for share in shares] == pytest.approx([0.0] * 3, abs=0.05)


def test_a_producer_that_is_alone_has_it_all():
    alone = contributions(REFERENCE, {"x": live(normal(500) + 1), "y": REFERENCE.like()}, NAMES)

    assert [(share.producer, share.share) for share in alone] == [("x", 1.0)]
    with pytest.raises(Invalid, match="no producer"):
        contributions(REFERENCE, {}, NAMES)


def test_distances_are_finite_for_what_json_must_carry():
    odd = one(np.r_[np.zeros(499), 1e-30], np.full(500, 1e30)).features[0]

    assert odd.drifted
    assert math.isfinite(odd.distance)

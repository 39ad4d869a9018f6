from math import inf

import numpy as np
import pytest

from meguri_contracts.events import ArmQuality
from meguri_contracts.spec import TrialPolicy
from meguri_registry.rollouts import roles
from meguri_registry.trials import Ending, Sample, difference, ending
from tests.registry.plans import Rollouts, arm, reason, scored

POLICY = TrialPolicy(alpha=0.05, min_labels=100, max_labels=5000)
TRIALS = 400
LOOKS = 100


def endings(
    means: list[float], seed: int, policy: TrialPolicy = POLICY, spread: float | None = None
) -> list[int | None]:
    """How tests end that are looked at LOOKS times: the winner, or None for none. The champion's mean first.

    Scores are right or wrong, or with a `spread` those of a regression.
    """
    random = np.random.default_rng(seed)
    each = policy.max_labels // LOOKS
    found: list[int | None] = []
    for _ in range(TRIALS):
        if spread is None:
            batches = random.binomial(each, means, size=(LOOKS, len(means))).astype(float)
            totals = squares = batches.cumsum(axis=0)
        else:
            scores = -np.abs(random.normal(0, spread, size=(LOOKS, each, len(means)))) + np.array(means)
            totals, squares = scores.sum(axis=1).cumsum(axis=0), (scores**2).sum(axis=1).cumsum(axis=0)
        found.append(_ended(totals, squares, each, policy))
    return found


def _ended(totals: np.ndarray, squares: np.ndarray, each: int, policy: TrialPolicy) -> int | None:
    for look in range(LOOKS):
        arms = [
            ArmQuality(version=index + 1, labels=each * (look + 1), total=total, squares=square)
            for index, (total, square) in enumerate(zip(totals[look], squares[look], strict=True))
        ]
        if end := ending(arms[0], arms[1:], policy):
            return end.winner
    raise AssertionError("the test had no end at max_labels")


@pytest.mark.parametrize(
    ("means", "spread"), [([0.9, 0.9], None), ([0.99, 0.99], None), ([0.6, 0.6, 0.6, 0.6], None), ([0, 0], 1.0)]
)
def test_without_a_difference_hardly_any_test_names_a_winner_however_often_one_looks(means, spread):
    won = [winner for winner in endings(means, seed=7, spread=spread) if winner]

    assert len(won) <= POLICY.alpha * TRIALS


def test_a_fixed_interval_looked_at_as_often_would_name_many():
    """The reason for all this: 1.96 standard errors."""
    random = np.random.default_rng(7)
    right = random.binomial(POLICY.max_labels // LOOKS, 0.9, size=(TRIALS, LOOKS, 2)).cumsum(axis=1)
    count = (np.arange(LOOKS) + 1) * (POLICY.max_labels // LOOKS)
    share = right / count[:, None]
    error = np.sqrt((share * (1 - share)).sum(axis=2) / count)
    named = ((share[:, :, 1] - share[:, :, 0]) > 1.96 * error)[:, 1:].any(axis=1)

    assert named.mean() > 2 * POLICY.alpha


def test_a_real_difference_is_found():
    better, worse = endings([0.85, 0.9], seed=7), endings([0.9, 0.85], seed=8)

    assert better.count(2) / TRIALS > 0.95
    assert set(worse) == {None}
    assert endings([0, 0, 0.2], seed=9, spread=1.0).count(3) / TRIALS > 0.95


def test_an_interval_holds_the_true_difference_at_all_looks_together():
    random = np.random.default_rng(7)
    right = random.binomial(10, [0.9, 0.8], size=(TRIALS, 300, 2)).cumsum(axis=1)
    left = 0
    for run in right:
        counts = [(10 * (look + 1), *found) for look, found in enumerate(run) if look >= 5]
        intervals = [
            difference(
                Sample.of_scores(ArmQuality(version=1, labels=count, total=one, squares=one)),
                Sample.of_scores(ArmQuality(version=2, labels=count, total=other, squares=other)),
                alpha=0.1,
                narrowest=500,
            )
            for count, one, other in counts
        ]
        left += any(not interval.low <= 0.1 <= interval.high for interval in intervals)

    assert left <= 0.1 * TRIALS


def test_nothing_is_known_before_there_are_values():
    none, some = Sample.of_scores(scored(1, 0, 0)), Sample.of_scores(scored(2, 10, 0.5))

    assert difference(none, some, alpha=0.05, narrowest=500).margin == inf
    assert difference(some, none, alpha=0.05, narrowest=500).margin == inf


def test_a_sample_s_variance_is_that_of_its_values():
    values = [-0.5, -1.5, -0.25, -3]
    total, squares = sum(values), sum(value**2 for value in values)
    sample = Sample.of_scores(ArmQuality(version=1, labels=4, total=total, squares=squares))

    assert (sample.mean, sample.variance) == pytest.approx((np.mean(values), np.var(values, ddof=1)))


# --- the end of a test ------------------------------------------------------------------------------------------------


def test_no_winner_is_named_before_every_version_has_its_labels():
    assert ending(scored(1, 99, 0.1), [scored(2, 5000, 1)], TrialPolicy()) is None
    assert ending(scored(1, 1000, 0.1), [scored(2, 5000, 1), scored(3, 99, 0)], TrialPolicy()) is None
    assert ending(scored(1, 100, 0.1), [scored(2, 100, 0.9)], TrialPolicy()).winner == 2


def test_the_best_of_those_that_are_surely_better_wins():
    end = ending(
        scored(1, 1000, 0.5), [scored(2, 1000, 0.7), scored(3, 1000, 0.8), scored(4, 1000, 0.4)], TrialPolicy()
    )

    assert end.winner == 3
    assert end.intervals[2].low > 0 > end.intervals[4].high


def test_a_test_ends_without_a_winner_when_all_are_worse_or_all_had_their_labels():
    policy = TrialPolicy(max_labels=2000)

    assert ending(scored(1, 500, 0.8), [scored(2, 500, 0.5), scored(3, 500, 0.4)], policy).winner is None
    assert ending(scored(1, 500, 0.8), [scored(2, 500, 0.5), scored(3, 500, 0.8)], policy) is None
    assert isinstance(ending(scored(1, 500, 0.8), [scored(2, 2000, 0.8), scored(3, 2000, 0.8)], policy), Ending)
    assert isinstance(ending(scored(1, 50, 0.8), [scored(2, 2000, 0.8)], policy), Ending)


def test_the_winner_becomes_champion_with_the_numbers_in_the_reason():
    traffic = Rollouts()
    traffic.ab(2, 3)
    assert traffic.measure(scored(1, 50, 0.5), scored(2, 50, 0.9), scored(3, 50, 0.5)) == []
    said = traffic.measure(scored(1, 200, 0.5), scored(2, 210, 0.8), scored(3, 190, 0.5))

    assert roles(traffic.plan) == {2: "champion"}
    assert traffic.model.past == (1,)
    told = reason(said)
    assert told.startswith(
        "A/B test: version 2 is better; version 1 has a mean score of 0.5000 on 200 labels, version 2 "
    )
    assert "0.8000 on 210 labels, +0.3000 (" in told
    assert "at 97.5 %" in told
    assert said[0].actor == "registry"


def test_a_champion_that_nobody_beats_stays_and_nobody_was_taken_out_of_service_for_it():
    traffic = Rollouts()
    traffic.shadow(4)
    traffic.ab(2, max_labels=500)
    told = reason(traffic.measure(scored(1, 500, 0.8), scored(2, 500, 0.8)))

    assert told.startswith("A/B test: none is better, the champion stays; version 1 has a mean score of 0.8000 on 500")
    assert roles(traffic.plan) == {1: "champion", 4: "shadow"}
    assert traffic.model.rolled_back == frozenset()


def test_a_version_that_has_no_answer_too_often_ends_the_test_however_good_its_answers_are():
    traffic = Rollouts()
    traffic.ab(2, 3)
    assert traffic.observe(arm(1, "champion", 300), arm(2, "arm", 300, errors=1), arm(3, "arm", 40, errors=20)) == []
    told = reason(
        traffic.observe(arm(1, "champion", 300), arm(2, "arm", 300, errors=1), arm(3, "arm", 300, errors=108))
    )

    assert told.startswith("A/B test: version 3 fails, the champion stays; 36 % of 300 requests had no answer")
    assert roles(traffic.plan) == {1: "champion"}


def test_a_measurement_of_other_versions_decides_nothing():
    traffic = Rollouts()
    traffic.ab(2)
    assert traffic.measure(scored(1, 1000, 0.1), scored(3, 1000, 0.9)) == []
    assert traffic.measure(scored(2, 1000, 0.1), scored(1, 1000, 0.9)) == []
    assert traffic.model.quality is None

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meguri_contracts.events import LATENCY_BOUNDS, ArmQuality, RolloutObserved
from meguri_registry import models
from meguri_registry.models import evolve
from meguri_registry.observing import observed, quantile
from meguri_registry.rollouts import roles
from meguri_registry.showing import rollout
from tests.registry.plans import FAST, NOON, Rollouts, arm, reason, scored


@pytest.fixture
def traffic() -> Rollouts:
    """Version 2 is canary beside version 1, at 5 %."""
    traffic = Rollouts()
    traffic.canary(2)
    return traffic


def errors(right: float, labels: int, version: int) -> ArmQuality:
    """Labels of a regression whose errors have all the same size."""
    return ArmQuality(version=version, labels=labels, total=-right * labels, squares=right**2 * labels)


# --- a canary goes on -------------------------------------------------------------------------------------------------


def test_a_canary_goes_on_step_by_step_until_it_is_champion(traffic):
    reasons = []
    for _ in range(3):
        assert traffic.observe(arm(1, "champion", 8000), arm(2, "canary", 499)) == []
        reasons.append(reason(traffic.observe(arm(1, "champion", 8000), arm(2, "canary", 500))))

    assert reasons == [
        "canary: version 2 answered 5 % well, 500 requests; step 2 of 3, 25 %",
        "canary: version 2 answered 25 % well, 500 requests; step 3 of 3, 50 %",
        "canary: version 2 answered 50 % well, 500 requests; it was the last step",
    ]
    assert roles(traffic.plan) == {2: "champion"}
    assert (traffic.model.past, traffic.model.rolled_back) == ((1,), frozenset())


def test_the_requests_of_all_replicas_count_together(traffic):
    assert traffic.observe(arm(2, "canary", 300), replica="one") == []
    assert traffic.observe(arm(2, "canary", 199), replica="two") == []
    assert traffic.observe(arm(2, "canary", 200), replica="two") != []


def test_a_step_lasts_as_long_as_the_policy_says():
    traffic = Rollouts()
    traffic.canary(2, seconds=60, requests=10)
    traffic.wait(59)
    assert traffic.observe(arm(2, "canary", 1000)) == []
    traffic.wait(1)
    assert traffic.observe(arm(2, "canary", 1001)) != []


def test_what_was_seen_of_an_earlier_step_or_another_plan_changes_nothing(traffic):
    first = traffic.model.rollout
    traffic.observe(arm(2, "canary", 500))
    before = traffic.model

    assert traffic.observe(arm(1, "champion", 900), arm(2, "canary", 900, errors=900), number=7, rollout=first) == []
    assert traffic.model == before


# --- a canary is taken back -------------------------------------------------------------------------------------------


def test_a_canary_that_fails_is_taken_back_with_the_numbers(traffic):
    said = traffic.observe(arm(1, "champion", 950, errors=2), arm(2, "canary", 50, errors=25))

    assert reason(said) == (
        "canary: version 2 is taken back at 5 %: 50 % of 50 requests had no answer, 0.211 % of 950 of the champion's, "
        "1 % more are allowed"
    )
    assert (roles(traffic.plan), said[0].actor) == ({1: "champion"}, "registry")
    assert len(traffic.model.rolled_back) == 1


def test_a_canary_that_fails_as_rarely_as_the_champion_goes_on(traffic):
    assert traffic.observe(arm(1, "champion", 9500, errors=950), arm(2, "canary", 500, errors=50)) != []
    assert traffic.plan.canary.step == 1


def test_too_few_requests_prove_nothing(traffic):
    assert traffic.observe(arm(1, "champion", 900), arm(2, "canary", 49, errors=49)) == []
    assert traffic.observe(arm(1, "champion", 900), arm(2, "canary", 50, errors=2)) == []


def test_a_canary_that_looks_too_bad_but_may_be_unlucky_waits_and_says_so(traffic):
    assert traffic.observe(arm(1, "champion", 9500), arm(2, "canary", 500, errors=8)) == []
    assert "500 of 500 requests; waits: 1.6 % of 500 requests had no answer" in rollout(traffic.model)["next"]
    assert traffic.observe(arm(1, "champion", 19000), arm(2, "canary", 1000, errors=8)) != []
    assert traffic.plan.canary.step == 1


def test_a_canary_that_is_too_slow_is_taken_back(traffic):
    said = traffic.observe(arm(1, "champion", 950), arm(2, "canary", 50, seconds=10 * FAST))

    assert "100 % of 50 requests took longer than 5.85 ms, 3 times the champion's 95th percentile" in reason(said)
    assert roles(traffic.plan) == {1: "champion"}


@pytest.mark.parametrize(("seconds", "policy"), [(2 * FAST, {}), (10 * FAST, {"max_latency": None})])
def test_a_canary_may_be_as_slow_as_its_policy_allows(seconds, policy):
    traffic = Rollouts()
    traffic.canary(2, **policy)
    traffic.observe(arm(1, "champion", 9500), arm(2, "canary", 500, seconds=seconds))

    assert traffic.plan.canary.step == 1


def test_a_canary_whose_answers_are_worse_is_taken_back(traffic):
    assert traffic.measure(scored(1, 1000, 0.9), scored(2, 49, 0.1)) == []
    assert traffic.measure(scored(1, 1000, 0.9), scored(2, 60, 0.85)) == []
    said = traffic.measure(scored(1, 1000, 0.9), scored(2, 60, 0.5))

    assert "its mean score is 0.5000 on 60 labels, the champion's 0.9000 on 1000, 0.02 less is allowed" in reason(said)
    assert roles(traffic.plan) == {1: "champion"}


def test_labels_count_for_as_long_as_the_same_versions_answer(traffic):
    traffic.measure(scored(1, 1000, 0.9), scored(2, 60, 0.85))
    traffic.observe(arm(2, "canary", 500))
    assert traffic.model.quality is not None
    traffic.shadow(3)
    assert traffic.model.quality is not None
    traffic.end()
    assert traffic.model.quality is None


def test_the_errors_of_a_regression_are_measured_by_those_of_the_champion():
    """Errors of 100 euros instead of 99 are no loss, of 2 instead of 1 they are."""
    traffic = Rollouts()
    traffic.model = traffic.model.model_copy(
        update={"spec": traffic.model.spec.model_copy(update={"task": "regression"})}
    )
    traffic.canary(2)
    assert traffic.measure(errors(99, 1000, 1), errors(100, 1000, 2)) == []
    assert traffic.measure(errors(1, 1000, 1), errors(2, 1000, 2)) != []


# --- what is counted --------------------------------------------------------------------------------------------------

said = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5), st.integers(0, 100)), max_size=30)


@given(said, st.randoms())
def test_in_whatever_order_and_however_often_observations_come_the_latest_of_each_replica_counts(said, random):
    plain = {(replica, number): requests for replica, number, requests in reversed(said)}
    latest = {replica: plain[replica, max(n for r, n in plain if r == replica)] for replica, _ in plain}
    heard = [
        RolloutObserved(
            model="digits",
            rollout="canary",
            replica=replica,
            number=number,
            seconds=1,
            arms=(arm(2, "canary", requests, errors=requests // 2),),
        )
        for (replica, number), requests in plain.items()
    ] * 2
    random.shuffle(heard)

    traffic = Rollouts()
    traffic.canary(2, requests=10**6)
    model = traffic.model.model_copy(update={"rollout": "canary"})
    for count, event in enumerate(heard):
        model = evolve(model, event, f"observed {count}", NOON + timedelta(seconds=random.randint(0, 9)))

    found = observed(model).get(2, arm(2, "canary", 0))
    assert found.requests == sum(latest.values()) == sum(found.latency)
    assert found.errors == sum(requests // 2 for requests in latest.values())


def test_of_very_many_lives_of_replicas_the_latest_are_kept(traffic, monkeypatch):
    monkeypatch.setattr(models, "LIVES", 3)
    for life in "abcd":
        traffic.observe(arm(2, "canary", 10), replica=life)
    traffic.observe(arm(2, "canary", 11), replica="a", number=2)

    assert list(traffic.model.seen) == ["c", "d", "a"]
    assert observed(traffic.model)[2].requests == 31


@pytest.mark.parametrize(
    ("seconds", "share", "expected"),
    [(0.0015, 0.5, 0.0015), (0.0015, 0.95, 0.00195), (9, 0.5, 5), (0.00005, 1, 0.0001)],
)
def test_a_quantile_is_read_off_the_histogram(seconds, share, expected):
    assert quantile(arm(1, "champion", 100, seconds=seconds).latency, share) == pytest.approx(expected)


def test_a_quantile_of_nothing_is_none():
    assert quantile((), 0.5) is quantile((0,) * (len(LATENCY_BOUNDS) + 1), 0.5) is None


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_plan_is_shown_with_what_was_observed_and_what_comes_next(traffic):
    traffic.shadow(3, 0.5)
    traffic.observe(
        arm(1, "champion", 5700, errors=3), arm(2, "canary", 310), arm(3, "shadow", 3000, pairs=3000, disagreed=30)
    )
    traffic.measure(scored(1, 1000, 0.9), scored(2, 60, 0.85))
    shown = rollout(traffic.model)

    one, two, three = shown["versions"]
    assert shown["next"] == "canary: step 1 of 3 (5 %), 310 of 500 requests; then 25 %"
    assert (shown["champion"], shown["rollout"], shown["policy"]["requests"]) == (1, traffic.model.rollout, 500)
    assert (one["role"], one["share"], one["requests"], one["errors"], one["labels"]) == (
        "champion",
        0.95,
        5700,
        3,
        1000,
    )
    assert (two["role"], two["share"], two["p50"], two["score"]) == ("canary", 0.05, pytest.approx(FAST), 0.85)
    assert two["above_champion"]["low"] < two["above_champion"]["estimate"] == pytest.approx(-0.05)
    assert (three["role"], three["pairs"], three["disagreed"], three["disagreement"]) == ("shadow", 3000, 30, 0.01)
    assert (three["share"], three["score"], three["above_champion"]) == (0.5, None, None)


def test_what_comes_next_is_said_of_every_plan():
    traffic = Rollouts()
    assert rollout(traffic.model)["next"] == "nothing: the champion answers everything"
    traffic.shadow(2)
    assert rollout(traffic.model)["next"] == "shadows are asked until they are stopped"
    traffic.ab(3)
    assert rollout(traffic.model)["next"] == (
        "A/B test: 0 of 100 labels that every version needs before a winner is named"
    )
    traffic.measure(scored(1, 300, 0.5), scored(3, 200, 0.5))
    assert rollout(traffic.model)["next"] == (
        "A/B test: 200 labels of every version, none is surely better yet; at 20000 the champion stays"
    )

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meguri_contracts.errors import Conflict, Invalid
from meguri_contracts.events import ApprovalRequested, Plan, PromotionRejected, RolloutChanged, TrainingRequested
from meguri_registry import rollouts
from meguri_registry.models import Model, evolve, versions
from meguri_registry.promotion import judge
from meguri_registry.rollouts import roles, verdicts
from tests.registry.candidates import trained, types
from tests.registry.plans import Rollouts, arm, reason, scored, version

CANARY = {"rollout": {"strategy": "canary", "canary": {"steps": [0.1, 0.5], "requests": 100}}}


@pytest.fixture
def traffic() -> Rollouts:
    return Rollouts()


# --- a version whose gate holds ---------------------------------------------------------------------------------------


def test_the_first_version_is_champion_at_once_also_where_later_ones_are_canaries(traffic):
    traffic.apply(**CANARY)
    first = traffic.model.model_copy(update={"plan": None})
    (*_, rollout) = judge(first, trained("a", 0.9))

    assert (roles(rollout.plan), rollout.previous) == ({8: "champion"}, None)


def test_a_version_whose_gate_holds_is_canary_at_the_first_step_if_the_spec_says_so(traffic):
    traffic.apply(**CANARY)
    _, rollout = traffic.train("a")

    assert traffic.answering == {1: 0.9, 8: 0.1}
    assert (rollout.previous, rollout.plan.canary.step, rollout.plan.canary.policy.requests) == (1, 0, 100)
    assert rollout.reason == "the gate holds: version 8 is canary, step 1 of 2, 10 %"
    assert [one.holds for one in rollout.judged] == [True, True]


def test_a_version_whose_gate_holds_is_shadow_in_place_of_the_one_before_if_the_spec_says_so(traffic):
    traffic.apply(rollout={"strategy": "shadow"})
    traffic.train("a")
    _, rollout = traffic.train("b")

    assert roles(traffic.plan) == {1: "champion", 9: "shadow"}
    assert rollout.reason == "the gate holds: version 9 is asked beside, `meguri promote` makes it champion"
    assert [one.holds for one in rollout.judged] == [True, True]


@pytest.mark.parametrize("strategy", ["direct", "canary", "shadow"])
def test_a_version_that_comes_while_another_is_tried_is_turned_away_and_training_asked_for_again(traffic, strategy):
    traffic.canary(7)
    traffic.apply(rollout={"strategy": strategy})
    _, requested, rejected = traffic.train("a")

    assert isinstance(requested, TrainingRequested)
    assert isinstance(rejected, PromotionRejected)
    assert rejected.reason == "the gate holds, but version 7 is canary, and one is tried at a time"
    assert all(one.holds for one in rejected.judged)
    assert roles(traffic.plan) == {1: "champion", 7: "canary"}


def test_a_version_promoted_at_once_leaves_the_shadows_as_they_are(traffic):
    traffic.shadow(7)
    traffic.train("a")

    assert roles(traffic.plan) == {8: "champion", 7: "shadow"}


def test_bytes_that_were_taken_back_as_canary_need_a_person_the_next_time(traffic):
    traffic.apply(**CANARY)
    traffic.train("a", onnx="bad bytes")
    traffic.end()
    _, asked = traffic.train("b", onnx="bad bytes")

    assert isinstance(asked, ApprovalRequested)
    assert roles(traffic.plan) == {1: "champion"}


def test_a_canary_over_whose_head_another_is_promoted_was_not_taken_back(traffic):
    traffic.canary(7)
    traffic.promote(3)

    assert traffic.model.rolled_back == frozenset()
    assert traffic.model.past == (1,)


# --- commands -----------------------------------------------------------------------------------------------------------


def test_a_canary_by_hand_begins_at_the_first_step_and_the_same_again_says_nothing(traffic):
    said = traffic.canary(2, steps=(0.2, 0.4))

    assert traffic.answering == {1: 0.8, 2: 0.2}
    assert reason(said) == "by hand: version 2 is canary, step 1 of 2, 20 %"
    assert traffic.canary(2, steps=(0.2, 0.4)) == []


def test_an_ab_test_gives_all_the_same_share_or_what_was_said(traffic):
    traffic.ab(2, 3)
    assert traffic.answering == pytest.approx({1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
    assert traffic.ab(2, 3) == []
    traffic.end()
    traffic.ab(2, 3, weights=(0.1,))
    assert traffic.answering == pytest.approx({1: 0.8, 2: 0.1, 3: 0.1})
    traffic.end()
    assert reason(traffic.ab(2, 3, weights=(0.1, 0.3))) == "by hand: version 2 10 %, version 3 30 % of the entities"
    assert traffic.answering == pytest.approx({1: 0.6, 2: 0.1, 3: 0.3})


@pytest.mark.parametrize(
    ("numbers", "weights", "refused"),
    [
        ((2, 3), (0.5, 0.5), "the weights add up to 1: that leaves the champion nothing"),
        ((2, 3), (0.1, 0.1, 0.1), "3 weights for 2 versions: give one for each, or one for all"),
        ((2, 2), (), "each of them once"),
        ((), (), "one or more versions"),
    ],
)
def test_an_ab_test_that_cannot_be_is_refused_in_words(traffic, numbers, weights, refused):
    with pytest.raises(Invalid, match=refused):
        traffic.ab(*numbers, weights=weights)


@pytest.mark.parametrize("begin", [lambda traffic: traffic.canary(2), lambda traffic: traffic.ab(2, 3)])
def test_canary_and_ab_test_exclude_each_other_and_another_of_their_kind(traffic, begin):
    begin(traffic)
    tried = re.escape(rollouts.trying(traffic.plan))

    for again in (lambda: traffic.canary(4), lambda: traffic.ab(4), lambda: traffic.canary(2, requests=7)):
        with pytest.raises(Conflict, match=f"{tried}: `meguri rollback digits` ends that"):
            again()


def test_the_champion_is_neither_canary_nor_part_of_a_test_nor_shadow(traffic):
    for command in (traffic.canary, traffic.ab):
        with pytest.raises(Conflict, match="version 1 of model 'digits' is champion already"):
            command(1)
    with pytest.raises(Conflict, match="version 1 of model 'digits' answers requests already: it is champion"):
        traffic.shadow(1)
    traffic.ab(2)
    with pytest.raises(Conflict, match="it is part of an A/B test"):
        traffic.shadow(2)


def test_without_a_champion_there_is_nothing_to_try_beside():
    model = Model(name="digits")
    policy = Rollouts().model.spec.rollout

    for command in (
        lambda: rollouts.canary(model, version(1), policy.canary, "ada", "r"),
        lambda: rollouts.ab(model, [version(1)], (), policy.trial, "ada", "r"),
        lambda: rollouts.shadow(model, version(1), 1, "ada", "r"),
    ):
        with pytest.raises(Conflict, match="has no champion yet: `meguri promote digits VERSION` makes one"):
            command()


def test_shadows_are_added_changed_and_stopped_without_a_canary_being_disturbed(traffic):
    traffic.shadow(2)
    traffic.canary(4)
    assert reason(traffic.shadow(3, 0.5)) == "by hand: version 3 is asked beside for 50 % of the requests"
    traffic.shadow(3, 0.25)
    assert traffic.shadow(3, 0.25) == []

    assert roles(traffic.plan) == {1: "champion", 2: "shadow", 3: "shadow", 4: "canary"}
    assert traffic.answering == {1: 0.95, 4: 0.05, 2: 1, 3: 0.25}
    assert reason(traffic.stop(2)) == "by hand: version 2 is shadow no more"
    assert traffic.stop(2) == []
    assert roles(traffic.plan) == {1: "champion", 3: "shadow", 4: "canary"}


def test_a_shadow_that_becomes_canary_is_shadow_no_more(traffic):
    traffic.shadow(2)
    traffic.shadow(3)
    traffic.canary(2)

    assert roles(traffic.plan) == {1: "champion", 2: "canary", 3: "shadow"}


def test_a_promotion_ends_what_is_tried_and_leaves_other_shadows(traffic):
    traffic.shadow(2)
    traffic.shadow(3)
    traffic.ab(4)
    traffic.promote(2)

    assert roles(traffic.plan) == {2: "champion", 3: "shadow"}
    assert traffic.promote(2) == []


def test_promoting_the_champion_ends_what_is_tried(traffic):
    traffic.canary(2)
    (rollout,) = traffic.promote(1)

    assert (rollout.previous, roles(rollout.plan)) == (1, {1: "champion"})
    assert traffic.model.past == ()


def test_a_rollback_goes_to_the_champion_before_however_often_a_version_was_champion(traffic):
    traffic.promote(2)
    traffic.promote(3)
    traffic.promote(2)

    assert (traffic.model.past, rollouts.previous(traffic.model)) == ((1, 3), 3)
    traffic.promote(1)
    assert rollouts.previous(traffic.model) == 2


def test_the_champion_s_past_knows_nothing_of_what_was_tried(traffic):
    traffic.promote(2)
    traffic.canary(3)
    traffic.shadow(4)
    traffic.end()

    assert (traffic.model.past, rollouts.previous(traffic.model)) == ((1,), 1)


# --- what is said of versions -----------------------------------------------------------------------------------------


def test_each_version_has_the_verdict_that_its_role_gave_it(traffic):
    before = traffic.plan
    traffic.ab(2, 3)
    tested = traffic.plan
    traffic.promote(3)

    assert verdicts(None, before) == {1: "promoted"}
    assert verdicts(before, tested) == {2: "A/B test", 3: "A/B test"}
    assert verdicts(tested, traffic.plan) == {2: "taken back", 3: "promoted"}
    assert verdicts(before, Plan(champion=before.champion, shadows=tested.shadows)) == {}


def test_a_state_of_replicas_that_knew_champions_only_is_read_and_they_read_ours(traffic):
    old = traffic.model.model_dump(mode="json")
    assert old["champion"]["version"] == 1
    for new in ("plan", "rollout", "since", "seen", "heard", "quality"):
        old.pop(new)

    read = Model.model_validate(old)
    assert (read.champion, read.plan) == (traffic.model.champion, Plan(champion=version(1)))
    assert Model.model_validate_json(traffic.model.model_dump_json()) == traffic.model


def test_a_step_further_is_a_plan_with_what_was_seen_forgotten(traffic):
    traffic.canary(2, requests=10)
    before = traffic.model.rollout
    said = traffic.observe(arm(1, "champion", 100), arm(2, "canary", 10))

    assert types(said) == [RolloutChanged]
    assert traffic.model.seen == {}
    assert traffic.model.rollout != before


# --- whatever happens -------------------------------------------------------------------------------------------------

numbers = st.integers(1, 5)
happenings = st.lists(
    st.tuples(st.sampled_from(["promote", "canary", "shadow", "stop"]), numbers)
    | st.tuples(st.just("ab"), st.lists(numbers, min_size=1, max_size=3))
    | st.tuples(st.just("end"), numbers)
    | st.tuples(st.just("rollback"), numbers)
    | st.tuples(st.just("observe"), st.integers(0, 800), st.sampled_from([0, 0.5]))
    | st.tuples(st.just("measure"), st.sampled_from([0.2, 0.5, 0.9])),
    max_size=25,
)


def happen(traffic: Rollouts, what: str, *how) -> None:
    plan = traffic.plan
    match what, how:
        case "ab", (numbers,):
            traffic.ab(*numbers)
        case "end", _:
            traffic.end()
        case "rollback", _:
            traffic.promote(rollouts.previous(traffic.model))
        case "observe", (requests, failing):
            arms = (arm(one.version, "arm", requests, int(requests * failing)) for one in plan.challengers)
            traffic.observe(arm(plan.champion.version, "champion", 1000), *arms)
        case "measure", (right,):
            arms = (scored(one.version, 200, right) for one in plan.challengers)
            traffic.measure(scored(plan.champion.version, 200, 0.5), *arms)
        case command, (number,):
            getattr(traffic, command)(number)


@given(happenings)
def test_whatever_happens_a_plan_is_whole_and_the_log_tells_it(happenings):
    traffic = Rollouts()
    for happening in happenings:
        with suppress(Conflict, Invalid):
            happen(traffic, *happening)
        plan, model = traffic.plan, traffic.model
        answering = [plan.champion.version, *(one.version for one in plan.challengers)]
        assert sum(traffic.answering[one] for one in answering) == pytest.approx(1)
        assert min(traffic.answering.values()) > 0
        assert len(set(versions(plan))) == len(plan.deployed)
        assert not (plan.canary and plan.trial)
        assert plan.champion.version not in model.past
        assert len(set(model.past)) == len(model.past)
        assert plan.champion.served.digest not in model.rolled_back

    changes = [event for event in traffic.log if isinstance(event, RolloutChanged)]
    champions = [event.plan.champion.version for event in changes]
    assert [event.previous for event in changes] == [None, *champions[:-1]]
    assert changes[-1].plan == traffic.plan
    folded = Model(name="digits")
    for number, event in enumerate(traffic.log, start=1):
        folded = evolve(folded, event, f"event {number}", traffic.now)
    assert folded == traffic.model == Model.model_validate_json(traffic.model.model_dump_json())

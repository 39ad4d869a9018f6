import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meguri_contracts import events
from meguri_contracts.errors import Conflict
from meguri_contracts.events import (
    OPENINGS,
    AnomalyDetected,
    Arm,
    Artifact,
    Canary,
    Deployed,
    DriftDetected,
    EpisodeResolved,
    EpisodeWorsened,
    Event,
    PerformanceDegraded,
    Plan,
    RolloutChanged,
    Signature,
    Tensor,
    Trial,
)
from meguri_contracts.spec import CanaryPolicy, ModelSpec, Monitor, TrialPolicy
from meguri_monitoring.episodes.episodes import (
    CHANGED,
    Look,
    State,
    acknowledge,
    decide,
    decide_look,
    evolve,
    resolve,
    unwatched,
    watched,
)
from meguri_monitoring.verdicts.judging import Culprit, Finding, Judged

RULE = Monitor(windows=2)
SERVING = State("digits", champion=1)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def found(about="drift", subject="spend", score=0.7, **more: Any) -> Finding:
    return Finding(about, subject, True, score, 0.1, "ks or wasserstein", wasserstein=score, **more)


def window(number, *findings: Finding, version=1, judged=True, rows=300, seconds=0.0) -> Judged:
    culprits = {one.about: Culprit("shop", 0.92, ("p1", "p2"), ("t1",)) for one in findings}
    return Judged(version, number, span(number, rows), judged, findings, culprits, seconds=seconds)


def moved(number, version=1, score=0.7, about="drift") -> Judged:
    return window(number, found(about, score=score, p_value=1e-9, ks=0.4), version=version)


def quiet(number, version=1) -> Judged:
    return window(number, version=version)


def too_small(number, version=1) -> Judged:
    return window(number, version=version, judged=False)


def span(number, rows=300) -> events.Window:
    return events.Window(first=10 * number, last=10 * number + 9, rows=rows)


def rollout(version, *, canary=None, arms=()) -> RolloutChanged:
    file = Artifact(uri="file:///f", digest="0", size=1)
    tensor = Tensor(name="input", datatype="FP32", shape=(-1, 1))
    signature = Signature(features=("spend",), input=tensor, outputs=(tensor,))

    def deployed(one) -> Deployed:
        return Deployed(version=one, run="r", onnx=file, profile=file, signature=signature)

    on_trial = Canary(candidate=deployed(canary), weight=0.1, step=0, policy=CanaryPolicy()) if canary else None
    compared = [Arm(candidate=deployed(arm), weight=0.3) for arm in arms]
    trial = Trial(arms=compared, policy=TrialPolicy()) if arms else None
    plan = Plan(champion=deployed(version), canary=on_trial, trial=trial)
    return RolloutChanged(model="digits", plan=plan, reason="gate held", actor="gate")


def story(*steps, rule=RULE, state=SERVING, refused=0):
    """Every event that is said when these windows, looks and rollouts come one after the other, a minute apart, and what is
    known then."""
    said: list[Event] = []
    seen: list[Judged] = []
    looks: list[Look] = []
    for minute, step in enumerate(steps):
        now = NOON + timedelta(minutes=minute)
        match step:
            case RolloutChanged():
                state = evolve(state, step)
                answer = resolve(state, step)
            case Look():
                looks.append(step)
                answer = decide_look(state, looks, rule, now)
            case _:
                seen.append(step)
                own = [one for one in seen if one.version == step.version]
                answer = decide(state, own, rule, now, refused)
        for event in answer:
            state = evolve(state, event, time=now)
        said += answer
    return said, state


def kinds(said):
    return [event.kind() for event in said]


# --- when it begins and ends ------------------------------------------------------------------------------------------


def test_an_episode_begins_only_after_two_windows_in_a_row():
    assert story(moved(1))[0] == []
    assert story(moved(1), quiet(2), moved(3))[0] == []
    assert kinds(story(moved(1), moved(2))[0]) == ["drift-detected"]


def test_an_episode_is_told_once_however_long_it_lasts():
    assert kinds(story(*(moved(i) for i in range(20)))[0]) == ["drift-detected"]


def test_an_episode_ends_only_after_two_quiet_windows_in_a_row():
    assert kinds(story(moved(1), moved(2), quiet(3), moved(4), quiet(5))[0]) == ["drift-detected"]
    said, state = story(moved(1), moved(2), quiet(3), quiet(4))

    assert kinds(said) == ["drift-detected", "episode-resolved"]
    assert said[1].episode == said[0].episode
    assert said[1].reason == "like the reference again for 2 windows in a row"
    assert state.episodes == ()


def test_the_next_episode_has_another_id():
    said, _ = story(moved(1), moved(2), quiet(3), quiet(4), moved(5), moved(6))

    assert kinds(said) == ["drift-detected", "episode-resolved", "drift-detected"]
    assert said[2].episode != said[0].episode


def test_the_same_windows_begin_the_same_episode():
    assert story(moved(1), moved(2)) == story(moved(1), moved(2))


def test_windows_without_a_verdict_change_nothing():
    assert kinds(story(moved(1), too_small(2), moved(3))[0]) == ["drift-detected"]
    assert kinds(story(moved(1), moved(2), too_small(3), too_small(4))[0]) == ["drift-detected"]
    assert decide(SERVING, [moved(1), moved(2), too_small(3)], RULE, NOON) == []
    assert decide(SERVING, [], RULE, NOON) == []


def test_windows_of_a_version_that_does_not_serve_say_nothing():
    assert story(moved(1, version=2), moved(2, version=2))[0] == []
    assert story(moved(1), moved(2), state=State("digits"))[0] == []
    assert decide(SERVING, [moved(1), moved(2), moved(3, version=2)], RULE, NOON) == []


def test_another_champion_ends_every_episode_of_the_old_one():
    both = window(1, found(), found("missing")), window(2, found(), found("missing"))
    said, state = story(*both, rollout(2))

    assert kinds(said) == ["drift-detected", "drift-detected", "episode-resolved", "episode-resolved"]
    assert [(one.about, one.version, one.reason) for one in said[2:]] == [
        ("drift", 1, "version 2 serves"),
        ("missing", 1, "version 2 serves"),
    ]
    assert len({event.identity for event in said[2:]}) == 2
    assert state == State("digits", champion=2, reacted=state.reacted)


def test_the_same_champion_again_ends_nothing():
    assert kinds(story(moved(1), moved(2), rollout(1))[0]) == ["drift-detected"]
    assert story(rollout(2))[0] == []


def test_a_late_resolution_of_another_episode_ends_nothing():
    _, state = story(moved(1), moved(2))
    late = EpisodeResolved(model="digits", version=1, episode="an older one", reason="version 1 serves")

    assert evolve(state, late) == state


def test_an_episode_ends_when_the_spec_no_longer_asks_for_it():
    _, state = story(window(1, found(), found("missing")), window(2, found(), found("missing")))
    (ended,) = unwatched(state, Monitor(missing=None))

    assert isinstance(ended, EpisodeResolved)
    assert (ended.about, ended.reason) == ("missing", CHANGED)
    assert unwatched(state, RULE) == []


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_every_kind_has_an_episode_of_its_own():
    said, state = story(
        window(1, found()),
        window(2, found(), found("missing")),
        window(3, found("missing"), found("prediction")),
        window(4, found("prediction")),
        quiet(5),
    )

    assert [(event.kind(), event.about) for event in said] == [
        ("drift-detected", "drift"),
        ("drift-detected", "missing"),
        ("episode-resolved", "drift"),
        ("drift-detected", "prediction"),
        ("episode-resolved", "missing"),
    ]
    assert len({event.identity for event in said}) == 3
    assert [one.about for one in state.episodes] == ["prediction"]


def test_what_is_not_watched_begins_no_episode():
    shown = [window(i, found("prediction"), found("missing"), found("categories")) for i in range(3)]
    rule = Monitor(windows=2, prediction=False, missing=None, categories=None)

    assert story(*shown, rule=rule)[0] == []
    assert [event.about for event in story(*shown)[0]] == ["missing", "categories", "prediction"]


def test_what_is_told_is_that_of_the_last_window():
    (said,), state = story(window(1, found(subject="age")), moved(2, score=1.4))

    assert isinstance(said, DriftDetected)
    assert (said.feature, said.producer, said.share, said.window) == ("spend", "shop", 0.92, span(2))
    assert (said.distance, said.ks, said.p_value) == (1.4, 0.4, 1e-9)
    assert (said.drifted, said.samples, said.traces) == (("spend",), ("p1", "p2"), ("t1",))
    assert said.text == "spend is 1.4 standard deviations away from training; 92 % of it comes from shop"
    assert said.inputs_moved is None
    (episode,) = state.episodes
    assert (episode.subject, episode.producer, episode.score) == ("spend", "shop", 1.4)


@pytest.mark.parametrize("distance", [math.inf, math.nan])
def test_a_distance_that_is_no_number_is_told_as_the_farthest(distance):
    (said,), _ = story(moved(1, score=distance), moved(2, score=distance))

    assert isinstance(said, DriftDetected)
    assert said.distance == 1e9
    assert DriftDetected.model_validate_json(said.model_dump_json()) == said


def test_answers_that_change_without_the_inputs_say_so():
    (said,), _ = story(window(1, found("prediction")), window(2, found("prediction")))

    assert said.inputs_moved is False
    assert said.text.startswith("outputs changed, inputs did not: ")


def test_answers_that_change_with_the_inputs_say_so():
    both = [window(i, found("prediction"), found()) for i in (1, 2)]
    once = [window(1, found("prediction"), found()), window(2, found("prediction"))]

    assert [event.inputs_moved for event in story(*both)[0]] == [None, True]
    assert [event.inputs_moved for event in story(*once)[0]] == [True]
    assert "outputs changed, and inputs too" in story(*once)[0][0].text


# --- worse, and seen --------------------------------------------------------------------------------------------------


def test_it_has_worsened_when_it_is_twice_as_bad_for_two_windows():
    said, state = story(*(moved(i, score=score) for i, score in enumerate((0.7, 0.7, 1.3, 1.5, 1.3, 1.4, 1.6, 1.7))))

    assert kinds(said) == ["drift-detected", "episode-worsened"]
    assert isinstance(said[1], EpisodeWorsened)
    assert (said[1].before, said[1].now, said[1].subject) == (0.7, 1.6, "spend")
    assert state.episodes[0].score == 1.6


def test_it_worsens_again_only_from_what_was_said_last():
    scores = (0.5, 0.5, 1.0, 1.0, 1.9, 1.9, 2.0, 2.0)
    said, _ = story(*(moved(i, score=score) for i, score in enumerate(scores)))

    assert [event.now for event in said if isinstance(event, EpisodeWorsened)] == [1.0, 2.0]


def test_an_episode_is_acknowledged_once_and_while_it_is_open():
    _, state = story(moved(1), moved(2))
    id_ = state.episodes[0].id
    (seen,) = acknowledge(state, id_, "ada", "looking into it")
    after = evolve(state, seen)

    assert (seen.about, seen.actor, seen.note) == ("drift", "ada", "looking into it")
    assert acknowledge(after, id_, "ben", "") == []
    ended = evolve(after, EpisodeResolved(model="digits", version=1, episode=id_, reason="over"))
    with pytest.raises(Conflict, match="has ended"):
        acknowledge(ended, id_, "ben", "")


# --- what follows -----------------------------------------------------------------------------------------------------


def test_what_follows_is_what_the_spec_says_for_the_kind():
    both = [window(i, found(), found("missing"), found("prediction")) for i in (1, 2)]
    rule = Monitor(windows=2, actions={"missing": "ignore", "prediction": "rollback"})

    assert [(one.about, one.action) for one in story(*both, rule=rule)[0]] == [
        ("drift", "retrain"),
        ("missing", "ignore"),
        ("prediction", "rollback"),
    ]


def test_drift_is_only_told_where_it_is_no_reason_to_train_again():
    spec = {
        "model": "digits",
        "task": "classification",
        "dataset": {"name": "d", "columns": {"x": {"type": "number"}, "y": {"type": "integer"}}},
        "target": "y",
        "estimator": {"name": "LogisticRegression"},
        "gate": "accuracy > 0",
        "retrain": {"drift": False},
    }
    rule = watched(ModelSpec.model_validate(spec))

    assert (rule.action("drift"), rule.action("performance")) == ("notify", "retrain")
    assert watched(ModelSpec.model_validate({**spec, "retrain": {}})).action("drift") == "retrain"
    asked = {**spec, "monitor": {"actions": {"drift": "rollback"}}}
    assert watched(ModelSpec.model_validate(asked)).action("drift") == "rollback"


def test_after_a_reaction_others_are_only_told_until_it_has_cooled_down():
    rule = Monitor(windows=2, cooldown=300)
    again = [moved(1), moved(2), quiet(3), quiet(4), moved(5), moved(6), quiet(7), quiet(8), moved(9), moved(10)]
    openings = [event for event in story(*again, rule=rule)[0] if isinstance(event, OPENINGS)]

    assert [event.action for event in openings] == ["retrain", "notify", "retrain"]
    assert openings[1].action_reason == (
        "another episode had its reaction a moment ago: until 2026-05-01 12:06:00 UTC it is only told"
    )
    assert [event.action_reason for event in (openings[0], openings[2])] == ["", ""]


def test_of_two_episodes_in_one_window_the_second_cools_down():
    both = [window(i, found(), found("missing")) for i in (1, 2)]
    rule = Monitor(windows=2, cooldown=300, actions={"missing": "rollback"})

    assert [one.action for one in story(*both, rule=rule)[0]] == ["retrain", "notify"]


# --- looks ------------------------------------------------------------------------------------------------------------


def degraded(place, *, bad=True, now=0.7, version=1) -> Look:
    return Look(
        "performance", version, "accuracy", str(place), bad, now, 0.9, "shop", 0.8, runs=1, labels=120, coverage=0.4
    )


def test_a_look_that_is_sure_by_itself_begins_at_once():
    said, state = story(degraded(1), degraded(2), degraded(3, bad=False))

    assert kinds(said) == ["performance-degraded", "episode-resolved"]
    assert isinstance(said[0], PerformanceDegraded)
    assert (said[0].metric, said[0].before, said[0].now, said[0].labels) == ("accuracy", 0.9, 0.7, 120)
    assert (said[0].action, said[0].producer, said[0].coverage) == ("retrain", "shop", 0.4)
    assert state.episodes == ()


def test_quality_worsens_when_the_loss_has_doubled():
    said, _ = story(degraded(1, now=0.8), degraded(2, now=0.71), degraded(3, now=0.6))

    assert kinds(said) == ["performance-degraded", "episode-worsened"]
    assert (said[1].before, said[1].now) == (pytest.approx(0.1), pytest.approx(0.3))


# --- versions on trial ------------------------------------------------------------------------------------------------


def test_each_version_that_answers_has_an_episode_of_its_own_quality():
    said, state = story(rollout(1, arms=(2, 3)), degraded(1), degraded(2, version=2), degraded(3, version=4))

    assert [(one.version, one.role) for one in said] == [(1, "champion"), (2, "arm")]
    assert [(one.version, one.role) for one in state.episodes] == [(1, "champion"), (2, "arm")]
    back, state = story(degraded(4, version=2, bad=False), state=state)
    assert [(one.kind(), one.version) for one in back] == [("episode-resolved", 2)]
    assert [one.version for one in state.episodes] == [1]


def test_only_quality_is_watched_of_versions_on_trial():
    silent = Look("silence", 2, "predictions", "1", True, 60, 10, runs=1)

    assert story(rollout(1, canary=2), silent, rule=Monitor(silence=10))[0] == []
    assert story(rollout(1, canary=2), moved(1, version=2), moved(2, version=2))[0] == []


@pytest.mark.parametrize(
    ("asked", "of_canary", "of_arm"),
    [
        ("ignore", ("ignore", ""), ("ignore", "")),
        ("notify", ("notify", ""), ("notify", "")),
        (
            "retrain",
            ("rollback", "a canary that becomes worse is taken back"),
            ("notify", "the A/B test decides by its labels"),
        ),
        ("rollback", ("rollback", ""), ("rollback", "")),
    ],
)
def test_a_canary_that_becomes_worse_is_taken_back_and_an_ab_test_goes_on(asked, of_canary, of_arm):
    rule = Monitor(actions={"performance": asked})
    (canary,), _ = story(rollout(1, canary=2), degraded(1, version=2), rule=rule)
    (arm,), _ = story(rollout(1, arms=(2,)), degraded(1, version=2), rule=rule)

    assert (canary.action, canary.action_reason) == of_canary
    assert (arm.action, arm.action_reason) == of_arm
    assert (canary.text[:21], arm.text[:21]) == ("version 2, the canary", "version 2, which an A")


def test_where_the_champion_became_worse_too_the_canary_is_not_to_blame():
    said, _ = story(rollout(1, canary=2), degraded(1), degraded(2, version=2))

    assert [one.action for one in said] == ["retrain", "notify"]
    assert said[1].action_reason == (
        "the champion became worse too: which of them is better is decided by the labels of both"
    )


def test_a_canary_neither_cools_down_with_the_champion_nor_makes_it_cool_down():
    rule = Monitor(windows=2, cooldown=3600)
    retrained = [moved(1), moved(2), quiet(3), quiet(4)]
    said, _ = story(*retrained, rollout(1, canary=2), degraded(1, version=2), rule=rule)
    assert [one.action for one in said if isinstance(one, OPENINGS)] == ["retrain", "rollback"]

    said, _ = story(rollout(1, canary=2), degraded(1, version=2), moved(1), moved(2), rule=rule)
    assert [one.action for one in said] == ["rollback", "retrain"]


def test_an_episode_of_a_version_on_trial_ends_with_the_trial_and_not_with_its_next_step():
    said, state = story(rollout(1, canary=2), degraded(1, version=2), rollout(1, canary=2))
    assert kinds(said) == ["performance-degraded"]

    (taken_back,), _ = story(rollout(1), state=state)
    (promoted,), after = story(rollout(2), state=state)
    assert taken_back.reason == "version 2 no longer answers, version 1 serves"
    assert promoted.reason == "version 2 is champion now"
    # As champion it has its own, and what follows is what the spec says of champions.
    (again,), _ = story(degraded(2, version=2), state=after)
    assert (again.action, again.role) == ("retrain", "champion")


def counted(place, number="persons.mean", *, bad=True, inputs=False) -> Look:
    return Look("measure", 1, number, str(place), bad, 0.6, 0.1, text="fewer persons", inputs_moved=inputs)


MEASURES = Monitor(windows=2, evaluators=[{"evaluator": "persons", "numbers": ["mean", "high"]}])


def test_measures_have_an_episode_for_each_number():
    said, state = story(counted(1), counted(2), rule=MEASURES)
    others = [counted(3, "persons.high"), counted(4, "persons.high")]
    more, state = story(*others, rule=MEASURES, state=state)

    assert [event.subject for event in (*said, *more)] == ["persons.mean", "persons.high"]
    assert [one.subject for one in state.episodes] == ["persons.mean", "persons.high"]
    assert isinstance(said[0], AnomalyDetected)
    assert (said[0].about, said[0].value, said[0].expected, said[0].inputs_moved) == ("measure", 0.6, 0.1, False)
    assert said[0].text == "outputs changed, inputs did not: fewer persons"


def test_a_measure_during_drift_says_that_the_inputs_moved():
    _, state = story(moved(1), moved(2))

    assert story(counted(1), counted(2), rule=MEASURES, state=state)[0][0].inputs_moved is True
    assert story(counted(1, inputs=None), counted(2), rule=MEASURES)[0][0].inputs_moved is None


def test_a_number_that_is_not_watched_begins_no_episode():
    assert story(counted(1), counted(2))[0] == []


# --- volume and schema ------------------------------------------------------------------------------------------------


BUSY = Monitor(windows=2, volume=3)


def rate(number, per_second) -> Judged:
    return window(number, rows=300, seconds=300 / per_second)


def rates(*per_second):
    return [rate(i, one) for i, one in enumerate(per_second)]


def test_volume_is_told_when_two_windows_are_far_from_those_before():
    said, _ = story(*rates(50, 52, 48, 50, 51, 10, 9), rule=BUSY)

    (opened,) = said
    assert isinstance(opened, AnomalyDetected)
    assert (opened.about, opened.value, opened.expected, opened.action) == (
        "volume",
        pytest.approx(9),
        50,
        "notify",
    )
    assert opened.text == "9 predictions a second came instead of the usual 50"


def test_volume_is_not_judged_before_five_windows_nor_unless_asked():
    assert story(*rates(50, 52, 48, 50, 10, 9), rule=BUSY)[0] == []
    assert story(*rates(50, 52, 48, 50, 51, 10, 9))[0] == []


def test_few_predictions_are_no_change_of_volume():
    few = [window(i, rows=4, seconds=10) for i in range(5)]
    fewer = [window(i, rows=1, seconds=10, judged=False) for i in (5, 6)]

    assert story(*few, *fewer, rule=BUSY)[0] == []


def test_windows_of_an_episode_are_not_the_new_normal():
    said, _ = story(*rates(*[50] * 5, *[10] * 30, 50, 50, *[48] * 10), rule=BUSY)

    assert kinds(said) == ["anomaly-detected", "episode-resolved"]
    assert said[1].reason == "as many predictions as usual again for 2 windows in a row"


def test_a_window_with_too_few_rows_for_a_verdict_counts_for_volume():
    few = [window(i, rows=20, seconds=10, judged=False) for i in (5, 6)]
    said, _ = story(*(window(i, rows=500, seconds=10) for i in range(5)), *few, rule=BUSY)

    assert [event.about for event in said] == ["volume"]


def test_a_refusal_is_told_once_and_over_when_two_windows_fit_again():
    refusal = Look("schema", 1, "age", "15", moved=True, value=3, runs=1, text="age is text")
    said, state = story(refusal, refusal)
    assert kinds(said) == ["anomaly-detected"]

    assert story(quiet(1), quiet(2), state=state, refused=15)[0] == []
    (ended,) = story(quiet(1), quiet(2), quiet(3), state=state, refused=15)[0]
    assert (ended.about, ended.reason) == ("schema", "all predictions fit again for 2 windows in a row")


# --- against a plain count --------------------------------------------------------------------------------------------

SEEN = st.lists(st.sampled_from(["drift", "missing", "categories", "prediction"]), unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.one_of(SEEN, st.none()), st.sampled_from([0.5, 0.9, 1.0, 2.5]), st.integers(1, 3)),
        st.integers(1, 3),
    ),
    max_size=60,
)


def as_steps(raw):
    return [
        rollout(one)
        if isinstance(one, int)
        else window(
            i, *(found(about, score=one[1]) for about in one[0] or ()), version=one[2], judged=one[0] is not None
        )
        for i, one in enumerate(raw)
    ]


@settings(max_examples=200, deadline=None)
@given(raw=STEPS, needed=st.integers(1, 3))
def test_no_episode_begins_before_the_one_before_it_of_its_kind_has_ended(raw, needed):
    said, state = story(*as_steps(raw), rule=Monitor(windows=needed))
    going_on = {}
    for event in said:
        if isinstance(event, OPENINGS):
            assert event.about not in going_on
            going_on[event.about] = event
        else:
            assert event.episode == going_on[event.about].episode
            assert event.version == going_on[event.about].version
            if isinstance(event, EpisodeResolved):
                del going_on[event.about]
    assert {one.id for one in state.episodes} == {event.episode for event in going_on.values()}


@settings(max_examples=200, deadline=None)
@given(raw=STEPS, needed=st.integers(1, 3), about=st.sampled_from(["drift", "missing", "categories", "prediction"]))
def test_deciding_and_evolving_equals_counting_runs(raw, needed, about):
    said, state = story(*as_steps(raw), rule=Monitor(windows=needed))

    champion, episode, last_said, expected = 1, None, 0.0, []
    runs: dict[int, list[float | None]] = {}
    for one in raw:
        if isinstance(one, int):
            champion = one
            if episode not in (None, champion):
                episode = None
                expected.append("episode-resolved")
            continue
        seen, score, version = one
        if seen is None:
            continue
        runs.setdefault(version, []).append(score if about in seen else None)
        latest = runs[version][-needed:]
        if version != champion or len(latest) < needed:
            continue
        if None not in latest and episode is None:
            episode, last_said = version, score
            expected.append("drift-detected")
        elif None not in latest and episode == version and min(latest) >= 2 * last_said:
            last_said = score
            expected.append("episode-worsened")
        elif set(latest) == {None} and episode == version:
            episode = None
            expected.append("episode-resolved")

    assert [event.kind() for event in said if event.about == about] == expected
    known = state.open(about)
    assert (known and known.version) == episode

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meguri_contracts.events import (
    ApprovalRequested,
    Contribution,
    DataCommitted,
    Deployed,
    DriftDetected,
    EpisodeResolved,
    Event,
    LoopBroken,
    PerformanceDegraded,
    Plan,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
    TrainingFailed,
    TrainingPostponed,
    TrainingRequested,
    TrainingStarted,
    Window,
)
from meguri_contracts.spec import Action, ModelSpec, Monitor, Notify, PredictionLog, Retrain
from meguri_training.runs import MAX_TRIGGERS, PATIENCE, QUIET, Data, Model, decide, evolve, is_stormy, why_not
from tests.training.versions import deployed

MAX_HOPS = 16


def spec(**retrain: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "model": "digits",
            "task": "classification",
            "dataset": {"name": "images", "columns": {"x": {"type": "number"}, "digit": {"type": "integer"}}},
            "target": "digit",
            "estimator": {"name": "LogisticRegression"},
            "gate": "accuracy > 0",
            "retrain": retrain,
        }
    )


@dataclass
class Training:
    """What happens to a model, in the order of the log, and the runs that follow; nothing is decided unasked."""

    model: Model = field(default_factory=lambda: Model(name="digits"))
    data: Data | None = None
    runs: list[TrainingStarted] = field(default_factory=list)
    loops: list[LoopBroken] = field(default_factory=list)
    postponed: list[TrainingPostponed] = field(default_factory=list)
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    _ids: count = field(default_factory=count)

    def hear(self, event: Event, hops: int = 0) -> str:
        """Let an event happen, so many reactions away from what came from outside; returns its id."""
        id_ = f"{event.kind()}-{next(self._ids)}"
        if isinstance(event, DataCommitted):
            self.data = Data(version=event.version, digest=event.digest, total_rows=event.total_rows)
        if isinstance(event, TrainingStarted):
            self.runs.append(event)
        if isinstance(event, LoopBroken):
            self.loops.append(event)
        if isinstance(event, TrainingPostponed):
            self.postponed.append(event)
        self.model = evolve(self.model, event, id_, self.now, hops)
        return id_

    def apply(self, version: int = 1, *, gate: str = "", **retrain: Any) -> str:
        changed = spec(**retrain).model_copy(update={"gate": gate or f"accuracy >= 0.{100 + next(self._ids)}"})
        return self.hear(SpecApplied(model="digits", spec=changed, version=version, digest="d", actor="ada"))

    def commit(self, rows: int, hops: int = 1) -> str:
        version, total = (self.data.version + 1, self.data.total_rows + rows) if self.data else (1, rows)
        part = Contribution(event="e", producer="p", rows=rows)
        return self.hear(
            DataCommitted(
                dataset="images", version=version, digest=f"d{version}", rows=rows, total_rows=total, events=(part,)
            ),
            hops,
        )

    def request(self, hops: int = 0) -> str:
        return self.hear(TrainingRequested(model="digits", reason="asked", actor="ada"), hops)

    def drift(self, hops: int = 1, episode: str = "ep", action: Action = "retrain") -> str:
        return self.hear(
            DriftDetected(
                model="digits",
                version=1,
                episode=episode,
                action=action,
                feature="x",
                producer="p",
                share=1,
                distance=1,
                ks=1,
                p_value=0,
                drifted=("x",),
                window=Window(first=1, last=2, rows=2),
            ),
            hops,
        )

    def degrade(self, hops: int = 1, episode: str = "worse") -> str:
        return self.hear(
            PerformanceDegraded(
                model="digits", version=1, episode=episode, metric="accuracy", before=0.9, now=0.7, labels=100
            ),
            hops,
        )

    def resolve(self, episode: str = "ep") -> str:
        return self.hear(EpisodeResolved(model="digits", version=1, episode=episode, reason="quiet"))

    def decide(self) -> TrainingStarted | None:
        """Start the run that is due, if one is; or break the loop, or say what it waits for."""
        for event in decide(self.model, self.data, MAX_HOPS):
            self.hear(event, event.hops(0))
            return event if isinstance(event, TrainingStarted) else None
        return None

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def is_stormy(self) -> bool:
        return is_stormy(self.model, self.now)

    def verdict(self, outcome: str = "rejected") -> str:
        """End the running run."""
        run = self.model.running or "none"
        events: dict[str, Event] = {
            "rejected": PromotionRejected(model="digits", version=1, run=run, reason="gate"),
            "approval": ApprovalRequested(model="digits", version=1, run=run, reason="rolled back"),
            "failed": TrainingFailed(model="digits", run=run, reason="one class only"),
            "promoted": rollout(run, len(self.runs)),
        }
        return self.hear(events[outcome])


def rollout(run: str, version: int) -> RolloutChanged:
    return RolloutChanged(
        model="digits", plan=Plan(champion=deployed(run, version)), reason="the gate holds", actor="registry"
    )


def beside(champion: Deployed, role: str, run: str) -> RolloutChanged:
    """Version 7 has a part in the plan."""
    part = {"candidate": deployed(run, 7), "weight": 0.1}
    plans = {
        "canary": {"canary": part | {"step": 0, "policy": {}}},
        "arm": {"trial": {"arms": [part], "policy": {}}},
        "shadow": {"shadows": [part]},
    }
    plan = Plan.model_validate({"champion": champion, **plans[role]})
    return RolloutChanged(model="digits", plan=plan, reason="r", actor="ada")


@pytest.fixture
def training() -> Training:
    """A model that is trained for the first time at 100 rows, then at 50 new ones."""
    training = Training()
    training.apply(first_rows=100, rows=50)
    return training


@pytest.fixture
def trained(training) -> Training:
    """The same after its first run."""
    training.commit(100)
    training.decide()
    training.verdict("promoted")
    return training


def kinds(run: TrainingStarted) -> list[str]:
    return [trigger.kind for trigger in run.triggers]


# --- when -------------------------------------------------------------------------------------------------------------


def test_the_first_run_waits_for_its_rows(training):
    assert why_not(training.model, training.data) == "dataset 'images' has no rows yet"
    training.commit(99)
    assert training.decide() is None
    assert why_not(training.model, training.data) == "99 rows, 100 are needed for the first run"
    training.commit(1)

    run = training.decide()
    assert (run.dataset_version, run.dataset_digest, run.dataset_rows, run.champion) == (2, "d2", 100, None)
    assert kinds(run) == ["data-committed", "data-committed"]


def test_a_later_run_waits_for_as_many_new_rows_as_the_spec_says(trained):
    trained.commit(49)
    assert trained.decide() is None
    assert why_not(trained.model, trained.data) == "49 new rows since the last run, 50 are enough"
    trained.commit(1)

    run = trained.decide()
    assert (run.dataset_rows, run.champion.version) == (150, 1)


def test_rows_alone_are_no_reason_where_the_spec_says_so():
    training = Training()
    training.apply(rows=None)
    training.commit(10)
    training.decide()
    training.verdict()
    training.commit(10_000)

    assert training.decide() is None
    assert "new rows alone are no reason" in why_not(training.model, training.data)


def test_a_request_is_reason_enough_without_new_rows(trained):
    trained.request()

    assert kinds(trained.decide()) == ["training-requested"]


def test_a_request_cannot_be_met_before_there_are_rows(training):
    training.request()
    assert training.decide() is None

    training.commit(1)
    assert kinds(training.decide()) == ["training-requested", "data-committed"]


def test_another_spec_is_a_reason_once_there_was_a_run(trained):
    trained.apply(version=2, rows=50)

    run = trained.decide()
    assert (kinds(run), run.spec_version) == (["spec-applied"], 2)
    trained.verdict()
    assert trained.decide() is None


def test_a_spec_that_only_says_otherwise_when_to_learn_is_no_reason(trained):
    trained.apply(version=2, gate=trained.model.spec.gate, rows=50)

    assert trained.model.spec_version == 2
    assert trained.decide() is None


@pytest.mark.parametrize(
    "change",
    [
        {"notify": Notify(urls=("json://example.com",), language="ja")},
        {"monitor": Monitor(window_rows=1000)},
        {"log": PredictionLog(durable=True)},
        {"retrain": Retrain(fresh_rows=50)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_spec_that_learns_nothing_else_is_no_reason(trained, change):
    spec = trained.model.spec.model_copy(update=change)
    applied = SpecApplied(model=spec.model, version=2, digest="2", spec=spec, actor="ada")
    after = evolve(trained.model, applied, "e-2", datetime(2026, 5, 1, tzinfo=UTC))

    assert (after.spec, after.spec_version, after.triggers) == (spec, 2, trained.model.triggers)


def test_drift_waits_for_the_first_new_rows_and_makes_any_number_enough(trained):
    trained.drift()
    assert trained.decide() is None
    assert why_not(trained.model, trained.data) == "drift was seen, and new rows that show it have not arrived yet"
    trained.commit(1)

    run = trained.decide()
    assert kinds(run) == ["drift-detected", "data-committed"]
    assert run.starts_trace


def test_drift_that_is_over_is_no_reason_any_more(trained):
    trained.drift()
    trained.resolve()
    trained.commit(1)

    assert trained.decide() is None


def test_drift_is_no_reason_where_the_spec_says_so():
    training = Training()
    training.apply(rows=50, drift=False)
    training.commit(50)
    training.decide()
    training.verdict()
    training.drift()
    training.commit(1)

    assert training.decide() is None


@pytest.mark.parametrize("action", ["ignore", "notify", "rollback"])
def test_an_episode_that_asks_for_no_model_is_no_reason(trained, action):
    trained.drift(action=action)
    trained.commit(1)

    assert trained.decide() is None
    assert trained.postponed == []
    assert trained.model.episodes == {}


def test_an_episode_of_quality_is_a_reason_as_one_of_drift_is(trained):
    trained.degrade()
    assert trained.decide() is None
    assert why_not(trained.model, trained.data).startswith("the answers have become worse, and new rows")
    trained.commit(1)

    run = trained.decide()
    assert kinds(run) == ["performance-degraded", "data-committed"]
    assert run.starts_trace


def test_after_an_episode_as_many_new_rows_are_needed_as_the_spec_says_for_it(trained):
    trained.apply(version=2, gate=trained.model.spec.gate, rows=1000, fresh_rows=10)
    trained.drift()
    trained.commit(9)
    assert trained.decide() is None
    waits = "drift was seen, and 10 new rows that show it are needed: 9 have arrived"
    assert why_not(trained.model, trained.data) == waits
    trained.commit(1)

    assert kinds(trained.decide()) == ["drift-detected", "data-committed", "data-committed"]


def test_the_end_of_an_episode_takes_back_only_what_that_one_asked_for(trained):
    trained.drift()
    other = trained.degrade()
    trained.resolve()

    assert [trigger.event for trigger in trained.model.triggers] == [other]
    assert trained.model.episodes == {other: "worse"}
    trained.commit(1)
    assert kinds(trained.decide()) == ["performance-degraded", "data-committed"]
    assert trained.model.episodes == {}


# --- what it waits for ------------------------------------------------------------------------------------------------


def test_a_run_that_an_episode_asks_for_says_once_that_it_waits_for_rows(trained):
    trained.apply(version=2, gate=trained.model.spec.gate, rows=1000, fresh_rows=10)
    drift = trained.drift()
    for _ in range(3):
        assert trained.decide() is None
        trained.commit(2)

    (said,) = trained.postponed
    assert ([trigger.event for trigger in said.triggers], said.rows, said.needed) == ([drift], 0, 10)
    assert said.reason == "10 new rows that show it are needed"
    assert not said.starts_trace


def test_what_it_waits_for_is_said_again_when_that_or_who_asks_is_another(trained):
    trained.request()
    run = trained.decide()
    trained.drift()
    trained.decide()
    trained.verdict()
    trained.decide()
    trained.degrade()
    trained.decide()
    trained.decide()

    assert [(len(said.triggers), said.reason) for said in trained.postponed] == [
        (1, f"run {run.run} has no verdict yet"),
        (1, "new rows that show it are needed"),
        (2, "new rows that show it are needed"),
    ]


def test_a_run_waits_in_words_where_another_dataset_has_fewer_rows_than_the_one_before(trained):
    trained.drift()
    trained.data = Data(version=1, digest="of another", total_rows=5)
    trained.decide()

    assert [said.rows for said in trained.postponed] == [0]


def test_a_run_that_nobody_but_rows_asks_for_waits_in_silence(trained):
    trained.commit(3)

    assert trained.decide() is None
    assert trained.postponed == []


# --- one at a time ----------------------------------------------------------------------------------------------------


def test_what_comes_during_a_run_waits_and_is_answered_by_one_run(trained):
    trained.request()
    first = trained.decide()
    for _ in range(3):
        trained.commit(60)
        trained.request()
        assert trained.decide() is None
    assert why_not(trained.model, trained.data) == f"run {first.run} has no verdict yet"
    trained.verdict()

    run = trained.decide()
    assert (run.dataset_rows, len(run.triggers)) == (280, 6)
    trained.verdict()
    assert trained.decide() is None


@pytest.mark.parametrize("outcome", ["rejected", "approval", "failed", "promoted"])
def test_a_run_ends_with_its_verdict_whichever_it_is(trained, outcome):
    trained.request()
    trained.decide()
    trained.verdict(outcome)

    assert trained.model.running is None
    assert trained.decide() is None
    trained.request()
    assert trained.decide()


@pytest.mark.parametrize("role", ["canary", "arm", "shadow"])
def test_a_run_ends_when_its_version_gets_a_part_in_the_plan(trained, role):
    trained.request()
    run = trained.decide()
    trained.hear(beside(trained.model.champion, role, run.run))

    assert trained.model.running is None
    assert trained.model.champion.version == 1


@pytest.mark.parametrize("role", ["canary", "arm"])
def test_no_run_is_begun_while_a_version_is_tried_beside_the_champion_and_what_came_meanwhile_is_not_lost(
    trained, role
):
    champion = trained.model.champion
    trained.hear(beside(champion, role, "another run"))
    trained.commit(100)
    trained.request()

    assert trained.decide() is None
    assert why_not(trained.model, trained.data) == (
        "version 7 is tried beside the champion: the next run waits for the end of that"
    )
    trained.hear(rollout(champion.run, 1))
    assert [trigger.kind for trigger in trained.decide().triggers] == ["data-committed", "training-requested"]


def test_a_shadow_keeps_no_run_waiting(trained):
    trained.hear(beside(trained.model.champion, "shadow", "another run"))
    trained.request()

    assert trained.decide()


def test_a_rollback_does_not_end_the_run_of_another_version(trained):
    trained.request()
    run = trained.decide()
    trained.hear(rollout("an earlier run", 1))

    assert trained.model.running == run.run


def test_a_run_answers_what_came_before_its_decision_and_nothing_later(trained):
    trained.request()
    (decided,) = decide(trained.model, trained.data, MAX_HOPS)
    later = trained.commit(60)
    trained.hear(decided)

    assert [trigger.event for trigger in trained.model.triggers] == [later]
    trained.verdict()
    assert [trigger.event for trigger in trained.decide().triggers] == [later]


def test_the_same_state_gives_the_same_run(trained):
    trained.request()
    one, same = decide(trained.model, trained.data, MAX_HOPS), decide(trained.model, trained.data, MAX_HOPS)
    trained.commit(1)
    (other,) = decide(trained.model, trained.data, MAX_HOPS)

    assert one == same
    assert other.run != one[0].run


def test_of_very_many_triggers_the_newest_are_remembered(trained):
    ids = [trained.request() for _ in range(MAX_TRIGGERS + 10)]

    assert [trigger.event for trigger in trained.decide().triggers] == ids[10:]
    assert trained.model.triggers == ()


def test_a_request_is_not_forgotten_over_very_many_commits():
    training = Training()
    training.apply(rows=None)
    training.commit(1)
    training.decide()
    request = training.request()
    for _ in range(500):
        training.commit(1, hops=9)
        assert training.decide() is None
    fresh, later = training.commit(1, hops=1), [training.commit(1, hops=9) for _ in range(200)]
    training.verdict()

    run = training.decide()
    answered = [trigger.event for trigger in run.triggers]
    assert len(answered) == MAX_TRIGGERS
    assert answered == [request, fresh, *later[-MAX_TRIGGERS + 2 :]]
    assert (run.dataset_rows, run.hops(0)) == (702, 1)
    training.verdict()
    assert training.decide() is None


def test_triggers_that_were_forgotten_before_their_run_was_heard_of_are_not_answered_twice(trained):
    trained.request()
    [decided] = decide(trained.model, trained.data, MAX_HOPS)
    later = [trained.commit(0) for _ in range(MAX_TRIGGERS + 10)]
    trained.hear(decided)

    assert [trigger.event for trigger in trained.model.triggers] == later[-MAX_TRIGGERS + 1 :]


# --- storms -----------------------------------------------------------------------------------------------------------


def test_rows_that_come_during_a_run_and_go_on_coming_are_waited_for_until_they_stop(trained):
    trained.commit(60)
    assert not trained.is_stormy()
    trained.decide()
    trained.commit(60)
    trained.verdict()
    for _ in range(5):
        assert trained.is_stormy()
        trained.wait(QUIET - 0.1)
        trained.commit(60)
    trained.wait(QUIET)

    assert not trained.is_stormy()
    assert trained.decide().dataset_rows == 520
    assert not trained.is_stormy()


def test_a_storm_that_does_not_end_is_not_waited_for_longer_than_patience_lasts(trained):
    trained.commit(60)
    trained.decide()
    trained.commit(60)
    trained.verdict()
    for _ in range(int(PATIENCE / 0.5)):
        trained.wait(0.5)
        trained.commit(60)

    assert not trained.is_stormy()


@pytest.mark.parametrize("what", ["request", "drift", "apply"])
def test_in_a_storm_only_rows_wait(trained, what):
    trained.commit(60)
    trained.decide()
    trained.commit(60)
    trained.verdict()
    assert trained.is_stormy()
    getattr(trained, what)()

    assert not trained.is_stormy()


# --- loops ------------------------------------------------------------------------------------------------------------


def test_a_run_that_asks_for_the_next_one_for_ever_is_broken_off_once_and_says_what_to_do(trained):
    trained.request()
    while run := trained.decide():
        trained.verdict()
        # Started, trained, answered: three reactions.
        trained.request(run.hops(0) + 2)
        assert len(trained.runs) < 10

    [loop] = trained.loops
    assert len(trained.runs) == 1 + 6
    assert (loop.limit, [trigger.hops for trigger in loop.triggers]) == (MAX_HOPS, [18])
    assert "18 reactions lie between training-requested" in loop.reason
    assert "new data or `meguri train digits` begin again" in loop.reason
    assert trained.decide() is None
    assert trained.model.triggers == ()


def test_rows_that_only_a_rollout_brought_are_no_reason_for_ever(trained):
    hops = 1
    trained.commit(60, hops)
    while run := trained.decide():
        trained.verdict("promoted")
        # Started, trained, rolled out, arrived, committed: five reactions.
        hops = run.hops(0) + 4
        trained.commit(60, hops)
        assert len(trained.runs) < 10

    assert len(trained.loops) == 1
    assert trained.decide() is None
    assert why_not(trained.model, trained.data).startswith("nothing happened since the last run: a run is due only")


def test_after_a_break_a_person_or_new_data_begin_again(trained):
    for begin in (trained.request, lambda: trained.commit(1, hops=1)):
        trained.commit(60, hops=MAX_HOPS + 1)
        assert trained.decide() is None
        assert trained.model.broken
        begin()

        run = trained.decide()
        assert run.hops(0) <= 2
        assert trained.model.broken is None
        trained.verdict()


def test_something_fresh_among_the_triggers_makes_the_run_fresh(trained):
    trained.commit(60, hops=MAX_HOPS + 1)
    trained.commit(1, hops=1)
    trained.commit(60, hops=MAX_HOPS + 1)

    assert trained.decide().hops(0) == 2
    assert trained.loops == []


def test_years_of_drift_and_new_rows_are_no_loop(trained):
    hops = 0
    for _ in range(500):
        # Monitoring answers the rollout with drift; the rows that show it come from outside.
        trained.drift(hops + 1)
        assert trained.decide() is None
        trained.commit(5, hops=1)
        run = trained.decide()
        hops = run.hops(0) + 2
        trained.verdict("promoted")

    assert trained.loops == []


# --- whatever happens -------------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(0, 60)),
        st.sampled_from([("request",), ("drift",), ("degrade",), ("resolve",), ("decide",), ("say",)]),
        st.tuples(st.just("verdict"), st.sampled_from(["rejected", "approval", "failed", "promoted"])),
    ),
    max_size=40,
)


@given(steps)
def test_whatever_happens_runs_never_overlap_and_no_rows_are_forgotten(steps):
    training = Training()
    training.apply(first_rows=20, rows=30)
    decided: list[Event] = []
    committed: dict[str, int] = {}
    under_way = 0
    for step in steps:
        match step:
            case ("commit", rows):
                id_ = training.commit(rows)
                committed[id_] = training.data.version
            case ("decide",):
                decided = decide(training.model, training.data, MAX_HOPS)
            case ("say",):
                # Data has another key, so it may come in between; the log refuses what was overtaken by the own key.
                under_way += sum(isinstance(event, TrainingStarted) for event in decided)
                for event in decided:
                    training.hear(event)
                decided = []
            case ("verdict", outcome):
                if training.model.running:
                    training.verdict(outcome)
                    under_way, decided = under_way - 1, []
            case (other,):
                getattr(training, other)()
                decided = []
        assert under_way in (0, 1)
        assert (training.model.running is not None) == (under_way == 1)

    used = max((run.dataset_version for run in training.runs), default=0)
    waiting = {trigger.event for trigger in training.model.triggers}
    assert all(version <= used or id_ in waiting for id_, version in committed.items())
    assert len({run.run for run in training.runs}) == len(training.runs)

    answered = [trigger.event for run in training.runs for trigger in run.triggers]
    assert len(answered) == len(set(answered))
    assert not waiting & set(answered)
    assert Model.model_validate_json(training.model.model_dump_json()) == training.model

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from apprise.manager_plugins import NotificationManager
from hypothesis import example, given
from hypothesis import strategies as st

from meguri_contracts.errors import Conflict, Invalid, NotFound
from meguri_contracts.events import (
    ApprovalRequested,
    Event,
    ModelRegistered,
    ModelTrained,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
    TrainingRequested,
)
from meguri_contracts.spec import Estimator, ModelSpec
from meguri_registry.models import Model, evolve
from meguri_registry.promotion import apply_spec, deployed, judge
from meguri_registry.rollouts import previous, promote
from meguri_registry.schemes import SCHEMES
from tests.registry.candidates import spec, trained, types

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@dataclass
class Registry:
    """A model's events and the state that follows from them; commands are decided on it, as the service does."""

    model: Model = field(default_factory=lambda: Model(name="digits"))
    log: list[Event] = field(default_factory=list)
    known: dict[int, ModelTrained] = field(default_factory=dict)

    def carry_out(self, events: list[Event]) -> list[Event]:
        for event in events:
            self.log.append(event)
            self.model = evolve(self.model, event, f"event {len(self.log)}", NOW)
        return events

    def apply(self, spec: ModelSpec) -> list[Event]:
        return self.carry_out(apply_spec(self.model, spec, "ada", {}))

    def hear(self, event: ModelTrained) -> list[Event]:
        said = self.carry_out(judge(self.model, event))
        self.known[self.model.runs[event.run]] = event
        return said

    def promote(self, version: int) -> list[Event]:
        return self.carry_out(promote(self.model, deployed(self.known[version], version), "ada", "by hand"))

    def rollback(self) -> list[Event]:
        version = previous(self.model)
        back = deployed(self.known[version], version)
        return self.carry_out(promote(self.model, back, "ada", "by hand", back=True))

    @property
    def champion(self) -> int | None:
        return self.model.champion.version if self.model.champion else None


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    registry.apply(spec())
    return registry


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"estimator": {"name": "LogReg"}}, "estimator.name: 'LogReg' is unknown; for classification there are Ada"),
        ({"estimator": {"name": "Ridge"}}, "estimator.name: 'Ridge' is unknown; for classification"),
        (
            {"estimator": {"name": "SVC", "params": {"c": 1}}},
            "estimator.params: SVC has no 'c'; it has C, break_ties, ",
        ),
        (
            {"estimator": {"name": "SVC", "params": {"random_state": 1}}},
            "random_state cannot be set: it is validation.seed",
        ),
    ],
)
def test_a_spec_that_can_never_be_trained_is_refused(change, said):
    with pytest.raises(Invalid, match=said):
        apply_spec(
            Model(name="digits"), spec().model_copy(update={"estimator": Estimator(**change["estimator"])}), "ada", {}
        )


def test_a_spec_whose_column_can_hold_nothing_is_refused():
    columns = {
        name: column.model_copy(update={"min": 2.0, "max": 1.0}) for name, column in spec().dataset.columns.items()
    }
    dataset = spec().dataset.model_copy(update={"columns": columns})

    with pytest.raises(Invalid, match="min 2 is above max 1"):
        apply_spec(Model(name="digits"), spec().model_copy(update={"dataset": dataset}), "ada", {})


# --- specs ------------------------------------------------------------------------------------------------------------


def test_specs_are_counted_and_the_same_again_says_nothing():
    registry = Registry()
    first, again, other = registry.apply(spec()), registry.apply(spec()), registry.apply(spec("accuracy > 0.9"))

    assert [event.version for event in (*first, *other)] == [1, 2]
    assert again == []
    assert types(registry.apply(spec())) == [SpecApplied]


def test_a_dataset_that_another_model_declares_otherwise_is_a_conflict():
    theirs = spec().dataset.model_copy(update={"max_bad_share": 0.1})

    with pytest.raises(Conflict, match="dataset 'images' is declared differently by another model"):
        apply_spec(Model(name="digits"), spec(), "ada", {"images": theirs})
    assert len(apply_spec(Model(name="digits"), spec(), "ada", {"images": spec().dataset, "else": theirs})) == 1


# --- the gate ---------------------------------------------------------------------------------------------------------


def test_the_first_model_that_is_good_enough_becomes_champion(registry):
    registered, rollout = registry.hear(trained("a", 0.8))

    assert registered == ModelRegistered(model="digits", version=1, run="a")
    assert isinstance(rollout, RolloutChanged)
    assert (rollout.plan.champion.version, rollout.plan.champion.onnx.digest) == (1, "onnx of a")
    assert (rollout.previous, rollout.actor, rollout.reason) == (None, "registry", "the gate holds")
    assert [(one.rule, one.holds) for one in rollout.judged] == [
        ("accuracy >= 0.8", True),
        ("accuracy >= champion.accuracy - 0.01", True),
    ]


def test_a_first_model_below_the_bar_is_rejected_with_the_numbers(registry):
    _, rejected = registry.hear(trained("a", 0.79))

    assert isinstance(rejected, PromotionRejected)
    assert rejected.reason == "the gate does not hold: accuracy >= 0.8"
    assert rejected.judged[0].candidate == {"accuracy": 0.79}
    assert registry.champion is None


@pytest.mark.parametrize(("accuracy", "champion"), [(0.90, 2), (0.89, 2), (0.889, 1), (0.95, 2)])
def test_a_challenger_becomes_champion_if_it_is_hardly_worse(registry, accuracy, champion):
    registry.hear(trained("a", 0.9))
    registry.hear(trained("b", accuracy, champion=(1, 0.9)))

    assert registry.champion == champion


def test_a_rejected_challenger_is_shown_beside_the_champion_it_lost_to(registry):
    registry.hear(trained("a", 0.9))
    _, rejected = registry.hear(trained("b", 0.85, champion=(1, 0.9)))

    assert rejected.reason == "the gate does not hold: accuracy >= champion.accuracy - 0.01"
    assert (rejected.judged[1].candidate, rejected.judged[1].champion) == ({"accuracy": 0.85}, {"accuracy": 0.9})


@pytest.mark.parametrize("compared_with", [None, (2, 0.9)])
def test_a_comparison_with_another_than_the_champion_counts_for_nothing_and_is_asked_for_again(registry, compared_with):
    registry.hear(trained("a", 0.9))
    _, requested, rejected = registry.hear(trained("b", 0.99, champion=compared_with))

    named = "version 2" if compared_with else "no champion"
    assert rejected.reason == f"it was compared with {named}, but version 1 serves now"
    assert requested == TrainingRequested(model="digits", reason=f"version 2: {rejected.reason}", actor="registry")
    assert registry.champion == 1


@pytest.mark.parametrize("said", range(4))
def test_what_was_said_only_in_part_is_completed_when_the_run_is_judged_again(registry, said):
    registry.hear(trained("a", 0.9))
    late = trained("b", 0.99, champion=None)
    whole = judge(registry.model, late)
    registry.carry_out(whole[:said])

    # What was said already has the same id, and is not said twice.
    assert all(event in judge(registry.model, late) for event in whole[said:])


def test_a_metric_that_was_not_measured_fails_its_rule_in_words():
    registry = Registry()
    registry.apply(spec("f1_macro > 0.5"))
    _, rejected = registry.hear(trained("a", 0.9))

    assert "the candidate has no metric 'f1_macro'; it has accuracy" in rejected.reason


def test_a_model_without_a_spec_cannot_be_judged():
    with pytest.raises(NotFound, match="has no spec"):
        judge(Model(name="digits"), trained("a", 0.9))


def test_a_run_is_judged_once(registry):
    registry.hear(trained("a", 0.9))
    registry.hear(trained("b", 0.1, champion=(1, 0.9)))

    assert judge(registry.model, trained("a", 0.9)) == []
    assert judge(registry.model, trained("b", 0.1, champion=(1, 0.9))) == []


def test_a_run_that_was_registered_before_a_crash_gets_its_verdict_and_no_second_number(registry):
    registered, rollout = judge(registry.model, trained("a", 0.9))
    registry.carry_out([registered])

    assert judge(registry.model, trained("a", 0.9)) == [rollout]


# --- people -----------------------------------------------------------------------------------------------------------


def test_a_rejected_version_can_be_promoted_by_hand_and_again_says_nothing(registry):
    registry.hear(trained("a", 0.9))
    registry.hear(trained("b", 0.5, champion=(1, 0.9)))
    (rollout,) = registry.promote(2)

    assert (rollout.plan.champion.version, rollout.previous, rollout.actor) == (2, 1, "ada")
    assert registry.promote(2) == []


def test_a_rollback_goes_back_step_by_step(registry):
    registry.hear(trained("a", 0.9))
    registry.hear(trained("b", 0.9, champion=(1, 0.9)))
    registry.hear(trained("c", 0.9, champion=(2, 0.9)))

    champions = [registry.champion]
    for _ in range(2):
        registry.rollback()
        champions.append(registry.champion)
    assert champions == [3, 2, 1]
    with pytest.raises(Conflict, match="no earlier champion"):
        registry.rollback()


def test_after_a_rollback_the_same_bytes_need_a_person(registry):
    registry.hear(trained("a", 0.9))
    registry.hear(trained("b", 0.95, champion=(1, 0.9), onnx="bad bytes"))
    registry.rollback()
    _, asked = registry.hear(trained("c", 0.95, champion=(1, 0.9), onnx="bad bytes"))

    assert isinstance(asked, ApprovalRequested)
    assert "rolled back before" in asked.reason
    assert [one.holds for one in asked.judged] == [True, True]
    assert registry.champion == 1
    registry.promote(3)
    assert registry.champion == 3
    assert types(registry.hear(trained("d", 0.95, champion=(3, 0.95), onnx="bad bytes"))) == [
        ModelRegistered,
        RolloutChanged,
    ]


def test_other_bytes_need_nobody_after_a_rollback(registry):
    registry.hear(trained("a", 0.9))
    registry.hear(trained("b", 0.95, champion=(1, 0.9)))
    registry.rollback()

    assert types(registry.hear(trained("c", 0.95, champion=(1, 0.9)))) == [ModelRegistered, RolloutChanged]


# --- whatever happens -------------------------------------------------------------------------------------------------

runs = st.tuples(
    st.just("trained"),
    st.sampled_from("abcdef"),
    st.sampled_from([0.5, 0.8, 0.9]),
    st.none() | st.integers(1, 4),
    st.sampled_from(["bytes one", "bytes two", "bytes three"]),
)
commands = st.lists(
    runs
    | st.tuples(st.just("promote"), st.integers(1, 6))
    | st.tuples(st.just("rollback"))
    | st.tuples(st.just("spec"), st.sampled_from(["accuracy > 0.7", "accuracy >= champion.accuracy"])),
    max_size=25,
)


def carry_out(registry: Registry, command: tuple) -> None:
    match command:
        case ("trained", run, accuracy, other, onnx):
            # Mostly the champion of the moment, sometimes another.
            against = other if other else registry.champion
            registry.hear(trained(run, accuracy, (against, 0.8) if against else None, onnx))
        case ("promote", version):
            if version in registry.known:
                registry.promote(version)
        case ("rollback",):
            if registry.model.past:
                registry.rollback()
        case ("spec", gate):
            registry.apply(spec(gate))


@given(commands)
@example([("trained", "a", 0.9, None, "bytes one"), ("trained", "a", 0.5, None, "bytes two"), ("promote", 1)])
def test_whatever_happens_versions_have_no_gaps_each_run_has_one_verdict_and_the_log_tells_all(commands):
    registry = Registry()
    registry.apply(spec())
    for command in commands:
        carry_out(registry, command)

    versions = [event.version for event in registry.log if isinstance(event, ModelRegistered)]
    assert versions == list(range(1, len(versions) + 1))
    assert len(set(registry.model.runs)) == len(versions)

    by_registry = [
        event.plan.champion.run if isinstance(event, RolloutChanged) else event.run
        for event in registry.log
        if isinstance(event, PromotionRejected | ApprovalRequested)
        or (isinstance(event, RolloutChanged) and event.actor == "registry")
    ]
    assert sorted(by_registry) == sorted(registry.model.runs)

    rollouts = [event for event in registry.log if isinstance(event, RolloutChanged)]
    assert [event.previous for event in rollouts] == [None, *(event.plan.champion.version for event in rollouts)][
        : len(rollouts)
    ]
    assert registry.champion == (rollouts[-1].plan.champion.version if rollouts else None)
    assert registry.champion not in registry.model.past

    folded = Model(name="digits")
    for number, event in enumerate(registry.log, start=1):
        folded = evolve(folded, event, f"event {number}", NOW)
    assert folded == registry.model == Model.model_validate_json(registry.model.model_dump_json())


@given(commands)
def test_whatever_happened_a_cause_heard_twice_says_nothing_new(commands):
    registry = Registry()
    registry.apply(spec())
    for command in commands:
        carry_out(registry, command)
        if command[0] in ("trained", "spec"):
            said = len(registry.log)
            carry_out(registry, command)
            assert len(registry.log) == said


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mailto://ops:${HOME}@mail", r"notify.urls\[1\]: \$\{HOME\} may not be used"),
        ("${MEGURI_DATABASE_URL}", "names of variables begin with NOTIFY_"),
        ("ops:secret@example.com", "this is no URL"),
        ("mailtoo://ops:secret@example.com", r"notify.urls\[1\]: messages cannot be sent .* near are: mailto"),
        ("secret://ops:secret@example.com", "see https://appriseit.com"),
    ],
)
def test_a_url_that_nobody_can_be_told_by_is_refused_without_being_said_again(url, reason):
    urls = ("${NOTIFY_OPS}", url)
    with pytest.raises(Invalid, match=reason) as refused:
        apply_spec(Model(name="digits"), spec(notify={"urls": urls}), "ada", {})

    assert "secret" not in str(refused.value)


def test_urls_with_variables_of_their_own_are_taken():
    urls = (
        "${NOTIFY_OPS}",
        "mailto://ops:${NOTIFY_PASSWORD}@mail",
        "JSON://127.0.0.1/hook",
        "https://hooks.slack.com/services/a/b/c",
        "${NOTIFY_HOW}://host",
    )

    assert apply_spec(Model(name="digits"), spec(notify={"urls": urls}), "ada", {})


def test_all_ways_of_sending_messages_are_known():
    assert {*NotificationManager().schemas(), "http", "https"} == SCHEMES

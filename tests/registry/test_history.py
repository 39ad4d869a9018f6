"""What was known after some events is what the decisions rest on then."""

from datetime import UTC, datetime

from meguri_contracts.events import (
    ApprovalRequested,
    Canary,
    Event,
    ModelRegistered,
    Plan,
    PromotionRejected,
    RolloutChanged,
)
from meguri_contracts.spec import CanaryPolicy
from meguri_registry import history
from meguri_registry.history import Known
from meguri_registry.promotion import deployed
from tests.registry.registering import model_trained

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def fold(events: list[Event]) -> dict[str, Known]:
    return history.fold((event, f"event {number}", NOW) for number, event in enumerate(events))


def registered(version: int) -> ModelRegistered:
    return ModelRegistered(model="m", version=version, run=f"run-{version}")


def crowned(version: int) -> RolloutChanged:
    champion = deployed(model_trained("m", f"run-{version}", 0.9, None, 1), version)
    return RolloutChanged(model="m", plan=Plan(champion=champion), reason="r", actor="a")


def test_the_latest_verdict_on_a_version_is_the_one_that_is_known():
    said = [
        *(registered(version) for version in (1, 2, 3)),
        crowned(1),
        PromotionRejected(model="m", version=2, run="run-2", reason="r"),
        ApprovalRequested(model="m", version=3, run="run-3", reason="r"),
    ]

    assert fold(said)["m"].verdicts == {1: "promoted", 2: "rejected", 3: "approval requested"}
    known = fold([*said, crowned(2)])["m"]
    assert known.verdicts == {1: "promoted", 2: "promoted", 3: "approval requested"}
    assert (known.model.champion.version, known.model.past) == (2, (1,))


def test_what_answers_beside_the_champion_is_known_and_that_it_was_taken_back():
    canary = Canary(candidate=crowned(2).plan.champion, weight=0.05, step=0, policy=CanaryPolicy())
    tried = RolloutChanged(
        model="m", plan=Plan(champion=crowned(1).plan.champion, canary=canary), reason="r", actor="a"
    )
    said = [registered(1), registered(2), crowned(1), tried]

    during, after = fold(said)["m"], fold([*said, crowned(1)])["m"]

    assert (during.verdicts, during.model.plan.canary) == ({1: "promoted", 2: "canary"}, canary)
    assert (after.verdicts, after.model.plan.canary) == ({1: "promoted", 2: "taken back"}, None)
    assert after.model.past == ()


def test_each_model_is_known_by_itself():
    other = ModelRegistered(model="n", version=1, run="run-1")

    assert {name: known.model.runs for name, known in fold([registered(1), other, registered(2)]).items()} == {
        "m": {"run-1": 1, "run-2": 2},
        "n": {"run-1": 1},
    }
    assert fold([]) == {}

"""What was known after some events is what the decisions rest on then."""

from meguri_contracts.events import ApprovalRequested, ModelRegistered, Plan, PromotionRejected, RolloutChanged
from meguri_registry.history import fold
from meguri_registry.promotion import deployed
from tests.registry.test_api import model_trained


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


def test_each_model_is_known_by_itself():
    other = ModelRegistered(model="n", version=1, run="run-1")

    assert {name: known.model.runs for name, known in fold([registered(1), other, registered(2)]).items()} == {
        "m": {"run-1": 1, "run-2": 2},
        "n": {"run-1": 1},
    }
    assert fold([]) == {}

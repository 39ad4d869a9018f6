"""Runs and rollouts of a model as training and registry say them."""

from meguri_contracts.events import (
    Artifact,
    Deployed,
    Plan,
    RolloutChanged,
    Signature,
    Tensor,
    TrainingStarted,
    Trigger,
)
from meguri_contracts.spec import ModelSpec

FILE = Artifact(uri="file:///f", digest="0", size=1)
TENSOR = Tensor(name="input", datatype="FP32", shape=(-1, 1))
SIGNATURE = Signature(features=("x",), input=TENSOR, outputs=(TENSOR,))
SPEC = ModelSpec.model_validate(
    {
        "model": "m",
        "task": "classification",
        "dataset": {"name": "d", "columns": {"x": {"type": "number"}, "y": {"type": "integer"}}},
        "target": "y",
        "estimator": {"name": "LogisticRegression"},
        "gate": "accuracy > 0",
    }
)


def deployed(version: int, run: str) -> Deployed:
    return Deployed(version=version, run=run, onnx=FILE, profile=FILE, signature=SIGNATURE)


def rollout(champion: Deployed, canary: Deployed | None = None) -> RolloutChanged:
    part = {"candidate": canary, "weight": 0.1, "step": 0, "policy": {}} if canary else None
    plan = Plan.model_validate({"champion": champion, "canary": part})
    return RolloutChanged(model="m", plan=plan, reason="as decided", actor="registry")


def started(run: str, *events: str) -> TrainingStarted:
    return TrainingStarted(
        model="m",
        run=run,
        spec=SPEC,
        spec_version=1,
        dataset_version=1,
        dataset_digest="d",
        dataset_rows=10,
        triggers=tuple(Trigger(event=event, kind="drift-detected") for event in events),
    )

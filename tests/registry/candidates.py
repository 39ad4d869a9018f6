"""Trained models as the registry judges them, and the spec that it judges by."""

from meguri_contracts.events import Artifact, Evaluation, Event, ModelTrained, Signature, Tensor
from meguri_contracts.spec import ModelSpec


def spec(gate: str = "accuracy >= 0.8 and accuracy >= champion.accuracy - 0.01", **changes) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "model": "digits",
            "task": "classification",
            "dataset": {"name": "images", "columns": {"x": {"type": "number"}, "digit": {"type": "integer"}}},
            "target": "digit",
            "estimator": {"name": "LogisticRegression"},
            "gate": gate,
            **changes,
        }
    )


def artifact(content: str) -> Artifact:
    return Artifact(uri=f"file:///{content}", digest=content, size=len(content))


def trained(run: str, accuracy: float, champion: tuple[int, float] | None = None, onnx: str = "") -> ModelTrained:
    """A trained model that was compared with `champion`: its version and its accuracy."""
    return ModelTrained(
        model="digits",
        run=run,
        spec_version=1,
        dataset="images",
        dataset_version=1,
        dataset_digest="d",
        train_rows=75,
        holdout_rows=25,
        candidate=Evaluation(version=0, metrics={"accuracy": accuracy}),
        champion=Evaluation(version=champion[0], metrics={"accuracy": champion[1]}) if champion else None,
        onnx=artifact(onnx or f"onnx of {run}"),
        skops=artifact("skops"),
        profile=artifact("profile"),
        signature=Signature(
            features=("x",),
            input=Tensor(name="x", datatype="FP64", shape=(-1, 1)),
            outputs=(Tensor(name="label", datatype="INT64", shape=(-1,)),),
        ),
        parity=0,
        environment={},
        seconds=1,
        fit_seconds=1,
    )


def types(events: list[Event]) -> list[type[Event]]:
    return [type(event) for event in events]

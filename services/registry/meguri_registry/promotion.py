"""Who is champion, and why: the decisions of the registry as plain functions of plain values."""

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, field_serializer

from meguri_contracts.errors import Conflict, Invalid, NotFound
from meguri_contracts.events import (
    ApprovalRequested,
    Deployed,
    Evaluation,
    Event,
    Judged,
    ModelRegistered,
    ModelTrained,
    Plan,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
    TrainingRequested,
)
from meguri_contracts.gates import Rule, parse_gate
from meguri_contracts.spec import Dataset, ModelSpec


class Model(BaseModel):
    """What the registry must know of a model to decide: the state that `evolve` builds from the log."""

    model_config = ConfigDict(frozen=True)

    name: str
    spec: ModelSpec | None = None
    spec_version: int = 0
    spec_digest: str = ""
    runs: dict[str, int] = {}
    """Version number of each run."""
    judged: frozenset[int] = frozenset()
    """Versions that have a verdict."""
    champion: Deployed | None = None
    past: tuple[int, ...] = ()
    """Versions that were champion before, oldest first; a rollback goes to the last one."""
    rolled_back: frozenset[str] = frozenset()
    """Digests of model files that were taken out of service by a rollback."""

    @field_serializer("judged", "rolled_back")
    def _in_order(self, found: frozenset[Any]) -> list[Any]:
        # A set has an order of its own in each process; the state must be the same in all.
        return sorted(found)


def apply_spec(model: Model, spec: ModelSpec, actor: str, datasets: Mapping[str, Dataset]) -> list[Event]:
    """Make `spec` the model's spec; silence if it is already. `datasets` are those that other models declare.

    Raises Conflict when another model declares the same dataset otherwise.
    """
    if (other := datasets.get(spec.dataset.name)) is not None and other != spec.dataset:
        raise Conflict(
            f"dataset {spec.dataset.name!r} is declared differently by another model: "
            "declare it alike in both specs, or give it another name"
        )
    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    if digest == model.spec_digest:
        return []
    return [SpecApplied(model=model.name, spec=spec, version=model.spec_version + 1, digest=digest, actor=actor)]


def judge(model: Model, trained: ModelTrained) -> list[Event]:
    """Register a trained model and promote it if its gate holds against the champion on the same hold-out."""
    registered = trained.run in model.runs
    version = model.runs.get(trained.run, len(model.runs) + 1)
    if version in model.judged:
        return []
    said: list[Event] = [] if registered else [ModelRegistered(model=model.name, version=version, run=trained.run)]
    return said + _verdict(model, trained, version)


def _verdict(model: Model, trained: ModelTrained, version: int) -> list[Event]:
    if model.spec is None:
        raise NotFound(f"model {model.name!r} has no spec: apply one with `meguri apply`")
    champion = model.champion.version if model.champion else None
    compared_with = trained.champion.version if trained.champion else None
    if champion != compared_with:
        reason = f"it was compared with {_named(compared_with)}, but {_named(champion)} serves now"
        # The verdict last: once it is said, nothing more is decided on this run, and the request would be lost.
        return [
            TrainingRequested(model=model.name, reason=f"version {version}: {reason}", actor="registry"),
            PromotionRejected(model=model.name, version=version, run=trained.run, reason=reason),
        ]
    judged = tuple(_judge(rule, trained.candidate, trained.champion) for rule in parse_gate(model.spec.gate))
    failed = [one.rule for one in judged if not one.holds]
    if failed:
        reason = f"the gate does not hold: {' and '.join(failed)}"
        return [PromotionRejected(model=model.name, version=version, run=trained.run, reason=reason, judged=judged)]
    if deployed(trained, version).served.digest in model.rolled_back:
        reason = "the gate holds, but the same model was rolled back before: `meguri promote` says yes"
        return [ApprovalRequested(model=model.name, version=version, run=trained.run, reason=reason, judged=judged)]
    return [_rollout(model, deployed(trained, version), reason="the gate holds", actor="registry", judged=judged)]


def promote(model: Model, version: Deployed, actor: str, reason: str) -> list[Event]:
    """Make a version champion because a person says so; silence if it is already."""
    if model.champion and model.champion.version == version.version:
        return []
    return [_rollout(model, version, reason=reason, actor=actor)]


def previous(model: Model) -> int:
    """Return the version that a rollback goes to. Raises Conflict when there is none."""
    if not model.past:
        raise Conflict(f"model {model.name!r} has no earlier champion to go back to")
    return model.past[-1]


def deployed(trained: ModelTrained, version: int) -> Deployed:
    """Return what is needed to serve a trained model under a version."""
    return Deployed(
        version=version,
        run=trained.run,
        onnx=trained.onnx,
        profile=trained.profile,
        signature=trained.signature,
        skops=trained.skops,
        engine=trained.engine,
        engine_reason=trained.engine_reason,
    )


def evolve(model: Model, event: Event) -> Model:
    """Return the model after an event."""
    match event:
        case SpecApplied():
            return model.model_copy(
                update={"spec": event.spec, "spec_version": event.version, "spec_digest": event.digest}
            )
        case ModelRegistered():
            return model.model_copy(update={"runs": {**model.runs, event.run: event.version}})
        case PromotionRejected() | ApprovalRequested():
            return model.model_copy(update={"judged": model.judged | {event.version}})
        case RolloutChanged(plan=Plan(champion=champion)):
            return _crown(model, champion)
        case _:
            return model


def _crown(model: Model, champion: Deployed) -> Model:
    before, past, rolled_back = model.champion, model.past, model.rolled_back
    if before and champion.version in past:
        past, rolled_back = past[: past.index(champion.version)], rolled_back | {before.served.digest}
    elif before:
        past = (*past, before.version)
    return model.model_copy(
        update={
            "champion": champion,
            "judged": model.judged | {champion.version},
            "past": past,
            "rolled_back": rolled_back - {champion.served.digest},
        }
    )


def _rollout(
    model: Model, champion: Deployed, *, reason: str, actor: str, judged: tuple[Judged, ...] = ()
) -> RolloutChanged:
    before = model.champion.version if model.champion else None
    return RolloutChanged(
        model=model.name, plan=Plan(champion=champion), previous=before, reason=reason, actor=actor, judged=judged
    )


def _judge(rule: Rule, candidate: Evaluation, champion: Evaluation | None) -> Judged:
    try:
        holds = rule.holds(candidate.metrics, champion.metrics if champion else None)
        text = rule.text
    except Invalid as error:
        holds, text = False, f"{rule.text} ({error})"
    numbers = {name: candidate.metrics[name] for name in sorted(rule.metrics) if name in candidate.metrics}
    theirs = (
        {name: champion.metrics[name] for name in sorted(rule.metrics) if name in champion.metrics}
        if champion
        else None
    )
    return Judged(rule=text, holds=holds, candidate=numbers, champion=theirs)


def _named(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"

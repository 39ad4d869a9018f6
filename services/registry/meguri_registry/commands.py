"""What people ask for: specs, runs, and every change of a traffic plan. The same key again changes nothing more."""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar
from uuid import uuid4

import yaml
from fastapi import APIRouter, Body, Header, Request
from pydantic import BaseModel, Field, ValidationError
from sqlmodel import Session

from meguri_chassis.log import explain
from meguri_chassis.projection import recorded
from meguri_chassis.service import Service
from meguri_contracts.errors import Invalid
from meguri_contracts.events import Event, RolloutChanged, TrainingRequested
from meguri_contracts.names import NAME_PATTERN, derived_id
from meguri_contracts.spec import CanaryPolicy, ModelSpec, TrialPolicy
from meguri_registry import promotion, rollouts, store
from meguri_registry.models import Model

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Version = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(gt=0, lt=1)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128)]
Actor = Annotated[str, Header(alias="Meguri-Actor", max_length=128)]

Policy = TypeVar("Policy", CanaryPolicy, TrialPolicy)

MAX_ARMS = 10
"""Versions that an A/B test may compare with the champion at once."""


class Said(BaseModel):
    """What a command appended to the log; empty when all was so already."""

    events: list[dict[str, Any]]


class Because(BaseModel):
    reason: str = Field(default="asked for by hand", max_length=1000)


class Promote(BaseModel):
    version: Version
    reason: str = "promoted by hand"


class Try(Because):
    """A canary. `policy` is what differs from the policy of the model's spec."""

    version: Version
    policy: dict[str, Any] = Field(default={}, examples=[{"steps": [0.1, 0.5], "requests": 100}])


class Compare(Because):
    """An A/B test. One weight is that of each version; without any all have the same. `policy` as in a canary."""

    versions: list[Version] = Field(min_length=1, max_length=MAX_ARMS)
    weights: list[Weight] = Field(default=[], max_length=MAX_ARMS)
    policy: dict[str, Any] = Field(default={}, examples=[{"alpha": 0.01}])


class Ask(Because):
    """A shadow, or with `stop` none any more."""

    version: Version
    share: Share = 1.0
    stop: bool = False


def routes(service: Service) -> APIRouter:
    """Return the routes of commands."""
    router = APIRouter()
    decider = service.decider
    assert decider is not None

    async def carry_out(decide: Callable[[Session], Sequence[Event]], key: str | None) -> Said:
        command = key or str(uuid4())
        events = await decider.carry_out(decide, cause=command, journey=command)
        await decider.settled()
        return Said(events=[{"type": event.type, **event.model_dump(mode="json")} for event in events])

    async def change(name: str, decide: Callable[[Session, Model], Sequence[Event]], key: str | None) -> Said:
        def once(session: Session) -> Sequence[Event]:
            model = store.known_model(session, name)
            # Sent again after it was done, it may be refused, or be another change.
            if key and recorded(session, derived_id(key, RolloutChanged.type, name, "")):
                return []
            return decide(session, model)

        return await carry_out(once, key)

    @router.post("/specs", tags=["specs"])
    async def apply_spec(request: Request, key: Key = None, actor: Actor = "unknown") -> Said:
        """Apply a model spec, YAML or JSON. The same spec again changes nothing."""
        spec = _spec(await request.body())
        return await carry_out(
            lambda session: promotion.apply_spec(
                store.model(session, spec.model), spec, actor, store.datasets_of_others(session, spec.model)
            ),
            key,
        )

    @router.post("/models/{name}/promote", tags=["commands"])
    async def promote(name: Name, body: Promote, key: Key = None, actor: Actor = "unknown") -> Said:
        """Make a version champion by hand, which ends a canary or an A/B test; also the answer to approval-requested."""

        def decide(session: Session, model: Model) -> Sequence[Event]:
            return rollouts.promote(model, store.deployable(session, name, body.version), actor, body.reason)

        return await change(name, decide, key)

    @router.post("/models/{name}/rollback", tags=["commands"])
    async def rollback(
        name: Name, body: Annotated[Because, Body()] = Because(), key: Key = None, actor: Actor = "unknown"
    ) -> Said:
        """End the canary or the A/B test; when there is none, go back to the champion before the present one."""
        reason = f"rollback: {body.reason}"

        def decide(session: Session, model: Model) -> Sequence[Event]:
            if model.plan and rollouts.trying(model.plan):
                return rollouts.end(model, actor, reason)
            before = store.deployable(session, name, rollouts.previous(model))
            return rollouts.promote(model, before, actor, reason, back=True)

        return await change(name, decide, key)

    @router.post("/models/{name}/canary", tags=["commands"])
    async def canary(name: Name, body: Try, key: Key = None, actor: Actor = "unknown") -> Said:
        """Let a version answer a growing share of the requests until it is champion or is taken back."""

        def decide(session: Session, model: Model) -> Sequence[Event]:
            usual = model.spec.rollout.canary if model.spec else CanaryPolicy()
            policy = _changed(usual, body.policy)
            version = store.deployable(session, name, body.version)
            return rollouts.canary(model, version, policy, actor, body.reason)

        return await change(name, decide, key)

    @router.post("/models/{name}/ab", tags=["commands"])
    async def ab(name: Name, body: Compare, key: Key = None, actor: Actor = "unknown") -> Said:
        """Compare versions with the champion on labelled predictions, until one is surely better or none is."""

        def decide(session: Session, model: Model) -> Sequence[Event]:
            usual = model.spec.rollout.trial if model.spec else TrialPolicy()
            policy = _changed(usual, body.policy)
            versions = [store.deployable(session, name, version) for version in body.versions]
            return rollouts.ab(model, versions, body.weights, policy, actor, body.reason)

        return await change(name, decide, key)

    @router.post("/models/{name}/shadow", tags=["commands"])
    async def shadow(name: Name, body: Ask, key: Key = None, actor: Actor = "unknown") -> Said:
        """Ask a version beside the one that answers, until it is stopped; nobody sees its answers."""

        def decide(session: Session, model: Model) -> Sequence[Event]:
            version = store.deployable(session, name, body.version)
            if body.stop:
                return rollouts.stop_shadow(model, body.version, actor, body.reason)
            return rollouts.shadow(model, version, body.share, actor, body.reason)

        return await change(name, decide, key)

    @router.post("/models/{name}/train", tags=["commands"], status_code=202)
    async def train(
        name: Name, body: Annotated[Because, Body()] = Because(), key: Key = None, actor: Actor = "unknown"
    ) -> Said:
        """Ask for a run now, whatever the triggers say."""

        def request(session: Session) -> list[Event]:
            store.known_model(session, name)
            return [TrainingRequested(model=name, reason=body.reason, actor=actor)]

        return await carry_out(request, key)

    return router


def _spec(text: bytes) -> ModelSpec:
    try:
        data = json.loads(text) if text.lstrip().startswith(b"{") else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise Invalid(f"the spec is neither YAML nor JSON: {error}") from error
    try:
        return ModelSpec.model_validate(data)
    except ValidationError as error:
        raise Invalid(f"the spec breaks a rule: {explain(error, whole='')}") from error


def _changed(policy: Policy, changes: dict[str, Any]) -> Policy:
    try:
        return type(policy).model_validate(policy.model_dump() | changes)
    except ValidationError as error:
        raise Invalid(f"the policy breaks a rule: {explain(error)}") from error

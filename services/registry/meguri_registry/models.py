"""What the registry must know of a model to decide, and how each event changes it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field, field_serializer, model_validator

from meguri_contracts.events import (
    ApprovalRequested,
    ArmObserved,
    Deployed,
    Event,
    ModelRegistered,
    Plan,
    PromotionRejected,
    QualityMeasured,
    RolloutChanged,
    RolloutObserved,
    SpecApplied,
)
from meguri_contracts.spec import ModelSpec

LIVES = 200
"""Lives of replicas whose observations are kept. Of more, those are forgotten that were not heard for longest; whoever of
them speaks again brings all its numbers with it."""


class Seen(BaseModel):
    """What one life of a replica said last."""

    model_config = ConfigDict(frozen=True)

    number: int
    arms: tuple[ArmObserved, ...]


class Model(BaseModel):
    """The state that `evolve` builds from the log."""

    model_config = ConfigDict(frozen=True)

    name: str
    spec: ModelSpec | None = None
    spec_version: int = 0
    spec_digest: str = ""
    runs: dict[str, int] = {}
    """Version number of each run."""
    judged: frozenset[int] = frozenset()
    """Versions that have a verdict."""
    plan: Plan | None = None
    """Who answers now; None before the first champion."""
    rollout: str = ""
    """Id of the event that brought the plan."""
    since: datetime | None = None
    """When it was said."""
    seen: dict[str, Seen] = {}
    """What each life of a replica saw of this plan, whoever spoke last at the end."""
    heard: datetime | None = None
    """When the latest of it was said."""
    quality: QualityMeasured | None = None
    """What labels say of the champion and the challengers of this plan."""
    past: tuple[int, ...] = ()
    """Versions that were champion before, oldest first and each once; a rollback goes to the last one."""
    rolled_back: frozenset[str] = frozenset()
    """Digests of model files that were taken out of service by a rollback, or as a canary."""

    # Also for replicas of a version of meguri that knew champions only: they read it from the state.
    @computed_field  # type: ignore[prop-decorator]
    @property
    def champion(self) -> Deployed | None:
        return self.plan.champion if self.plan else None

    @model_validator(mode="before")
    @classmethod
    def _of_champions_only(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("champion") and not given.get("plan"):
            return {**given, "plan": {"champion": given["champion"]}}
        return given

    @field_serializer("judged", "rolled_back")
    def _in_order(self, found: frozenset[Any]) -> list[Any]:
        # A set has an order of its own in each process; the state must be the same in all.
        return sorted(found)


def evolve(model: Model, event: Event, event_id: str, time: datetime) -> Model:
    """Return the model after an event that was said at a time."""
    match event:
        case SpecApplied():
            return model.model_copy(
                update={"spec": event.spec, "spec_version": event.version, "spec_digest": event.digest}
            )
        case ModelRegistered():
            return model.model_copy(update={"runs": {**model.runs, event.run: event.version}})
        case PromotionRejected() | ApprovalRequested():
            return model.model_copy(update={"judged": model.judged | {event.version}})
        case RolloutChanged():
            return _follow(model, event, event_id, time)
        case RolloutObserved():
            return _observe(model, event, time)
        case QualityMeasured() if model.plan and _is_about(event, model.plan):
            return model.model_copy(update={"quality": event})
        case _:
            return model


def versions(plan: Plan) -> tuple[int, ...]:
    """Return the versions in a plan, the champion first."""
    return tuple(deployed.version for deployed in plan.deployed)


def _follow(model: Model, rollout: RolloutChanged, event_id: str, time: datetime) -> Model:
    before, plan = model.plan, rollout.plan
    same = before and (before.champion, before.challengers) == (plan.champion, plan.challengers)
    after = model if before and before.champion.version == plan.champion.version else _crown(model, rollout)
    return after.model_copy(
        update={
            "plan": plan,
            "rollout": event_id,
            "since": time,
            "seen": {},
            "heard": None,
            "quality": model.quality if same else None,
            "judged": model.judged | set(versions(plan)),
            "rolled_back": (after.rolled_back | _taken_back(before, plan)) - {plan.champion.served.digest},
        }
    )


def _crown(model: Model, rollout: RolloutChanged) -> Model:
    before, rolled_back, version = model.champion, model.rolled_back, rollout.plan.champion.version
    if before and version in model.past:
        rolled_back = rolled_back | {before.served.digest}
    past = tuple(one for one in model.past if one != version)
    # Rollouts of before this was said have it in their reason only.
    if before and not (rollout.back or rollout.reason.startswith("rollback: ")):
        past = (*past, before.version)
    return model.model_copy(update={"past": past, "rolled_back": rolled_back})


def _taken_back(before: Plan | None, after: Plan) -> set[str]:
    """A canary that is gone, and not because another version became champion over its head, was not good enough."""
    if not (before and before.canary) or before.champion.version != after.champion.version:
        return set()
    candidate = before.canary.candidate
    return set() if candidate.version in versions(after) else {candidate.served.digest}


def _observe(model: Model, event: RolloutObserved, time: datetime) -> Model:
    known = model.seen.get(event.replica)
    # A plan's observations arrive late, too, and of one replica in any order.
    if event.rollout != model.rollout or (known and known.number >= event.number):
        return model
    others = {replica: seen for replica, seen in model.seen.items() if replica != event.replica}
    kept = dict(list(others.items())[-(LIVES - 1) :])
    heard = max(time, model.heard) if model.heard else time
    return model.model_copy(
        update={"seen": {**kept, event.replica: Seen(number=event.number, arms=event.arms)}, "heard": heard}
    )


def _is_about(event: QualityMeasured, plan: Plan) -> bool:
    """A measurement names no plan: it is about the one with this champion and these challengers."""
    measured = [arm.version for arm in event.arms]
    return measured[:1] == [plan.champion.version] and {one.version for one in plan.challengers} <= set(measured)

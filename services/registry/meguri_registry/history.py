"""What was known at a time: the decisions' own fold over the events up to then."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from meguri_contracts.events import (
    ApprovalRequested,
    Event,
    ModelRegistered,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
)
from meguri_registry.models import Model, evolve
from meguri_registry.rollouts import shadowed, verdicts

KINDS = (SpecApplied, ModelRegistered, PromotionRejected, ApprovalRequested, RolloutChanged)
"""Events that change what is known of a model."""


@dataclass
class Known:
    """A model as it stood, and the latest verdict on each of its versions."""

    model: Model
    verdicts: dict[int, str] = field(default_factory=dict)


def fold(said: Iterable[tuple[Event, str, datetime]]) -> dict[str, Known]:
    """Return every model as it is after these events, each with its id and its time, in log order."""
    found: dict[str, Known] = {}
    for event, id_, time in said:
        known = found.setdefault(event.key, Known(Model(name=event.key)))
        match event:
            case PromotionRejected():
                known.verdicts[event.version] = "rejected"
            case ApprovalRequested():
                known.verdicts[event.version] = "approval requested"
            case RolloutChanged():
                known.verdicts |= verdicts(known.model.plan, event.plan)
                known.verdicts = dict.fromkeys(shadowed(known.model.plan, event.plan), "shadow") | known.verdicts
        known.model = evolve(known.model, event, id_, time)
    return found

"""What was known at a time: the decisions' own fold over the events up to then."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from meguri_contracts.events import (
    ApprovalRequested,
    Event,
    ModelRegistered,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
)
from meguri_registry.promotion import Model, evolve

KINDS = (SpecApplied, ModelRegistered, PromotionRejected, ApprovalRequested, RolloutChanged)
"""Events that change what is known of a model."""


@dataclass
class Known:
    """A model as it stood, and the latest verdict on each of its versions."""

    model: Model
    verdicts: dict[int, str] = field(default_factory=dict)


def fold(events: Iterable[Event]) -> dict[str, Known]:
    """Return every model as it is after these events, which are in log order."""
    found: dict[str, Known] = {}
    for event in events:
        known = found.setdefault(event.key, Known(Model(name=event.key)))
        known.model = evolve(known.model, event)
        match event:
            case PromotionRejected():
                known.verdicts[event.version] = "rejected"
            case ApprovalRequested():
                known.verdicts[event.version] = "approval requested"
            case RolloutChanged():
                known.verdicts[event.plan.champion.version] = "promoted"
    return found

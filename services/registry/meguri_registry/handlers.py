"""Events in, events out."""

from collections.abc import Sequence

from sqlmodel import Session

from meguri_chassis.bus import hears
from meguri_contracts.events import Event, ModelTrained, QualityMeasured, RolloutObserved
from meguri_registry import observing, promotion, store


@hears(ModelTrained)
def judge(trained: ModelTrained, session: Session) -> Sequence[Event]:
    """Give a trained model its version and its verdict."""
    return promotion.judge(store.model(session, trained.model), trained)


@hears(RolloutObserved, QualityMeasured)
def watch(observation: RolloutObserved | QualityMeasured, session: Session) -> Sequence[Event]:
    """Carry a canary on or take it back, end an A/B test: by all that was seen until now, not by this alone."""
    return observing.decide(store.model(session, observation.model))

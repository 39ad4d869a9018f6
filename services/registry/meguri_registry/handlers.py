"""Events in, events out."""

import logging
from collections.abc import Sequence

from sqlmodel import Session

from meguri_chassis.bus import hears
from meguri_contracts.events import OPENINGS, Event, ModelTrained, QualityMeasured, RolloutObserved
from meguri_registry import observing, promotion, rollouts, store

logger = logging.getLogger(__name__)


@hears(ModelTrained)
def judge(trained: ModelTrained, session: Session) -> Sequence[Event]:
    """Give a trained model its version and its verdict."""
    return promotion.judge(store.model(session, trained.model), trained)


@hears(RolloutObserved, QualityMeasured)
def watch(observation: RolloutObserved | QualityMeasured, session: Session) -> Sequence[Event]:
    """Carry a canary on or take it back, end an A/B test: by all that was seen until now, not by this alone."""
    return observing.decide(store.model(session, observation.model))


@hears(*OPENINGS)
def go_back(episode: rollouts.Opening, session: Session) -> Sequence[Event]:
    """Go back to the champion before, where an episode asks for that; without one there is nothing to do but to tell it.

    One about a version that answers beside the champion asks that it be taken back.
    """
    model = store.model(session, episode.model)
    if not rollouts.is_to_go_back(model, episode):
        return rollouts.take_back(model, episode)
    if not model.past:
        logger.warning("an episode asks %s to go back, but version %d is its first", model.name, episode.version)
        return []
    return rollouts.go_back(model, store.deployable(session, model.name, rollouts.previous(model)), episode)

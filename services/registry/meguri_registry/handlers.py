"""Events in, events out."""

from collections.abc import Sequence

from sqlmodel import Session

from meguri_chassis.bus import hears
from meguri_contracts.events import Event, ModelTrained
from meguri_registry import promotion, store


@hears(ModelTrained)
def judge(trained: ModelTrained, session: Session) -> Sequence[Event]:
    """Give a trained model its version and its verdict."""
    return promotion.judge(store.model(session, trained.model), trained)

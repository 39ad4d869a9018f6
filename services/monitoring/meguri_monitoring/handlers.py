"""Events in, events out."""

from collections.abc import Sequence

from sqlmodel import Session

from meguri_chassis.bus import hears
from meguri_contracts.events import Event, RolloutChanged
from meguri_monitoring import store
from meguri_monitoring.episodes import episodes


@hears(RolloutChanged)
def end_episode(rollout: RolloutChanged, session: Session) -> Sequence[Event]:
    """Another version is champion: the drift that was seen of the one before is over."""
    return episodes.resolve(store.state(session, rollout.model), rollout)

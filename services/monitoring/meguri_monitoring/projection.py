"""Events into the tables of monitoring, but for the windows: they follow from predictions, which `handlers.Watcher` counts."""

from sqlmodel import Session

from meguri_chassis.log import Message
from meguri_contracts.events import DriftDetected, EpisodeResolved, Event, RolloutChanged, SpecApplied
from meguri_monitoring import episodes, store

HEARS = (SpecApplied, RolloutChanged, DriftDetected, EpisodeResolved)


def evolve(session: Session, event: Event, message: Message) -> None:
    rule = event.spec.monitor if isinstance(event, SpecApplied) else store.rule(session, event.key)
    state = store.state(session, event.key)
    store.keep(session, episodes.evolve(state, event, message.sequence, message.hops), rule)
    match event:
        case RolloutChanged(plan=plan):
            version = store.VersionRow(
                model=event.model, version=plan.champion.version, profile=plan.champion.profile.model_dump()
            )
            session.merge(version)
        case DriftDetected():
            episode = store.EpisodeRow(
                episode=event.episode,
                model=event.model,
                version=event.version,
                detected=event.model_dump(mode="json"),
                opened=message.time,
            )
            session.merge(episode)
        case EpisodeResolved():
            if opened := session.get(store.EpisodeRow, event.episode):
                opened.resolved, opened.reason = message.time, event.reason
                session.add(opened)

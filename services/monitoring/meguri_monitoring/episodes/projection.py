"""Events into the tables of episodes: each episode, and in its timeline all that happened because of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sqlmodel import Session

from meguri_chassis.log import Message
from meguri_contracts.events import (
    ApprovalRequested,
    EpisodeAcknowledged,
    EpisodeResolved,
    EpisodeWorsened,
    Event,
    MeasuresRefilled,
    ModelTrained,
    NoticeFailed,
    NoticeSent,
    PromotionRejected,
    RolloutChanged,
    TrainingFailed,
    TrainingPostponed,
    TrainingStarted,
)
from meguri_monitoring.episodes import episodes, timeline
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.episodes.looks import Opening
from meguri_monitoring.episodes.store import ENDED, RUNNING, TRIED, EpisodeRow, TimelineRow


def record(session: Session, event: Event, message: Message) -> None:
    """Keep what an event says of episodes, and in their timelines that it was said."""
    if isinstance(event, Opening):
        session.merge(_opened(event, message))
        _add_line(session, event.episode, event, message)
        return
    for row in _concerned(session, event, message):
        _change(row, event, message)
        session.add(row)
        _add_line(session, row.episode, event, message)


def _opened(event: Opening, message: Message) -> EpisodeRow:
    known = asdict(episodes.opened(event))
    about, subject, producer, score = (known[name] for name in ("about", "subject", "producer", "score"))
    return EpisodeRow(
        episode=event.episode,
        model=event.model,
        version=event.version,
        detected=event.model_dump(mode="json"),
        opened=message.time,
        about=about,
        subject=subject,
        producer=producer,
        score=score,
        action=event.action,
        event=message.id,
    )


def _concerned(session: Session, event: Event, message: Message) -> Sequence[EpisodeRow]:
    match event:
        case EpisodeWorsened() | EpisodeAcknowledged() | EpisodeResolved() | NoticeSent() | NoticeFailed():
            return episode_store.known(session, event.episode)
        case TrainingPostponed() | TrainingStarted():
            return episode_store.begun_by(session, event.model, [trigger.event for trigger in event.triggers])
        case ModelTrained() | TrainingFailed() | PromotionRejected() | ApprovalRequested():
            return episode_store.led_to(session, event.model, [event.run])
        case RolloutChanged():
            runs = [deployed.run for deployed in event.plan.deployed]
            tried = episode_store.tried(session, event.model)
            back = episode_store.begun_by(session, event.model, [message.cause]) if message.cause else []
            found = (*episode_store.led_to(session, event.model, runs), *tried, *back)
            return list({row.episode: row for row in found}.values())
        case MeasuresRefilled():
            return episode_store.latest_of_measures(session, event.model, event.evaluator)
        case _:
            return []


def _change(row: EpisodeRow, event: Event, message: Message) -> None:
    match event:
        case EpisodeWorsened():
            row.score = event.now
        case EpisodeAcknowledged():
            row.acknowledged, row.actor, row.note = message.time, event.actor, event.note
        case EpisodeResolved():
            row.resolved, row.reason = message.time, event.reason
        case TrainingStarted():
            row.run, row.stage = event.run, RUNNING
        case TrainingFailed() | PromotionRejected():
            row.stage = ENDED
        case RolloutChanged() if row.run:
            others = {one.run for one in event.plan.deployed} - {event.plan.champion.run}
            row.stage = TRIED if row.run in others else ENDED


def _add_line(session: Session, episode: str, event: Event, message: Message) -> None:
    session.merge(
        TimelineRow(
            episode=episode,
            sequence=message.sequence,
            time=message.time,
            kind=event.kind(),
            text=timeline.sentence(event),
            event=message.id,
            trace=_trace_of(message.headers),
        )
    )


def _trace_of(headers: Mapping[str, str]) -> str:
    """Return the trace id of a W3C traceparent; empty without one."""
    parts = headers.get("traceparent", "").split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else ""

"""Events into the tables of monitoring, but for the windows: they follow from predictions, which `handlers.Watcher` counts."""

from datetime import datetime
from typing import Any

from sqlmodel import Session

from meguri_chassis.log import Message
from meguri_contracts.events import (
    OPENINGS,
    EpisodeAcknowledged,
    EpisodeResolved,
    EpisodeWorsened,
    Event,
    LabelsArrived,
    NoticeFailed,
    NoticeSent,
    QualityMeasured,
    RolloutChanged,
    SpecApplied,
)
from meguri_monitoring import store
from meguri_monitoring.episodes import episodes, timeline
from meguri_monitoring.episodes import projection as episode_projection
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.notices import store as notice_store
from meguri_monitoring.quality import label_store, quality

HEARS = (SpecApplied, LabelsArrived, QualityMeasured, *timeline.HEARS)
TABLES = (*store.TABLES, *episode_store.TABLES, *label_store.TABLES, *notice_store.TABLES)
_OF_STATE = (SpecApplied, RolloutChanged, *OPENINGS, EpisodeWorsened, EpisodeAcknowledged, EpisodeResolved)


def evolve(session: Session, event: Event, message: Message) -> None:
    match event:
        case LabelsArrived():
            _keep_labels(session, event, message)
            return
        case QualityMeasured():
            _keep_measured(session, event)
            return
        case NoticeSent() | NoticeFailed():
            notice_store.keep_notice(session, event, message.time)
        case SpecApplied():
            notice_store.keep_notify(session, event.model, event.spec.notify, message.sequence)
        case RolloutChanged():
            _keep_plan(session, event, message)
    if isinstance(event, _OF_STATE):
        _keep_state(session, event, message)
    episode_projection.record(session, event, message)


def _keep_state(session: Session, event: Event, message: Message) -> None:
    rule = episodes.watched(event.spec) if isinstance(event, SpecApplied) else store.rule(session, event.key)
    state = store.state(session, event.key)
    store.keep(session, episodes.evolve(state, event, message.sequence, message.hops, message.time), rule)


def _keep_plan(session: Session, rollout: RolloutChanged, message: Message) -> None:
    """Keep the references of all versions, and who answers; since when and how well as long as it is the same ones."""
    plan = rollout.plan
    shadows = {shadow.candidate.version for shadow in plan.shadows}
    for deployed in plan.deployed:
        is_shadow = deployed.version in shadows
        store.keep_version(session, rollout.model, deployed.version, deployed.profile, shadow=is_shadow)
    answering = (plan.champion.version, *(deployed.version for deployed in plan.challengers))
    known = store.plan(session, rollout.model)
    if known is not None and known.versions == answering:
        return
    champion, *challengers = answering
    row = store.PlanRow(
        model=rollout.model,
        champion=champion,
        challengers=challengers,
        since=message.time,
        rollout=message.sequence,
        hops=message.hops,
        measured=[],
    )
    session.merge(row)


def _keep_labels(session: Session, arrived: LabelsArrived, message: Message) -> None:
    """Keep labels of predictions and of entities, of several of the same the last; what is not known is no label."""
    of_predictions: dict[str, dict[str, Any]] = {}
    of_entities: dict[tuple[str, datetime], dict[str, Any]] = {}
    for one in arrived.labels:
        # NaN says nothing.
        if one.label != one.label:
            continue
        row = {
            "model": arrived.model,
            "text": quality.as_text(one.label),
            "number": quality.as_number(one.label),
            "sequence": message.sequence,
        }
        if one.prediction_id is not None:
            of_predictions[one.prediction_id] = {**row, "prediction_id": one.prediction_id, "time": message.time}
        elif one.entity is not None:
            as_of = one.time or message.time
            of_entities[one.entity, as_of] = {**row, "entity": one.entity, "time": as_of}
    label_store.keep_labels(session, label_store.LabelRow, list(of_predictions.values()))
    label_store.keep_labels(session, label_store.EntityLabelRow, list(of_entities.values()))


def _keep_measured(session: Session, measured: QualityMeasured) -> None:
    plan = store.plan(session, measured.model)
    if plan is not None and plan.versions == tuple(arm.version for arm in measured.arms):
        plan.measured = [arm.model_dump() for arm in measured.arms]
        session.add(plan)

"""Questions to the tables about a past episode: what was in force, what was seen, what the labels said. Nothing is written."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, func, select

from meguri_chassis.projection import as_message
from meguri_chassis.store import JournalEntry, utc
from meguri_contracts.events import (
    ApprovalRequested,
    Artifact,
    EpisodeResolved,
    Event,
    LabelsArrived,
    ModelTrained,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
)
from meguri_contracts.spec import EpisodeKind, Monitor
from meguri_monitoring.episodes import episodes
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.episodes.episodes import State
from meguri_monitoring.episodes.store import EpisodeRow, EvidenceRow
from meguri_monitoring.evaluators.store import MeasureWindowRow
from meguri_monitoring.quality.store import ScoredRow
from meguri_monitoring.verdicts.judging import Judged
from meguri_monitoring.whatif.kept import Place
from meguri_monitoring.whatif.of_labels import Scored
from meguri_monitoring.windows.store import WindowRow

AT_ONCE = 5000
"""Rows that are fetched at once."""
_JUDGED = TypeAdapter(Judged)


@dataclass(frozen=True)
class Past:
    """An episode as it happened, and what was in force when it began."""

    row: EpisodeRow
    rule: Monitor
    spec: int | None
    """Version of the spec that said the rule; None before the first."""
    later: tuple[int, ...]
    """Specs that were applied before it ended and had the model watched otherwise."""
    state: State
    """Of the model just before it began, but for its episodes."""
    opened: int
    """Sequence in the log of what began it; `resolved` of what ended it, None as long as it is open."""
    resolved: int | None

    @property
    def about(self) -> EpisodeKind:
        return cast(EpisodeKind, self.row.about)

    @property
    def ended(self) -> datetime | None:
        return utc(self.row.resolved) if self.row.resolved else None


def past(session: Session, episode: str) -> Past:
    """Return what is known of an episode. Raises NotFound."""
    row = episode_store.episode(session, episode)
    lines = episode_store.lines(session, episode)
    opened = next(line.sequence for line in lines if line.event == row.event)
    resolved = next((line.sequence for line in lines if line.kind == EpisodeResolved.kind()), None)
    spec, rule = _in_force(session, row.model, opened)
    after = [
        one for one in _said(session, SpecApplied, row.model, after=opened) if resolved is None or one[0] < resolved
    ]
    otherwise = [one for _, one in after if isinstance(one, SpecApplied) and episodes.watched(one.spec) != rule]
    state = State(model=row.model)
    for sequence, event in _said(session, RolloutChanged, row.model, before=opened):
        state = episodes.evolve(state, event, sequence)
    return Past(row, rule, spec, tuple(one.version for one in otherwise), state, opened, resolved)


def _in_force(session: Session, model: str, before: int) -> tuple[int | None, Monitor]:
    query = _of_journal(SpecApplied, model).where(col(JournalEntry.sequence) < before)
    entry = session.exec(query.order_by(col(JournalEntry.sequence).desc()).limit(1)).first()
    if entry is None:
        return None, Monitor()
    applied = cast(SpecApplied, as_message(entry).event)
    return applied.version, episodes.watched(applied.spec)


def reference_of_candidate(session: Session, model: str, version: int) -> Artifact | None:
    """Return where the reference profile of a version is that was trained and never rolled out; None if that is not known."""
    runs = {
        event.run
        for kind in (PromotionRejected, ApprovalRequested)
        for _, event in _said(session, kind, model)
        if isinstance(event, PromotionRejected | ApprovalRequested) and event.version == version
    }
    trained = (event for _, event in _said(session, ModelTrained, model) if isinstance(event, ModelTrained))
    return next((event.profile for event in trained if event.run in runs), None)


def _said(
    session: Session, kind: type[Event], model: str, *, after: int = 0, before: int | None = None
) -> Iterator[tuple[int, Event]]:
    query = _of_journal(kind, model).where(col(JournalEntry.sequence) > after)
    if before is not None:
        query = query.where(col(JournalEntry.sequence) < before)
    for entry in session.exec(query.order_by(col(JournalEntry.sequence))).yield_per(100):
        yield entry.sequence, as_message(entry).event


def _of_journal(kind: type[Event], model: str) -> Any:
    return select(JournalEntry).where(
        JournalEntry.kind == kind.kind(), JournalEntry.key == model, col(JournalEntry.applied)
    )


# --- windows


def places(session: Session, past: Past) -> list[Place]:
    """Return where the judged windows of the episode's version stood since its rollout, in their order; not those forgotten."""
    columns = (WindowRow.number, WindowRow.first, WindowRow.last, WindowRow.rows, WindowRow.key, WindowRow.length)
    query = select_columns(*columns).where(*_windows(past)).order_by(col(WindowRow.number))  # type: ignore[call-overload]
    return [Place(*found) for found in session.connection().execute(query)]


def verdicts(session: Session, past: Past, first: int, last: int) -> Iterator[Judged]:
    """Yield what its windows of these numbers said, in their order."""
    within = (*_windows(past), col(WindowRow.number) >= first, col(WindowRow.number) <= last)
    query = select_columns(col(WindowRow.judged)).where(*within).order_by(col(WindowRow.number))
    for (judged,) in session.connection().execute(query, execution_options={"yield_per": 20}):
        yield _JUDGED.validate_python(judged)


def _windows(past: Past) -> tuple[Any, ...]:
    return (
        WindowRow.model == past.row.model,
        WindowRow.version == past.row.version,
        WindowRow.rollout == past.state.rollout,
        col(WindowRow.judged).is_not(None),
    )


def last_number(session: Session, episode: str, version: int) -> int | None:
    """Return the number of the last window that an episode rests on; None without any."""
    query = select(func.max(EvidenceRow.number)).where(EvidenceRow.episode == episode, EvidenceRow.version == version)
    return session.exec(query).one()


def before(session: Session, past: Past) -> EpisodeRow | None:
    """Return the last episode of the same kind, of measures about the same, that began before."""
    row = past.row
    same: list[Any] = [EpisodeRow.model == row.model, EpisodeRow.version == row.version, EpisodeRow.about == row.about]
    if row.about == "measure":
        same.append(EpisodeRow.subject == row.subject)
    query = select(EpisodeRow).where(*same, col(EpisodeRow.opened) < row.opened, EpisodeRow.episode != row.episode)
    return session.exec(query.order_by(col(EpisodeRow.opened).desc()).limit(1)).first()


def measured(session: Session, past: Past, evaluator: str) -> list[Judged]:
    """Return the windows of an evaluator's numbers since the rollout, in their order; not those forgotten."""
    query = select_columns(col(MeasureWindowRow.judged)).where(
        col(MeasureWindowRow.model) == past.row.model,
        col(MeasureWindowRow.evaluator) == evaluator,
        col(MeasureWindowRow.rollout) == past.state.rollout,
    )
    found = session.connection().execute(query.order_by(col(MeasureWindowRow.id)))
    return [_JUDGED.validate_python(judged) for (judged,) in found]


# --- labels


def scored(session: Session, past: Past, version: int, at_most: int) -> Scored:
    """Return what labels said until the episode ended: of its version, or of one that was asked beside it.

    Of more than `at_most` the latest.
    """
    shadow = version != past.row.version
    of_version: list[Any] = [
        ScoredRow.model == past.row.model,
        ScoredRow.version == version,
        col(ScoredRow.shadow).is_(shadow),
    ]
    if past.resolved is not None:
        of_version.append(col(ScoredRow.label_sequence) <= past.resolved)
    number = col(ScoredRow.number)
    first = session.exec(select(number).where(*of_version).order_by(number.desc()).offset(at_most).limit(1)).first()
    columns = (number, col(ScoredRow.score), col(ScoredRow.producer), col(ScoredRow.label_sequence))
    query = select_columns(*columns, col(ScoredRow.target).is_not(None)).where(*of_version, number > (first or 0))
    codes: dict[str, int] = {}
    parts: list[NDArray[np.float64]] = []
    for rows in session.connection().execute(query.order_by(number)).yield_per(AT_ONCE).partitions():
        parts.append(np.array([(n, s, codes.setdefault(p, len(codes)), at, t) for n, s, p, at, t in rows], np.float64))
    table = np.concatenate(parts) if parts else np.empty((0, 5))
    return Scored(
        numbers=table[:, 0].astype(np.int64),
        scores=table[:, 1],
        producers=table[:, 2].astype(np.int32),
        labels=table[:, 3].astype(np.int64),
        names=tuple(codes),
        relative=bool(table[:1, 4].any()),
    )


def times_of_labels(session: Session, model: str, first: int, last: int) -> dict[int, datetime]:
    """Return by sequence in the log when labels of a model came."""
    query = select_columns(col(JournalEntry.sequence), col(JournalEntry.time)).where(
        col(JournalEntry.kind) == LabelsArrived.kind(),
        col(JournalEntry.key) == model,
        col(JournalEntry.sequence) >= first,
        col(JournalEntry.sequence) <= last,
    )
    return {sequence: utc(time) for sequence, time in session.connection().execute(query)}

"""Reports of episodes and of a model's days: gathered from the tables, given as a page or as JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import quote

import polars as pl
from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import HTMLResponse
from pydantic import Field, TypeAdapter
from sqlmodel import Session, col, select

from meguri_chassis.log import Message
from meguri_chassis.projection import as_message
from meguri_chassis.service import Service
from meguri_chassis.store import JournalEntry, utc
from meguri_contracts.events import NoticeFailed, NoticeSent, PerformanceDegraded
from meguri_contracts.names import NAME_PATTERN
from meguri_monitoring import store
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.episodes import telling, timeline
from meguri_monitoring.episodes.looks import Opening
from meguri_monitoring.episodes.store import EpisodeRow, EvidenceRow
from meguri_monitoring.evaluators import store as measure_store
from meguri_monitoring.predictions import tables
from meguri_monitoring.quality.store import ScoredRow
from meguri_monitoring.reports import pages, story
from meguri_monitoring.reports.pages import Look
from meguri_monitoring.reports.story import Amount, Compared, Days, Happened, Story
from meguri_monitoring.settings import Settings
from meguri_monitoring.verdicts.judging import Judged
from meguri_monitoring.windows import store as window_store
from meguri_monitoring.wording.wording import Language

SPANS = 28
"""Parts into which the days of a report are cut: six hours of a week."""
BEFORE = timedelta(hours=1)
BEFORE_WINDOWS = 10
"""Of predictions, that are shown before those of an episode."""
MOST = 200
"""Of what happened in these days, the latest; of windows too."""
MANY = 10_000
"""Rows read at once."""
TOLD = [event.kind() for event in timeline.HEARS if event not in (NoticeSent, NoticeFailed)]
"""What is told of a week. Who was told stands in the episodes' own reports."""
NOTHING_FROM_OUTSIDE = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}

_JUDGED = TypeAdapter(Judged)
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Format = Annotated[Literal["html", "json"] | None, Query(description="Else as the header Accept says.")]
Evidence = tuple[Judged, Mapping[str, Any]]
"""A window and what is kept of it."""
Scan = Callable[[int], pl.LazyFrame | None]
"""The answers that a version gave."""


@dataclass(frozen=True)
class EpisodeReport:
    """What the report of an episode says, as data."""

    episode: str
    status: str
    headline: str
    sentence: str
    how_bad: str
    culprit: str
    story: Story


@dataclass(frozen=True)
class DaysReport:
    """What the report of some days says, as data."""

    headline: str
    days: Days


def routes(service: Service, settings: Settings) -> APIRouter:
    """Return the routes of reports."""
    router = APIRouter(tags=["reports"])
    database = service.database
    assert database is not None

    def look(language: Language) -> Look:
        return Look(datetime.now(UTC), language, lambda id_: settings.trace_url.replace("{trace}", quote(id_, safe="")))

    @router.get("/episodes/{episode}/report", response_class=HTMLResponse)
    def report_episode(
        episode: str, language: Language = "en", format: Format = None, accept: Annotated[str, Header()] = ""
    ) -> Response:
        """What an episode is about, who causes it and what was done: a page for everybody, or `format=json`."""
        with database.read() as session:
            told = tell(session, episode_store.episode(session, episode), language)
        if _wants_json(format, accept):
            return _data(_episode_report(told, language))
        return HTMLResponse(pages.of_episode(told, look(language)), headers=NOTHING_FROM_OUTSIDE)

    @router.get("/models/{name}/report", response_class=HTMLResponse)
    def report_days(
        name: Name,
        days: Annotated[int, Query(ge=1, le=92)] = 7,
        language: Language = "en",
        format: Format = None,
        accept: Annotated[str, Header()] = "",
    ) -> Response:
        """A model's latest days: episodes, quality, predictions, versions, and what was done."""

        def scan(version: int) -> pl.LazyFrame | None:
            return tables.scan(tables.table_uri(settings.data_url, name, version))

        until = datetime.now(UTC)
        with database.read() as session:
            told = tell_days(session, name, until - timedelta(days=days), until, scan, language)
        if _wants_json(format, accept):
            return _data(DaysReport(pages.headline(told, language), told))
        return HTMLResponse(pages.of_days(told, look(language)), headers=NOTHING_FROM_OUTSIDE)

    return router


def tell(session: Session, row: EpisodeRow, language: Language) -> Story:
    """Return the story of an episode."""
    opening = telling.read(row.detected)
    kept = episode_store.evidence(session, row.episode)
    if row.about == "measure":
        windows, evidence = _of_measure(session, row)
    else:
        windows = _of_predictions(session, opening, kept)
        evidence = [(_JUDGED.validate_python(one.judged), one.evidence) for one in kept]
    looked = [story.looked(one, opening.about, telling.subject_of(opening)) for one in windows]
    sequences = [one.sequence for one in episode_store.lines(session, row.episode)]
    quality, metric = _quality(session, row.model, *_around(row)) if row.about == "performance" else ((), "")
    return Story(
        opening=opening,
        began=utc(row.opened),
        champion=store.state(session, row.model).champion or row.version,
        ended=utc(row.resolved) if row.resolved else None,
        reason=row.reason,
        acknowledged=utc(row.acknowledged) if row.acknowledged else None,
        actor=row.actor,
        note=row.note,
        compared=_compared(opening, evidence),
        looked=looked,
        happened=_happened(session, language, col(JournalEntry.sequence).in_(sequences)),
        metric=metric,
        quality=quality,
    )


def tell_days(session: Session, model: str, since: datetime, until: datetime, scan: Scan, language: Language) -> Days:
    """Return what was with a model from one time to another. Raises NotFound for one that nothing is known of."""
    store.require_known(session, model)
    state, versions = store.state(session, model), store.versions(session, model)
    known = episode_store.found(session, model, open_only=False)
    rows = [row for row in known if row.resolved is None or utc(row.resolved) >= since]
    answered = {row.version: _volume(scan(row.version), since, until) for row in reversed(versions)}
    span = (until - since) / SPANS
    volume = [
        Amount(since + number * span, float(sum(parts[number] for parts in answered.values())))
        for number in range(SPANS)
    ]
    quality, metric = _quality(session, model, since, until)
    return Days(
        model=model,
        since=since,
        until=until,
        champion=state.champion,
        episodes=[tell(session, row, language) for row in rows],
        volume=volume,
        metric=metric,
        quality=quality,
        versions={version: sum(parts) for version, parts in answered.items() if any(parts)},
        happened=_happened(
            session, language, col(JournalEntry.kind).in_(TOLD), JournalEntry.key == model, JournalEntry.time >= since
        ),
    )


def _compared(opening: Opening, evidence: Sequence[Evidence]) -> list[Compared]:
    """Return what changed in the window with which the episode began, so that its numbers are those that were told."""
    window = None if isinstance(opening, PerformanceDegraded) else opening.window
    since = window.last if window else 0
    return next(
        (story.compared(kept) for one, kept in evidence if one.window.last >= since and kept.get("subjects")), []
    )


def _of_predictions(session: Session, opening: Opening, kept: Sequence[EvidenceRow]) -> list[Judged]:
    """Return the windows of an episode and some before it, oldest first."""
    found = {one.number: _JUDGED.validate_python(one.judged) for one in kept if one.version == opening.version}
    window = None if isinstance(opening, PerformanceDegraded) else opening.window
    if window and found:
        first, last = min(found) - BEFORE_WINDOWS, max(found)
        near = window_store.since_rollout(session, opening.model, opening.version, window.first, window.last)
        verdicts = {row.number: row.verdict for row in near if row.number is not None and first <= row.number <= last}
        found = verdicts | found
    return [found[number] for number in sorted(found)]


def _of_measure(session: Session, row: EpisodeRow) -> tuple[list[Judged], Sequence[Evidence]]:
    """Return the windows of the evaluator's numbers around an episode, oldest first, and those that moved with their evidence.

    Some may be of an earlier episode.
    """
    evaluator = row.subject.partition(".")[0]
    since, until = (time.isoformat() for time in _around(row))
    found = [
        (measure_store.judged(one.judged), one.evidence)
        for one in reversed(measure_store.windows(session, row.model, evaluator, MOST))
    ]
    near = [(one, kept) for one, kept in found if one.version == row.version and since <= one.ended <= until]
    moved = [
        (one, kept) for one, kept in near if any(finding.subject == row.subject for finding in one.moved("measure"))
    ]
    return [one for one, _ in near], moved


def _around(row: EpisodeRow) -> tuple[datetime, datetime]:
    """From as long before an episode as it lasted, an hour at least, to its end or now."""
    began, ended = utc(row.opened), utc(row.resolved) if row.resolved else datetime.now(UTC)
    return began - max(ended - began, BEFORE), ended


def _volume(rows: pl.LazyFrame | None, since: datetime, until: datetime) -> list[int]:
    """Return how many answers were given in each span of time."""
    counts = [0] * SPANS
    if rows is None:
        return counts
    span = (until - since) / SPANS
    within = rows.filter((pl.col("time") >= since) & (pl.col("time") < until))
    number = ((pl.col("time") - since).dt.total_microseconds() // (span // timedelta(microseconds=1))).alias("number")
    found = within.select(number).group_by("number").len().collect(engine="streaming")
    for place, count in found.iter_rows():
        counts[min(int(place), SPANS - 1)] += int(count)
    return counts


def _quality(session: Session, model: str, since: datetime, until: datetime) -> tuple[Sequence[Amount], str]:
    """Return the mean score of the answers in each span of time as far as labels have come, and what it is called.

    Scores of a regression are minus its errors.
    """
    span = (until - since) / SPANS
    rows, sums = [0] * SPANS, [0.0] * SPANS
    query = select(ScoredRow.time, ScoredRow.score).where(
        ScoredRow.model == model, col(ScoredRow.shadow).is_(False), ScoredRow.time >= since, ScoredRow.time < until
    )
    for time, score in session.connection().execute(query).yield_per(MANY):
        place = min((utc(time) - since) // span, SPANS - 1)
        rows[place] += 1
        sums[place] += score
    is_error = any(total < 0 for total in sums)
    sign = -1 if is_error else 1
    amounts = [
        Amount(since + place * span, sign * sums[place] / rows[place] if rows[place] else None, rows[place])
        for place in range(SPANS)
    ]
    return amounts, "mae" if is_error else "accuracy"


def _happened(session: Session, language: Language, *conditions: Any) -> list[Happened]:
    """Tell events of the log, the latest `MOST` in its order."""
    query = select(JournalEntry).where(*conditions, col(JournalEntry.applied))
    latest = session.exec(query.order_by(col(JournalEntry.sequence).desc()).limit(MOST)).all()
    return [
        Happened(message.time, message.kind, timeline.sentence(message.event, language), _trace(message))
        for message in map(as_message, reversed(latest))
    ]


def _trace(message: Message) -> str:
    """The id of the trace in which an event was said; empty without one."""
    _, _, rest = message.headers.get("traceparent", "").partition("-")
    return rest.partition("-")[0]


def _episode_report(told: Story, language: Language) -> EpisodeReport:
    opening = told.opening
    return EpisodeReport(
        episode=opening.episode,
        status=told.status,
        headline=telling.headline(opening, language),
        sentence=telling.sentence(opening, language),
        how_bad=telling.how_bad(opening, language),
        culprit=telling.culprit(opening, language),
        story=told,
    )


def _wants_json(format: str | None, accept: str) -> bool:
    return format == "json" or (format is None and "application/json" in accept and "text/html" not in accept)


def _data(report: Any) -> Response:
    return Response(TypeAdapter(type(report)).dump_json(report), media_type="application/json")

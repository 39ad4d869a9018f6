"""Watches the errors of each version that answers, and says when they have become more, and when they are back.

Of a canary and of the versions of an A/B test too. Only those count that a version made since it is what it is: one that comes
back does not answer for what it did before it was taken out of service. Shadows are measured, but nobody is misled by them.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from sqlmodel import Session

from meguri_chassis.deciding import Decider
from meguri_chassis.store import Database
from meguri_contracts.events import Event, PerformanceDegraded
from meguri_contracts.names import derived_id
from meguri_contracts.spec import Monitor
from meguri_contracts.spec import Performance as Rule
from meguri_monitoring import store
from meguri_monitoring.episodes import episodes, sentences
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.episodes.episodes import State
from meguri_monitoring.episodes.looks import Look
from meguri_monitoring.predictions import tables
from meguri_monitoring.quality import store as score_store
from meguri_monitoring.quality.degrading import Detector
from meguri_monitoring.quality.store import Range
from meguri_monitoring.verdicts.judging import Culprit

REMEMBERED = 50_000
"""Latest scored answers of a version that a replica follows again when it begins."""
AT_ONCE = 5000
"""Scored answers read at once."""
NAMED = 5
"""Wrong answers that an event names."""


@dataclass
class _Followed:
    """How far a version is followed."""

    detector: Detector
    rule: Rule
    rows: Range
    begun: int = 0
    """The number behind which it began."""
    number: int = 0
    prediction_id: str = ""
    sequence: int = 0
    """The greatest of a label, in the log."""


class Performance:
    """Follows scored answers. What it knows is in memory and follows from the rows: each replica has its own."""

    def __init__(self, database: Database, decider: Decider, data_url: str) -> None:
        self._database = database
        self._decider = decider
        self._data_url = data_url
        self._followed: dict[tuple[str, int], _Followed] = {}

    async def watch(self, model: str) -> None:
        """Follow what is new of the versions that answer, the champion first, and say what follows."""
        plan, rule = await self._database.ask(lambda session: (store.plan(session, model), store.rule(session, model)))
        if plan is None or rule.performance is None:
            return
        for version in [one for name, one in self._followed if name == model and one not in plan.versions]:
            del self._followed[model, version]
        for version in plan.versions:
            followed = await asyncio.to_thread(self._follow, model, version, rule.performance)
            if followed is not None:
                cause = derived_id(model, "performance", str(version), str(followed.sequence))
                decide = partial(self._follows, followed, rule)
                await self._decider.carry_out(decide, cause=cause, journey=cause, hops=plan.hops)
                await self._decider.settled()

    def _follow(self, model: str, version: int, rule: Rule) -> _Followed | None:
        with self._database.read() as session:
            since = store.watched_since(session, model, version)
            if since is None:
                return None
            rows, followed = Range(model, version, since=since), self._followed.get((model, version))
            if followed is None or (followed.rule, followed.rows) != (rule, rows) or not _is_right(session, followed):
                followed = _begun(session, rows, rule)
            while more := score_store.order(session, rows, followed.number, AT_ONCE):
                _feed(followed, more)
        if not followed.number:
            return None
        self._followed[model, version] = followed
        return followed

    def _follows(self, followed: _Followed, rule: Monitor, session: Session) -> list[Event]:
        rows = followed.rows
        if store.watched_since(session, rows.model, rows.version) != rows.since:
            return []
        state = store.state(session, rows.model)
        look = self._look(session, state, followed)
        return episodes.decide_look(state, [look], rule, datetime.now(UTC)) if look else []

    def _look(self, session: Session, state: State, followed: _Followed) -> Look | None:
        """What is seen; None while it is neither worse nor an episode that has begun is over."""
        detector, version = followed.detector, followed.rows.version
        look = Look(
            about="performance",
            version=version,
            subject="mae" if detector.relative else "accuracy",
            place=str(followed.sequence),
            moved=False,
            runs=1,
        )
        if detector.degraded:
            return self._degraded(session, followed, look)
        episode = state.open("performance", version=version)
        if episode is None:
            return None
        said = PerformanceDegraded.model_validate(episode_store.episode(session, episode.id).detected)
        return look if detector.is_back(said.before if detector.relative else 1 - said.before) else None

    def _degraded(self, session: Session, followed: _Followed, look: Look) -> Look:
        rows, detector = followed.rows, followed.detector
        spans = [(part.first, part.last) for part in (detector.before, detector.now)]
        before, now = (score_store.scores_by_producer(session, rows, *span) for span in spans)
        producer, share = culprit(before, now)
        wrong = score_store.worst(session, rows, producer, *spans[1], NAMED)
        was, is_ = (abs(_mean(scores)) for scores in (before, now))
        labels = sum(rows for rows, _ in now.values())
        return replace(
            look,
            moved=True,
            value=is_,
            expected=was,
            producer=producer,
            share=share,
            samples=tuple(row.prediction_id for row in wrong),
            traces=tuple(dict.fromkeys(row.trace_id for row in wrong)),
            labels=labels,
            coverage=self._coverage(session, rows.model, rows.version),
            text=sentences.degraded(look.subject, was, is_, labels, Culprit(producer, share)),
        )

    def _coverage(self, session: Session, model: str, version: int) -> float | None:
        answers = tables.scan(tables.table_uri(self._data_url, model, version))
        given = 0 if answers is None else tables.count(answers)
        labels, *_ = score_store.total(session, Range(model, version))
        return min(labels / given, 1.0) if given else None


def culprit(before: Mapping[str, tuple[int, float]], now: Mapping[str, tuple[int, float]]) -> tuple[str, float]:
    """Return the producer whose answers lost most, and its share of all that was lost.

    Both are rows and sums of scores by producer. One that is new is held against all others.
    """
    usual = _mean(before)
    lost = {}
    for producer, (rows, scores) in now.items():
        was = before[producer][1] / before[producer][0] if producer in before else usual
        lost[producer] = max(was * rows - scores, 0.0)
    worst = max(sorted(lost), key=lambda producer: lost[producer])
    return worst, lost[worst] / (sum(lost.values()) or 1.0)


def _mean(scores: Mapping[str, tuple[int, float]]) -> float:
    rows = sum(rows for rows, _ in scores.values())
    return sum(score for _, score in scores.values()) / rows if rows else 0.0


def _is_right(session: Session, followed: _Followed) -> bool:
    """Whether what was followed is still so: the last row not in a database that was wiped, none with another label since."""
    rows, number = followed.rows, followed.number
    if not score_store.is_there(session, rows.model, rows.version, followed.prediction_id, number):
        return False
    first = max(followed.begun, number - REMEMBERED)
    return not score_store.is_corrected(session, rows, first, number, followed.sequence)


def _begun(session: Session, rows: Range, rule: Rule) -> _Followed:
    after = score_store.number_from_end(session, rows, REMEMBERED)
    first = score_store.order(session, rows, after, 1)
    relative = bool(first) and first[0].target is not None
    return _Followed(Detector(rule, relative=relative), rule, rows, begun=after, number=after)


def _feed(followed: _Followed, rows: Sequence[score_store.ScoredRow]) -> None:
    for row in rows:
        followed.detector.feed(-row.score if row.target is not None else 1 - row.score, row.number)
        followed.sequence = max(followed.sequence, row.label_sequence)
    followed.number, followed.prediction_id = rows[-1].number, rows[-1].prediction_id

"""Watches the errors of each version that serves, and says when they have become more, and when they are back."""

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
        """Follow what is new of the champion, and say what follows."""
        plan, rule = await self._database.ask(lambda session: (store.plan(session, model), store.rule(session, model)))
        if plan is None or rule.performance is None:
            return
        followed = await asyncio.to_thread(self._follow, model, plan.champion, rule.performance)
        if followed is None:
            return
        cause = derived_id(model, "performance", str(plan.champion), str(followed.sequence))
        decide = partial(self._follows, model, plan.champion, followed, rule)
        await self._decider.carry_out(decide, cause=cause, journey=cause, hops=plan.hops)

    def _follow(self, model: str, version: int, rule: Rule) -> _Followed | None:
        with self._database.read() as session:
            followed = self._followed.get((model, version))
            if followed is None or followed.rule != rule or not _is_there(session, model, version, followed):
                followed = _begun(session, model, version, rule)
            while rows := score_store.order(session, model, version, followed.number, AT_ONCE):
                _feed(followed, rows)
        if not followed.number:
            return None
        self._followed[model, version] = followed
        return followed

    def _follows(self, model: str, version: int, followed: _Followed, rule: Monitor, session: Session) -> list[Event]:
        state = store.state(session, model)
        look = self._look(session, state, version, followed) if state.champion == version else None
        return episodes.decide_look(state, [look], rule, datetime.now(UTC)) if look else []

    def _look(self, session: Session, state: State, version: int, followed: _Followed) -> Look | None:
        """What is seen; None while it is neither worse nor an episode that has begun is over."""
        detector = followed.detector
        look = Look(
            about="performance",
            version=version,
            subject="mae" if detector.relative else "accuracy",
            place=str(followed.sequence),
            moved=False,
            runs=1,
        )
        if detector.degraded:
            return self._degraded(session, state.model, followed, look)
        episode = state.open("performance")
        if episode is None:
            return None
        said = PerformanceDegraded.model_validate(episode_store.episode(session, episode.id).detected)
        return look if detector.is_back(said.before if detector.relative else 1 - said.before) else None

    def _degraded(self, session: Session, model: str, followed: _Followed, look: Look) -> Look:
        spans = [(part.first, part.last) for part in (followed.detector.before, followed.detector.now)]
        before, now = (score_store.scores_by_producer(session, model, look.version, *span) for span in spans)
        producer, share = culprit(before, now)
        wrong = score_store.worst(session, model, look.version, producer, *spans[1], NAMED)
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
            coverage=self._coverage(session, model, look.version),
            text=sentences.degraded(look.subject, was, is_, labels, Culprit(producer, share)),
        )

    def _coverage(self, session: Session, model: str, version: int) -> float | None:
        answers = tables.scan(tables.table_uri(self._data_url, model, version))
        given = 0 if answers is None else tables.count(answers)
        labels, *_ = score_store.total(session, score_store.Range(model, version))
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


def _is_there(session: Session, model: str, version: int, followed: _Followed) -> bool:
    """Whether the last row that was followed is still there: not in a database that was wiped."""
    return score_store.is_there(session, model, version, followed.prediction_id, followed.number)


def _begun(session: Session, model: str, version: int, rule: Rule) -> _Followed:
    after = score_store.number_from_end(session, model, version, REMEMBERED)
    first = score_store.order(session, model, version, after, 1)
    relative = bool(first) and first[0].target is not None
    return _Followed(Detector(rule, relative=relative), rule, number=after)


def _feed(followed: _Followed, rows: Sequence[score_store.ScoredRow]) -> None:
    for row in rows:
        followed.detector.feed(-row.score if row.target is not None else 1 - row.score, row.number)
        followed.sequence = max(followed.sequence, row.label_sequence)
    followed.number, followed.prediction_id = rows[-1].number, rows[-1].prediction_id

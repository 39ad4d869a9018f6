"""The quality of a version as HTTP shows it: sums of scored rows, and of how many answers they are."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import polars as pl
from sqlmodel import Session

from meguri_chassis.store import utc
from meguri_contracts.spec import Task
from meguri_monitoring import store
from meguri_monitoring.quality import label_store, quality, slicing
from meguri_monitoring.quality import store as score_store
from meguri_monitoring.quality.joining import Limits
from meguri_monitoring.quality.measuring import since_plan
from meguri_monitoring.quality.quality import Sums
from meguri_monitoring.quality.store import PRODUCER, Range

SHOWN = 50
"""Values of a slice that are shown: those with the most answers."""
VALUE, COUNT = "_value", "_count"


def of_plan(
    session: Session,
    plan: store.PlanRow,
    answers: Callable[[int, bool], pl.LazyFrame | None],
    limits: Limits,
    since: datetime | None,
    until: datetime | None,
) -> dict[str, Any]:
    """Return the quality of the answering versions since they are these, or of all in a stretch of time; shadows beside them.

    `answers` gives those of a version, or what it would have said as a shadow.
    """
    known = store.versions(session, plan.model)
    arms = [since_plan(plan, version) for version in plan.versions]
    asked_for = since or until
    all_ = [Range(plan.model, row.version, since=since, until=until) for row in known]
    of_shadows = [
        Range(plan.model, row.version, shadow=True, since=since if asked_for else utc(plan.since), until=until)
        for row in known
        if row.shadow
    ]
    slices = store.rule(session, plan.model).slices

    def shown(rows: Range) -> dict[str, Any]:
        found = answers(rows.version, rows.shadow)
        return {"version": rows.version} | _of_version(session, rows, found, slices, limits)

    labels = label_store.count(session, plan.model, plan.rollout)
    counted = sum(score_store.total(session, rows)[0] for rows in arms)
    return {
        "model": plan.model,
        "since": (since or utc(plan.since)).isoformat() if since or not until else None,
        "until": until.isoformat() if until else None,
        "versions": [shown(rows) for rows in (all_ if asked_for else arms)],
        "shadows": [shown(rows) for rows in of_shadows],
        "labels_waiting": labels - counted,
    }


def _of_version(
    session: Session, rows: Range, answers: pl.LazyFrame | None, slices: Sequence[str], limits: Limits
) -> dict[str, Any]:
    """Return how many answers of a version have a label, the metrics of these, and both told apart by slices."""
    if answers is None:
        return _shown(None, 0, Sums())
    schema = answers.collect_schema()
    task = quality.task_of(schema.names())
    if rows.since:
        answers = answers.filter(pl.col("time") >= rows.since)
    if rows.until:
        answers = answers.filter(pl.col("time") <= rows.until)
    centre = score_store.mean_target(session, rows) if task == "regression" else 0.0
    (together,) = _sums(session, rows, None, centre).values() or [Sums()]
    values = {PRODUCER: pl.col(PRODUCER)} | {
        name: slicing.value_of(name, schema[name], limits.get((rows.version, name), ()))
        for name in slices
        if name in schema
    }
    given = int(answers.select(pl.len()).collect(engine="streaming").item())
    told_apart = [
        {"slice": name, "value": found} | _shown(task, count, sums.get(found, Sums()))
        for name, value in values.items()
        for sums in [_sums(session, rows, name, centre)]
        for found, count in _counts(answers, value).items()
    ]
    return _shown(task, given, together) | {"slices": told_apart}


def _sums(session: Session, rows: Range, by: str | None, centre: float) -> dict[str, Sums]:
    sums: dict[str, Sums] = {}
    for value, cell in score_store.cells(session, rows, by, centre):
        sums.setdefault(value, Sums()).add(cell)
    return sums


def _counts(answers: pl.LazyFrame, value: pl.Expr) -> dict[str, int]:
    counts = answers.select(value.alias(VALUE)).group_by(VALUE).agg(pl.len().alias(COUNT))
    most = counts.sort(COUNT, VALUE, descending=[True, False]).head(SHOWN)
    return dict(most.collect(engine="streaming").iter_rows())


def _shown(task: Task | None, answers: int, sums: Sums) -> dict[str, Any]:
    return {
        "answers": answers,
        "labels": sums.rows,
        "coverage": sums.rows / answers if answers else None,
        "mean_score": sums.score / sums.rows if sums.rows else None,
        "metrics": quality.metrics(task, sums) if task else {},
    }

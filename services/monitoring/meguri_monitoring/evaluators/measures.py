"""Numbers of an evaluator in windows, held against a baseline: the first rows since the version is champion."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from meguri_chassis.profiles import Profile, profile_of
from meguri_contracts import events
from meguri_contracts.spec import Monitor, Watch
from meguri_monitoring.episodes.looks import Look
from meguri_monitoring.verdicts import drift
from meguri_monitoring.verdicts.judging import Culprit, Finding, Judged

FEW = 10
"""Distinct whole numbers up to which a number is a count, whose shares are compared too."""
LEAST_SHARE = 0.05
"""Of a count's values in the baseline; rarer ones are taken together with their neighbour."""
TRACES = 5
"""Traces that a window names."""


@dataclass(frozen=True)
class Row:
    """A row of an evaluator, as far as it is watched."""

    key: str
    producer: str
    time: str
    """ISO 8601, UTC."""
    sequence: int
    trace: str
    left_out: int
    """Rows that the writer left out of the lot that it was written with."""
    numbers: tuple[float | None, ...]
    """In the order of the spec."""


@dataclass(frozen=True)
class Watched:
    """How far the windows of an evaluator have come since a version is champion."""

    rollout: int = 0
    watch: Watch | None = None
    number: int = 0
    """Of the window that is filled."""
    baseline: tuple[Row, ...] = ()
    pending: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Closed:
    """A window with all its rows."""

    number: int
    baseline: tuple[Row, ...]
    rows: tuple[Row, ...]

    @property
    def traces(self) -> tuple[str, ...]:
        """Where its rows were written: first where most were left out, and of these the latest."""
        lost = {row.trace: row.left_out for row in reversed(self.rows)}
        return tuple(sorted(lost, key=lambda trace: -lost[trace])[:TRACES])


def add(watched: Watched, rows: Sequence[Row], watch: Watch, rollout: int) -> tuple[Watched, list[Closed]]:
    """Take in rows in the order of their table; return also the windows that they closed.

    Begins anew where another version became champion, or something else is watched.
    """
    if watched.rollout != rollout or watched.watch != watch:
        watched = Watched(rollout, watch, number=watched.number if watched.rollout == rollout else 0)
    missing = watch.baseline_rows - len(watched.baseline)
    baseline = (*watched.baseline, *rows[:missing])
    waiting = (*watched.pending, *rows[missing:])
    size = watch.window_rows
    starts = range(0, len(waiting) - size + 1, size)
    closed = [Closed(watched.number + nth, baseline, waiting[at : at + size]) for nth, at in enumerate(starts)]
    left = waiting[len(closed) * size :]
    return replace(watched, number=watched.number + len(closed), baseline=baseline, pending=left), closed


def judge(closed: Closed, watch: Watch, rule: Monitor, version: int) -> Judged:
    """Hold the numbers of a window against the baseline.

    By the rule's significance and least effect: as distributions, and counts as shares too, each at half the significance.
    """
    few = min(len(closed.baseline), len(closed.rows))
    rule = rule.model_copy(update={"min_rows": min(rule.min_rows, few), "p_value": rule.p_value / 2})
    baseline, rows = _table(closed.baseline), _table(closed.rows)
    reference = profile_of(watch.numbers, baseline)
    findings = [
        _finding(subject_of(watch, number), baseline[:, at], rows[:, at], rule, len(watch.numbers))
        for at, number in enumerate(watch.numbers)
    ]
    moved = [number for number, finding in zip(watch.numbers, findings, strict=True) if finding.moved]
    return Judged(
        version=version,
        number=closed.number,
        window=events.Window(first=closed.rows[0].sequence, last=closed.rows[-1].sequence, rows=len(closed.rows)),
        judged=True,
        findings=tuple(findings),
        culprits={"measure": _culprit(closed, reference, moved)} if moved else {},
        began=closed.rows[0].time,
        ended=closed.rows[-1].time,
    )


def subject_of(watch: Watch, number: str) -> str:
    """What an episode about a number is about."""
    return f"{watch.evaluator}.{number}"


def _finding(subject: str, before: np.ndarray, now: np.ndarray, rule: Monitor, numbers: int) -> Finding:
    reference, live = profile_of([subject], before[:, None]), profile_of([subject], before[:, None]).like()
    live.update(now[:, None])
    alone = rule.model_copy(update={"p_value": rule.p_value / numbers})
    (verdict,) = drift.compare(reference, live, alone).features
    as_numbers = Finding(
        about="measure",
        subject=subject,
        moved=verdict.drifted,
        score=verdict.distance,
        threshold=rule.distance,
        method="ks or wasserstein",
        p_value=verdict.p_value,
        ks=verdict.ks,
        wasserstein=verdict.wasserstein,
    )
    if verdict.drifted or not is_count(before):
        return as_numbers
    distance, p_value = shares_moved(before, now)
    moved = p_value < alone.p_value and distance >= rule.distance
    return Finding("measure", subject, moved, distance, rule.distance, "share", p_value) if moved else as_numbers


def subjects(window: Judged) -> tuple[str, ...]:
    """Return what a window was judged about."""
    return tuple(finding.subject for finding in window.findings)


def look(window: Judged, subject: str) -> Look:
    """Return what a window says of one number."""
    (found,) = (finding for finding in window.findings if finding.subject == subject)
    culprit = window.culprits.get("measure", Culprit("", 0.0))
    return Look(
        about="measure",
        version=window.version,
        subject=subject,
        place=str(window.number),
        moved=found.moved if window.judged else None,
        value=found.score,
        expected=0.0,
        producer=culprit.producer,
        share=culprit.share,
        samples=culprit.samples,
        traces=culprit.traces,
        window=window.window,
        text=_text(found),
    )


def evidence(closed: Closed, watch: Watch, judged: Judged) -> dict[str, Any]:
    """Return what a verdict rests on: of each number the rows in each bin, before and in the window, and each producer's."""
    producers = sorted({row.producer for row in closed.rows})
    subjects = []
    for at, (number, finding) in enumerate(zip(watch.numbers, judged.findings, strict=True)):
        before, now = _table(closed.baseline)[:, at], _table(closed.rows)[:, at]
        edges, bins = _bins(before)
        own = {one: now[[row.producer == one for row in closed.rows]] for one in producers}
        subjects.append(
            {
                "about": "measure",
                "subject": subject_of(watch, number),
                "score": finding.score,
                "threshold": finding.threshold,
                "bins": bins,
                "reference": _count(before, edges).tolist(),
                "current": _count(now, edges).tolist(),
                "producers": {one: {"counts": _count(values, edges).tolist()} for one, values in own.items()},
            }
        )
    return {"subjects": subjects}


def _bins(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The values from which on a bin begins, and the names of the bins: each value of a count, else tenths of the rows."""
    there = values[np.isfinite(values)]
    if is_count(values):
        found = np.unique(there)
        return found[1:], [*(f"{value:g}" for value in found), "missing"]
    edges = np.unique(np.quantile(there, np.arange(1, 10) / 10)) if there.size else np.empty(0)
    if not edges.size:
        return edges, ["any", "missing"]
    between = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    return edges, [f"below {edges[0]:.3g}", *between, f"{edges[-1]:.3g} or more", "missing"]


def is_count(values: np.ndarray) -> bool:
    """Whether these are few different whole numbers."""
    there = values[np.isfinite(values)]
    return bool(there.size) and bool(np.all(there == np.round(there))) and np.unique(there).size <= FEW


def shares_moved(before: np.ndarray, now: np.ndarray) -> tuple[float, float]:
    """Return the largest change of the share of a value, and its exact p-value times the number of values compared."""
    edges = _classes(before[np.isfinite(before)])
    ours, theirs = _count(before, edges), _count(now, edges)
    distance = float(np.max(np.abs(ours / before.size - theirs / now.size)))
    from scipy.stats import hypergeom  # noqa: PLC0415 - half a second at the start, and few have evaluators

    drawn = hypergeom(before.size + now.size, ours + theirs, now.size)
    one_sided = np.minimum(drawn.cdf(theirs), drawn.sf(theirs - 1))
    return distance, float(min(1.0, 2 * one_sided.min() * ours.size))


def _classes(values: np.ndarray) -> np.ndarray:
    """The values from which on a class begins: the rarest at the ends belong to their neighbours."""
    found, counts = np.unique(values, return_counts=True)
    shares = counts / counts.sum()
    from_below, from_above = np.cumsum(shares), np.cumsum(shares[::-1])[::-1]
    # The first class begins at minus infinity.
    return found[1:][(from_below[:-1] >= LEAST_SHARE) & (from_above[1:] >= LEAST_SHARE)]


def _count(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many there are of each class, and last of those that are missing."""
    there = values[np.isfinite(values)]
    classes = np.bincount(np.searchsorted(edges, there, side="right"), minlength=edges.size + 1)
    return np.append(classes, values.size - there.size)


def _text(finding: Finding) -> str:
    if finding.method == "share":
        return f"a value of {finding.subject} has a share of the rows that is {100 * finding.score:.0f} points away from before"
    if finding.wasserstein is not None and finding.wasserstein >= finding.threshold:
        return f"{finding.subject} is {finding.wasserstein:.2g} standard deviations away from before"
    return f"{finding.subject} is spread differently than before"


def _culprit(closed: Closed, reference: Profile, moved: Sequence[str]) -> Culprit:
    by_producer = {producer: reference.like() for producer in {row.producer for row in closed.rows}}
    for producer, profile in by_producer.items():
        profile.update(_table([row for row in closed.rows if row.producer == producer]))
    top = drift.contributions(reference, by_producer, moved)[0]
    samples = [row.key for row in closed.rows if row.producer == top.producer][-5:]
    return Culprit(top.producer, top.share, tuple(samples), closed.traces)


def _table(rows: Sequence[Row]) -> np.ndarray:
    return np.array([[np.nan if number is None else number for number in row.numbers] for row in rows], np.float64)

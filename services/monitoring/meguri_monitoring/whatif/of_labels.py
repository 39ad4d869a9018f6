"""Episodes of quality: errors by the labels that came, followed once more in the order in which they were known."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from meguri_contracts.spec import Monitor, Performance
from meguri_monitoring.episodes import sentences
from meguri_monitoring.episodes.looks import Look
from meguri_monitoring.quality.degrading import Detector, Part, loss
from meguri_monitoring.quality.performing import culprit
from meguri_monitoring.verdicts.judging import Culprit
from meguri_monitoring.whatif.recomputing import UNKNOWN, Seen

MOST = 1_000_000
"""Labelled answers that are followed: the latest up to the end of the episode."""
REST_EVERY = 2000
"""Answers after which it is rested."""


@dataclass(frozen=True)
class Scored:
    """What labels said of the answers of a version, in the order in which they found each other: an entry of each for each."""

    numbers: NDArray[np.int64]
    scores: NDArray[np.float64]
    producers: NDArray[np.int32]
    """Which of `names`."""
    labels: NDArray[np.int64]
    """Sequence of the label in the log."""
    names: tuple[str, ...]
    relative: bool
    """Whether these are errors of a regression."""


def looked(
    scored: Scored, times: Mapping[int, datetime], rule: Monitor, version: int, rest: Callable[[], None]
) -> Iterator[tuple[Look | None, Seen]]:
    """Yield what there was to see whenever labels came; live it is looked at once a second at most.

    None of a look says that it was neither worse nor as before.
    """
    detector = Detector(rule.performance or Performance(), relative=scored.relative)
    opened: float | None = None
    latest = 0
    ends = np.flatnonzero(np.diff(scored.labels, append=-1)) + 1
    start = 0
    for number, end in enumerate(ends.tolist()):
        for at in range(start, end):
            detector.feed(_error(scored, at), int(scored.numbers[at]))
            if at % REST_EVERY == 0:
                rest()
        # A label that was corrected since stands where the first one stood, with a later sequence.
        latest = max(latest, int(scored.labels[end - 1]))
        look = _look(detector, scored, version, latest, opened)
        if look is not None:
            opened = (opened if opened is not None else look.expected) if look.moved else None
        yield look, _seen(detector, number, end, times, scored, start)
        start = end


def _error(scored: Scored, at: int) -> float:
    score = float(scored.scores[at])
    return -score if scored.relative else 1 - score


def _look(detector: Detector, scored: Scored, version: int, latest: int, opened: float | None) -> Look | None:
    metric = "mae" if scored.relative else "accuracy"
    if not detector.degraded:
        usual = None if opened is None else opened if scored.relative else 1 - opened
        if usual is None or not detector.is_back(usual):
            return None
        return Look(about="performance", version=version, subject=metric, place=str(latest), moved=False, runs=1)
    before, now = (_by_producer(scored, part) for part in (detector.before, detector.now))
    producer, share = culprit(before, now)
    was, is_ = (abs(_mean(scores)) for scores in (before, now))
    labels = sum(rows for rows, _ in now.values())
    return Look(
        about="performance",
        version=version,
        subject=metric,
        place=str(latest),
        moved=True,
        value=is_,
        expected=was,
        producer=producer,
        share=share,
        runs=1,
        labels=labels,
        text=sentences.degraded(metric, was, is_, labels, Culprit(producer, share)),
    )


def _by_producer(scored: Scored, part: Part) -> dict[str, tuple[int, float]]:
    """Rows and sum of the scores of each producer, as `scores_by_producer` counts them in the database."""
    first = int(np.searchsorted(scored.numbers, part.first, "left"))
    last = int(np.searchsorted(scored.numbers, part.last, "right"))
    producers = scored.producers[first:last]
    rows = np.bincount(producers, minlength=len(scored.names))
    scores = np.bincount(producers, scored.scores[first:last], minlength=len(scored.names))
    return {name: (int(rows[at]), float(scores[at])) for at, name in enumerate(scored.names) if rows[at]}


def _mean(scores: Mapping[str, tuple[int, float]]) -> float:
    return sum(score for _, score in scores.values()) / (sum(rows for rows, _ in scores.values()) or 1)


def _seen(
    detector: Detector, number: int, rows: int, times: Mapping[int, datetime], scored: Scored, start: int
) -> Seen:
    came = [times[label] for label in scored.labels[[start, rows - 1]].tolist() if label in times]
    worse = loss(detector.before.mean, detector.now.mean, relative=scored.relative) if detector.worse else 0.0
    return Seen(
        number=number,
        rows=rows,
        began=came[0].isoformat() if came else "",
        ended=came[-1].isoformat() if came else UNKNOWN,
        moved=detector.degraded,
        subject="mae" if scored.relative else "accuracy",
        score=max(worse, 0.0),
        threshold=detector.rule.drop,
        method="loss since a change by adwin",
    )

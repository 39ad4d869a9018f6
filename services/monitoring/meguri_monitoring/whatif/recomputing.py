"""Kept predictions cut, counted, judged and decided on again under another rule, by the functions that watch live.

Nothing here is said or kept: events are looked at and thrown away.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ValidationError

from meguri_chassis.profiles import Profile
from meguri_contracts.errors import Invalid
from meguri_contracts.events import EpisodeResolved, EpisodeWorsened, Event
from meguri_contracts.spec import EpisodeKind, Monitor
from meguri_monitoring.episodes import episodes, looks, volume
from meguri_monitoring.episodes.looks import Look
from meguri_monitoring.verdicts.judging import Judged
from meguri_monitoring.windows import counting, windows
from meguri_monitoring.windows.counting import Counted
from meguri_monitoring.windows.store import WindowRow
from meguri_monitoring.windows.windows import Part, Planner, Window

KINDS: tuple[EpisodeKind, ...] = (*looks.OF_WINDOWS, "volume")
"""Those that follow from windows alone."""
_THRESHOLDS: Mapping[EpisodeKind, str] = {"missing": "missing", "categories": "categories", "volume": "volume"}
"""By kind the field of a rule that is its threshold; of all others the distance."""
_WORDS: Mapping[type[Event], str] = {EpisodeWorsened: "worsened", EpisodeResolved: "resolved"}

Rows = Callable[[Part], pl.DataFrame]
"""Gives the rows of the messages of a part, in the order of the stream."""


@dataclass(frozen=True)
class Seen:
    """What a window says about the kind of the episode, and what followed from it."""

    number: int
    rows: int
    began: str
    ended: str
    moved: bool | None
    """None without a verdict."""
    subject: str
    """The worst, whether it moved or not."""
    score: float
    threshold: float
    method: str
    said: str = ""
    """`opened`, `worsened` or `resolved`."""


@dataclass(frozen=True)
class Span:
    """An episode that would have been."""

    opened: str
    """When the window ended that would have begun it; `resolved` that which would have ended it, empty if none would."""
    resolved: str
    number: int
    """Of the window that would have begun it."""
    subject: str
    producer: str
    share: float
    text: str


@dataclass(frozen=True)
class Outcome:
    """What would have been."""

    episodes: tuple[Span, ...]
    windows: tuple[Seen, ...]


def changed(rule: Monitor, about: EpisodeKind, subject: str, asked: Mapping[str, Any]) -> Monitor:
    """Return a rule with what is `asked` in place of its own: fields of it, and `threshold` for that of the kind.

    Raises Invalid when that is no rule, or one that has no such threshold.
    """
    wanted = {name: value for name, value in asked.items() if value is not None}
    if "window_rows" in wanted:
        wanted["window_seconds"] = None
    threshold = wanted.pop("threshold", None)
    if wanted.get("rule", rule.rule) == "evidently" and (threshold or "p_value" in wanted):
        raise Invalid(
            "the rule evidently has thresholds of its own: ask for a threshold or p-value with the rule meguri"
        )
    if threshold is not None:
        wanted |= _threshold(rule, about, subject, threshold)
    try:
        return Monitor.model_validate({**rule.model_dump(), **wanted})
    except ValidationError as error:
        reasons = [
            f"{'.'.join(map(str, one['loc']))} {one['msg'].removeprefix('Value error, ')}" for one in error.errors()
        ]
        raise Invalid(f"there is no such rule: {'; '.join(map(str.strip, reasons))}") from error


def recomputed(
    closed: Iterable[Window], rows: Rows, reference: Profile, rule: Monitor, *, version: int, about: EpisodeKind
) -> Outcome:
    """Judge windows in their order and say which episodes of a kind would have been.

    Raises Invalid when the predictions do not have what the reference has.
    """
    return decided([judged(window, rows, reference, rule, version) for window in closed], rule, about)


def cut(sequences: NDArray[np.int64], times: NDArray[np.int64], rule: Monitor) -> Iterator[Window]:
    """Yield the windows that close, with all their parts; rows in the order of the stream, times in microseconds."""
    planner, parts = Planner(), dict[int, tuple[Part, ...]]()
    starts = np.flatnonzero(np.diff(sequences, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(sequences)], strict=True):
        planned = windows.plan(planner, int(sequences[start]), times[start:end], rule)
        planner = planned.planner
        for window in planned.windows:
            parts[window.key] = (*parts.get(window.key, ()), *window.parts)
            if window.number is not None:
                yield replace(window, parts=parts.pop(window.key))


def judged(window: Window, rows: Rows, reference: Profile, rule: Monitor, version: int) -> Judged:
    """Count a window part by part and hold it against a reference."""
    parts = (counting.rows_of(rows(part), part, window.key, window.length) for part in window.parts)
    row = WindowRow(
        model="",
        version=version,
        rollout=0,
        key=window.key,
        length=window.length,
        number=window.number,
        first=window.first,
        last=window.last,
        rows=window.rows,
        parts=window.planned,
        late=0,
    )
    return counting.verdict(row, Counted.of([counting.counted(part, reference) for part in parts]), reference, rule)


def decided(judged: Sequence[Judged], rule: Monitor, about: EpisodeKind) -> Outcome:
    """Fold judged windows of one version through the state machine of episodes, as if it were champion all the time."""
    state = episodes.State(model="whatif", champion=judged[0].version if judged else None)
    seen: list[Seen] = []
    spans: list[Span] = []
    for at, window in enumerate(judged, 1):
        now = datetime.fromisoformat(window.ended)
        said = episodes.decide(state, judged[max(0, at - _look_back(rule)) : at], rule, now)
        for event in said:
            state = episodes.evolve(state, event, time=now)
        of_kind = [event for event in said if getattr(event, "about", None) == about]
        seen.append(_seen(judged[:at], rule, about, of_kind))
        for event in of_kind:
            spans = _grown(spans, event, window)
    return Outcome(tuple(spans), tuple(seen))


def seen(judged: Sequence[Judged], rule: Monitor, about: EpisodeKind) -> tuple[Seen, ...]:
    """Return what windows say that were judged live."""
    return tuple(_seen(judged[:at], rule, about, ()) for at in range(1, len(judged) + 1))


def _look_back(rule: Monitor) -> int:
    # Windows without a verdict may lie between those that count.
    return max(4 * rule.windows, 0 if rule.volume is None else volume.HISTORY)


def _threshold(rule: Monitor, about: EpisodeKind, subject: str, threshold: float) -> dict[str, Any]:
    if about in _THRESHOLDS:
        return {_THRESHOLDS[about]: threshold}
    methods = {name: method.model_dump() for name, method in rule.methods.items()}
    if subject in methods:
        methods[subject]["threshold"] = threshold
    return {"distance": threshold, "methods": methods}


def _seen(judged: Sequence[Judged], rule: Monitor, about: EpisodeKind, said: Sequence[Event]) -> Seen:
    window = judged[-1]
    worst = _worst_rate(judged, rule) if about == "volume" else _worst_finding(window, about)
    return Seen(
        number=window.number,
        rows=window.window.rows,
        began=window.began,
        ended=window.ended,
        said=", ".join(_WORDS.get(type(event), "opened") for event in said),
        **worst,
    )


def _worst_finding(window: Judged, about: EpisodeKind) -> dict[str, Any]:
    moved = window.moved(about)
    found = [one for one in window.findings if one.about == about]
    worst = moved[0] if moved else max(found, key=lambda one: one.score, default=None)
    return {
        "moved": bool(moved) if window.judged else None,
        "subject": worst.subject if worst else "",
        "score": worst.score if worst else 0.0,
        "threshold": worst.threshold if worst else 0.0,
        "method": worst.method if worst else "",
    }


def _worst_rate(judged: Sequence[Judged], rule: Monitor) -> dict[str, Any]:
    look: Look = looks.of_volume(judged[-_look_back(rule) :], rule)[-1]
    return {
        "moved": look.moved,
        "subject": look.subject,
        "score": look.score,
        "threshold": rule.volume or 0.0,
        "method": "requests a second, as a ratio",
    }


def _grown(spans: list[Span], event: Event, window: Judged) -> list[Span]:
    match event:
        case EpisodeResolved():
            return [*spans[:-1], replace(spans[-1], resolved=window.ended)]
        case EpisodeWorsened():
            return spans
        case _:
            episode = episodes.opened(event)  # type: ignore[arg-type]
            share, text = getattr(event, "share", 0.0), getattr(event, "text", "")
            return [*spans, Span(window.ended, "", window.number, episode.subject, episode.producer, share, text)]

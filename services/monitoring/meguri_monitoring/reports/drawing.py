"""Charts as plain numbers: everything in hundredths of width and height, from the top left, for the templates to draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, inf, isfinite, log10

from meguri_monitoring.wording.wording import number

LABELS, LONG_LABELS, LONG = 6, 3, 8
"""Texts below a chart at most; of a histogram those that are longer than so many letters."""
HEADROOM = 1.08
"""What the highest value leaves free above it."""


@dataclass(frozen=True)
class Tick:
    """A text at a place, in hundredths of the axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Histogram:
    """Two distributions over the same bins, as outlines of steps."""

    reference: str
    current: str
    """Paths, closed at the bottom."""
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]


@dataclass(frozen=True)
class Line:
    """Values in their order; a gap where there is none."""

    path: str
    dots: tuple[tuple[float, float, bool], ...]
    """Place of each value, and whether it is marked."""
    limit: float | None
    """Height of the limit's line."""
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]


@dataclass(frozen=True)
class Columns:
    """A column for each value."""

    columns: tuple[tuple[float, float, float, float], ...]
    """x, y, width and height."""
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]


def histogram(labels: Sequence[str], reference: Sequence[float], current: Sequence[float]) -> Histogram:
    """Draw two distributions, each as shares of its own rows."""
    shares = [_shares(counts) for counts in (reference, current)]
    top = _round_top([*shares[0], *shares[1]])
    before, now = (_steps([100 - 100 * share / top for share in one]) for one in shares)
    width = 100 / max(len(labels), 1)
    most = LONG_LABELS if any(len(label) > LONG for label in labels) else LABELS
    x = tuple(Tick((place + 0.5) * width, labels[place]) for place in _some(len(labels), most))
    return Histogram(before, now, x, _heights(0, top, in_percent))


def line(
    values: Sequence[float | None],
    labels: Sequence[str],
    limit: float | None = None,
    within: tuple[float, float] | None = None,
    marked: Sequence[bool] = (),
    said: Callable[[float], str] = number,
) -> Line:
    """Draw values over time; `limit` is what they should stay below, `within` the range to show instead of from zero on.

    `said` puts a value into words.
    """
    low, top = within or (0.0, _round_top([value for value in (*values, limit) if value is not None]))
    places = [_place(place, len(values)) for place in range(len(values))]
    heights = [None if value is None else _height(value, low, top) for value in values]
    path, is_down = "", False
    for x, y in zip(places, heights, strict=True):
        if y is not None:
            path += f"{'L' if is_down else 'M'}{x:.2f} {y:.2f}"
        is_down = y is not None
    marks = marked or [False] * len(values)
    dots = tuple((x, y, mark) for x, y, mark in zip(places, heights, marks, strict=True) if y is not None)
    height = None if limit is None else _height(limit, low, top)
    return Line(path, dots, height, _over_time(places, labels), _heights(low, top, said))


def around(values: Sequence[float], floor_: float = -inf, ceiling: float = inf) -> tuple[float, float]:
    """Return a range that shows how values differ, with some room, within what they can be."""
    low, high = min(values), max(values)
    room = (high - low) * 0.25 or abs(high) * 0.05 or 1.0
    return max(low - room, floor_), min(high + room, ceiling)


def columns(values: Sequence[float], labels: Sequence[str]) -> Columns:
    """Draw amounts over time."""
    top, width = _round_top(values), 100 / max(len(values), 1)
    drawn = tuple(
        (place * width + width * 0.1, 100 - 100 * value / top, width * 0.8, 100 * value / top)
        for place, value in enumerate(values)
    )
    centres = [(place + 0.5) * width for place in range(len(values))]
    return Columns(drawn, _over_time(centres, labels), _heights(0, top))


def in_percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _steps(heights: Sequence[float]) -> str:
    width = 100 / max(len(heights), 1)
    steps = "".join(f"V{y:.2f}H{(place + 1) * width:.2f}" for place, y in enumerate(heights))
    return f"M0 100{steps}V100Z"


def _place(number: int, of: int) -> float:
    """Where one of so many values stands; not at the very edge, where half a dot would be cut off."""
    return 1.5 + 97 * (number / (of - 1) if of > 1 else 0.5)


def _some(count: int, most: int = LABELS) -> range:
    """Return some of so many places, evenly."""
    step = max(-(-count // most), 1)
    return range((step - 1) // 2, count, step)


def _over_time(places: Sequence[float], labels: Sequence[str]) -> tuple[Tick, ...]:
    begins = [at for at, label in enumerate(labels) if label and label not in labels[:at]]
    return tuple(Tick(places[begins[nth]], labels[begins[nth]]) for nth in _some(len(begins)))


def _heights(low: float, top: float, said: Callable[[float], str] = number) -> tuple[Tick, ...]:
    return tuple(Tick(100 - share * 100, said(low + (top - low) * share)) for share in (0, 0.5, 1))


def _height(value: float, low: float, top: float) -> float:
    return 100 - 100 * (value - low) / (top - low)


def _round_top(values: Sequence[float]) -> float:
    """Return a round number that no value is above."""
    highest = max((value for value in values if isfinite(value)), default=0) * HEADROOM
    if highest <= 0:
        return 1.0
    unit = 10.0 ** floor(log10(highest))
    return next(step * unit for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * unit >= highest)

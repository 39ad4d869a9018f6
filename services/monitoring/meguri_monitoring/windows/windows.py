"""Which predictions make which window.

The rows of a model version are cut into windows in the order of the stream: of equal size, or by the time of the predictions.
A window is cut into parts, so that any replica can count one with little memory, and count it again with the same result.
What a window consists of follows from the stream and the rule alone, whoever plans it and how much is planned at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from meguri_contracts.spec import Monitor

PART_ROWS = 20_000
"""Rows of a part at most, but for a larger message of a window by time."""
SECOND = 1_000_000
"""In the unit of times: microseconds since 1970."""
AHEAD = 3600 * SECOND
"""By how much the clock of who predicts may be ahead of the broker's: no window by time is opened that begins later."""


@dataclass(frozen=True)
class Part:
    """Rows of one window: those of the messages `first` to `last`, without `skip` in the beginning, `rows` of them.

    Of a window by time only those between its limits count, and nothing is skipped.
    """

    number: int
    """In its window, from 0."""
    first: int
    last: int
    skip: int
    rows: int


@dataclass(frozen=True)
class Window:
    """What is known of a window when something about it was planned. `key` tells it apart from others of the same version."""

    key: int
    """Of a window by rows its number, of one by time the microseconds at which it begins."""
    first: int
    last: int
    rows: int
    parts: tuple[Part, ...] = ()
    """Those that are new."""
    planned: int = 0
    """Parts that it has, these included."""
    number: int | None = None
    """Of the window among those that closed, from 0 without gaps; None as long as it is open."""
    length: int = 0
    """Of a window by time, in microseconds; 0 of one by rows."""


@dataclass(frozen=True)
class Open:
    """A window that may get more rows.

    `part_rows` of them are in no part yet; they begin `part_skip` rows into message `part_first`.
    """

    key: int
    first: int = 0
    last: int = 0
    rows: int = 0
    parts: int = 0
    part_first: int = 0
    part_skip: int = 0
    part_rows: int = 0


@dataclass(frozen=True)
class Planner:
    """How far the rows of a version are planned."""

    last: int = 0
    """The last message that was planned."""
    number: int = 0
    """Of the next window that closes."""
    open: tuple[Open, ...] = ()
    """By rows at most one."""
    length: int = 0
    """Of windows by time, in microseconds; 0 when they are by rows."""
    latest: int = 0
    """The latest prediction seen, and `closed` the end of the latest window that was closed; microseconds, by time only."""
    closed: int = 0
    former: tuple[tuple[int, int], ...] = ()
    """By length of windows by time of before, `closed` of these where it lies after the latest prediction."""
    late: int = 0
    """Rows that belong to no window because they came after it was closed, or are said to be of much later than they came."""


@dataclass(frozen=True)
class Planned:
    """What one message brought about."""

    planner: Planner
    windows: tuple[Window, ...] = ()
    """Those with new parts, and those that closed, in the order in which they closed."""
    late: dict[int, int] = field(default_factory=dict)
    """By key of a closed window the rows that came too late for it."""


def plan(
    planner: Planner, sequence: int, times: NDArray[np.int64], rule: Monitor, *, stored: int | None = None
) -> Planned:
    """Plan the rows of a message of which there is one time each, in microseconds. One that was planned changes nothing.

    `stored` is when the broker had the message: no window by time closes because of a later time that a row claims.
    """
    if sequence <= planner.last:
        return Planned(planner)
    news: dict[tuple[int, int], Window] = {}
    length = round(rule.window_seconds * SECOND) if rule.window_seconds is not None else 0
    if length != planner.length:
        # The windows that were open close with what they have.
        planner = _cut_otherwise(_close(planner, planner.open, news), length)
    planner = replace(planner, last=sequence)
    if not length:
        return Planned(_by_rows(planner, sequence, len(times), rule.window_rows, news), tuple(news.values()))
    late: dict[int, int] = {}
    patience = round(rule.late_seconds * SECOND)
    if stored is not None:
        # By windows and not by rows: a window consists of all rows of its messages whose times lie in it.
        ahead = times // length * length > stored + AHEAD
        planner = replace(planner, late=planner.late + int(ahead.sum()))
        times = times[~ahead]
    planner = _by_time(planner, sequence, times, patience, news, late, stored)
    return Planned(planner, tuple(news.values()), late)


def _cut_otherwise(planner: Planner, length: int) -> Planner:
    """Go on with windows of another length: with the one that the latest prediction lies in, unless that was closed before."""
    former = dict(planner.former) | {planner.length: planner.closed}
    begins = planner.latest // length * length if length else 0
    return replace(
        planner,
        length=length,
        closed=max(begins, former.get(length, 0)),
        former=tuple((one, closed) for one, closed in former.items() if one and closed > planner.latest),
    )


def _by_rows(
    planner: Planner, sequence: int, rows: int, window_rows: int, news: dict[tuple[int, int], Window]
) -> Planner:
    at = 0
    while at < rows:
        window = planner.open[0] if planner.open else Open(planner.number)
        # A window that was open when its limit was lowered closes with what it has.
        room = max(window_rows - window.rows, 0)
        take = min(rows - at, room, PART_ROWS - window.part_rows)
        window = _extended(window, sequence, at, take)
        at += take
        if window.rows >= window_rows:
            planner = _close(planner, [window], news)
        else:
            planner = replace(planner, open=(_cut_if_full(window, 0, news),))
    return planner


def _by_time(
    planner: Planner,
    sequence: int,
    times: NDArray[np.int64],
    patience: int,
    news: dict[tuple[int, int], Window],
    late: dict[int, int],
    stored: int | None,
) -> Planner:
    length = planner.length
    open_ = {window.key: window for window in planner.open}
    for index, rows in zip(*np.unique(times // length, return_counts=True), strict=True):
        key, count = int(index) * length, int(rows)
        if key + length <= planner.closed:
            late[key] = count
        else:
            open_[key] = _cut_if_full(_extended(open_.get(key) or Open(key), sequence, 0, count), length, news)
    seen = int(times.max(initial=0))
    latest = max(planner.latest, seen if stored is None else min(seen, stored))
    windows = tuple(open_[key] for key in sorted(open_))
    planner = replace(planner, open=windows, latest=latest, late=planner.late + sum(late.values()))
    return _close(planner, [one for one in windows if one.key + length + patience <= latest], news)


def _extended(window: Open, sequence: int, skip: int, rows: int) -> Open:
    if not window.part_rows:
        window = replace(window, part_first=sequence, part_skip=skip)
    return replace(
        window,
        first=window.first or sequence,
        last=sequence if rows else window.last,
        rows=window.rows + rows,
        part_rows=window.part_rows + rows,
    )


def _cut_if_full(window: Open, length: int, news: dict[tuple[int, int], Window]) -> Open:
    return _cut(window, length, news) if window.part_rows >= PART_ROWS else window


def _cut(window: Open, length: int, news: dict[tuple[int, int], Window]) -> Open:
    """Make a part of the rows that are in none yet, and tell of it."""
    part = Part(window.parts, window.part_first, window.last, window.part_skip, window.part_rows)
    window = replace(window, parts=window.parts + 1, part_rows=0)
    before = news[length, window.key].parts if (length, window.key) in news else ()
    news[length, window.key] = _told(window, length, (*before, part))
    return window


def _told(window: Open, length: int, parts: tuple[Part, ...]) -> Window:
    return Window(window.key, window.first, window.last, window.rows, parts, window.parts, length=length)


def _close(planner: Planner, windows: Sequence[Open], news: dict[tuple[int, int], Window]) -> Planner:
    """Close windows, and tell of it."""
    length, ends = planner.length, [planner.closed]
    for number, window in enumerate(windows, planner.number):
        left = _cut(window, length, news) if window.part_rows else window
        told = news.get((length, window.key)) or _told(left, length, ())
        news[length, window.key] = replace(told, number=number, rows=window.rows, last=window.last)
        ends.append(window.key + length if length else 0)
    keys = {window.key for window in windows}
    return replace(
        planner,
        number=planner.number + len(windows),
        open=tuple(one for one in planner.open if one.key not in keys),
        closed=max(ends),
    )

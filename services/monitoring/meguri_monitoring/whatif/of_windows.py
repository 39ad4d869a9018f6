"""Episodes that follow from windows of predictions: drift, answers, missing values, categories, volume."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import polars as pl
from sqlmodel import Session

from meguri_chassis.profiles import Profile
from meguri_contracts import events
from meguri_contracts.errors import Invalid
from meguri_contracts.spec import EpisodeKind, Monitor
from meguri_monitoring.episodes import looks, volume
from meguri_monitoring.episodes.looks import Look
from meguri_monitoring.predictions import tables
from meguri_monitoring.predictions.predictions import SEQUENCE, parts_of
from meguri_monitoring.verdicts.judging import Judged
from meguri_monitoring.whatif import store as whatif_store
from meguri_monitoring.whatif.kept import GONE, Kept, Place
from meguri_monitoring.whatif.recomputing import UNKNOWN, Seen
from meguri_monitoring.whatif.store import Past
from meguri_monitoring.windows import counting
from meguri_monitoring.windows.counting import Counted
from meguri_monitoring.windows.store import WindowRow

BEFORE = 20
"""Windows before the one that began the episode that are recomputed too, at least."""
AROUND = timedelta(hours=1)
"""How long before or after a version its shadow has answered the same row."""
MOST = 20_000
"""Windows that are recomputed at once."""


@dataclass(frozen=True)
class Stretch:
    """The windows around an episode, as they were: from before it began until it ended."""

    places: tuple[Place, ...]
    anchor: tuple[Place, ...]
    """Windows right before these, as many as it takes to know where in a message they begin, if they are kept."""
    history: int = 0
    """How many of the windows are only what those behind them are held against."""

    @property
    def numbers(self) -> tuple[int, int]:
        return self.places[0].number, self.places[-1].number


def stretch(session: Session, past: Past, rule: Monitor) -> Stretch:
    """Return the windows that are recomputed. Raises Invalid when they are no longer kept."""
    known = whatif_store.places(session, past)
    window = past.row.detected["window"]
    at = next((at for at, one in enumerate(known) if (one.first, one.last) == (window["first"], window["last"])), None)
    if at is None:
        raise Invalid(f"the windows of that time are no longer kept: {GONE}")
    last = whatif_store.last_number(session, past.row.episode, past.row.version) if past.resolved else None
    end = next((nth for nth, one in enumerate(known, 1) if one.number == last), len(known))
    shown = max(0, at - max(BEFORE, 4 * rule.windows), _ended_before(session, past, known))
    begin = max(0, shown - volume.HISTORY) if past.about == "volume" else shown
    while begin < at and known[at].number - known[begin].number != at - begin:
        # Windows that nobody needed are forgotten: it begins behind them.
        begin += 1
    anchor = begin
    while anchor and not known[anchor].length and known[anchor - 1].number + 1 == known[anchor].number:
        anchor -= 1
        if known[anchor].last < known[anchor + 1].first:
            break
    return Stretch(tuple(known[begin : max(end, at + 1)]), tuple(known[anchor:begin]), max(shown - begin, 0))


def _ended_before(session: Session, past: Past, known: Sequence[Place]) -> int:
    """Where the windows begin that ended the episode before this one, so that it does not begin once more in its middle."""
    row = whatif_store.before(session, past)
    if row is None or row.detected["window"]["first"] < known[0].first:
        return 0
    number = whatif_store.last_number(session, row.episode, row.version)
    found = next((at for at, one in enumerate(known) if one.number == number), -1)
    return max(0, found + 1 - past.rule.windows)


class Rows:
    """The rows of the windows of a stretch, in the windows that there were or in others of `window_rows` each."""

    def __init__(
        self, uri: str, stretch: Stretch, rest: Callable[[], None], *, window_rows: int | None, theirs: str | None
    ) -> None:
        """`theirs` is the table of another version whose answers are taken in place of these."""
        self._stretch, self._window_rows = stretch, window_rows
        self.unsure = 0
        """How many rows later the windows may have begun: it is not always known where in a message."""
        first = min(one.first for one in (*stretch.anchor, *stretch.places))
        last = max(one.last for one in stretch.places)
        self._kept = Kept(_scan(uri), SEQUENCE, first, last, rest)
        self._theirs = _Answers(_scan(theirs, shadow=None)) if theirs else None

    def windows(self) -> Iterator[tuple[Place, Iterator[pl.DataFrame]]]:
        """Yield each window with its rows, in parts. Raises Invalid when some are missing."""
        for place, rows in self._cut():
            yield place, map(self._theirs, rows) if self._theirs else rows

    @property
    def answered(self) -> tuple[int, int]:
        """How many rows there were so far, and how many of them the other version answered."""
        return (self._theirs.asked, self._theirs.found) if self._theirs else (0, 0)

    def _cut(self) -> Iterator[tuple[Place, Iterator[pl.DataFrame]]]:
        places = self._stretch.places
        if places[0].length and self._window_rows is None:
            yield from ((place, self._kept.within(place)) for place in places)
            return
        begin, end = self._limits()
        if self._window_rows is None:
            for place in places:
                yield place, self._kept.between(begin, begin + place.rows)
                begin += place.rows
            return
        if (end - begin) // self._window_rows > MOST:
            raise Invalid(f"--window-rows: more than {MOST} windows would have to be recomputed; ask for larger ones")
        for number, at in enumerate(range(begin, end - self._window_rows + 1, self._window_rows)):
            yield Place(number, 0, 0, self._window_rows), self._kept.between(at, at + self._window_rows)

    def _limits(self) -> tuple[int, int]:
        """Where the rows of the stretch begin and end."""
        places = self._stretch.places
        if any(one.length for one in places):
            return min(self._kept.span(one)[0] for one in places), max(self._kept.span(one)[1] for one in places)
        least, most = self._kept.begins((*self._stretch.anchor, *places))
        self.unsure = most - least
        begin = least + sum(one.rows for one in self._stretch.anchor)
        return begin, begin + sum(one.rows for one in places)


class _Answers:
    """Puts the answers of another version to the same rows in place of those that are there; rows without one are left out."""

    def __init__(self, rows: pl.LazyFrame) -> None:
        self._rows = rows
        _, self._columns = parts_of(rows.collect_schema().names())
        self.asked = self.found = 0

    def __call__(self, rows: pl.DataFrame) -> pl.DataFrame:
        if rows.is_empty():
            return rows
        began, ended = cast(datetime, rows["time"].min()), cast(datetime, rows["time"].max())
        near = self._rows.filter(pl.col("time").is_between(began - AROUND, ended + AROUND))
        asked = near.filter(pl.col("prediction_id").is_in(rows["prediction_id"].implode()))
        found = asked.select("prediction_id", *self._columns).collect(engine="streaming")
        _, own = parts_of(rows.columns)
        both = rows.drop(own).join(
            found.unique("prediction_id"), on="prediction_id", how="inner", maintain_order="left"
        )
        self.asked += rows.height
        self.found += both.height
        return both


def looked(
    windows: Iterable[tuple[Place, Iterator[pl.DataFrame]]], reference: Profile, rule: Monitor, past: Past
) -> Iterator[Judged]:
    """Yield the windows counted and held against a reference. Raises Invalid when the rows do not have what it has."""
    for place, rows in windows:
        yield judged(place, rows, reference, rule, past.row.version)


def judged(place: Place, rows: Iterable[pl.DataFrame], reference: Profile, rule: Monitor, version: int) -> Judged:
    """Count a window part by part and hold it against a reference."""
    counted = []
    first, last, number = place.first, place.last, 0
    for part in rows:
        counted.append(counting.counted(part, reference))
        number += part.height
        if part.height and not place.last:
            first, last = first or int(part[SEQUENCE][0]), int(part[SEQUENCE][-1])
    row = WindowRow(
        model="",
        version=version,
        rollout=0,
        key=place.key,
        length=place.length,
        number=place.number,
        first=first,
        last=place.last or last,
        rows=number,
        parts=len(counted),
        late=0,
    )
    return counting.verdict(row, Counted.of(counted), reference, rule)


def timed(windows: Iterable[tuple[Place, Iterator[pl.DataFrame]]], version: int) -> Iterator[Judged]:
    """Yield windows by rows of which only is known when they began and ended: all that volume is about."""
    for place, rows in windows:
        about = pl.concat([part.select("time", SEQUENCE) for part in rows])
        began, ended = cast(datetime, about["time"].min()), cast(datetime, about["time"].max())
        yield Judged(
            version=version,
            number=place.number,
            window=events.Window(first=about[SEQUENCE][0], last=about[SEQUENCE][-1], rows=about.height),
            judged=True,
            began=began.isoformat(),
            ended=ended.isoformat(),
            seconds=(ended - began).total_seconds(),
        )


def looks_of(
    windows: Iterable[Judged], rule: Monitor, about: EpisodeKind, history: int = 0
) -> Iterator[tuple[Look, Seen]]:
    """Yield what windows say about a kind of episodes, in their order; the first `history` of them say nothing."""
    before: deque[Judged] = deque(maxlen=max(volume.HISTORY, 4 * rule.windows))
    for at, window in enumerate(windows):
        if about == "volume":
            before.append(window)
            look = looks.of_volume(before, rule)[-1]
            worst: dict[str, Any] = {
                "moved": look.moved,
                "subject": look.subject,
                "score": look.score,
                "threshold": rule.volume or 0.0,
                "method": "requests a second, as a ratio",
            }
        else:
            look, worst = looks.of_window(window, about), _worst(window, about)
        if at >= history:
            ended = window.ended or UNKNOWN
            yield look, Seen(window.number, window.window.rows, window.began, ended, **worst)


def _worst(window: Judged, about: EpisodeKind) -> dict[str, Any]:
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


def _scan(uri: str, *, shadow: bool | None = False) -> pl.LazyFrame:
    rows = tables.scan(uri, shadow=shadow)
    if rows is None:
        raise Invalid(GONE)
    return rows

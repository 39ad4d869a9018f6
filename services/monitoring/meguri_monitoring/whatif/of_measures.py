"""Episodes of an evaluator's numbers: the rows of its table, cut into windows and held against a baseline once more."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from meguri_contracts.errors import Invalid
from meguri_contracts.spec import Monitor, Watch
from meguri_monitoring.episodes.looks import Look
from meguri_monitoring.evaluators import measure_tables, measure_windows, measures
from meguri_monitoring.evaluators.measures import Closed
from meguri_monitoring.verdicts.judging import Judged
from meguri_monitoring.whatif.kept import GONE, Kept, Place
from meguri_monitoring.whatif.recomputing import Seen
from meguri_monitoring.whatif.store import Past

BEFORE = 20
"""Windows before the one that began the episode that are recomputed too, at least."""


@dataclass(frozen=True)
class Stretch:
    """The windows around an episode, out of all that are kept."""

    known: tuple[Judged, ...]
    """Each behind the other, without gaps."""
    first: int
    """Numbers of the first and the last that are recomputed."""
    last: int

    @property
    def windows(self) -> Sequence[Judged]:
        return [one for one in self.known if self.first <= one.number <= self.last]


def stretch(known: Sequence[Judged], past: Past, rule: Monitor, last: int | None, ended_before: int | None) -> Stretch:
    """Return what is recomputed: `last` is the number of the last window of the episode, `ended_before` that of the one before.

    Raises Invalid when the windows are no longer kept.
    """
    window = past.row.detected["window"]
    at = next((n for n, one in enumerate(known) if one.window.model_dump() == window), None)
    if at is None:
        raise Invalid(f"the windows of that time are no longer kept: {GONE}")
    opened = known[at].number
    earlier = list(takewhile(lambda one: known[at - one].number == opened - one, range(1, at + 1)))
    begin = max(opened - max(BEFORE, 4 * rule.windows), known[at - len(earlier)].number, 0)
    if ended_before is not None:
        begin = max(begin, ended_before + 1 - past.rule.windows)
    end = last if last is not None and past.resolved else known[-1].number
    return Stretch(tuple(known[at - len(earlier) :]), min(begin, opened), max(end, opened))


def looked(
    table_uri: str, stretch: Stretch, now: Watch, then: Watch, rule: Monitor, subject: str, rest: Callable[[], None]
) -> Iterator[tuple[Look, Seen]]:
    """Yield what windows say about a number; `then` is how the evaluator was watched, `now` how it would have been.

    Raises Invalid when the rows are no longer kept as they were.
    """
    version = stretch.known[0].version
    for closed in _closed(table_uri, stretch, now, then, version, rest):
        rest()
        yield look_of(measures.judge(closed, now, rule, version), subject)


def look_of(window: Judged, subject: str) -> tuple[Look, Seen]:
    """Return what a window says about a number."""
    (found,) = (one for one in window.findings if one.subject == subject)
    seen = Seen(
        number=window.number,
        rows=window.window.rows,
        began=window.began,
        ended=window.ended,
        moved=found.moved,
        subject=subject,
        score=found.score,
        threshold=found.threshold,
        method=found.method,
    )
    return measures.look(window, subject), seen


def _closed(
    table_uri: str, stretch: Stretch, now: Watch, then: Watch, version: int, rest: Callable[[], None]
) -> Iterator[Closed]:
    table = measure_tables.as_written(table_uri)
    if table is None:
        raise Invalid(GONE)
    upto = stretch.windows[-1].window.last
    kept = Kept(measure_windows.watched(table, now, version), "_sequence", 0, upto, rest)
    places = [Place(one.number, one.window.first, one.window.last, one.window.rows) for one in stretch.known]
    places = [one for one in places if one.number <= stretch.last]
    begin = kept.begins([_after_baseline(one) for one in places])[0] - places[0].number * then.window_rows
    origin = begin - then.baseline_rows
    baseline = tuple(_rows(kept, origin, origin + now.baseline_rows))
    first, size = origin + now.baseline_rows, now.window_rows
    start = begin + stretch.first * then.window_rows
    number = max(0, -((first - start) // size))
    end = begin + (stretch.last + 1) * then.window_rows
    for at in range(first + number * size, end - size + 1, size):
        yield Closed(number, baseline, tuple(_rows(kept, at, at + size)))
        number += 1


def _after_baseline(place: Place) -> Place:
    """A window of an evaluator need not begin with a message: the first one begins where the baseline ended."""
    return Place(place.number + 1, place.first, place.last, place.rows)


def _rows(kept: Kept, start: int, end: int) -> Iterator[measures.Row]:
    for part in kept.between(start, end):
        yield from measure_windows.as_rows(part)

"""Episodes of silence: the times without a prediction, out of those of all predictions that are kept."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import polars as pl

from meguri_contracts.spec import Monitor
from meguri_monitoring.episodes import silence
from meguri_monitoring.episodes.looks import Look
from meguri_monitoring.whatif.recomputing import Seen

BEFORE = 20
"""How many times the longest silence that is asked about it is looked back."""
SPANS = 100_000
"""Halves of the shortest silence that is asked about that are looked at, at most."""
_HALF = 2
"""Spans of half a silence tell: one that is as long has a span without predictions in it, wherever it begins."""


def looked(
    tables: Sequence[pl.LazyFrame], rule: Monitor, version: int, around: tuple[datetime, datetime], *, over: bool
) -> Iterator[tuple[Look, Seen]]:
    """Yield the times without predictions that are half as long as a silence or longer, each when it was noticed and when over.

    `around` are the times between which predictions are looked at; with `over` there was one at the end, or else the last
    silence goes on there.
    """
    since, until = around
    limit = timedelta(seconds=rule.silence or 0.0)
    arrivals = _arrivals(tables, since, until, limit / _HALF)
    if not over:
        arrivals = [*arrivals, (until, until)]
    number = 0
    for (_, last), (back, _) in pairwise(arrivals):
        if back - last < limit / _HALF:
            continue
        noticed = min(last + limit, back)
        look = silence.look(version, last, rule, noticed)
        yield look, _seen(number, last, noticed, look, rule)
        if look.moved and (over or back < until):
            again = silence.look(version, back, rule, back)
            yield again, _seen(number, last, back, again, rule, (back - last).total_seconds())
        number += 1


def since(last: datetime, rules: Sequence[Monitor]) -> datetime:
    """Return from when on predictions are looked at, when the last one before a silence was at `last`."""
    seconds = [rule.silence or 1.0 for rule in rules]
    return last - timedelta(seconds=min(BEFORE * max(seconds), SPANS * min(seconds) / _HALF))


def _arrivals(
    tables: Sequence[pl.LazyFrame], since: datetime, until: datetime, span: timedelta
) -> list[tuple[datetime, datetime]]:
    """First and last prediction of each span of time that has any, in their order."""
    if not tables:
        return []
    length = round(span / timedelta(microseconds=1))
    time = pl.col("time").to_physical()
    rows = pl.concat([table.filter(pl.col("time").is_between(since, until)).select(time) for table in tables])
    spans = rows.group_by(pl.col("time") // length).agg(first=pl.col("time").min(), last=pl.col("time").max())
    found = spans.collect(engine="streaming").sort("first")
    return [(_at(first), _at(last)) for first, last in found.select("first", "last").iter_rows()]


def _at(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


def _seen(
    number: int, began: datetime, ended: datetime, look: Look, rule: Monitor, seconds: float | None = None
) -> Seen:
    return Seen(
        number=number,
        rows=0,
        began=began.isoformat(),
        ended=ended.isoformat(),
        moved=look.moved,
        subject=look.subject,
        score=look.value if seconds is None else seconds,
        threshold=rule.silence or 0.0,
        method="seconds without a prediction",
    )

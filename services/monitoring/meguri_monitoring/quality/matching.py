"""Finds in the tables of predictions what labels are about."""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta

import polars as pl

from meguri_monitoring.predictions.predictions import ENTITY, ROLE, SEQUENCE

RUN = 1000
"""Ids that are looked for at once. In order, so that files and parts of files without any of them are not read."""
SPANS = (timedelta(hours=1), timedelta(days=1), None)
"""How far before their time the answers that labels of entities are about are looked for, one after the other."""
Found = dict[tuple[str, datetime], tuple[str, datetime]]
"""By entity and time of a label: the id and the time of the prediction that it is about."""


def rows_of(rows: pl.LazyFrame, ids: Collection[str], columns: Sequence[str]) -> pl.DataFrame:
    """Return the rows with these prediction ids; of one that was published twice, the first."""
    column = pl.col("prediction_id")
    wanted = rows.select("prediction_id", SEQUENCE, *columns)
    found = [
        wanted.filter(column >= pl.lit(run[0]), column <= pl.lit(run[-1]), column.is_in(pl.Series(run).implode()))
        for run in _runs(sorted(ids))
    ]
    parts = [part.collect(engine="streaming") for part in found] or [wanted.clear().collect()]
    return pl.concat(parts).sort(SEQUENCE).unique("prediction_id", keep="first", maintain_order=True)


def last_answers(answers: Sequence[pl.LazyFrame], asked: Collection[tuple[str, datetime]]) -> Found:
    """Return the last answers about entities at or before times; of several at the same time that with the greatest id."""
    found: Found = {}
    for span in SPANS:
        if left := sorted(set(asked) - found.keys()):
            found |= _last_answers(answers, left, span)
    return found


def last_of(answers: pl.DataFrame, asked: Collection[tuple[str, datetime]], span: timedelta | None = None) -> Found:
    """The same among answers in hand: entity, time and prediction id."""
    wanted = pl.DataFrame(sorted(asked), schema={ENTITY: pl.String(), "of": pl.Datetime("us", "UTC")}, orient="row")
    found = wanted.sort("of").join_asof(
        answers.select(ENTITY, "time", "prediction_id").sort("time", "prediction_id"),
        left_on="of",
        right_on="time",
        by=ENTITY,
        strategy="backward",
        tolerance=span,
        coalesce=False,
        check_sortedness=False,
    )
    rows = found.drop_nulls("prediction_id").select(ENTITY, "of", "prediction_id", "time")
    return {(entity, of): (id_, time) for entity, of, id_, time in rows.iter_rows()}


def next_rows(rows: pl.LazyFrame, after: int, up_to: int, at_most: int) -> tuple[pl.DataFrame, int]:
    """Return id, entity, time and role of the rows that came next after a stream sequence, and that of the last of them.

    They are those of at least one message, of more up to about `at_most` rows; none of later ones than `up_to`.
    """
    sequence = pl.col(SEQUENCE)
    fresh = rows.filter(sequence > after, sequence <= up_to)
    counts = fresh.group_by(SEQUENCE).len().collect(engine="streaming").sort(SEQUENCE)
    enough = counts.filter(pl.col("len").cum_sum() >= at_most)
    last = int(enough[SEQUENCE][0]) if enough.height else up_to
    part = fresh.filter(sequence <= last).select("prediction_id", ENTITY, "time", ROLE)
    return part.collect(engine="streaming"), last


def _last_answers(
    answers: Sequence[pl.LazyFrame], asked: Sequence[tuple[str, datetime]], span: timedelta | None
) -> Found:
    entities = pl.Series(sorted({entity for entity, _ in asked})).implode()
    times = [time for _, time in asked]
    within = [pl.col("time") <= pl.lit(max(times)), pl.col(ENTITY).is_in(entities)]
    if span is not None:
        within.append(pl.col("time") >= pl.lit(min(times)) - pl.lit(span))
    rows = [one.filter(*within).select(ENTITY, "time", "prediction_id") for one in answers]
    return last_of(pl.concat(rows).collect(engine="streaming"), asked, span) if rows else {}


def _runs(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), RUN):
        yield ids[start : start + RUN]

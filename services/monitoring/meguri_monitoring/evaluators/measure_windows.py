"""Rows of evaluators counted into windows, and what follows from these."""

from dataclasses import replace
from datetime import datetime

import polars as pl
from sqlmodel import Session

from meguri_chassis.store import Database, Position, locked_position, move_position, utc
from meguri_contracts.events import Event
from meguri_contracts.spec import Watch
from meguri_monitoring import store
from meguri_monitoring.episodes import episodes, looks
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.episodes.episodes import State
from meguri_monitoring.evaluators import measure_tables, measures
from meguri_monitoring.evaluators import store as measure_store
from meguri_monitoring.evaluators.store import MeasureWindowRow
from meguri_monitoring.verdicts.judging import Judged
from meguri_monitoring.windows import store as window_store


def count(database: Database, model: str, watch: Watch, table_uri: str, last: int = 0) -> int:
    """Count what the table of an evaluator has into windows; return up to which prediction the evaluator has come.

    `last` is where it has come without any rows for the table. In a database that was wiped windows begin anew.
    """
    name = measure_store.position(model, watch.evaluator)
    written = measure_tables.kept_up_to(table_uri)
    with database.write() as session:
        if session.get(Position, name) is None:
            move_position(session.connection(), name, written)
        position = locked_position(session, name)
        if (end := max(position, written, last)) > position:
            _add(session, model, watch, table_uri, position, end)
            move_position(session.connection(), name, end)
    return end


def _add(session: Session, model: str, watch: Watch, table_uri: str, after: int, upto: int) -> None:
    state, rule = store.state(session, model), store.rule(session, model)
    version = state.champion or 0
    known = measure_store.watched(session, model, watch.evaluator)
    known, closed = measures.add(known, _rows(table_uri, watch, after, upto, version), watch, state.rollout)
    measure_store.keep_watched(session, model, watch.evaluator, known)
    for window in closed:
        judged = measures.judge(window, watch, rule, version)
        evidence = measures.evidence(window, watch, judged)
        measure_store.keep_window(session, model, watch.evaluator, state.rollout, judged, evidence)


def _rows(table_uri: str, watch: Watch, after: int, upto: int, version: int) -> list[measures.Row]:
    """Return the rows about a version's predictions after one sequence up to another, in the order of the table.

    What was filled in later is about predictions of before and is not among them.
    """
    table = measure_tables.scan(table_uri)
    if table is None or not watch.numbers:
        return []
    found = watched(table, watch, version).filter((pl.col("_sequence") > after) & (pl.col("_sequence") <= upto))
    return as_rows(found.collect().sort("_sequence", maintain_order=True))


def watched(table: pl.LazyFrame, watch: Watch, version: int) -> pl.LazyFrame:
    """Return what is watched of the rows about a version's predictions."""
    there = table.collect_schema().names()
    numbers = [pl.col(n).cast(pl.Float64) if n in there else pl.lit(None, pl.Float64).alias(n) for n in watch.numbers]
    about = ["key", "producer", "time", "_sequence", "_trace", "_left_out"]
    return table.filter(pl.col("_version") == version).select(*about, *(n.name.prefix("number_") for n in numbers))


def as_rows(found: pl.DataFrame) -> list[measures.Row]:
    """Return what `watched` gave as plain values."""
    return [
        measures.Row(key, producer, utc(when).isoformat(), sequence, trace_id, left_out, tuple(values))
        for key, producer, when, sequence, trace_id, left_out, *values in found.rows()
    ]


def follows(row: MeasureWindowRow, subject: str, session: Session) -> list[Event]:
    """Say what a window begins or ends about one number."""
    state, rule = store.state(session, row.model), store.rule(session, row.model)
    if row.rollout != state.rollout:
        return []
    windows = [measure_store.judged(one.judged) for one in measure_store.up_to(session, row, rule.windows)]
    seen = [
        replace(measures.look(window, subject), inputs_moved=_inputs_moved(session, state, window))
        for window in windows
        if subject in measures.subjects(window)
    ]
    return list(episodes.decide_look(state, seen, rule, datetime.fromisoformat(windows[-1].ended)))


def open_episodes(session: Session, row: MeasureWindowRow) -> set[str]:
    """The open episodes that a window is evidence for."""
    subjects = measures.subjects(measure_store.judged(row.judged))
    state = store.state(session, row.model)
    return {one.id for one in state.episodes if one.about == "measure" and one.subject in subjects}


def conclude(session: Session, row: MeasureWindowRow, before: set[str]) -> None:
    """Keep what episodes rest on: each window of one from the first that moved, the one that ended it included."""
    measure_store.mark_decided(session, row.id or 0)
    for episode in before | open_episodes(session, row):
        begun = episode_store.has_evidence(session, episode)
        runs = 1 if begun else store.rule(session, row.model).windows
        for one in measure_store.up_to(session, row, runs):
            episode_store.keep_evidence(session, episode, measure_store.judged(one.judged), one.evidence)


def _inputs_moved(session: Session, state: State, window: Judged) -> bool | None:
    """Whether the inputs moved while the predictions of a window of measures came; None if that is not known."""
    seen = [one for one in window_store.latest(session, state.model, window.version, state.rollout, 100) if one.judged]
    same = [one for one in seen if one.window.last >= window.window.first] or seen[-1:]
    return any(one.moved(about) for one in same for about in looks.INPUTS) if same else None

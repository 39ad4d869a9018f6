"""Joins labels to predictions, whichever of the two is late, each pair once.

Two things are remembered of a model: up to which sequence of the log its labels are done, and for each version up to which
stream sequence its predictions are. All labels up to there are joined with all predictions up to there. A step takes the next
labels, or the next predictions, and computes anew what is known of every prediction that these touch; what it finds follows
from labels and tables alone, so whoever takes a step twice, or after somebody died in it, writes the same.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from sqlmodel import Session

from meguri_chassis.store import Database, Position, locked_position, move_position
from meguri_monitoring import store
from meguri_monitoring.predictions import tables
from meguri_monitoring.predictions.predictions import ENTITY, ROLE, SHADOW, parts_of
from meguri_monitoring.quality import label_store, matching, quality, slicing
from meguri_monitoring.quality import store as score_store
from meguri_monitoring.quality.label_store import Key, Meant, Truth

LABELS = 5000
"""Labels of a step, unless one event has more."""
ROWS = 50_000
"""Predictions of a step, unless one message has more."""
KEPT = (
    *("version", "shadow", "prediction_id", "time", "producer", "trace_id", "label_sequence"),
    *("label", "answer", "target", "probability", "bin", "score", "loss", "slices"),
)
"""Columns of a scored row that follow from a prediction and its label."""
Limits = Mapping[tuple[int, str], Sequence[float]]
"""By version and feature the limits between the quarters of its reference, of the features by which quality is told apart."""


@dataclass(frozen=True)
class Standing:
    """What is done, and what there is to do."""

    labels: int
    """Sequence in the log up to which labels are done."""
    latest: int
    """Of the last label there is."""
    rows: Mapping[int, int]
    """By version: the stream sequence up to which predictions are done."""
    kept: Mapping[int, int]
    """And up to which there are some."""


@dataclass(frozen=True)
class Step:
    """What a step found out."""

    touched: frozenset[str]
    meant: Mapping[Key, Meant]
    scored: Sequence[dict[str, Any]]
    labels: int
    rows: Mapping[int, int]


class Joiner:
    """Joins the labels and predictions of one model. `slices` are features by which quality is told apart."""

    def __init__(self, database: Database, data_url: str, model: str, slices: Sequence[str], limits: Limits) -> None:
        self._database = database
        self._data_url = data_url
        self._model = model
        self._slices = slices
        self._limits = limits

    def step(self) -> bool:
        """Take a step; return whether there may be another. One that somebody else took first is only looked at again."""
        with self._database.read() as session:
            standing = self._standing(session)
            step = self._labels(session, standing) or self._predictions(session, standing)
        if step is None:
            return False
        with self._database.write() as session:
            # Locked, so that one replica at a time moves what is done.
            labels = locked_position(session, self._name)
            if (labels, score_store.joined(session, self._model)) == (standing.labels, standing.rows):
                self._keep(session, step)
        return True

    @property
    def _name(self) -> str:
        return f"labels {self._model}"

    def _standing(self, session: Session) -> Standing:
        position = session.get(Position, self._name)
        versions = store.versions(session, self._model)
        uris = {row.version: tables.table_uri(self._data_url, row.model, row.version) for row in versions}
        return Standing(
            labels=position.sequence if position else 0,
            latest=label_store.latest_label(session, self._model),
            rows=score_store.joined(session, self._model),
            kept={version: tables.kept_up_to(uri) for version, uri in uris.items()},
        )

    def _keep(self, session: Session, step: Step) -> None:
        label_store.keep_meant(session, self._model, step.meant)
        score_store.keep_scored(session, self._model, step.touched, step.scored)
        score_store.keep_joined(session, self._model, step.rows)
        move_position(session.connection(), self._name, step.labels)

    def _labels(self, session: Session, standing: Standing) -> Step | None:
        """Join the next labels with all predictions that there are."""
        if standing.latest <= standing.labels:
            return None
        arrived = label_store.arrived(session, self._model, standing.labels, LABELS)
        answers = [rows for version in standing.kept if (rows := self._scan(version)) is not None]
        found = matching.last_answers(answers, arrived.entities)
        # As long as no label was done, nothing has to be held against predictions that are there.
        done = standing.kept if not standing.labels else {}
        meant = {key: Meant(*one) for key, one in found.items()}
        return self._scored(session, arrived.ids, meant, arrived.entities, labels=arrived.last, rows=done)

    def _predictions(self, session: Session, standing: Standing) -> Step | None:
        """Join the next predictions of a version with the labels that are done."""
        for version, kept in sorted(standing.kept.items()):
            after = standing.rows.get(version, 0)
            rows = self._scan(version, shadow=None) if standing.labels and after < kept else None
            if rows is None:
                continue
            fresh, last = matching.next_rows(rows, after, kept, ROWS)
            ids = label_store.labelled(session, self._model, fresh["prediction_id"])
            meant = self._nearer(session, fresh.filter(pl.col(ROLE) != SHADOW))
            return self._scored(session, ids, meant, meant.keys(), labels=standing.labels, rows={version: last})
        return None

    def _nearer(self, session: Session, fresh: pl.DataFrame) -> dict[Key, Meant]:
        """Labels of entities that are about one of these answers, instead of an earlier one or none."""
        told = fresh.drop_nulls(ENTITY)
        if not told.height:
            return {}
        asked = label_store.of_entities(session, self._model, told[ENTITY].unique(), told["time"].min())  # type: ignore[arg-type]
        found = {key: Meant(*one) for key, one in matching.last_of(told, asked).items()}
        known = label_store.meant(session, self._model, found.keys())
        return {key: one for key, one in found.items() if key not in known or one.rank > known[key].rank}

    def _scored(
        self,
        session: Session,
        ids: Iterable[str],
        meant: Mapping[Key, Meant],
        keys: Collection[Key],
        *,
        labels: int,
        rows: Mapping[int, int],
    ) -> Step:
        before = label_store.meant(session, self._model, keys)
        both = (*before.values(), *meant.values())
        touched = frozenset((*ids, *(one.prediction_id for one in both)))
        truths = label_store.truths(session, self._model, touched, meant)
        scored = [
            row for version in store.versions(session, self._model) for row in self._rows(version.version, truths)
        ]
        scored.sort(key=lambda row: (row["label_sequence"], row["time"], row["prediction_id"], row["version"]))
        return Step(touched, meant, scored, labels, rows)

    def _scan(self, version: int, *, shadow: bool | None = False) -> pl.LazyFrame | None:
        return tables.scan(tables.table_uri(self._data_url, self._model, version), shadow=shadow)

    def _rows(self, version: int, truths: Mapping[str, Truth]) -> list[dict[str, Any]]:
        rows = self._scan(version, shadow=None) if truths else None
        if rows is None:
            return []
        schema = rows.collect_schema()
        _, answer = parts_of(schema.names())
        sliced = [name for name in self._slices if name in schema]
        found = matching.rows_of(rows, truths.keys(), ("time", "producer", "trace_id", ROLE, *sliced, *answer))
        values = [
            slicing.value_of(name, schema[name], self._limits.get((version, name), ())).alias(name) for name in sliced
        ]
        # Under one name, whatever the features are called.
        found = found.with_columns(_slices=pl.struct(values) if values else pl.lit(None)).drop(sliced)
        labelled = quality.scored(found.join(_frame(truths), on="prediction_id"), answer).rename({"_slices": "slices"})
        role = {"version": pl.lit(version), "shadow": pl.col(ROLE) == SHADOW}
        kept = labelled.with_columns(**role).select(*KEPT).to_dicts()
        return [row | {"slices": row["slices"] or {}} for row in kept]


def _frame(truths: Mapping[str, Truth]) -> pl.DataFrame:
    schema = {"prediction_id": pl.String(), **quality.TRUTHS, "label_sequence": pl.Int64()}
    rows = [(id_, truth.text, truth.number, truth.sequence) for id_, truth in truths.items()]
    return pl.DataFrame(rows, schema=schema, orient="row")

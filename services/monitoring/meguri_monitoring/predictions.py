"""Predictions as inference sends them.

A message of the stream is an Arrow IPC stream with the columns of `ABOUT`, those of `PREDICTION_DETAILS` (older replicas send
none), a column per feature, and the answer: `label` and `probability`, `label` and `score`, or `prediction`. One request of
several rows gives ids `<id>:0`, `<id>:1`, …
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from meguri_contracts.errors import Malformed
from meguri_contracts.spec import PREDICTION_DETAILS

ABOUT = ("prediction_id", "time", "model", "version", "producer", "trace_id")
ENTITY, ROLE, LATENCY = PREDICTION_DETAILS
ANSWERS = (("label", "probability"), ("label", "score"), ("prediction",))
SEQUENCE = "sequence"
"""Column of the tables that holds the stream sequence a row came with: what the windows of events refer to."""
SHADOW = "shadow"
"""Role of a version whose answers nobody sees."""
CHAMPION = "champion"
"""Role of who answered as long as nothing was said of roles."""

_TYPES: dict[str, pl.DataType] = {
    "prediction_id": pl.String(),
    "time": pl.Datetime("us", "UTC"),
    "model": pl.String(),
    "version": pl.Int64(),
    "producer": pl.String(),
    "trace_id": pl.String(),
}
DETAIL_TYPES: dict[str, pl.DataType] = {ENTITY: pl.String(), ROLE: pl.String(), LATENCY: pl.Int64()}


@dataclass(frozen=True, eq=False)
class Batch:
    """Predictions of one model version out of one message, in their order.

    `rows`, `ids` and `producers` are of the answers that were given, `frame` has those of shadows too.
    """

    model: str
    version: int
    sequence: int
    """Of the message in its stream."""
    features: tuple[str, ...]
    """Those that are numbers or booleans."""
    rows: np.ndarray
    """Values of these, [n, features]; NaN where there is none."""
    ids: tuple[str, ...]
    producers: tuple[str, ...]
    frame: pl.DataFrame
    """The rows with every column, as the table keeps them."""
    flags: frozenset[str] = frozenset()
    """Those of the features that are booleans."""


def read(message: bytes, sequence: int) -> list[Batch]:
    """Return the predictions of a message, one batch per model version in it.

    Raises Malformed when it is no Arrow stream or its columns are others.
    """
    try:
        table = pa.ipc.open_stream(message).read_all()
    except (pa.ArrowException, OSError, EOFError) as error:
        raise Malformed(f"not an Arrow IPC stream: {error}") from error
    features = _features(table.column_names)
    frame = _normalised(table, features).with_columns(pl.lit(sequence, pl.Int64).alias(SEQUENCE))
    return [
        _batch(str(model), int(str(version)), sequence, features, part)
        for (model, version), part in frame.group_by("model", "version", maintain_order=True)
    ]


def _batch(model: str, version: int, sequence: int, features: Sequence[str], frame: pl.DataFrame) -> Batch:
    given = frame.filter(pl.col(ROLE) != SHADOW)
    flags = frozenset(name for name in features if frame.schema[name] == pl.Boolean)
    counted = tuple(name for name in features if frame.schema[name].is_numeric() or name in flags)
    return Batch(
        model=model,
        version=version,
        sequence=sequence,
        features=counted,
        rows=given.select(pl.col(counted).cast(pl.Float64).fill_null(np.nan)).to_numpy()
        if counted
        else np.empty((given.height, 0)),
        ids=tuple(given["prediction_id"]),
        producers=tuple(given["producer"]),
        frame=frame,
        flags=flags,
    )


def _features(columns: Sequence[str]) -> tuple[str, ...]:
    names = tuple(columns)
    about = (*ABOUT, *PREDICTION_DETAILS) if names[len(ABOUT) :][: len(DETAIL_TYPES)] == PREDICTION_DETAILS else ABOUT
    for answer in ANSWERS:
        if names[: len(about)] == about and names[-len(answer) :] == answer:
            features = names[len(about) : -len(answer)]
            reserved = {SEQUENCE, *PREDICTION_DETAILS} & set(features)
            if taken := sorted({n for n in names if names.count(n) > 1} | reserved):
                raise Malformed(f"{taken[0]!r} cannot be a feature: predictions have a column of that name")
            if features:
                return features
    raise Malformed(
        f"predictions are {', '.join(ABOUT)}, perhaps {', '.join(PREDICTION_DETAILS)}, features, and an answer: "
        f"label and probability, label and score, or prediction; not {names}"
    )


def _normalised(table: pa.Table, features: Sequence[str]) -> pl.DataFrame:
    """The columns with the types that tables keep, those of `PREDICTION_DETAILS` added where they are missing."""
    try:
        frame = pl.DataFrame(table)
        details = [pl.lit(None, kind).alias(name) for name, kind in DETAIL_TYPES.items() if name not in frame.columns]
        frame = frame.with_columns(details)
        answer = [name for name in table.column_names[len(ABOUT) :] if name not in (*features, *DETAIL_TYPES)]
        types = _TYPES | DETAIL_TYPES | {name: _kept_type(frame.schema[name]) for name in (*features, *answer)}
        frame = frame.select(list(types)).cast(types)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise Malformed(f"a column of predictions has a wrong type: {error}") from error
    for name in ABOUT:
        if frame[name].null_count():
            raise Malformed(f"{name!r} is empty in {frame[name].null_count()} predictions")
    return frame.with_columns(pl.col(ROLE).fill_null(CHAMPION))


def _kept_type(given: pl.DataType) -> pl.DataType:
    if given.is_integer():
        return pl.Int64()
    # A column without any value says nothing of its type; that of most features is right then.
    if given.is_numeric() or given == pl.Null:
        return pl.Float64()
    return given if given == pl.Boolean else pl.String()


def parts_of(columns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the features and the columns of the answer among the columns of a table. Raises Malformed without an answer."""
    rest = tuple(name for name in columns if name not in (*ABOUT, *PREDICTION_DETAILS, SEQUENCE))
    for answer in ANSWERS:
        if rest[-len(answer) :] == answer:
            return rest[: -len(answer)], answer
    raise Malformed(f"a table of predictions has no answer among its columns: {', '.join(columns)}")

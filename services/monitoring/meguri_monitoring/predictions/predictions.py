"""Predictions as they are kept: the columns of `ABOUT` and `PREDICTION_DETAILS`, one per feature, and the answer.

Messages are Arrow IPC streams. Those of older releases have these columns already, the oldest without `PREDICTION_DETAILS`;
what others look like stands in `meguri_contracts.predictions`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl
import pyarrow as pa

from meguri_contracts.errors import Invalid, Malformed
from meguri_contracts.predictions import PredictionsHead
from meguri_contracts.spec import PREDICTION_DETAILS
from meguri_monitoring.predictions import messages as prediction_messages

ABOUT = ("prediction_id", "time", "model", "version", "producer", "trace_id")
ENTITY, ROLE, LATENCY = PREDICTION_DETAILS
ANSWERS = (("label", "probability"), ("label", "score"), ("prediction",))
SEQUENCE = "sequence"
"""Column of the tables that holds the stream sequence a row came with: what the windows of events refer to."""
SHADOW = "shadow"
"""Role of a version whose answers nobody sees."""
CHAMPION = "champion"
"""Role of who answered as long as nothing was said of roles."""
TIMES = (datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
"""Between which predictions are made: what comes later neither Python nor every database can say."""
VERSIONS = (1, 2**31 - 1)

_TYPES: dict[str, pl.DataType] = {
    "prediction_id": pl.String(),
    "time": pl.Datetime("us", "UTC"),
    "model": pl.String(),
    "version": pl.Int64(),
    "producer": pl.String(),
    "trace_id": pl.String(),
}
DETAIL_TYPES: dict[str, pl.DataType] = {ENTITY: pl.String(), ROLE: pl.String(), LATENCY: pl.Int64()}
_ABOUT = _TYPES | DETAIL_TYPES


class ColumnDiffers(Invalid):
    """A column of predictions came, went, or is of another type than in training or in the table."""

    def __init__(self, column: str, how: str) -> None:
        super().__init__(how)
        self.column = column


@dataclass(frozen=True, eq=False)
class Batch:
    """Predictions of one model version out of one message, in their order."""

    model: str
    version: int
    sequence: int
    """Of the message in its stream."""
    frame: pl.DataFrame
    """The rows with every column, as the table keeps them; those of shadows too."""
    stored: datetime | None = None
    """When the broker had the message: what tells a wrong clock from a late message."""


def read(message: bytes, sequence: int, stored: datetime | None = None) -> list[Batch]:
    """Return the predictions of a message, one batch per model version in it.

    Raises Malformed when it is no Arrow stream, its columns are others, or what they say cannot be.
    """
    try:
        table = pa.ipc.open_stream(message).read_all()
        # Or a damaged message could make others read where there is nothing.
        table.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise Malformed(f"not an Arrow IPC stream: {error}") from error
    head = prediction_messages.head_of(table.schema)
    columns = _columns(table, head)
    frame = pl.DataFrame([*columns, pl.Series(SEQUENCE, [sequence]).new_from_index(0, table.num_rows)])
    if head:
        return [Batch(head.model, head.version, sequence, frame, stored)]
    return [
        Batch(str(model), int(str(version)), sequence, part, stored)
        for (model, version), part in frame.group_by("model", "version", maintain_order=True)
    ]


def within_times(asked: datetime) -> datetime:
    """Return a time that somebody asks about in UTC, or the nearest at which there can be predictions."""
    aware = asked if asked.tzinfo else asked.replace(tzinfo=UTC)
    return min(max(aware, TIMES[0]), TIMES[1]).astimezone(UTC)


def _features(columns: Sequence[str]) -> tuple[str, ...]:
    names = tuple(columns)
    about = (*ABOUT, *PREDICTION_DETAILS) if names[len(ABOUT) :][: len(DETAIL_TYPES)] == PREDICTION_DETAILS else ABOUT
    for answer in ANSWERS:
        if names[: len(about)] == about and names[-len(answer) :] == answer:
            features = names[len(about) : -len(answer)]
            # Tables tell columns apart without regard to case.
            same = Counter(name.lower() for name in names)
            reserved = {SEQUENCE, *PREDICTION_DETAILS}
            if taken := sorted(n for n in features if same[n.lower()] > 1 or n.lower() in reserved):
                raise Malformed(f"{taken[0]!r} cannot be a feature: predictions have a column of that name")
            if odd := [name for name in features if not name or "\0" in name]:
                raise Malformed(f"no column can be called {odd[0]!r}")
            if features:
                return features
    raise Malformed(
        f"predictions are {', '.join(ABOUT)}, perhaps {', '.join(PREDICTION_DETAILS)}, features, and an answer: "
        f"label and probability, label and score, or prediction; not {names}"
    )


def _columns(table: pa.Table, head: PredictionsHead | None) -> list[pl.Series]:
    """The columns with the types that tables keep, those of `PREDICTION_DETAILS` added where they are missing.

    One by one: in expressions over a whole frame polars spends more on a message than on its rows.
    """
    try:
        sent = (
            prediction_messages.unfold(table, head) if head else list(map(pl.Series, table.column_names, table.columns))
        )
        _features([column.name for column in sent])
        columns = {column.name: column for column in sent}
        for name in DETAIL_TYPES.keys() - columns.keys():
            columns[name] = pl.Series(name, [None], DETAIL_TYPES[name]).new_from_index(0, table.num_rows)
        kinds = _ABOUT | {name: _kept_type(column.dtype) for name, column in columns.items() if name not in _ABOUT}
        kept = {name: columns[name].cast(kind) for name, kind in kinds.items()}
    except (pl.exceptions.PolarsError, pa.ArrowException, TypeError) as error:
        raise Malformed(f"a column of predictions has a wrong type: {error}") from error
    for name in ABOUT:
        if nulls := kept[name].null_count():
            raise Malformed(f"{name!r} is empty in {nulls} predictions")
    _check(kept)
    if kept[ROLE].null_count():
        kept[ROLE] = kept[ROLE].fill_null(CHAMPION)
    return list(kept.values())


def _check(columns: Mapping[str, pl.Series]) -> None:
    for name, (least, most) in (("time", TIMES), ("version", VERSIONS)):
        if not columns[name].is_between(least, most).all():
            raise Malformed(f"{name!r} of predictions lies between {least} and {most}")


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

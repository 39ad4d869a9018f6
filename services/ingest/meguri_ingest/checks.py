"""What may enter a dataset: each row held against the declared columns, and the reason where it may not."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import polars as pl
from pydantic_core import to_json

from meguri_contracts.errors import Invalid
from meguri_contracts.spec import RESERVED, Column, ColumnType, Dataset
from meguri_ingest.reading import Raw

TYPES: dict[ColumnType, pl.DataType] = {
    ColumnType.number: pl.Float64(),
    ColumnType.integer: pl.Int64(),
    ColumnType.string: pl.String(),
    ColumnType.boolean: pl.Boolean(),
    ColumnType.timestamp: pl.Datetime("us", "UTC"),
}
"""How each type is stored."""

_OTHERWISE = {
    ColumnType.number: "is not a number",
    ColumnType.integer: "is not an integer of 64 bits",
    ColumnType.string: "is not a string",
    ColumnType.boolean: "is not true or false",
    ColumnType.timestamp: "is not a timestamp such as 2025-01-31T12:00:00Z",
}
_TRUTH = {"true": True, "false": False}
_THERE = f"{RESERVED}there_"
_NAMED = 10
"""Columns or values that a message names at most."""
_SHOWN = 80
"""Characters of a value that a message shows at most."""


class HopelessBatch(Invalid):
    """A batch that is refused whole."""


@dataclass(frozen=True)
class Checked:
    """A batch, sorted out."""

    good: pl.DataFrame
    """The declared columns in their order, stored as TYPES says."""
    bad: pl.DataFrame
    """`index` in the batch from 0, `row` as JSON text, `reason`; in the order of the batch."""


@dataclass(frozen=True)
class _Fault:
    column: str
    rule: str
    rows: pl.Series
    """True where the rule is broken."""


def check(raw: Raw, dataset: Dataset) -> Checked:
    """Hold each row against the columns of `dataset`. A bad row's reason is the first rule that it breaks.

    5.0 is an integer and 0.5 is not. Text that reads as a number is one in CSV only, where an empty field is null. A
    timestamp is text as in ISO 8601 or a timestamp of Parquet or Arrow, without an offset UTC, kept to the microsecond.
    Raises HopelessBatch when the batch is empty, does not have exactly the declared columns, or has more bad rows than
    `max_bad_share` allows.
    """
    if raw.frame.is_empty():
        raise HopelessBatch("the batch is empty; send at least one row")
    _require_columns(raw.frame.columns, dataset)
    rows = raw.frame.select(list(dataset.columns))
    values = _values(rows, dataset, text=raw.text)
    faults = _faults(values, dataset)
    none = pl.repeat(value=False, n=rows.height, dtype=pl.Boolean, eager=True)
    broken = reduce(operator.or_, (fault.rows for fault in faults), none)
    if (bad := int(broken.sum())) > dataset.max_bad_share * rows.height:
        raise _too_many(bad, rows, faults, dataset.max_bad_share)
    good = values.select(rows.columns).filter(~broken)
    return Checked(good=good, bad=_set_aside(rows, faults, none))


def _require_columns(names: list[str], dataset: Dataset) -> None:
    arrived = set(names)
    missing = [name for name in dataset.columns if name not in arrived]
    unknown = [name for name in names if name not in dataset.columns]
    complaints = [f"{what} {_listed(some)}" for what, some in (("lacks", missing), ("has undeclared", unknown)) if some]
    if complaints:
        raise HopelessBatch(f"the batch {' and '.join(complaints)}; dataset {dataset.name!r} takes exactly its columns")


# --- types ------------------------------------------------------------------------------------------------------------


def _values(rows: pl.DataFrame, dataset: Dataset, *, text: bool) -> pl.DataFrame:
    """The columns as they are stored, null where that cannot be, each with a mask of where there was something."""
    if text:
        blank = [name for name, column in dataset.columns.items() if column.type is not ColumnType.string]
        rows = rows.with_columns(pl.col(blank).str.strip_chars().replace("", None))
    there = rows.select(pl.all().is_not_null().name.prefix(_THERE))
    mixed = [
        _of_kind(rows[name], dataset.columns[name].type) for name, dtype in rows.schema.items() if dtype == pl.Object
    ]
    plain = rows.with_columns(mixed)
    stored = (_stored(name, dtype, dataset.columns[name].type, text=text) for name, dtype in plain.schema.items())
    return plain.select(stored).hstack(there)


def _stored(name: str, dtype: pl.DataType, kind: ColumnType, *, text: bool) -> pl.Expr:
    value = pl.col(name)
    match kind:
        case ColumnType.number if text or dtype.is_numeric():
            return value.cast(pl.Float64, strict=False)
        case ColumnType.integer if text:
            return pl.coalesce(value.cast(pl.Int64, strict=False), _whole(value.cast(pl.Float64, strict=False)))
        case ColumnType.integer if dtype.is_numeric():
            return value if dtype == pl.Int64 else _whole(value)
        case ColumnType.boolean if text:
            return value.str.to_lowercase().replace_strict(_TRUTH, default=None, return_dtype=pl.Boolean)
        case ColumnType.timestamp if dtype == pl.String:
            return _timestamp(value)
    return value if dtype == TYPES[kind] else pl.repeat(None, pl.len(), dtype=TYPES[kind]).alias(name)


def _whole(number: pl.Expr) -> pl.Expr:
    whole = number.cast(pl.Int64, strict=False)
    return pl.when(whole == number).then(whole)


def _of_kind(mixed: pl.Series, kind: ColumnType) -> pl.Series:
    match kind:
        case ColumnType.number:
            values = [_float(value) if type(value) in (int, float) else None for value in mixed]
            return pl.Series(mixed.name, values, pl.Float64)
        case ColumnType.integer:
            whole = (int(value) if type(value) is float and value.is_integer() else value for value in mixed)
            fitting = [value if type(value) is int and -(2**63) <= value < 2**63 else None for value in whole]
            return pl.Series(mixed.name, fitting, pl.Int64)
        case ColumnType.boolean:
            return pl.Series(mixed.name, [value if type(value) is bool else None for value in mixed], pl.Boolean)
    return pl.Series(mixed.name, [value if type(value) is str else None for value in mixed], pl.String)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _timestamp(text: pl.Expr) -> pl.Expr:
    whole = (
        text.str.replace(r"^(\d{4}-\d\d-\d\d)$", "${1}T00:00:00")
        .str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T")
        .str.replace(r"[Zz]$", "+00:00")
        .str.replace(r"(T[\d:.]+)$", "${1}+00:00")
    )
    time = whole.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", time_zone="UTC", strict=False)
    return pl.when(time.dt.year().is_between(1, 9999)).then(time)


# --- rules ------------------------------------------------------------------------------------------------------------


def _faults(values: pl.DataFrame, dataset: Dataset) -> list[_Fault]:
    """Every rule that some row breaks, in the order of the columns."""
    rules = [(name, *rule) for name, column in dataset.columns.items() for rule in _rules(name, column)]
    masks = values.select(broken.fill_null(value=False).alias(str(i)) for i, (_, _, broken) in enumerate(rules))
    met = masks.select(pl.all().any()).row(0)
    return [_Fault(name, rule, masks[str(i)]) for i, (name, rule, _) in enumerate(rules) if met[i]]


def _rules(name: str, column: Column) -> Iterator[tuple[str, pl.Expr]]:
    """What a value may break, and the expression that is true where it does."""
    value, there = pl.col(name), pl.col(_THERE + name)
    yield _OTHERWISE[column.type], there & value.is_null()
    if not column.nullable:
        yield "is not allowed: the column is not nullable", ~there
    if column.type is ColumnType.number:
        yield "is not a finite number", ~value.is_finite()
    if column.min is not None:
        yield f"is below the minimum {_number(column.min)}", value < column.min
    if column.max is not None:
        yield f"is above the maximum {_number(column.max)}", (value > column.max) & value.is_not_nan()
    if column.values is not None:
        mixed = _of_kind(pl.Series(name, column.values, pl.Object), column.type)
        allowed = mixed.to_frame().select(_stored(name, mixed.dtype, column.type, text=False)).to_series().drop_nulls()
        names = _listed([_shown(each) for each in column.values])
        yield f"is not one of {names}", ~value.is_in(allowed.implode())
    if column.unique:
        yield "stands in an earlier row too and the column is unique", value.is_not_null() & ~value.is_first_distinct()


def _set_aside(rows: pl.DataFrame, faults: list[_Fault], none: pl.Series) -> pl.DataFrame:
    told = none
    parts = [pl.DataFrame(schema={"index": pl.Int64, "row": pl.String, "reason": pl.String})]
    for fault in faults:
        index = (fault.rows & ~told).arg_true()
        told = told | fault.rows
        texts = [to_json(row, inf_nan_mode="strings").decode() for row in rows[index].iter_rows(named=True)]
        reasons = [f"{fault.column}: {_shown(value)} {fault.rule}" for value in rows[fault.column].gather(index)]
        parts.append(
            pl.DataFrame(
                [
                    index.cast(pl.Int64).alias("index"),
                    pl.Series("row", texts, pl.String),
                    pl.Series("reason", reasons, pl.String),
                ]
            )
        )
    return pl.concat(parts).sort("index")


def _too_many(bad: int, rows: pl.DataFrame, faults: list[_Fault], share: float) -> HopelessBatch:
    frequent = sorted(faults, key=lambda fault: -fault.rows.sum())[:3]
    reasons = "; ".join(
        f"{fault.column} {fault.rule} ({fault.rows.sum()} rows, first {_shown(rows[fault.column][fault.rows.arg_true()[0]])})"
        for fault in frequent
    )
    return HopelessBatch(f"{bad} of {rows.height} rows are bad, at most {share:.0%} may be: {reasons}")


def _shown(value: object) -> str:
    text = to_json(value, inf_nan_mode="constants").decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else str(value)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

"""Rows of predictions as profiles, per producer: small, mergeable, and the same however often the rows are read.

The rows are given in the order of the stream, and parts are merged in that order; as long as a profile keeps every row
(see `meguri_chassis.profiles`), its bytes follow from the rows alone.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from meguri_chassis.profiles import CategoricalProfile, NumericProfile, Profile
from meguri_contracts.errors import Malformed
from meguri_monitoring.predictions.predictions import ColumnDiffers, parts_of

SAMPLES = 5
"""Predictions kept per producer to look at: the latest."""
MAX_PRODUCERS = 50
"""Producers told apart, first come; the rows of all others are those of `OTHERS`."""
OTHERS = "(others)"

C = TypeVar("C", NumericProfile, CategoricalProfile)
Order = NDArray[np.int64]


@dataclass(frozen=True)
class Share:
    """What one producer brought into a window, or into a part of one."""

    profile: Profile
    samples: tuple[str, ...] = ()
    """Prediction ids of its latest rows."""
    traces: tuple[str, ...] = ()
    """Their trace ids."""


def profile(reference: Profile, frame: pl.DataFrame) -> Profile:
    """Return the profile of rows of predictions, in the bins and categories of the reference of their version.

    Raises ColumnDiffers when a column of the reference is not among theirs, or is no number there.
    """
    counted = reference.like()
    _count([counted], [slice(0, frame.height)], frame)
    return counted


def by_producer(reference: Profile, frame: pl.DataFrame) -> dict[str, Share]:
    """Return what each producer has in rows of predictions, in the order in which they come.

    At most `MAX_PRODUCERS` are told apart. Raises ColumnDiffers like `profile`.
    """
    senders = _told_apart(frame["producer"])
    order = np.concatenate([*senders.values(), np.empty(0, np.int64)])
    ends = np.cumsum([len(rows) for rows in senders.values()]).tolist()
    profiles = [reference.like() for _ in senders]
    spans = [slice(start, end) for start, end in pairwise([0, *ends])]
    _count(profiles, spans, frame, order if len(senders) > 1 else None)
    return {
        name: Share(counted, *(tuple(frame[column][rows[-SAMPLES:]]) for column in ("prediction_id", "trace_id")))
        for (name, rows), counted in zip(senders.items(), profiles, strict=True)
    }


def merged(parts: Iterable[Mapping[str, Share]]) -> dict[str, Share]:
    """Return the shares of all parts together, which are given in the order of their rows and stay as they are.

    Raises Invalid when they are not on the edges of one reference.
    """
    together: dict[str, Share] = {}
    for part in parts:
        for name, share in part.items():
            known = name in together or len(together.keys() - {OTHERS}) < MAX_PRODUCERS
            place = name if known else OTHERS
            together[place] = _joined(together[place], share) if place in together else share
    return together


def together(reference: Profile, shares: Mapping[str, Share]) -> Profile:
    """Return the profile of all rows, whoever sent them; not to be written to."""
    if len(shares) == 1:
        return next(iter(shares.values())).profile
    everyone = reference.like()
    for name in sorted(shares):
        everyone.merge(shares[name].profile)
    return everyone


def share_to_bytes(share: Share) -> bytes:
    """Return a share for a database; `share_from_bytes` gives it back exactly."""
    data = {"samples": share.samples, "traces": share.traces, "profile": share.profile.to_dict()}
    return zlib.compress(json.dumps(data, separators=(",", ":"), allow_nan=False).encode(), 1)


def share_from_bytes(data: bytes) -> Share:
    """Raises Malformed when `data` is not what `share_to_bytes` gave."""
    try:
        share = json.loads(zlib.decompress(data))
        return Share(Profile.from_dict(share["profile"]), tuple(share["samples"]), tuple(share["traces"]))
    except (zlib.error, ValueError, LookupError, TypeError) as error:
        raise Malformed(f"not a producer's share of a window: {type(error).__name__}: {error}") from error


def shares_to_bytes(shares: Mapping[str, Share]) -> bytes:
    """Return the shares of a part for a database; `shares_from_bytes` gives them back exactly."""
    named = {name: share_to_bytes(share).hex() for name, share in shares.items()}
    return json.dumps(named, separators=(",", ":")).encode()


def shares_from_bytes(data: bytes) -> dict[str, Share]:
    """Raises Malformed when `data` is not what `shares_to_bytes` gave."""
    try:
        named = json.loads(data)
        return {name: share_from_bytes(bytes.fromhex(share)) for name, share in named.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise Malformed(f"not shares of a window: {type(error).__name__}: {error}") from error


def require_fitting(reference: Profile, frame: pl.DataFrame) -> None:
    """Raise ColumnDiffers when rows of predictions have not the features of their reference, or others that are numbers."""
    profile(reference, frame.clear())
    features, _ = parts_of(frame.columns)
    if odd := [name for name in features if name not in reference.inputs and frame.schema[name].is_numeric()]:
        raise ColumnDiffers(odd[0], f"the predictions have a column {odd[0]!r}, which is no feature of their reference")


def _joined(before: Share, after: Share) -> Share:
    both = before.profile.copy()
    both.merge(after.profile)
    samples = (*before.samples, *after.samples)[-SAMPLES:]
    return Share(both, samples, (*before.traces, *after.traces)[-SAMPLES:])


def _count(
    profiles: Sequence[Profile], spans: Sequence[slice], frame: pl.DataFrame, order: Order | None = None
) -> None:
    """Take rows into profiles: each its span of them, when they are in `order`."""
    numbers, texts = _columns(profiles, NumericProfile), _columns(profiles, CategoricalProfile)
    table = _numbers(frame, list(numbers))
    if order is not None:
        table = table.take(order, axis=1)
    finite = np.logical_and.reduce(np.isfinite(table), axis=1).tolist()
    for number, row, all_finite in zip(numbers.values(), table, finite, strict=True):
        for column, span in zip(number, spans, strict=True):
            column.add(row[span], all_finite)
    for name, text in texts.items():
        values = _texts(frame, name, order)
        for other, span in zip(text, spans, strict=True):
            other.add(dict(values[span].value_counts().iter_rows()))


def _columns(profiles: Sequence[Profile], kind: type[C]) -> dict[str, list[C]]:
    """The columns of one kind in each profile, by name."""
    columns: dict[str, list[C]] = {}
    for counted in profiles:
        for part in (counted.features, counted.categories, counted.outputs):
            for name, column in part.items():
                if isinstance(column, kind):
                    columns.setdefault(name, []).append(column)
    return columns


def _numbers(frame: pl.DataFrame, names: Sequence[str]) -> NDArray[np.float32]:
    """The columns as rows of an array, NaN for what is not there."""
    columns = []
    for name in names:
        column = _column(frame, name)
        if column.dtype == pl.Boolean:
            column = column.cast(pl.Float64)
        if not column.dtype.is_numeric():
            raise ColumnDiffers(name, f"{name!r} is {column.dtype} in the predictions and a number in their reference")
        columns.append(column.to_numpy())
    with np.errstate(over="ignore"):
        return np.array(columns, dtype=np.float32).reshape(len(names), frame.height)


def _texts(frame: pl.DataFrame, name: str, order: Order | None) -> pl.Series:
    values = _column(frame, name).cast(pl.String).fill_null("")
    return values if order is None else values.gather(order)


def _column(frame: pl.DataFrame, name: str) -> pl.Series:
    column = frame.get_column(name, default=None)
    if column is None:
        raise ColumnDiffers(name, f"the predictions have no column {name!r}, which their reference has")
    return column


def _told_apart(producers: pl.Series) -> dict[str, Order]:
    """The places of each producer's rows, who comes first first."""
    rows = pl.DataFrame({"name": producers}).with_row_index("at").group_by("name", maintain_order=True).agg("at")
    senders = {str(name): places.to_numpy() for name, places in zip(rows["name"], rows["at"], strict=True)}
    places: dict[str, Order] = {name: senders.pop(name) for name in list(senders)[:MAX_PRODUCERS]}
    if senders:
        places[OTHERS] = np.sort(np.concatenate([*senders.values(), places.pop(OTHERS, np.empty(0, np.int64))]))
    return places

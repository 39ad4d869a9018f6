"""Two versions on the same recorded rows: where they disagree, by how much, and for whom.

The report follows from the rows and the versions alone, so any replica comes to the same one, and to the same digest.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from meguri_contracts.errors import Invalid
from meguri_inference import scoring
from meguri_inference.formats import PIECE_ROWS, BadRows, datatypes
from meguri_inference.pieces import features
from meguri_inference.predicting import LoadedModel
from meguri_inference.tensors import FLOATS, Array

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
TOLERANCE = 1e-3
"""Predictions that differ by more than this disagree, in the unit of the target."""
MIN_SLICE_ROWS = 30
"""A slice with fewer rows says little."""
SLICES = WORST = 10
"""How many of the worst slices and rows a report names."""
MAX_CATEGORIES = 50
"""Values of a feature that is no number which become slices, the most frequent ones."""
DIGITS = 9
"""Decimals of the numbers in a report: what differs beyond them is the processor's."""

_LABELS = f"labels differ; predictions differ by more than {TOLERANCE}"


class NotRecorded(Invalid):
    def __init__(self, version: int, missing: Sequence[str]) -> None:
        names = ", ".join(repr(name) for name in missing[:5])
        super().__init__(
            f"version {version} takes {names}, which the recorded rows do not have; they cannot be compared"
        )


class NotComparable(Invalid):
    """Versions, or rows, that have nothing in common to compare."""


@dataclass(frozen=True)
class Compared:
    """What two versions said about the same rows, an array each: who disagrees, and how far they are apart."""

    disagrees: Array
    differences: Array
    a: Array
    b: Array


def compare(a: LoadedModel, b: LoadedModel, recorded: bytes) -> dict[str, Any]:
    """Return the report on two versions of a model and rows that were recorded, an Arrow IPC stream.

    Raises NotRecorded when a version takes a feature that the rows do not have, BadRows, NotComparable.
    """
    table = _read(recorded)
    for model in (a, b):
        if missing := [name for name in model.signature.features if name not in table.column_names]:
            raise NotRecorded(model.version, missing)
    whole, unscored = _scorable(table, [a, b])
    compared = _judge(_answers(a, whole), _answers(b, whole))
    report = {
        "model": a.name,
        "a": a.version,
        "b": b.version,
        "rule": _LABELS,
        "rows": table.num_rows,
        "scored": whole.num_rows,
        "unscored": unscored,
        **_totals(compared),
        "confusion": _confusion(compared),
        "slices": _slices(whole, compared, [a, b]),
        "worst": _worst(whole, compared),
    }
    return report | {"digest": digest(report)}


def digest(report: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a report's canonical JSON, in hex."""
    text = json.dumps(report, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# --- rows -------------------------------------------------------------------------------------------------------------


def _read(recorded: bytes) -> pa.Table:
    try:
        table = pa.ipc.open_stream(recorded).read_all().combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise BadRows(f"the body is no Arrow IPC stream: {error}") from error
    for needed in ("prediction_id", "producer"):
        if needed not in table.column_names:
            raise BadRows(f"the recorded rows have no column {needed!r}")
    return table


def _scorable(table: pa.Table, models: Sequence[LoadedModel]) -> tuple[pa.Table, dict[str, int]]:
    """Return the rows that both versions can answer, and for the others how many there are by reason."""
    keep, reasons = np.ones(table.num_rows, bool), Counter[str]()
    for model in models:
        for name, datatype in datatypes(model.signature).items():
            valid = _has_value(table.column(name), datatype)
            reasons[f"no value in {name!r}"] += int((keep & ~valid).sum())
            keep &= valid
    return table.filter(pa.array(keep)), {reason: rows for reason, rows in sorted(reasons.items()) if rows}


def _has_value(column: pa.ChunkedArray, datatype: str) -> Array:
    valid = pc.is_valid(column)
    if datatype in FLOATS and pa.types.is_floating(column.type):
        valid = pc.and_(valid, pc.fill_null(pc.is_finite(column), False))
    found: Array = valid.to_numpy()
    return found


def _answers(model: LoadedModel, table: pa.Table) -> dict[str, Array]:
    pieces = [table.slice(first, PIECE_ROWS) for first in range(0, table.num_rows, PIECE_ROWS)]
    if not pieces:
        raise NotComparable("of the recorded rows none can be answered by both versions")
    said = [scoring.answers(model, features(piece, model.signature)) for piece in pieces]
    return {name: np.concatenate([one[name] for one in said]) for name in said[0]}


# --- what was said ----------------------------------------------------------------------------------------------------


def _judge(a: Mapping[str, Array], b: Mapping[str, Array]) -> Compared:
    if ("label" in a) != ("label" in b):
        raise NotComparable("one version says labels, the other numbers")
    if "label" not in a:
        ours, theirs = a["prediction"].reshape(-1).astype(float), b["prediction"].reshape(-1).astype(float)
        differences = np.abs(ours - theirs)
        return Compared(differences > TOLERANCE, differences, ours, theirs)
    ours, theirs = _texts(a["label"]), _texts(b["label"])
    disagrees = ours != theirs
    return Compared(disagrees, _apart(a, b, disagrees), ours, theirs)


def _texts(labels: Array) -> Array:
    return np.array([str(label) for label in labels.reshape(-1).tolist()], object)


def _apart(a: Mapping[str, Array], b: Mapping[str, Array], disagrees: Array) -> Array:
    """The largest difference between what stands beside the labels; of labels alone 1 where they differ."""
    for name in sorted(a.keys() & b.keys() - {"label"}):
        if a[name].shape == b[name].shape:
            apart: Array = np.abs(a[name].astype(float) - b[name].astype(float)).reshape(len(disagrees), -1).max(axis=1)
            return apart
    return disagrees.astype(float)


def _totals(compared: Compared) -> dict[str, Any]:
    return {
        "disagreed": int(compared.disagrees.sum()),
        "share": _rounded(compared.disagrees.mean()),
        "mean_difference": _rounded(compared.differences.mean()),
        "largest_difference": _rounded(compared.differences.max()),
    }


def _confusion(compared: Compared) -> list[dict[str, Any]]:
    if compared.a.dtype != object:
        return []
    counts = Counter(zip(compared.a.tolist(), compared.b.tolist(), strict=True))
    return [{"a": ours, "b": theirs, "rows": rows} for (ours, theirs), rows in sorted(counts.items())]


def _worst(table: pa.Table, compared: Compared) -> list[dict[str, Any]]:
    ids, producers = table.column("prediction_id").to_pylist(), table.column("producer").to_pylist()
    differences = np.round(compared.differences, DIGITS)
    ranked = sorted(
        range(len(ids)), key=lambda row: (not compared.disagrees[row], -differences[row], str(ids[row]), row)
    )
    return [
        {
            "prediction_id": ids[row],
            "producer": producers[row],
            "a": _value(compared.a[row]),
            "b": _value(compared.b[row]),
            "difference": _rounded(differences[row]),
        }
        for row in ranked[:WORST]
        if differences[row] > 0 or compared.disagrees[row]
    ]


# --- slices -----------------------------------------------------------------------------------------------------------


def _slices(table: pa.Table, compared: Compared, models: Sequence[LoadedModel]) -> list[dict[str, Any]]:
    """Return the slices with the largest share of disagreement; `lift` is that share over the one of all rows."""
    overall = compared.disagrees.mean()
    found: list[dict[str, Any]] = []
    for by, name, rows in _cuts(table, models):
        count, share = int(rows.sum()), float(compared.disagrees[rows].mean()) if rows.any() else 0.0
        if count >= MIN_SLICE_ROWS and share > 0:
            found.append(
                {
                    "by": by,
                    "slice": name,
                    "rows": count,
                    "disagreed": int(compared.disagrees[rows].sum()),
                    "share": _rounded(share),
                    "lift": _rounded(share / overall),
                }
            )
    return sorted(found, key=lambda one: (-one["share"], -one["rows"], one["by"], one["slice"]))[:SLICES]


def _cuts(table: pa.Table, models: Sequence[LoadedModel]) -> Iterator[tuple[str, str, Array]]:
    yield from _categories(table, "producer")
    numeric: dict[str, bool] = {}
    for model in models:
        numeric |= {name: datatype in (*FLOATS, "INT64") for name, datatype in datatypes(model.signature).items()}
    for name, number in numeric.items():
        yield from _quarters(table, name) if number else _categories(table, name)


def _categories(table: pa.Table, name: str) -> Iterator[tuple[str, str, Array]]:
    values = np.array([str(value) for value in table.column(name).to_pylist()], object)
    counts = Counter(values.tolist())
    for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_CATEGORIES]:
        yield name, value, values == value


def _quarters(table: pa.Table, name: str) -> Iterator[tuple[str, str, Array]]:
    values = table.column(name).cast(pa.float64(), safe=False).to_numpy()
    edges = np.unique(np.quantile(values, (0.25, 0.5, 0.75)))
    bins = np.searchsorted(edges, values, side="left")
    bounds = ["", *(f"{edge:.6g}" for edge in edges), ""]
    for at in range(len(edges) + 1):
        low, high = bounds[at], bounds[at + 1]
        text = f"above {low}" if not high else f"up to {high}" if not low else f"above {low} up to {high}"
        yield name, text, bins == at


def _value(said: Any) -> Any:
    return said if isinstance(said, str) else _rounded(said)


def _rounded(number: Any) -> float:
    return round(float(number), DIGITS)

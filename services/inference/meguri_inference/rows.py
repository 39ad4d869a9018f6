"""Predictions for people: rows of named columns in JSON or CSV, and what is answered to them.

>>> read_json(b'{"rows": [{"age": 41, "city": "Kyoto"}]}', signature, max_rows=100)
>>> read_csv(b"age,city\n41,Kyoto\n", signature, max_rows=100)
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any

import msgspec
import numpy as np
import orjson

from meguri_contracts.errors import Invalid
from meguri_contracts.events import Signature
from meguri_inference.envelope import Name
from meguri_inference.prediction_ids import row_ids
from meguri_inference.protocol import Answer, Request
from meguri_inference.reading import UNREADABLE, TooManyRows
from meguri_inference.tensors import DTYPES, INTEGERS, Array, DoesNotFit, beside, fit

Columns = Mapping[str, Sequence[Any]]

_ACCEPTED: dict[str, tuple[frozenset[type], str]] = {
    "FP32": (frozenset((float, int, bool)), "a number"),
    "FP64": (frozenset((float, int, bool)), "a number"),
    "INT64": (frozenset((int, bool)), "an integer"),
    "BOOL": (frozenset((bool,)), "true or false"),
    "BYTES": (frozenset((str,)), "a text"),
}
"""By the model's datatype: the values that a column may have, in types and in words."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,30}")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TRUTHS = {"true": True, "false": False}


class BadRows(Invalid):
    def __init__(self, reason: str, signature: Signature) -> None:
        shown = ", ".join(f"{name} ({_ACCEPTED[kind][1]})" for name, kind in list(_datatypes(signature).items())[:5])
        more = f" and {len(signature.features) - 5} more" if len(signature.features) > 5 else ""
        super().__init__(f"{reason}; the model takes the columns {shown}{more}")


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    rows: list[dict[str, Any]] | None = None
    columns: dict[str, list[Any]] | None = None
    id: str | None = None
    producer: Name | None = None
    entity: Name | None = None


_DECODER = msgspec.json.Decoder(_Asked)


def read_json(body: bytes, signature: Signature, *, max_rows: int) -> Request:
    """Return what `{"rows": [{...}, ...]}` or `{"columns": {...}}` asks for. Raises BadRows or TooManyRows.

    Takes as long as there are values: call it in a thread.
    """
    try:
        asked = _DECODER.decode(body)
    except UNREADABLE as error:
        csv_ = "; CSV needs the header Content-Type: text/csv"
        raise BadRows(f"the body is not JSON with rows or columns: {error}{csv_}", signature) from None
    if (asked.rows is None) == (asked.columns is None):
        raise BadRows("the body has neither rows nor columns, or both", signature)
    columns = asked.columns if asked.columns is not None else _turned(asked.rows or [], signature)
    x = _table(columns, signature, max_rows)
    return Request(x, asked.id, asked.producer, tuple(range(len(signature.outputs))), asked.entity)


def read_csv(body: bytes, signature: Signature, *, max_rows: int) -> Request:
    """Return what the lines under a header line ask for. Raises BadRows or TooManyRows; takes as long as `read_json`."""
    try:
        lines = [line for line in csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadRows(f"the body is not CSV in UTF-8: {error}", signature) from None
    if not lines:
        raise BadRows("the body is empty; its first line must name the columns", signature)
    header, *cells = lines
    if len(set(header)) != len(header):
        raise BadRows(f"column {short(_twice(header))} stands in the header more than once", signature)
    for row, line in enumerate(cells):
        if len(line) != len(header):
            raise BadRows(f"row {row} has {len(line)} cells, the header has {len(header)}", signature)
    datatypes = _datatypes(signature)
    columns = {
        name: [line[at] for line in cells] if datatypes.get(name) == "BYTES" else [_value(line[at]) for line in cells]
        for at, name in enumerate(header)
    }
    x = _table(columns, signature, max_rows)
    return Request(x, None, None, tuple(range(len(signature.outputs))))


def write_json(
    answer: Answer,
    request: Request,
    signature: Signature,
    *,
    model: str,
    version: int,
    prediction_id: str,
    trace_id: str,
) -> bytes:
    """Return the answer with an object for each row; `classes` names the probabilities in their order."""
    head: dict[str, Any] = {"model": model, "version": version, "prediction_id": prediction_id, "trace_id": trace_id}
    if request.id is not None:
        head["id"] = request.id
    if signature.classes:
        head["classes"] = list(signature.classes)
    outputs = {name: _scalars(values) for name, values in _by_name(answer, signature).items()}
    ids = row_ids(prediction_id, answer.rows)
    predictions = [
        {"prediction_id": id_} | {name: values[row] for name, values in outputs.items()} for row, id_ in enumerate(ids)
    ]
    return orjson.dumps(head | {"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


def write_csv(answer: Answer, signature: Signature, *, prediction_id: str) -> bytes:
    """Return the answer with a line for each row, under a header line; a probability for each class."""
    columns: dict[str, Sequence[Any]] = {"prediction_id": row_ids(prediction_id, answer.rows)}
    for name, values in _by_name(answer, signature).items():
        if values.ndim == 1:
            columns[name] = values.tolist() if values.dtype == object else values.astype(str).tolist()
        else:
            classes = signature.classes or range(values.shape[1])
            columns |= {f"probability_{one}": values[:, at].astype(str).tolist() for at, one in enumerate(classes)}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def _datatypes(signature: Signature) -> dict[str, str]:
    """The model's datatype of each feature."""
    own = {tensor.name: tensor.datatype for tensor in signature.inputs}
    return {name: own.get(name, signature.input.datatype) for name in signature.features}


def _turned(rows: Sequence[Mapping[str, Any]], signature: Signature) -> Columns:
    """Return rows as columns. Raises BadRows for one that has not exactly the features of the model."""
    names = set(signature.features)
    for at, row in enumerate(rows):
        if row.keys() != names:
            if unknown := row.keys() - names:
                raise BadRows(f"row {at} has column {short(min(unknown))}, which is not known", signature)
            raise BadRows(f"row {at} lacks column {short(min(names - row.keys()))}", signature)
    return {name: [row[name] for row in rows] for name in signature.features}


def _table(columns: Columns, signature: Signature, max_rows: int) -> Array:
    names = set(signature.features)
    if unknown := columns.keys() - names:
        raise BadRows(f"column {short(min(unknown))} is not known", signature)
    if missing := names - columns.keys():
        raise BadRows(f"column {short(min(missing))} is missing", signature)
    rows = len(columns[signature.features[0]])
    for name, values in columns.items():
        if len(values) != rows:
            raise BadRows(f"column {name!r} has {len(values)} rows, {signature.features[0]!r} has {rows}", signature)
    if not rows:
        raise BadRows("there are no rows", signature)
    if rows > max_rows:
        raise TooManyRows("rows", rows, max_rows)
    found = []
    for name, datatype in _datatypes(signature).items():
        try:
            found.append(_column(columns[name], datatype))
        except DoesNotFit as error:
            raise BadRows(f"row {error.at}, column {name!r}: {error}", signature) from None
    return beside(found, mixed=bool(signature.inputs))


def _column(values: Sequence[Any], datatype: str) -> Array:
    accepted, expected = _ACCEPTED[datatype]
    types = set(map(type, values))
    if not types <= accepted:
        at = next(at for at, value in enumerate(values) if type(value) not in accepted)
        raise DoesNotFit(at, f"{short(values[at])} is not {expected}")
    if int in types:
        least, most = INTEGERS[datatype]
        for at, value in enumerate(values):
            if type(value) is int and not least <= value <= most:
                raise DoesNotFit(at, f"{short(value)} is not an integer from {least} to {most}")
    return fit(np.array(values, DTYPES["FP64" if float in types else datatype]), datatype)


def _value(cell: str) -> Any:
    """Return a cell of CSV as JSON would have it: an integer, a float, a truth, or else the text that it is."""
    if _INTEGER.fullmatch(cell):
        return int(cell)
    if _FLOAT.fullmatch(cell):
        return float(cell)
    return _TRUTHS.get(cell.lower(), cell)


def _twice(names: Sequence[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _scalars(values: Array) -> Any:
    """Integers as Python's: ONNX Runtime's are of numpy's longlong, which orjson does not know."""
    return values.tolist() if values.dtype.kind == "i" else values


def _by_name(answer: Answer, signature: Signature) -> dict[str, Array]:
    """The outputs, with one value a row where there is but one; only probabilities are several."""
    named = zip(signature.outputs, answer.outputs, strict=True)
    return {tensor.name: values if tensor.name == "probabilities" else values.reshape(-1) for tensor, values in named}

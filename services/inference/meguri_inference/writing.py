"""Writes the answers of V2: a template per model version, filled with ids and the outputs' values."""

from collections.abc import Collection, Sequence

import orjson

from meguri_contracts.events import Tensor
from meguri_inference.tensors import Array

Texts = Sequence[bytes]
"""Values as JSON, without brackets."""


def template(name: str, version: int, outputs: Sequence[Tensor], binary: Collection[str] = ()) -> bytes:
    """Return an answer with gaps: id in JSON, prediction id, trace id, then for each output its rows, and its values or,
    if its name is in `binary`, the bytes that they take behind the JSON."""

    def literal(value: str) -> bytes:
        return orjson.dumps(value).replace(b"%", b"%%")

    tensors = [
        b'{"name":%b,"datatype":%b,"shape":[%b],%b}'
        % (
            literal(t.name),
            literal(t.datatype),
            b",".join([b"%d", *(b"%d" % size for size in t.shape[1:])]),
            b'"parameters":{"binary_data_size":%d}' if t.name in binary else b'"data":[%b]',
        )
        for t in outputs
    ]
    return (
        b'{"model_name":%b,"model_version":"%d","id":%%b,"parameters":{"prediction_id":"%%b","trace_id":"%%b"},'
        b'"outputs":[%b]}' % (literal(name), version, b",".join(tensors))
    )


def whole_numbers(values: Array) -> bytes:
    """Return all values, flat."""
    return orjson.dumps(values.reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def whole_texts(values: Array) -> bytes:
    """The same for texts."""
    return b",".join(row_texts(values))


def row_numbers(values: Array) -> Texts:
    """Return the values of each row: one call for many requests is cheaper than one for each."""
    written = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
    return written[1:-1].split(b",") if values.ndim == 1 else written[2:-2].split(b"],[")


def row_texts(values: Array) -> Texts:
    """The same for texts."""
    return [orjson.dumps(text) for text in values.reshape(-1).tolist()]

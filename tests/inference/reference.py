"""A slow decoder of V2 requests, written to be obviously right: what the fast one is held against."""

import json
import math
import re
import struct
from typing import Any

import numpy as np

from meguri_contracts.events import Signature

ACCEPTED = {
    "FP32": ("FP32", "FP64", "INT64", "INT32", "BOOL"),
    "FP64": ("FP32", "FP64", "INT64", "INT32", "BOOL"),
    "INT64": ("INT64", "INT32", "BOOL"),
    "BOOL": ("BOOL",),
    "BYTES": ("BYTES",),
}
EXACT = {"FP32": 2**24, "FP64": 2**53, "INT64": 2**63}
FP32_MAX = float(np.finfo(np.float32).max)
FORMATS = {"FP32": "f", "FP64": "d", "INT64": "q", "INT32": "i"}


class Refused(Exception):
    pass


class NotUtf8(Refused):
    """Bytes that are no text, or escapes of half a character: refused where they are looked at, else passed over."""


def need(condition: Any) -> None:
    if not condition:
        raise Refused


def decode(signature: Signature, body: bytes, header_length: int | None, max_rows: int) -> list[list[Any]]:
    """Return the rows that are asked about, or raise Refused."""
    head = body if header_length is None else body[:header_length]
    need(header_length is None or header_length <= len(body))
    asked = read_json(head)
    check_envelope(asked, signature)
    raws = cut(asked["inputs"], b"" if header_length is None else body[header_length:], header_length is not None)
    sent = list(zip(asked["inputs"], raws, strict=True))
    names = [tensor["name"] for tensor, _ in sent]
    if not signature.inputs and names == [signature.input.name]:
        return read_tensor(*sent[0], signature.input.datatype, len(signature.features), max_rows)
    need(sorted(names) == sorted(signature.features))
    datatypes = {tensor.name: tensor.datatype for tensor in signature.inputs}
    columns = [
        read_tensor(*sent[names.index(name)], datatypes.get(name, signature.input.datatype), 1, max_rows)
        for name in signature.features
    ]
    need(len({len(column) for column in columns}) == 1)
    return [[value for part in row for value in part] for row in zip(*columns, strict=True)]


def read_json(text: bytes) -> Any:
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        raise NotUtf8 from None
    if re.search(r"\\u[dD][89a-fA-F]", decoded):
        raise NotUtf8
    try:
        return json.loads(decoded, parse_constant=lambda constant: need(False))
    except (ValueError, RecursionError):
        raise Refused from None


def is_int(value: Any, low: int = 0, high: int = 2**63 - 1) -> bool:
    return type(value) is int and low <= value <= high


def check_envelope(asked: Any, signature: Signature) -> None:
    need(type(asked) is dict and type(asked.get("inputs")) is list)
    need(asked.get("id") is None or type(asked["id"]) is str)
    parameters = asked.get("parameters")
    need(parameters is None or type(parameters) is dict)
    for name in ("producer", "entity"):
        value = (parameters or {}).get(name)
        need(value is None or (type(value) is str and len(value) <= 128))
    need(type((parameters or {}).get("binary_data_output", False)) is bool)
    need(asked.get("outputs") is None or type(asked["outputs"]) is list)
    for output in asked.get("outputs") or []:
        need(type(output) is dict and output.get("name") in [tensor.name for tensor in signature.outputs])
    for tensor in asked["inputs"]:
        need(type(tensor) is dict and type(tensor.get("name")) is str and type(tensor.get("datatype")) is str)
        need(type(tensor.get("shape")) is list and all(is_int(size, 0, 2**31 - 1) for size in tensor["shape"]))
        own = tensor.get("parameters")
        need(own is None or type(own) is dict)
        size = (own or {}).get("binary_data_size")
        need(size is None or is_int(size))


def cut(inputs: list[dict[str, Any]], tail: bytes, has_tail: bool) -> list[bytes | None]:
    raws: list[bytes | None] = []
    for tensor in inputs:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        need(size is None or has_tail)
        need(size is None or size <= len(tail))
        raws.append(None if size is None else tail[:size])
        tail = tail if size is None else tail[size:]
    need(not tail)
    return raws


def read_tensor(tensor: dict[str, Any], raw: bytes | None, target: str, width: int, max_rows: int) -> list[list[Any]]:
    shape, datatype = tensor["shape"], tensor["datatype"]
    need(len(shape) == 2 or (len(shape) == 1 and width == 1))
    rows = shape[0]
    need(shape[1:] in ([], [width]) and 1 <= rows <= max_rows)
    need(datatype in ACCEPTED[target])
    need((raw is None) == ("data" in tensor))
    values = flat(tensor["data"], rows, width) if raw is None else unpacked(raw, datatype, rows * width)
    need(len(values) == rows * width)
    fitted = [fit(value, datatype, target) for value in values]
    return [fitted[row * width : (row + 1) * width] for row in range(rows)]


def flat(data: Any, rows: int, width: int) -> list[Any]:
    need(type(data) is list)
    if data and type(data[0]) is list:
        need(len(data) == rows and all(type(row) is list and len(row) == width for row in data))
        return [value for row in data for value in row]
    return data


def unpacked(raw: bytes, datatype: str, count: int) -> list[Any]:
    if datatype == "BOOL":
        need(set(raw) <= {0, 1})
        return [bool(byte) for byte in raw]
    if datatype != "BYTES":
        size = struct.calcsize("<" + FORMATS[datatype])
        need(len(raw) == count * size)
        return list(struct.unpack(f"<{count}{FORMATS[datatype]}", raw))
    values = []
    while raw:
        need(len(raw) >= 4)
        size = struct.unpack("<I", raw[:4])[0]
        need(len(raw) >= 4 + size)
        try:
            values.append(raw[4 : 4 + size].decode("utf-8"))
        except UnicodeDecodeError:
            raise Refused from None
        raw = raw[4 + size :]
    return values


def fit(value: Any, datatype: str, target: str) -> Any:
    if datatype == "BYTES":
        need(type(value) is str)
        return value
    if datatype == "BOOL":
        need(type(value) is bool)
    elif datatype in ("INT64", "INT32"):
        bits = 63 if datatype == "INT64" else 31
        need(is_int(value, -(2**bits), 2**bits - 1))
        need(target not in ("FP32", "FP64") or abs(value) <= EXACT[target])
    else:
        need(type(value) in (int, float))
        try:
            value = float(value)
        except OverflowError:
            raise Refused from None
        need(math.isfinite(value) and ("FP32" not in (datatype, target) or abs(value) <= FP32_MAX))
    kinds = {"FP32": lambda given: float(np.float32(given)), "FP64": float, "INT64": int, "BOOL": bool}
    return kinds[target](value)

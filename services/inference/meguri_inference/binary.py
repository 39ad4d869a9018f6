"""The binary tensor extension of V2: raw tensors, little-endian, one after the other behind the JSON of a message."""

import struct
from collections.abc import Sequence

import numpy as np

from meguri_contracts.errors import Invalid
from meguri_inference.envelope import AnyInput
from meguri_inference.tensors import DTYPES, Array, DoesNotFit

HEADER = "inference-header-content-length"
"""Name of the header with the length of the JSON; without it a body is JSON from end to end."""
HEADER_NAME = HEADER.encode()

_LENGTH = struct.Struct("<I")


class BadLength(Invalid):
    """The parts of the body are not as long as it says."""


class BadRaw(Exception):
    """A raw tensor is not what its shape and datatype say."""


def header_length(text: str) -> int:
    """Return what the header says. Raises BadLength."""
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise BadLength(f"header {HEADER!r}: a number of bytes is expected")
    return int(text)


def split(body: bytes, length: int) -> memoryview:
    """Return the JSON, the first `length` bytes of `body`."""
    if length > len(body):
        raise BadLength(f"header {HEADER!r} says that the JSON has {length} bytes; the whole body has {len(body)}")
    return memoryview(body)[:length]


def parts(inputs: Sequence[AnyInput], body: bytes, start: int) -> list[memoryview | None]:
    """Return each input's part of `body`, from `start` on; None where the data stands in the JSON. Raises BadLength."""
    whole = memoryview(body)
    found: list[memoryview | None] = []
    for tensor in inputs:
        size = tensor.binary_size
        found.append(None if size is None else whole[start : start + size])
        start += size or 0
    if start != len(body):
        raise BadLength(f"the body has {len(body)} bytes; its JSON and the binary_data_size of its inputs make {start}")
    return found


def read(raw: memoryview, datatype: str, count: int) -> Array:
    """Return the `count` values of a raw tensor. Raises BadRaw, or DoesNotFit for a value that is none."""
    if datatype == "BYTES":
        return _read_texts(raw, count)
    dtype = DTYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise BadRaw(f"has {len(raw)} bytes of {datatype}, its shape needs {count * dtype.itemsize}")
    if datatype == "BOOL":
        return _read_truths(raw)
    values = np.frombuffer(raw, dtype)
    # It begins wherever the JSON ends, and not everything that computes takes values from odd addresses.
    return values if values.flags.aligned else values.copy()


def write(values: Array, datatype: str) -> bytes:
    """Return `values` as a raw tensor."""
    if datatype == "BYTES":
        texts = [text.encode() for text in values.reshape(-1).tolist()]
        return b"".join([part for text in texts for part in (_LENGTH.pack(len(text)), text)])
    return values.astype(DTYPES[datatype], copy=False).tobytes()


def _read_truths(raw: memoryview) -> Array:
    values = np.frombuffer(raw, np.uint8)
    if values.max(initial=0) > 1:
        at = int((values > 1).argmax())
        raise DoesNotFit(at, f"Expected a byte 0 or 1, got {values[at]}")
    return values.view(bool)


def _read_texts(raw: memoryview, count: int) -> Array:
    values = np.empty(count, object)
    start = 0
    for at in range(count):
        if start + _LENGTH.size > len(raw):
            raise BadRaw(f"has {at} texts in its {len(raw)} bytes, its shape needs {count}")
        begin = start + _LENGTH.size
        start = begin + _LENGTH.unpack_from(raw, start)[0]
        if start > len(raw):
            raise BadRaw(f"has {len(raw)} bytes, text {at} in it would end at byte {start}")
        try:
            values[at] = str(raw[begin:start], "utf-8")
        except UnicodeDecodeError as error:
            raise DoesNotFit(at, f"Expected UTF-8, got {error.reason} at byte {error.start} of the text") from None
    if start != len(raw):
        raise BadRaw(f"has {len(raw)} bytes, its {count} texts take {start}")
    return values

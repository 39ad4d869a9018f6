"""Reads one tensor of a request into an array of the model's type; what is wrong is said with input, row and feature."""

import re
from collections.abc import Sequence
from reprlib import repr as short
from typing import Any, NoReturn

import msgspec
import numpy as np

from meguri_contracts.errors import Invalid, TooLarge
from meguri_inference import binary
from meguri_inference.envelope import AnyInput, UsualInput
from meguri_inference.tensors import DECODERS, DTYPES, Array, DoesNotFit, fit

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for JSON that is not what was expected."""

_NESTED = re.compile(rb"\s*\[\s*\[")
_PATH = re.compile(r" - at `\$\[(\d+)\](?:\[(\d+)\])?`$")


class BadTensor(Invalid):
    def __init__(self, reason: str, expected: str) -> None:
        super().__init__(f"{reason}; the model takes {expected}")


class TooManyRows(TooLarge):
    def __init__(self, name: str, rows: int, limit: int) -> None:
        super().__init__(f"input {name!r} has {rows} rows, at most {limit} are accepted in one request; send several")


class TensorReader:
    """Reads the tensor `name`, in which each row has a value of the model's `datatype` for each of `features`."""

    def __init__(self, name: str, datatype: str, features: Sequence[str]) -> None:
        self.name = name
        self.expected = f"{name!r}: {datatype} of shape [rows, {len(features)}]"
        self._features = features
        self._width = len(features)
        self._datatype = datatype
        self._dtype = DTYPES[datatype]
        self._decoders = DECODERS[datatype]

    def read(self, tensor: "UsualInput[Any, Any] | AnyInput", raw: memoryview | None, max_rows: int) -> Array:
        """Return shape (rows, features); `raw` is what stands behind the JSON. Raises BadTensor or TooManyRows."""
        shape, width = tensor.shape, self._width
        if (len(shape) != 2 or shape[1] != width or shape[0] < 1) and not (width == 1 == len(shape) and shape[0] > 0):
            self.refuse(f"has shape {short(shape)}")
        rows = shape[0]
        if rows > max_rows:
            raise TooManyRows(self.name, rows, max_rows)
        if isinstance(tensor, UsualInput):
            values = self._filled(tensor.data, tensor.datatype, tensor.shape)
        elif raw is None:
            values = self._from_json(tensor, rows)
        else:
            values = self._from_raw(tensor, raw, rows * width)
        return values.reshape(rows, width)

    def refuse(self, reason: str) -> NoReturn:
        raise BadTensor(f"input {self.name!r} {reason}", self.expected)

    def _filled(self, data: "list[Any] | Array", datatype: str, shape: list[int]) -> Array:
        if len(data) != shape[0] * self._width:
            self.refuse(f"has {len(data)} values, its shape {shape} needs {shape[0] * self._width}")
        return np.array(data, self._dtype) if isinstance(data, list) else self._fitted(data, datatype)

    def _fitted(self, values: Array, datatype: str) -> Array:
        try:
            return fit(values, self._datatype)
        except DoesNotFit as error:
            self._refuse_data(datatype, f"{error}{self._place(error.at)}")

    def _from_json(self, tensor: AnyInput, rows: int) -> Array:
        flat, nested = self._accepting(tensor.datatype)
        if tensor.binary_size is not None:
            self.refuse(f"has a binary_data_size; that needs the header {binary.HEADER!r}")
        text = memoryview(tensor.data)
        if not text:
            self.refuse("has no data")
        is_nested = _NESTED.match(text) is not None
        try:
            data = (nested if is_nested else flat).decode(text)
        except UNREADABLE as error:
            self._refuse_data(tensor.datatype, self._explain(str(error)))
        if not is_nested:
            return self._filled(data, tensor.datatype, tensor.shape)
        if len(data) != rows or any(len(row) != self._width for row in data):
            self.refuse(f"has nested data that does not fill its shape {tensor.shape}")
        return np.array(data, self._dtype)

    def _from_raw(self, tensor: AnyInput, raw: memoryview, count: int) -> Array:
        self._accepting(tensor.datatype)
        if memoryview(tensor.data):
            self.refuse("has data in the JSON and binary_data_size")
        try:
            values = binary.read(raw, tensor.datatype, count)
        except binary.BadRaw as error:
            self.refuse(str(error))
        except DoesNotFit as error:
            self._refuse_data(tensor.datatype, f"{error}{self._place(error.at)}")
        return self._fitted(values, tensor.datatype)

    def _accepting(self, datatype: str) -> tuple[Any, Any]:
        """Return the readers of flat and of nested JSON for `datatype`."""
        decoders = self._decoders.get(datatype)
        if decoders is None:
            self.refuse(f"has datatype {short(datatype)}, accepted are {', '.join(self._decoders)}")
        return decoders

    def _refuse_data(self, datatype: str, reason: str) -> NoReturn:
        self.refuse(f"has bad {datatype} data: {reason}")

    def _explain(self, error: str) -> str:
        """Put row and feature in the place of msgspec's path: `$[5]` flat, `$[1][1]` nested."""
        at = _PATH.search(error)
        if at is None:
            return error
        row, column = (int(at[1]), int(at[2])) if at[2] else divmod(int(at[1]), self._width)
        if column >= self._width:
            return error
        return error[: at.start()] + self._place(row * self._width + column)

    def _place(self, at: int) -> str:
        row, column = divmod(at, self._width)
        return f" in row {row}, feature {self._features[column]!r}"

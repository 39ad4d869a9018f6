"""Values of V2 tensors: which datatypes there are, and how they become the model's, exactly or not at all.

Floats are rounded to the model's precision, so a champion may change from FP64 to FP32 without its clients noticing;
integers must survive exactly or are refused, and nothing may be infinite or no number.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
JsonDecoder = msgspec.json.Decoder[Any]

FLOATS: Final[dict[str, type[np.floating[Any]]]] = {"FP32": np.float32, "FP64": np.float64}
"""Datatypes that a model's only input, of all its features, can have."""
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT64": np.dtype("<i8"),
    "INT32": np.dtype("<i4"),
    "BOOL": np.dtype(bool),
    "BYTES": np.dtype(object),
}
"""How arrays hold what clients send; texts are Python's."""

_FP32_MAX = float(np.finfo(np.float32).max)
Single = Annotated[float, msgspec.Meta(ge=-_FP32_MAX, le=_FP32_MAX)]
_Int24 = Annotated[int, msgspec.Meta(ge=-(2**24), le=2**24)]
_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)]
_Int53 = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


def _both(kind: Any) -> tuple[JsonDecoder, JsonDecoder]:
    return msgspec.json.Decoder(list[kind]), msgspec.json.Decoder(list[list[kind]])


DECODERS: Final[dict[str, dict[str, tuple[JsonDecoder, JsonDecoder]]]] = {
    "FP32": {
        **dict.fromkeys(("FP32", "FP64"), _both(Single)),
        **dict.fromkeys(("INT64", "INT32"), _both(_Int24)),
        "BOOL": _both(bool),
    },
    "FP64": {
        "FP32": _both(Single),
        "FP64": _both(float),
        "INT64": _both(_Int53),
        "INT32": _both(_Int32),
        "BOOL": _both(bool),
    },
    "INT64": {"INT64": _both(_Int64), "INT32": _both(_Int32), "BOOL": _both(bool)},
    "BOOL": {"BOOL": _both(bool)},
    "BYTES": {"BYTES": _both(str)},
}
"""By the model's datatype, then the request's: readers of flat and of nested JSON. The bounds see to it that no float becomes
infinite and no integer is rounded (24 bits in FP32, 53 in FP64); msgspec checks them while it reads."""

INTEGERS: Final[dict[str, tuple[int, int]]] = {
    "FP32": (-(2**24), 2**24),
    "FP64": (-(2**53), 2**53),
    "INT64": (-(2**63), 2**63 - 1),
}
"""By the model's datatype: the least and the largest integer up to which none is rounded."""


class DoesNotFit(Exception):
    """The value at position `at` is not one that the model can take; `reason` says what it must be."""

    def __init__(self, at: int, reason: str) -> None:
        super().__init__(reason)
        self.at = at


def fit(values: Array, datatype: str) -> Array:
    """Return `values` in the model's `datatype`, if it takes theirs. Raises DoesNotFit."""
    dtype = DTYPES[datatype]
    kind = values.dtype.kind
    if kind == "f":
        _check_floats(values, dtype)
    elif kind == "i" and datatype in FLOATS:
        least, most = INTEGERS[datatype]
        _check((values >= least) & (values <= most), values, f"an integer from {least} to {most}")
    return values.astype(dtype, copy=False)


def _check_floats(values: Array, dtype: np.dtype[Any]) -> None:
    if values.dtype.itemsize > dtype.itemsize:
        _check(np.abs(values) <= _FP32_MAX, values, f"a number from {-_FP32_MAX:.9g} to {_FP32_MAX:.9g}")
    # A sum of squares is cheap and not finite if any value is not, or if it is merely very large.
    elif not math.isfinite(np.vdot(values, values)):
        _check(np.isfinite(values), values, "a finite number")


def _check(fits: Array, values: Array, expected: str) -> None:
    if not fits.all():
        at = int(fits.argmin())
        raise DoesNotFit(at, f"Expected {expected}, got {values[at]}")


def beside(columns: Sequence[Array], *, mixed: bool) -> Array:
    """Return shape (rows, columns), of Python's objects if the columns are `mixed`."""
    if not mixed:
        return np.stack(columns, axis=1)
    x = np.empty((len(columns[0]), len(columns)), object)
    for at, column in enumerate(columns):
        x[:, at] = column
    return x

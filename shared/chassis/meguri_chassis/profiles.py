"""Profiles of features: what training saw and what the live rows look like, small enough to keep and to compare.

A profile keeps up to `KEPT` rows of a feature as they came and folds every further block of `KEPT` rows into moments,
exact counts per bin and a KLL sketch, so its size stays constant however many rows it saw. Two profiles merge into the
profile of both. The bins are frozen by the reference: `profile_of` sets them, `Profile.like` counts on the same ones.

Values are rounded to single precision: training reads doubles while a served model may take singles, and 0.1 must be
the same point in both. The bytes of a profile follow from its rows and their order, however they were cut into batches,
up to `KEPT` finite rows per feature; beyond, the sketch is randomised by the library, which cannot be seeded, and
repeats agree in rank to about 0.3 %.
"""

import base64
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import datasketches
import numpy as np
from numpy.typing import ArrayLike, NDArray

from meguri_contracts.errors import Invalid, Malformed

KEPT = 1024
"""Rows of a feature kept as they are, and the size k of the sketch that takes the others."""
RANK_ERROR = float(datasketches.kll_floats_sketch(KEPT).normalized_rank_error(False))
"""How far a rank of folded rows may be off, as a share of them: 0 for a profile that `is_exact`."""

_DECILES = np.arange(1, 10) / 10


class Moments(NamedTuple):
    """Count, mean, and sum of squared distances from the mean."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        mean = float(values.mean()) if values.size else 0.0
        return cls(values.size, mean, float(np.square(values - mean).sum()))

    def join(self, other: "Moments") -> "Moments":
        n = self.n + other.n
        if not n:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * other.n / n
        return Moments(n, mean, self.m2 + other.m2 + gap * gap * self.n * other.n / n)


@dataclass
class _Folded:
    """What is left of rows that were not kept."""

    counts: NDArray[np.int64]
    moments: Moments = field(default_factory=Moments)
    min: float = math.inf
    max: float = -math.inf
    sketch: Any = field(default_factory=lambda: datasketches.kll_floats_sketch(KEPT))

    def add(self, block: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        self._join(Moments.of(block), counts, float(block.min()), float(block.max()))
        self.sketch.update(block)

    def merge(self, other: "_Folded") -> None:
        self._join(other.moments, other.counts, other.min, other.max)
        self.sketch.merge(other.sketch)

    def copy(self) -> "_Folded":
        sketch = datasketches.kll_floats_sketch.deserialize(self.sketch.serialize())
        return _Folded(self.counts, self.moments, self.min, self.max, sketch)

    def _join(self, moments: Moments, counts: NDArray[np.int64], low: float, high: float) -> None:
        self.moments = self.moments.join(moments)
        self.counts = self.counts + counts
        self.min, self.max = min(self.min, low), max(self.max, high)


class NumericProfile:
    """Distribution of one feature. NaN and the infinities are counted in `missing` and are no part of the rest.

    `edges` rise; each is a bin of its own, and so is each stretch between, below and above: 2 * len(edges) + 1 bins. A
    value that holds more than a tenth of the reference is therefore never cut in two.
    """

    def __init__(self, edges: ArrayLike = ()) -> None:
        self.edges: NDArray[np.float64] = np.asarray(edges, dtype=np.float64)
        self.missing = 0
        self._kept: NDArray[np.float32] = np.empty(0, np.float32)
        self._folded: _Folded | None = None
        self._moments: Moments | None = None
        self._weighted: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def update(self, values: ArrayLike) -> None:
        """Take in a 1-D array of values."""
        with np.errstate(over="ignore"):
            column = np.asarray(values).astype(np.float32)
        finite = np.isfinite(column)
        if not finite.all():
            self.missing += int(column.size - finite.sum())
            column = column[finite]
        self._append(column)

    def merge(self, other: "NumericProfile") -> None:
        """Take in what another profile on the same edges saw. Raises Invalid when its edges differ."""
        if not np.array_equal(self.edges, other.edges):
            raise Invalid("profiles on different bin edges cannot be merged; make both with `like` of one reference")
        self.missing += other.missing
        if other._folded:
            self._fold().merge(other._folded)
        self._append(other._kept)

    def copy(self) -> "NumericProfile":
        twin = NumericProfile(self.edges)
        twin.missing, twin._kept = self.missing, self._kept
        twin._folded = self._folded and self._folded.copy()
        return twin

    @property
    def n(self) -> int:
        """Finite values seen."""
        return self._kept.size + (self._folded.moments.n if self._folded else 0)

    @property
    def is_exact(self) -> bool:
        """Whether every value is still there."""
        return self._folded is None

    @property
    def rank_error(self) -> float:
        """How far a rank of `weighted` may be off, as a share of all rows."""
        return RANK_ERROR * self._folded.moments.n / self.n if self._folded else 0.0

    @property
    def moments(self) -> Moments:
        if self._moments is None:
            kept = Moments.of(self._kept.astype(np.float64))
            self._moments = self._folded.moments.join(kept) if self._folded else kept
        return self._moments

    @property
    def mean(self) -> float:
        """0 without values."""
        return self.moments.mean

    @property
    def m2(self) -> float:
        """Sum of squared distances from the mean."""
        return self.moments.m2

    @property
    def std(self) -> float:
        """Standard deviation of the rows seen (divisor n); exactly 0 when constant or without values."""
        moments = self.moments
        return math.sqrt(moments.m2 / moments.n) if moments.n else 0.0

    @property
    def min(self) -> float:
        """Infinity without values."""
        return float(np.min(self._kept, initial=self._folded.min if self._folded else math.inf))

    @property
    def max(self) -> float:
        """Minus infinity without values."""
        return float(np.max(self._kept, initial=self._folded.max if self._folded else -math.inf))

    @property
    def counts(self) -> NDArray[np.int64]:
        """Exact number of values per bin."""
        kept = self._count(self._kept)
        return kept + self._folded.counts if self._folded else kept

    def weighted(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the values retained, sorted, and how many rows each stands for. Not to be written to."""
        if self._weighted is None:
            self._weighted = self._weigh()
        return self._weighted

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain JSON values; the rows kept (little-endian singles) and the sketch in base64."""
        folded = self._folded
        return {
            "missing": self.missing,
            "edges": self.edges.tolist(),
            "kept": _text(self._kept.astype("<f4").tobytes()),
            "folded": folded
            and {
                "counts": folded.counts.tolist(),
                "moments": list(folded.moments),
                "min": folded.min,
                "max": folded.max,
                "sketch": _text(folded.sketch.serialize()),
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        profile = cls(data["edges"])
        profile.missing = int(data["missing"])
        profile._kept = np.frombuffer(_raw(data["kept"]), "<f4").astype(np.float32)
        if folded := data["folded"]:
            profile._folded = _Folded(
                counts=np.asarray(folded["counts"], np.int64),
                moments=Moments(*folded["moments"]),
                min=folded["min"],
                max=folded["max"],
                sketch=datasketches.kll_floats_sketch.deserialize(_raw(folded["sketch"])),
            )
        return profile

    def _weigh(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        values = self._kept.astype(np.float64)
        if not self._folded:
            return np.sort(values), np.ones(values.size)
        items = np.array(list(self._folded.sketch), dtype=np.float64)
        values = np.concatenate([values, items[:, 0]])
        weights = np.concatenate([np.ones(self._kept.size), items[:, 1]])
        order = np.argsort(values, kind="stable")
        return values[order], weights[order]

    def _append(self, column: NDArray[np.float32]) -> None:
        self._moments = self._weighted = None
        kept = np.concatenate([self._kept, column])
        # Blocks of one fixed size make the moments independent of how the rows were cut into batches.
        while kept.size > KEPT:
            block = kept[:KEPT].astype(np.float64)
            self._fold().add(block, self._count(block))
            kept = kept[KEPT:]
        self._kept = kept

    def _fold(self) -> _Folded:
        if self._folded is None:
            self._folded = _Folded(counts=np.zeros(self._bins, np.int64))
        return self._folded

    def _count(self, values: NDArray[Any]) -> NDArray[np.int64]:
        bins = np.searchsorted(self.edges, values, "left") + np.searchsorted(self.edges, values, "right")
        return np.bincount(bins, minlength=self._bins).astype(np.int64)

    @property
    def _bins(self) -> int:
        return 2 * self.edges.size + 1


class Profile:
    """Distribution of all features of a model, in their order."""

    def __init__(self, features: Mapping[str, NumericProfile]) -> None:
        self.features = dict(features)

    def like(self) -> "Profile":
        """Return an empty profile that counts on the bin edges of this one."""
        return Profile({name: NumericProfile(feature.edges) for name, feature in self.features.items()})

    def copy(self) -> "Profile":
        """Return a profile of the same rows that goes its own way from here."""
        return Profile({name: feature.copy() for name, feature in self.features.items()})

    @property
    def rows(self) -> int:
        """Rows seen, with missing values or without."""
        return max((feature.n + feature.missing for feature in self.features.values()), default=0)

    def update(self, rows: ArrayLike) -> None:
        """Take in rows of shape [n, features]. Raises Invalid when the shape is another."""
        for feature, column in zip(self.features.values(), _columns(rows, len(self.features)), strict=True):
            feature.update(column)

    def merge(self, other: "Profile") -> None:
        """Take in what another profile saw. Raises Invalid when it has other features or bin edges."""
        if list(self.features) != list(other.features):
            raise Invalid(f"profiles of other features cannot be merged: {_difference(self.features, other.features)}")
        for mine, theirs in zip(self.features.values(), other.features.values(), strict=True):
            mine.merge(theirs)

    def to_dict(self) -> dict[str, Any]:
        return {"features": {name: feature.to_dict() for name, feature in self.features.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises Malformed when `data` is not what `to_dict` gave."""
        try:
            return cls({name: NumericProfile.from_dict(feature) for name, feature in data["features"].items()})
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise Malformed(f"not a profile: {type(error).__name__}: {error}") from error

    def to_json(self) -> bytes:
        return json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises Malformed when `data` is not what `to_json` gave."""
        try:
            return cls.from_dict(json.loads(data))
        except ValueError as error:
            raise Malformed(f"not a profile: {error}") from error

    def to_bytes(self) -> bytes:
        """Return the JSON compressed by zlib, for a database."""
        return zlib.compress(self.to_json(), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises Malformed when `data` is not what `to_bytes` gave."""
        try:
            return cls.from_json(zlib.decompress(data))
        except zlib.error as error:
            raise Malformed(f"not a profile: {error}") from error


def profile_of(features: Sequence[str], rows: ArrayLike) -> Profile:
    """Return the profile of a reference, `rows` of shape [n, features], with bin edges frozen at its deciles.

    Raises Invalid when a feature is named twice or the shape is another.
    """
    if len(set(features)) != len(features):
        raise Invalid(f"a feature is named twice among {', '.join(features)}")
    columns = _columns(rows, len(features))
    profile = Profile({name: NumericProfile(_deciles(c)) for name, c in zip(features, columns, strict=True)})
    profile.update(rows)
    return profile


def _columns(rows: ArrayLike, features: int) -> NDArray[Any]:
    table = np.asarray(rows)
    if table.ndim != 2 or table.shape[1] != features:
        raise Invalid(f"rows of shape {table.shape} do not fit a profile of {features} features; [n, {features}] does")
    return np.ascontiguousarray(table.T)


def _deciles(column: NDArray[Any]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        values = column.astype(np.float32)
    values = values[np.isfinite(values)]
    # Deciles that are values of the feature, not points between two, so that they can be mass points.
    return (
        np.unique(np.quantile(values, _DECILES, method="inverted_cdf")).astype(np.float64)
        if values.size
        else np.empty(0)
    )


def _difference(mine: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    odd = sorted(set(mine) ^ set(theirs))
    return f"{odd[0]!r} is only in one of them" if odd else "their order differs"


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)

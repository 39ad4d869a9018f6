"""The distribution of one column of numbers.

A profile keeps up to `KEPT` rows as they came and folds every further block of `KEPT` rows into moments, exact counts per bin
and a KLL sketch, so its size stays constant however many rows it saw.

Values are rounded to single precision: training reads doubles while a served model may take singles, and 0.1 must be the same
point in both. The bytes of a profile follow from its rows and their order, however they were cut into batches, up to `KEPT`
finite rows; beyond, the sketch is randomised by the library, which cannot be seeded, and repeats agree in rank to about 0.3 %.
"""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Self

import datasketches
import numpy as np
from numpy.typing import ArrayLike, NDArray

from meguri_contracts.errors import Invalid

KEPT = 1024
"""Rows of a column kept as they are, and the size k of the sketch that takes the others."""
RANK_ERROR = float(datasketches.kll_floats_sketch(KEPT).normalized_rank_error(False))
"""How far a rank of folded rows may be off, as a share of them: 0 for a profile that `is_exact`."""
FEW = 5
"""Different values up to which a column of numbers has each of them counted."""

Singles = NDArray[np.float32]
Doubles = NDArray[np.float64]
Counts = NDArray[np.int64]

_DECILES = np.arange(1, 10) / 10
_LEVELS_AT, _STARTS_AT = 18, 20
"""Bytes of a serialised sketch: the number of its levels, and where each begins."""


class Moments(NamedTuple):
    """Count, mean, and sum of squared distances from the mean."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: Doubles) -> Self:
        if not values.size:
            return cls()
        mean = float(np.add.reduce(values)) / values.size
        away = values - mean
        return cls(values.size, mean, float(np.add.reduce(away * away)))

    def join(self, other: "Moments") -> "Moments":
        n = self.n + other.n
        if not n:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * other.n / n
        return Moments(n, mean, self.m2 + other.m2 + gap * gap * self.n * other.n / n)


class Steps:
    """A distribution as a step function: `values` rise, each stands once; `upto[i]` is the share of rows below `values[i]`,
    and its last entry 1.
    """

    def __init__(self, values: Doubles, weights: Doubles) -> None:
        first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        self.values = values[first]
        self.upto: Doubles = np.concatenate([[0.0], np.add.reduceat(weights, first).cumsum() / weights.sum()])
        self.centre = float(values @ weights / weights.sum())
        self.areas: Doubles = np.concatenate([[0.0], ((self.values - self.centre) * np.diff(self.upto)).cumsum()])
        """Of the quantiles, as distances from `centre`, integrated from 0 to each of `upto`."""
        self._even: tuple[int, Doubles] = (0, self.upto[:0])

    def areas_at(self, levels: Doubles) -> Doubles:
        """Return the same integral up to other shares."""
        at = np.minimum(self.upto[1:].searchsorted(levels), self.values.size - 1)
        return self.areas[at] + (levels - self.upto[at]) * (self.values[at] - self.centre)

    def areas_at_even(self, n: int) -> Doubles:
        """Return it up to 1/n, 2/n, …, 1; faster when it is the same n again."""
        if self._even[0] != n:
            self._even = (n, self.areas_at(np.arange(1, n + 1) / n))
        return self._even[1]


@dataclass
class _Folded:
    """What is left of rows that were not kept."""

    counts: Counts
    few: dict[float, int] | None = field(default_factory=dict)
    """How often each value occurred; None when there were more than `FEW`, or nobody counted."""
    moments: Moments = field(default_factory=Moments)
    min: float = math.inf
    max: float = -math.inf
    sketch: Any = field(default_factory=lambda: datasketches.kll_floats_sketch(KEPT))

    def add(self, block: Singles, edges: Doubles) -> None:
        """Take in a block of rising values."""
        values = block.astype(np.float64)
        low, high = float(values[0]), float(values[-1])
        few = None if self.few is None else _few(values)
        self._join(Moments.of(values), _counted(values, edges), few, low, high)
        self.sketch.update(block)

    def merge(self, other: "_Folded") -> None:
        self._join(other.moments, other.counts, other.few, other.min, other.max)
        self.sketch.merge(other.sketch)

    def copy(self) -> "_Folded":
        sketch = datasketches.kll_floats_sketch.deserialize(self.sketch.serialize())
        return _Folded(self.counts, self.few, self.moments, self.min, self.max, sketch)

    def to_dict(self) -> dict[str, Any]:
        return {
            "counts": self.counts.tolist(),
            "few": None if self.few is None else sorted(self.few.items()),
            "moments": list(self.moments),
            "min": self.min,
            "max": self.max,
            "sketch": _text(self.sketch.serialize()),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        few = data.get("few")
        return cls(
            counts=np.asarray(data["counts"], np.int64),
            few=None if few is None else {float(value): int(count) for value, count in few},
            moments=Moments(*data["moments"]),
            min=data["min"],
            max=data["max"],
            sketch=datasketches.kll_floats_sketch.deserialize(_raw(data["sketch"])),
        )

    def _join(self, moments: Moments, counts: Counts, few: dict[float, int] | None, low: float, high: float) -> None:
        self.moments = self.moments.join(moments)
        self.counts = self.counts + counts
        self.few = _both(self.few, few)
        self.min, self.max = min(self.min, low), max(self.max, high)


class NumericProfile:
    """Distribution of one column. NaN and the infinities are counted in `missing` and are no part of the rest.

    `edges` rise; each is a bin of its own, and so is each stretch between, below and above: 2 * len(edges) + 1 bins. A
    value that holds more than a tenth of the reference is therefore never cut in two.
    """

    def __init__(self, edges: ArrayLike = ()) -> None:
        self.edges: Doubles = np.asarray(edges, dtype=np.float64)
        self.missing = 0
        self._kept: Singles = np.empty(0, np.float32)
        self._folded: _Folded | None = None

    def like(self) -> "NumericProfile":
        """Return an empty profile that counts on the same edges."""
        return NumericProfile(self.edges)

    def update(self, values: ArrayLike) -> None:
        """Take in a 1-D array of values."""
        self.add(singles(values))

    def add(self, column: Singles, all_finite: bool = False) -> None:
        """Take in values that are not written to afterwards."""
        if not all_finite:
            finite = np.isfinite(column)
            self.missing += column.size - int(np.count_nonzero(finite))
            column = column[finite]
        if column.size:
            self._append(column)

    def merge(self, other: "NumericProfile") -> None:
        """Take in what another profile on the same edges saw. Raises Invalid when its edges differ."""
        if self.edges is not other.edges and not np.array_equal(self.edges, other.edges):
            raise Invalid("profiles on different bin edges cannot be merged; make both with `like` of one reference")
        self.missing += other.missing
        if other._folded:
            self._fold().merge(other._folded)
            self._forget()
        if other._kept.size:
            self._append(other._kept)

    def copy(self) -> "NumericProfile":
        twin = self.like()
        twin.missing, twin._kept = self.missing, self._kept
        twin._folded = self._folded and self._folded.copy()
        return twin

    @property
    def n(self) -> int:
        """Finite values seen."""
        return self._kept.size + (self._folded.moments.n if self._folded else 0)

    @property
    def rows(self) -> int:
        """Values seen, finite or not."""
        return self.n + self.missing

    @property
    def is_exact(self) -> bool:
        """Whether every value is still there."""
        return self._folded is None

    @property
    def rank_error(self) -> float:
        """How far a rank of `weighted` may be off, as a share of all rows."""
        return RANK_ERROR * self._folded.moments.n / self.n if self._folded else 0.0

    @cached_property
    def moments(self) -> Moments:
        kept = Moments.of(self._kept.astype(np.float64))
        return self._folded.moments.join(kept) if self._folded else kept

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
    def counts(self) -> Counts:
        """Exact number of values per bin."""
        kept = _counted(np.sort(self._kept).astype(np.float64), self.edges)
        return kept + self._folded.counts if self._folded else kept

    @property
    def few(self) -> dict[float, int] | None:
        """Exact number of rows per value; None for more than `FEW` values."""
        kept = _few(np.sort(self._kept).astype(np.float64))
        return _both(self._folded.few, kept) if self._folded else kept

    @cached_property
    def weighted(self) -> tuple[Doubles, Doubles]:
        """The values retained, sorted, and how many rows each stands for. Not to be written to."""
        if not self._folded:
            return np.sort(self._kept).astype(np.float64), np.ones(self._kept.size)
        items, weights = _items(self._folded.sketch)
        values = np.concatenate([self._kept, items])
        order = np.argsort(values, kind="stable")
        return values[order].astype(np.float64), np.concatenate([np.ones(self._kept.size), weights])[order]

    @cached_property
    def steps(self) -> Steps:
        """Those of `weighted`; of at least one value. Not to be written to."""
        return Steps(*self.weighted)

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain JSON values; the rows kept (little-endian singles) and the sketch in base64."""
        return {
            "missing": self.missing,
            "edges": self.edges.tolist(),
            "kept": _text(self._kept.astype("<f4").tobytes()),
            "folded": self._folded and self._folded.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        profile = cls(data["edges"])
        profile.missing = int(data["missing"])
        profile._kept = np.frombuffer(_raw(data["kept"]), "<f4").astype(np.float32)
        if folded := data["folded"]:
            profile._folded = _Folded.from_dict(folded)
        return profile

    def _append(self, column: Singles) -> None:
        kept = np.concatenate([self._kept, column]) if self._kept.size else column
        # Blocks of one fixed size make the moments independent of how the rows were cut into batches.
        folded = (kept.size - 1) // KEPT * KEPT
        if folded:
            for block in np.sort(kept[:folded].reshape(-1, KEPT), axis=1):
                self._fold().add(block, self.edges)
            kept = kept[folded:].copy()
        self._kept = kept
        self._forget()

    def _fold(self) -> _Folded:
        if self._folded is None:
            self._folded = _Folded(counts=np.zeros(2 * self.edges.size + 1, np.int64))
        return self._folded

    def _forget(self) -> None:
        for derived in ("moments", "weighted", "steps"):
            self.__dict__.pop(derived, None)


def singles(values: ArrayLike) -> Singles:
    """Return values in the precision of profiles; what is too large for it is infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32)


def deciles(column: Singles) -> Doubles:
    """Return edges for a column: deciles that are values of it, not points between two, so that they can be mass points."""
    values = column[np.isfinite(column)]
    if not values.size:
        return np.empty(0)
    return np.unique(np.quantile(values, _DECILES, method="inverted_cdf")).astype(np.float64)


def _items(sketch: Any) -> tuple[Singles, Doubles]:
    """Return what a sketch of more than one value retains and the weights, out of its binary form, which is the same in every
    language: its own iterator takes time, and after a merge that left the lowest level empty its weights are wrong.
    """
    raw = sketch.serialize()
    levels = raw[_LEVELS_AT]
    starts = np.frombuffer(raw, "<u4", levels, _STARTS_AT)
    # Behind the starts come the smallest and the largest value, then what is retained, level by level.
    items = np.frombuffer(raw, "<f4", offset=_STARTS_AT + 4 * levels + 8)
    sizes = np.diff(np.append(starts, starts[0] + items.size))
    return items, np.repeat(2.0 ** np.arange(levels), sizes)


def _counted(values: Doubles, edges: Doubles) -> Counts:
    """The number per bin of rising values."""
    before, upto = values.searchsorted(edges, "left"), values.searchsorted(edges, "right")
    counts = np.empty(2 * edges.size + 1, np.int64)
    counts[1::2] = upto - before
    counts[:-1:2] = before
    counts[-1] = values.size
    counts[2::2] -= upto
    return counts


def _few(values: Doubles) -> dict[float, int] | None:
    changes = np.flatnonzero(values[1:] != values[:-1])
    if changes.size >= FEW:
        return None
    starts = [0, *(changes + 1).tolist(), values.size] if values.size else [0]
    return {float(values[at]): end - at for at, end in pairwise(starts)}


def _both(ours: dict[float, int] | None, theirs: dict[float, int] | None) -> dict[float, int] | None:
    if ours is None or theirs is None:
        return None
    both = {value: ours.get(value, 0) + theirs.get(value, 0) for value in ours | theirs}
    return both if len(both) <= FEW else None


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)

"""Profiles: what training saw and what the live rows look like, small enough to keep and to compare.

A profile has the distribution of every feature, numbers and categories, and of what the model answered. Two profiles merge
into the profile of both. What values are counted in, bins and categories, is frozen by the reference: `profile_of` sets it,
`Profile.like` counts in the same.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meguri_chassis.categorical_profiles import DISTINCT, LONGEST, CategoricalProfile
from meguri_chassis.numeric_profiles import FEW, KEPT, RANK_ERROR, Moments, NumericProfile, Steps, deciles, singles
from meguri_contracts.errors import Invalid, Malformed

__all__ = [
    "DISTINCT",
    "FEW",
    "KEPT",
    "LONGEST",
    "RANK_ERROR",
    "CategoricalProfile",
    "ColumnProfile",
    "Moments",
    "NumericProfile",
    "Profile",
    "Steps",
    "profile_of",
]

ColumnProfile = NumericProfile | CategoricalProfile


class Profile:
    """Distribution of all features of a model, in their order, and of its answers.

    References of the first releases have numbers only: they know of no categories and no outputs.
    """

    def __init__(
        self,
        features: Mapping[str, NumericProfile],
        categories: Mapping[str, CategoricalProfile] | None = None,
        outputs: Mapping[str, ColumnProfile] | None = None,
    ) -> None:
        self.features = dict(features)
        """Those that are numbers."""
        self.categories = dict(categories or {})
        """Those that are not."""
        self.outputs = dict(outputs or {})
        """Columns of the answer."""

    @property
    def inputs(self) -> dict[str, ColumnProfile]:
        """All features: numbers, then categories."""
        return {**self.features, **self.categories}

    def like(self) -> "Profile":
        """Return an empty profile that counts in the bins and categories of this one."""
        return Profile(
            {name: feature.like() for name, feature in self.features.items()},
            {name: feature.like() for name, feature in self.categories.items()},
            {name: output.like() for name, output in self.outputs.items()},
        )

    def copy(self) -> "Profile":
        """Return a profile of the same rows that goes its own way from here."""
        twin = self.like()
        twin.merge(self)
        return twin

    @property
    def rows(self) -> int:
        """Rows seen, with missing values or without."""
        columns = self.inputs or self.outputs
        return max((column.rows for column in columns.values()), default=0)

    def update(self, rows: ArrayLike) -> None:
        """Take in the numbers among the features, of shape [n, numbers]. Raises Invalid when the shape is another."""
        columns = _columns(rows, len(self.features))
        finite = np.logical_and.reduce(np.isfinite(columns), axis=1).tolist()
        for feature, column, all_finite in zip(self.features.values(), columns, finite, strict=True):
            feature.add(column, all_finite)

    def merge(self, other: "Profile") -> None:
        """Take in what another profile saw. Raises Invalid when it has other columns, bins or categories."""
        _merge(self.features, other.features)
        _merge(self.categories, other.categories)
        _merge(self.outputs, other.outputs)

    def to_dict(self) -> dict[str, Any]:
        # What there is none of is left out, as the first releases did.
        parts: dict[str, Mapping[str, ColumnProfile]] = {
            "features": self.features,
            "categories": self.categories,
            "outputs": self.outputs,
        }
        return {
            part: {name: column.to_dict() for name, column in columns.items()}
            for part, columns in parts.items()
            if columns or part == "features"
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises Malformed when `data` is not what `to_dict` gave."""
        try:
            return cls(
                {name: NumericProfile.from_dict(column) for name, column in data["features"].items()},
                {name: CategoricalProfile.from_dict(column) for name, column in data.get("categories", {}).items()},
                {name: _column(column) for name, column in data.get("outputs", {}).items()},
            )
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


def profile_of(
    features: Sequence[str],
    rows: ArrayLike,
    categories: Mapping[str, Iterable[str | None] | Mapping[str | None, int]] | None = None,
    outputs: Mapping[str, Iterable[str | None] | NDArray[Any]] | None = None,
) -> Profile:
    """Return the profile of a reference, with bin edges frozen at its deciles, and its categories.

    `rows` of shape [n, features] are the numbers, `categories` the columns that are not, or how often each value is there; an
    output is numbers when it is an array of them. Raises Invalid when a feature is named twice or the shape is another.
    """
    if len(set(features) | set(categories or ())) != len(features) + len(categories or ()):
        raise Invalid(f"a feature is named twice among {', '.join([*features, *(categories or ())])}")
    columns = _columns(rows, len(features))
    return Profile(
        {name: _numbers(column) for name, column in zip(features, columns, strict=True)},
        {name: CategoricalProfile.of(values) for name, values in (categories or {}).items()},
        {name: _output(values) for name, values in (outputs or {}).items()},
    )


def _columns(rows: ArrayLike, features: int) -> NDArray[np.float32]:
    table = np.asarray(rows)
    if table.ndim != 2 or table.shape[1] != features:
        raise Invalid(f"rows of shape {table.shape} do not fit a profile of {features} features; [n, {features}] does")
    return np.ascontiguousarray(singles(table).T)


def _numbers(column: NDArray[np.float32]) -> NumericProfile:
    profile = NumericProfile(deciles(column))
    profile.add(column)
    return profile


def _output(values: Iterable[str | None] | NDArray[Any]) -> ColumnProfile:
    if isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.number):
        return _numbers(singles(values))
    return CategoricalProfile.of(values)


def _column(data: Mapping[str, Any]) -> ColumnProfile:
    return CategoricalProfile.from_dict(data) if "known" in data else NumericProfile.from_dict(data)


def _merge(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    if list(ours) != list(theirs):
        raise Invalid(f"profiles of other columns cannot be merged: {_difference(ours, theirs)}")
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        if type(mine) is not type(other):
            raise Invalid("a column of numbers and one of categories cannot be merged")
        mine.merge(other)


def _difference(mine: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    odd = sorted(set(mine) ^ set(theirs))
    return f"{odd[0]!r} is only in one of them" if odd else "their order differs"

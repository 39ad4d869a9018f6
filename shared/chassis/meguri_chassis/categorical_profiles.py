"""The distribution of one column of categories: texts, booleans, labels.

A reference freezes its categories, which are counted exactly for ever, as bins of numbers are. Of all others up to `DISTINCT`
are counted exactly too; when there are more, a sketch of frequent ones takes them. Until then the bytes of a profile follow
from how often each category was seen, whatever the order.
"""

import base64
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Self

import datasketches
import numpy as np
from numpy.typing import NDArray

from meguri_contracts.errors import Invalid

DISTINCT = 1000
"""Categories that a reference freezes, and others that are counted one by one."""
LONGEST = 200
"""Characters of a category; those that begin with the same ones are one."""

_LG_SIZE = 10
_SURE = datasketches.frequent_items_error_type.NO_FALSE_POSITIVES


class CategoricalProfile:
    """How often each category was seen. None and the empty text are counted in `missing` and are no part of the rest."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self.known = tuple(known)
        """Those of the reference, sorted; `counts` are theirs."""
        self.counts: NDArray[np.int64] = np.zeros(len(self.known), np.int64)
        self.missing = 0
        self.strangers = 0
        """Rows of categories that are not known."""
        self._places = {name: at for at, name in enumerate(self.known)}
        self._others: Counter[str] = Counter()
        self._sketch: Any = None

    @classmethod
    def of(cls, values: Iterable[str | None] | Mapping[str | None, int]) -> Self:
        """Return the profile of a reference, of values or of how often there is each: its most frequent are frozen."""
        counts: Counter[str] = Counter()
        for value, rows in Counter(values).items():
            counts["" if value is None else value[:LONGEST]] += rows
        common = sorted((name for name in counts if name), key=lambda name: (-counts[name], name))[:DISTINCT]
        profile = cls(sorted(common))
        profile.add(counts)
        return profile

    def like(self) -> "CategoricalProfile":
        """Return an empty profile that knows the same categories."""
        twin = CategoricalProfile()
        twin.known, twin._places, twin.counts = self.known, self._places, np.zeros(len(self.known), np.int64)
        return twin

    def update(self, values: Iterable[str | None]) -> None:
        """Take in values."""
        for value, rows in Counter(values).items():
            self.add({"" if value is None else value: rows})

    def add(self, counts: Mapping[str, int]) -> None:
        """Take in how often each category was seen; that of the empty text is the number of missing values."""
        for name, count in counts.items():
            short = name[:LONGEST]
            if not short:
                self.missing += count
            elif (at := self._places.get(short)) is not None:
                self.counts[at] += count
            else:
                self.strangers += count
                self._add_other(short, count)

    def merge(self, other: "CategoricalProfile") -> None:
        """Take in what another profile saw. Raises Invalid when it knows other categories."""
        if self.known is not other.known and self.known != other.known:
            raise Invalid(
                "profiles that know other categories cannot be merged; make both with `like` of one reference"
            )
        self.counts = self.counts + other.counts
        self.missing += other.missing
        self.strangers += other.strangers
        if other._sketch is not None:
            self._spilled().merge(other._sketch)
        for name, count in sorted(other._others.items()):
            self._add_other(name, count)

    def copy(self) -> "CategoricalProfile":
        twin = self.like()
        twin.merge(self)
        return twin

    @property
    def n(self) -> int:
        """Values seen that are there."""
        return int(self.counts.sum()) + self.strangers

    @property
    def rows(self) -> int:
        """Values seen, missing ones too."""
        return self.n + self.missing

    @property
    def is_exact(self) -> bool:
        """Whether every category is still counted by itself."""
        return self._sketch is None

    @property
    def others(self) -> dict[str, int]:
        """Rows per category that is not known, as far as they are told apart; where that is no longer all, at least so many."""
        if self._sketch is None:
            return dict(sorted(self._others.items()))
        return {name: int(low) for name, _, low, _ in self._sketch.get_frequent_items(_SURE)}

    def table(self) -> dict[str, int]:
        """Return the rows per category that was seen; those that are no longer told apart stand under the empty text."""
        seen = {name: int(count) for name, count in zip(self.known, self.counts, strict=True) if count} | self.others
        rest = self.n - sum(seen.values())
        return seen | {"": rest} if rest else seen

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as plain JSON values; the sketch in base64."""
        return {
            "missing": self.missing,
            "known": list(self.known),
            "counts": self.counts.tolist(),
            "strangers": self.strangers,
            "others": dict(sorted(self._others.items())),
            "sketch": None if self._sketch is None else base64.b64encode(self._sketch.serialize()).decode(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        profile = cls(data["known"])
        profile.counts = np.asarray(data["counts"], np.int64)
        profile.missing, profile.strangers = int(data["missing"]), int(data["strangers"])
        profile._others = Counter({str(name): int(count) for name, count in data["others"].items()})
        if data["sketch"] is not None:
            raw = base64.b64decode(data["sketch"], validate=True)
            profile._sketch = datasketches.frequent_strings_sketch.deserialize(raw)
        return profile

    def _add_other(self, name: str, count: int) -> None:
        if self._sketch is None:
            self._others[name] += count
            if len(self._others) > DISTINCT:
                self._spilled()
        else:
            self._sketch.update(name, count)

    def _spilled(self) -> Any:
        if self._sketch is None:
            self._sketch = datasketches.frequent_strings_sketch(_LG_SIZE)
            for name, count in sorted(self._others.items()):
                self._sketch.update(name, count)
            self._others.clear()
        return self._sketch

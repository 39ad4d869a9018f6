"""Who moved what has moved: what each producer adds to the distance of all rows from the reference.

The distance of all rows is compared with that of the rows of all others. Of both only what is more than chance explains
counts: otherwise the rest of a few rows would always seem to have moved a little, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from meguri_chassis.profiles import CategoricalProfile, ColumnProfile, NumericProfile
from meguri_contracts.errors import Invalid
from meguri_monitoring.verdicts import distances

CHANCE = 2
"""How many times the distance that is to be expected without any drift is still taken for chance."""


@dataclass(frozen=True)
class Contribution:
    """What one producer adds to the distance of the columns that moved."""

    producer: str
    share: float
    """Share of the distance that disappears without it: below 0 when it hides drift, above 1 when the others do."""


Distance = Callable[[ColumnProfile, ColumnProfile], tuple[float, float]]
"""From reference and live rows to how far they are apart, and how much of it may be chance."""
Column = tuple[ColumnProfile, Mapping[str, ColumnProfile]]
"""Reference and live rows by producer."""


def contributions(columns: Sequence[Column], distance: Distance) -> tuple[Contribution, ...]:
    """Return what each producer adds to the distance of `columns`, most first. A producer that is alone has share 1.

    Shares need not add up to 1: producers that moved alike hide each other. Raises Invalid when nobody has rows.
    """
    present = sorted({name for _, parts in columns for name, part in parts.items() if part.rows})
    if not present:
        raise Invalid("no producer has rows in this window; there is nothing to attribute")
    if len(present) == 1:
        return (Contribution(present[0], 1.0),)
    # A threshold of the spec may lie within chance: then all of the distance counts.
    shares = _shares(columns, present, distance, CHANCE) or _shares(columns, present, distance, 0)
    contributed = (Contribution(name, shares.get(name, 0.0)) for name in present)
    return tuple(sorted(contributed, key=lambda contribution: -contribution.share))


def _shares(columns: Sequence[Column], producers: Sequence[str], distance: Distance, chance: float) -> dict[str, float]:
    """Return what disappears without each, of what is more than `chance` times the distance to be expected; empty for none."""
    everyone, rest = 0.0, dict.fromkeys(producers, 0.0)
    for reference, parts in columns:
        together, others = _without_each([parts[name] for name in producers])
        everyone += _beyond(chance, *distance(reference, together))
        for name, other in zip(producers, others, strict=True):
            rest[name] += _beyond(chance, *distance(reference, other))
    return {name: 1 - left / everyone for name, left in rest.items()} if everyone else {}


def distribution(reference: ColumnProfile, live: ColumnProfile) -> tuple[float, float]:
    """Of numbers the larger of Kolmogorov-Smirnov and Wasserstein distance beyond chance, else Jensen-Shannon distance."""
    if isinstance(reference, NumericProfile) and isinstance(live, NumericProfile):
        seen, expected = distances.ks_and_wasserstein(reference, live), distances.chance(reference, live)
        return max(zip(seen, expected, strict=True), key=lambda gap: gap[0] - CHANCE * gap[1])
    counts = distances.counts(reference, live)
    return distances.jensen_shannon(*counts), distances.by_chance(*counts)


def missing(reference: ColumnProfile, live: ColumnProfile) -> tuple[float, float]:
    """The difference of the shares of missing values."""
    if not (reference.rows and live.rows):
        return 0.0, 0.0
    seen = abs(reference.missing / reference.rows - live.missing / live.rows)
    return seen, distances.share_by_chance(reference.missing, reference.rows, live.missing, live.rows)


def strangers(reference: ColumnProfile, live: ColumnProfile) -> tuple[float, float]:
    """The share of rows with categories that the reference does not have."""
    assert isinstance(reference, CategoricalProfile)
    assert isinstance(live, CategoricalProfile)
    return live.strangers / live.n if live.n else 0.0, distances.strangers_expected(reference) / CHANCE


def _beyond(chance: float, seen: float, expected: float) -> float:
    return max(0.0, seen - chance * expected)


def _without_each(columns: Sequence[ColumnProfile]) -> tuple[ColumnProfile, list[ColumnProfile]]:
    """Return what all columns are together, and for each what all others are."""
    before, after = [columns[0].like()], [columns[0].like()]
    for column in columns:
        before.append(_sum(before[-1], column))
    for column in columns[:0:-1]:
        after.append(_sum(after[-1], column))
    return before[-1], [_sum(first, second) for first, second in zip(before[:-1], reversed(after), strict=True)]


def _sum(first: ColumnProfile, second: ColumnProfile) -> ColumnProfile:
    both = first.copy()
    both.merge(second)  # type: ignore[arg-type]  # columns of one name are of one kind
    return both

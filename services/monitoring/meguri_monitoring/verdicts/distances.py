"""How far the distribution of a column is from its reference, by several measures; none of them decides anything."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, chdtrc, kolmogorov, ndtr

from meguri_chassis.profiles import CategoricalProfile, ColumnProfile, NumericProfile

Doubles = NDArray[np.float64]
Counts = NDArray[np.int64] | Doubles

MASS = 0.05
"""Share of the reference from which on a single value is a bin of its own."""
EXPECTED = 5
"""Rows that a category should have; rarer ones are compared together."""
_KS_BY_CHANCE = math.sqrt(math.pi / 2) * math.log(2)
_AWAY_BY_CHANCE = math.sqrt(2 / math.pi)


def ks_and_wasserstein(
    reference: NumericProfile, live: NumericProfile, unit: float | None = None
) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov distance, and the Wasserstein distance in `unit`: when not given in standard deviations of
    the reference, or of both together when it is constant. Missing values have no part in it; without any others both are 0.
    """
    if not (reference.n and live.n):
        return 0.0, 0.0
    steps = reference.steps
    values, weights = live.weighted
    if live.is_exact:
        before, upto = _even_levels(live.n)
        ends = steps.areas_at_even(live.n)
    else:
        upto = weights.cumsum() / live.n
        before, ends = np.concatenate([[0.0], upto[:-1]]), steps.areas_at(upto)
    above = steps.values.searchsorted(values, "right")
    reached = steps.upto[above]
    # One step lower where the value is one of the reference's.
    below = steps.upto[above - (steps.values[above - 1] == values)]
    ks = max(float((upto - reached).max()), float((below - before).max()))
    if ks <= 0:
        return 0.0, 0.0
    # From quantile to quantile: a live row stands for the shares `before` to `upto`, and the reference's values pass its own
    # where the reference has `reached` it.
    starts = np.concatenate([[0.0], ends[:-1]])
    turn = np.minimum(np.maximum(reached, before), upto)
    turns = np.where(reached <= before, starts, np.where(reached >= upto, ends, steps.areas[above]))
    area = float((values - steps.centre) @ (2 * turn - before - upto)) + float((starts + ends - 2 * turns).sum())
    return ks, max(0.0, area) / (unit or _unit(reference, live))


@lru_cache(maxsize=8)
def _even_levels(n: int) -> tuple[Doubles, Doubles]:
    levels = np.arange(n + 1) / n
    return levels[:-1], levels[1:]


def chance(reference: NumericProfile, live: NumericProfile) -> tuple[float, float]:
    """Return both distances as they are to be expected of rows of the same distribution."""
    if not (reference.n and live.n):
        return 0.0, 0.0
    spread = math.sqrt(1 / reference.n + 1 / live.n)
    inner = reference.steps.upto[1:-1]
    away = float(np.sqrt(inner * (1 - inner)) @ np.diff(reference.steps.values))
    return _KS_BY_CHANCE * spread, _AWAY_BY_CHANCE * spread * away / _unit(reference, live) if away else 0.0


def ks_p_values(distances: Sequence[float], pairs: Sequence[tuple[NumericProfile, NumericProfile]]) -> Doubles:
    """Return the asymptotic, two-sided p-values of KS distances, on the safe side when values repeat."""
    # The sketches may be off by this much: what remains is a distance that the rows themselves must have.
    sure = [max(0.0, ks - a.rank_error - b.rank_error) for ks, (a, b) in zip(distances, pairs, strict=True)]
    rows = [a.n * b.n / (a.n + b.n) if a.n and b.n else 0.0 for a, b in pairs]
    return np.asarray(kolmogorov(np.sqrt(rows) * np.array(sure)))


def counts(reference: ColumnProfile, live: ColumnProfile) -> tuple[Counts, Counts]:
    """Return the rows per bin, or per category and of all that the reference does not know."""
    if isinstance(reference, NumericProfile) and isinstance(live, NumericProfile):
        starts = bins(reference)
        return np.add.reduceat(reference.counts, starts), np.add.reduceat(live.counts, starts)
    assert isinstance(reference, CategoricalProfile)
    assert isinstance(live, CategoricalProfile)
    return np.append(reference.counts, reference.strangers), np.append(live.counts, live.strangers)


def bins(reference: NumericProfile) -> list[int]:
    """Return where bins begin among the profile's own: an edge is a bin by itself only when it is a value that many rows have,
    else it belongs to what is below.
    """
    heavy = reference.counts[1::2] >= MASS * max(reference.n, 1)
    return [0, *(at for edge, alone in enumerate(heavy) for at in ([2 * edge + 1] if alone else []) + [2 * edge + 2])]


def population_stability(ours: Counts, theirs: Counts) -> float:
    """Return the index of two rows of counts; half a row stands for none, lest it be infinite."""
    if not (ours.sum() and theirs.sum()):
        return 0.0
    seen = (ours + theirs) > 0
    expected, actual = (np.maximum(rows[seen], 0.5) / rows.sum() for rows in (ours, theirs))
    return float((actual - expected) @ np.log(actual / expected))


def jensen_shannon(ours: Counts, theirs: Counts) -> float:
    """Return the distance of two rows of counts, natural logarithm: 0 to 0.83."""
    if not (ours.sum() and theirs.sum()):
        return 0.0
    first, second = ours / ours.sum(), theirs / theirs.sum()
    middle = (first + second) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(one > 0, one * np.log(one / middle), 0.0).sum() for one in (first, second)]
    return math.sqrt(max(0.0, float(sum(parts)) / 2))


def largest_change(ours: Counts, theirs: Counts) -> float:
    """Return the largest difference of a share."""
    if not (ours.sum() and theirs.sum()):
        return 0.0
    return float(np.abs(ours / ours.sum() - theirs / theirs.sum()).max())


def g_test(ours: Counts, theirs: Counts) -> float:
    """Return the p-value of the two-sample G-test: whether two rows of counts have the same shares."""
    together = ours + theirs
    ours, theirs, together = ours[together > 0], theirs[together > 0], together[together > 0]
    if together.size < 2 or not (ours.sum() and theirs.sum()):
        return 1.0
    total = together.sum()
    g = sum(
        float(rows[rows > 0] @ np.log(rows[rows > 0] * total / (together[rows > 0] * rows.sum())))
        for rows in (ours, theirs)
    )
    return float(chdtrc(together.size - 1, max(0.0, 2 * g)))


def without_rare(ours: Counts, theirs: Counts) -> tuple[Counts, Counts]:
    """Return the counts of categories with those taken together of which too few rows are expected on the smaller side.

    The strangers, which stand last, belong to these: of many rare categories a reference cannot have seen all.
    """
    together = ours + theirs
    smaller = min(ours.sum(), theirs.sum())
    rare = together * smaller < EXPECTED * together.sum()
    rare[-1] = True
    return np.append(ours[~rare], ours[rare].sum()), np.append(theirs[~rare], theirs[rare].sum())


def shares_p_value(ours: float, of_ours: float, theirs: float, of_theirs: float) -> float:
    """Return the two-sided p-value of the z-test for two proportions."""
    if not (of_ours and of_theirs):
        return 1.0
    share = (ours + theirs) / (of_ours + of_theirs)
    spread = math.sqrt(share * (1 - share) * (1 / of_ours + 1 / of_theirs))
    return float(2 * ndtr(-abs(ours / of_ours - theirs / of_theirs) / spread)) if spread else 1.0


def share_by_chance(ours: int, of_ours: int, theirs: int, of_theirs: int) -> float:
    """Return the difference of two shares to be expected of rows of the same distribution."""
    share = (ours + theirs) / (of_ours + of_theirs)
    return _AWAY_BY_CHANCE * math.sqrt(share * (1 - share) * (1 / of_ours + 1 / of_theirs))


def strangers_expected(reference: CategoricalProfile) -> float:
    """Return the share of rows to be expected of categories that the reference did not see: as many as it saw only once."""
    return (int(np.count_nonzero(reference.counts == 1)) + reference.strangers + 1) / (reference.n + 1)


def strangers_p_value(reference: CategoricalProfile, live: CategoricalProfile) -> float:
    """Return how probable so many strangers are."""
    return float(bdtrc(live.strangers - 1, live.n, strangers_expected(reference))) if live.strangers else 1.0


def by_chance(ours: Counts, theirs: Counts) -> float:
    """Return the Jensen-Shannon distance to be expected of rows of the same distribution."""
    if not (ours.sum() and theirs.sum()):
        return 0.0
    cells = int(np.count_nonzero(ours + theirs))
    return math.sqrt(max(0, cells - 1) / 8 * (1 / ours.sum() + 1 / theirs.sum()))


def _unit(reference: NumericProfile, live: NumericProfile) -> float:
    # A constant has no scale of its own, and a fixed floor would depend on the unit of the feature.
    if reference.std:
        return reference.std
    both = reference.moments.join(live.moments)
    return math.sqrt(both.m2 / both.n)

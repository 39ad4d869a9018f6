"""Whether live features still look like the reference, and which producer moved them.

A feature has drifted when the difference is both significant and large enough to matter: significance alone cries wolf
in large windows, distance alone in small ones.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import kolmogorov

from meguri_chassis.profiles import NumericProfile, Profile
from meguri_contracts.errors import Invalid
from meguri_contracts.spec import Monitor


@dataclass(frozen=True)
class FeatureVerdict:
    """How far one feature is from its reference."""

    feature: str
    ks: float
    """Kolmogorov-Smirnov distance, 0 to 1. A missing value counts as one above all others."""
    p_value: float
    """Asymptotic, two-sided, on the safe side when values repeat; not yet divided by the number of features."""
    wasserstein: float
    """Of the values that are there, in standard deviations of the reference; of both together when it is constant."""
    drifted: bool

    @property
    def distance(self) -> float:
        """The larger of both distances: what a rule's `distance` is held against."""
        return max(self.ks, self.wasserstein)


@dataclass(frozen=True)
class Verdict:
    """What a window says. Without enough rows it says nothing, and that is not the same as quiet."""

    features: tuple[FeatureVerdict, ...]
    """In the order of the reference; empty without enough rows."""
    rows: int
    """Of the smaller side."""
    needed: int

    @property
    def judged(self) -> bool:
        """Whether both sides had rows enough."""
        return self.rows >= self.needed

    @property
    def drifted(self) -> tuple[FeatureVerdict, ...]:
        """Features that moved, worst first."""
        moved = [feature for feature in self.features if feature.drifted]
        return tuple(sorted(moved, key=lambda feature: -feature.distance))

    @property
    def moved(self) -> bool:
        return any(feature.drifted for feature in self.features)


@dataclass(frozen=True)
class Contribution:
    """What one producer adds to the distance of the drifted features."""

    producer: str
    share: float
    """Share of the distance that disappears without it: below 0 when it hides drift, above 1 when the others do."""


def compare(reference: Profile, live: Profile, rule: Monitor) -> Verdict:
    """Hold `live` against `reference`, feature by feature.

    Raises Invalid when the two do not have the same features.
    """
    if reference.features.keys() != live.features.keys():
        odd = sorted(reference.features.keys() ^ live.features.keys())
        raise Invalid(f"{odd[0]!r} is a feature of only one of reference and live rows; is it the same model version?")
    rows = min(reference.rows, live.rows)
    if rows < rule.min_rows:
        return Verdict((), rows, rule.min_rows)
    pairs = [(feature, live.features[name]) for name, feature in reference.features.items()]
    distances = [_distances(ours, theirs) for ours, theirs in pairs]
    # The sketches may be off by this much: what remains is a distance that the rows themselves must have.
    certain = [max(0.0, ks - a.rank_error - b.rank_error) for (ks, _), (a, b) in zip(distances, pairs, strict=True)]
    effective_rows = reference.rows * live.rows / (reference.rows + live.rows)
    p_values = kolmogorov(np.sqrt(effective_rows) * np.array(certain))
    verdicts = (
        FeatureVerdict(
            feature=name,
            ks=ks,
            p_value=float(p_value),
            wasserstein=wasserstein,
            drifted=bool(p_value < rule.p_value / len(pairs) and max(ks, wasserstein) >= rule.distance),
        )
        for name, (ks, wasserstein), p_value in zip(reference.features, distances, p_values, strict=True)
    )
    return Verdict(tuple(verdicts), rows, rule.min_rows)


def contributions(
    reference: Profile, by_producer: Mapping[str, Profile], features: Iterable[str]
) -> tuple[Contribution, ...]:
    """Return what each producer adds to the distance of `features`, most first: the distance of all rows is compared
    with that of the rows of all others. A producer that is alone has share 1.

    `by_producer` holds profiles on the bin edges of `reference`. Shares need not add up to 1: producers that moved
    alike hide each other and have about 0. Raises Invalid when the edges differ or nobody has rows.
    """
    present = {producer: profile for producer, profile in sorted(by_producer.items()) if profile.rows}
    if not present:
        raise Invalid("no producer has rows in this window; there is nothing to attribute")
    if len(present) == 1:
        (alone,) = present
        return (Contribution(alone, 1.0),)
    names = list(features)
    everyone = _total_distance(reference, list(present.values()), names)
    shares = []
    for producer in present:
        others = [profile for other, profile in present.items() if other != producer]
        rest = _total_distance(reference, others, names)
        shares.append(Contribution(producer, 1 - rest / everyone if everyone else 0.0))
    return tuple(sorted(shares, key=lambda contribution: -contribution.share))


def _total_distance(reference: Profile, profiles: Sequence[Profile], names: Sequence[str]) -> float:
    total = 0.0
    for name in names:
        together = NumericProfile(reference.features[name].edges)
        for profile in profiles:
            together.merge(profile.features[name])
        total += max(_distances(reference.features[name], together))
    return total


def _distances(reference: NumericProfile, live: NumericProfile) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov distance, and the Wasserstein distance in standard deviations."""
    (values, weights), (live_values, live_weights) = reference.weighted(), live.weighted()
    if not values.size + live_values.size:
        return 0.0, 0.0
    grid = np.concatenate([values, live_values])
    order = grid.argsort(kind="stable")
    ours = np.concatenate([weights, np.zeros(live_values.size)])[order].cumsum()
    theirs = np.concatenate([np.zeros(values.size), live_weights])[order].cumsum()
    steps = np.diff(grid[order])
    gaps = np.abs(ours / (reference.n + reference.missing) - theirs / (live.n + live.missing))
    ks = max(gaps[:-1][steps > 0].max(initial=0.0), gaps[-1])  # among equal values only the last has counted them all
    if not (reference.n and live.n):
        return float(ks), 0.0
    wasserstein = float(np.abs(ours / reference.n - theirs / live.n)[:-1] @ steps)
    return float(ks), wasserstein / _unit(reference, live) if wasserstein else 0.0


def _unit(reference: NumericProfile, live: NumericProfile) -> float:
    # A constant has no scale of its own, and a fixed floor would depend on the unit of the feature.
    if reference.std:
        return reference.std
    both = reference.moments.join(live.moments)
    return math.sqrt(both.m2 / both.n)

"""Whether one mean is above another, looked at as often as one likes; and how an A/B test ends.

The intervals are asymptotic confidence sequences (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas: Time-uniform central limit
theory and asymptotic confidence sequences, 2021, theorem 2.2), which rest on the normal mixture of Robbins (1970): the
probability that the true value ever leaves its interval, at whatever moment one looks or stops, is at most alpha, once there
are so many rows that their mean is nearly normal. A fixed interval would be left sooner or later by chance alone. Rows count as
independent of each other, and the shares of the versions as the same for the whole time, as they are within a plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log, sqrt

from meguri_contracts.events import ArmQuality
from meguri_contracts.spec import TrialPolicy


@dataclass(frozen=True)
class Sample:
    """How many values there were, their mean and their variance."""

    count: int
    mean: float
    variance: float

    @classmethod
    def of_share(cls, hits: int, count: int) -> "Sample":
        """Values that are 1 or 0. One more of each is thought for the variance: none of 50 is not surely never."""
        share = (hits + 1) / (count + 2)
        return cls(count, hits / count if count else 0.0, share * (1 - share))

    @classmethod
    def of_scores(cls, quality: ArmQuality) -> "Sample":
        if not quality.labels:
            return cls(0, 0.0, 0.0)
        mean = quality.total / quality.labels
        spread = max(quality.squares / quality.labels - mean**2, 0.0)
        return cls(quality.labels, mean, spread * quality.labels / max(quality.labels - 1, 1))


@dataclass(frozen=True)
class Interval:
    """An estimate and the range around it that holds the true value, at every look, but for a probability of alpha."""

    estimate: float
    margin: float

    @property
    def low(self) -> float:
        return self.estimate - self.margin

    @property
    def high(self) -> float:
        return self.estimate + self.margin


def difference(one: Sample, other: Sample, *, alpha: float, narrowest: float) -> Interval:
    """Return how far the mean of `one` is above that of `other`. `narrowest` is the count of `one` that it is tuned for."""
    if not (one.count and other.count):
        return Interval(one.mean - other.mean, inf)
    error = sqrt(one.variance / one.count + other.variance / other.count)
    return Interval(one.mean - other.mean, error * _times(one.count, alpha, narrowest))


def above(one: Sample, value: float, *, alpha: float, narrowest: float) -> Interval:
    """Return how far the mean of a sample is above a known value."""
    if not one.count:
        return Interval(one.mean - value, inf)
    return Interval(one.mean - value, sqrt(one.variance / one.count) * _times(one.count, alpha, narrowest))


def _times(count: int, alpha: float, narrowest: float) -> float:
    """How many standard errors wide the interval is to each side; a fixed one would have 1.96 for an alpha of 0.05."""
    # The mixture's variance that makes it narrowest at a count.
    rho2 = (-2 * log(alpha) + log(-2 * log(alpha)) + 1) / narrowest
    grown = count * rho2
    return sqrt(2 * (1 + 1 / grown) * log(sqrt(1 + grown) / alpha))


@dataclass(frozen=True)
class Ending:
    """How an A/B test ends: `winner` is None when the champion stays. `intervals` are of each arm above the champion."""

    winner: int | None
    intervals: Mapping[int, Interval]


NARROWEST = 5
"""Times `min_labels` of an arm: where its interval is tuned to be narrowest."""


def intervals(champion: ArmQuality, arms: Sequence[ArmQuality], policy: TrialPolicy) -> dict[int, Interval]:
    """Return for each arm how far its mean score is above the champion's; alpha is divided by the number of arms."""
    alpha, narrowest = policy.alpha / len(arms), NARROWEST * policy.min_labels
    base = Sample.of_scores(champion)
    return {arm.version: difference(Sample.of_scores(arm), base, alpha=alpha, narrowest=narrowest) for arm in arms}


def ending(champion: ArmQuality, arms: Sequence[ArmQuality], policy: TrialPolicy) -> Ending | None:
    """Return how the test ends, or None while it goes on.

    The best of the arms whose whole interval is above 0 wins. None is better when all of them are below 0, or when every arm
    has had `max_labels`.
    """
    if min(one.labels for one in (champion, *arms)) < policy.min_labels:
        enough = min(arm.labels for arm in arms) >= policy.max_labels
        return Ending(None, intervals(champion, arms, policy)) if enough else None
    found = intervals(champion, arms, policy)
    better = [version for version, interval in found.items() if interval.low > 0]
    if better:
        return Ending(max(better, key=lambda version: found[version].estimate), found)
    if all(interval.high < 0 for interval in found.values()) or min(arm.labels for arm in arms) >= policy.max_labels:
        return Ending(None, found)
    return None

"""The verdicts that Evidently 0.7 gives by default, column by column.

It chooses by the size of the reference and by the number of different values in reference and live rows together. Its tests
and thresholds are kept as they are, also where they cry wolf: this is for those who want the same answers.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from meguri_chassis.profiles import FEW, CategoricalProfile, ColumnProfile, NumericProfile
from meguri_contracts.spec import EpisodeKind, Monitor
from meguri_monitoring.verdicts import distances, drift
from meguri_monitoring.verdicts.distances import Doubles
from meguri_monitoring.verdicts.findings import Finding

SMALL = 1000
"""Rows of the reference up to which p-values decide, and distances beyond."""
P_VALUE = 0.05
DISTANCE = 0.1
_LEAST_DEVIATION = 0.001
_EXACT = 10_000
"""Rows up to which the Kolmogorov-Smirnov test is exact."""
_LEAST_P = 1e-300


def findings(about: EpisodeKind, pairs: drift.Pairs, rule: Monitor) -> list[Finding]:
    """Hold columns against their references as Evidently does, or by the method that the spec names for one.

    Where it is a p-value that decides, `score` and `threshold` are its order of magnitude: -log10(p).
    """
    return [
        drift.by_method(about, name, ours, theirs, method)
        if (method := rule.methods.get(name))
        else _finding(about, name, ours, theirs)
        for name, (ours, theirs) in pairs.items()
    ]


def _finding(about: EpisodeKind, name: str, ours: ColumnProfile, theirs: ColumnProfile) -> Finding:
    if not (ours.n and theirs.n):
        # Evidently refuses an empty column; here it is the share of missing values that says so.
        return Finding(about, name, False, 0.0, DISTANCE, "no values")
    if isinstance(ours, CategoricalProfile) and isinstance(theirs, CategoricalProfile):
        return _of_values(about, name, *_aligned(ours.table(), theirs.table()))
    assert isinstance(ours, NumericProfile)
    assert isinstance(theirs, NumericProfile)
    before, now = ours.few, theirs.few
    if before is not None and now is not None and len(before | now) <= FEW:
        return _of_values(about, name, *_aligned(before, now))
    unit = max(ours.std, _LEAST_DEVIATION)
    ks, wasserstein = distances.ks_and_wasserstein(ours, theirs, unit)
    if ours.n > SMALL:
        moved = wasserstein >= DISTANCE
        return Finding(about, name, moved, wasserstein, DISTANCE, "wasserstein", ks=ks, wasserstein=wasserstein)
    p_value = _ks_p_value(ours, theirs, ks)
    return _by_p_value(about, name, p_value <= P_VALUE, "K-S p-value", p_value, ks, wasserstein)


def _ks_p_value(ours: NumericProfile, theirs: NumericProfile, ks: float) -> float:
    from scipy.stats import ks_2samp, kstwo  # noqa: PLC0415 - half a second at the start, and few ask for this rule

    if max(ours.n, theirs.n) > _EXACT:
        return float(np.clip(kstwo.sf(ks, np.round(ours.n * theirs.n / (ours.n + theirs.n))), 0, 1))
    # A value of a sketch stands for so many rows.
    rows = [np.repeat(values, weights.astype(np.int64)) for values, weights in (ours.weighted, theirs.weighted)]
    return float(ks_2samp(*rows).pvalue)


def _of_values(about: EpisodeKind, name: str, ours: Doubles, theirs: Doubles) -> Finding:
    """Rows per value or category, aligned."""
    change = distances.largest_change(ours, theirs)
    if ours.sum() > SMALL:
        distance = distances.jensen_shannon(ours, theirs)
        return Finding(about, name, distance >= DISTANCE, distance, DISTANCE, "jensen-shannon", ks=change)
    if ours.size > 2:
        from scipy.stats import chisquare  # noqa: PLC0415 - as above

        with np.errstate(divide="ignore"):
            p_value = float(chisquare(theirs, ours * (theirs.sum() / ours.sum())).pvalue)
        return _by_p_value(about, name, p_value < P_VALUE, "chi-square p-value", p_value, change)
    p_value = distances.shares_p_value(ours[0], ours.sum(), theirs[0], theirs.sum())
    return _by_p_value(about, name, p_value < P_VALUE, "z-test p-value", p_value, change)


def _by_p_value(
    about: EpisodeKind, name: str, moved: bool, method: str, p_value: float, ks: float, wasserstein: float | None = None
) -> Finding:
    score = -math.log10(max(p_value, _LEAST_P))
    return Finding(about, name, moved, score, -math.log10(P_VALUE), method, p_value, ks, wasserstein)


def _aligned(ours: Mapping[Any, int], theirs: Mapping[Any, int]) -> tuple[Doubles, Doubles]:
    values = sorted(ours.keys() | theirs.keys())
    before, now = ([float(rows.get(value, 0)) for value in values] for rows in (ours, theirs))
    return np.array(before), np.array(now)

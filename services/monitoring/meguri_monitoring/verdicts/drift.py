"""Whether the distribution of columns, features or answers, still looks like the reference's.

A column has drifted when the difference is both significant and large enough to matter: significance alone cries wolf
in large windows, distance alone in small ones. Missing values have no part in it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meguri_chassis.profiles import ColumnProfile, NumericProfile, Profile
from meguri_contracts.errors import Invalid
from meguri_contracts.spec import EpisodeKind, Method, Monitor
from meguri_monitoring.verdicts import blaming, distances
from meguri_monitoring.verdicts.blaming import Contribution
from meguri_monitoring.verdicts.findings import Finding

Pairs = Mapping[str, tuple[ColumnProfile, ColumnProfile]]
"""By column the reference's profile and that of the live rows."""


@dataclass(frozen=True)
class FeatureVerdict:
    """How far one column of numbers is from its reference."""

    feature: str
    ks: float
    """Kolmogorov-Smirnov distance, 0 to 1."""
    p_value: float
    """Asymptotic, two-sided, on the safe side when values repeat; not yet divided by the number of features."""
    wasserstein: float
    """In standard deviations of the reference; of both together when it is constant."""
    drifted: bool

    @property
    def distance(self) -> float:
        """The larger of both distances: what a rule's `distance` is held against."""
        return max(self.ks, self.wasserstein)


@dataclass(frozen=True)
class Verdict:
    """What a window says of its numbers. Without enough rows it says nothing, and that is not the same as quiet."""

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


def compare(reference: Profile, live: Profile, rule: Monitor) -> Verdict:
    """Hold the numbers of `live` against those of `reference`, feature by feature.

    Raises Invalid when the two do not have the same features.
    """
    if reference.features.keys() != live.features.keys():
        odd = sorted(reference.features.keys() ^ live.features.keys())
        raise Invalid(f"{odd[0]!r} is a feature of only one of reference and live rows; is it the same model version?")
    rows = min(reference.rows, live.rows)
    if rows < rule.min_rows:
        return Verdict((), rows, rule.min_rows)
    pairs = {name: (feature, live.features[name]) for name, feature in reference.features.items()}
    return Verdict(tuple(_numbers(pairs, rule, len(pairs))), rows, rule.min_rows)


def findings(about: EpisodeKind, pairs: Pairs, rule: Monitor) -> list[Finding]:
    """Hold columns against their references by the default rule, or by the method that the spec names for one.

    The significance is divided by the number of columns.
    """
    tested = [name for name in pairs if name not in rule.methods]
    verdicts = {verdict.feature: verdict for verdict in _numbers(_of_numbers(pairs, tested), rule, len(tested))}
    found = []
    for name, (ours, theirs) in pairs.items():
        if verdict := verdicts.get(name):
            found.append(_of_number(about, verdict, rule.distance))
        elif method := rule.methods.get(name):
            found.append(by_method(about, name, ours, theirs, method))
        else:
            found.append(_of_categories(about, name, ours, theirs, rule, len(tested)))
    return found


def by_method(about: EpisodeKind, name: str, ours: ColumnProfile, theirs: ColumnProfile, method: Method) -> Finding:
    """Hold a column against its reference by one statistic and its threshold alone."""
    counts = distances.counts(ours, theirs)
    ks, wasserstein = distances.largest_change(*counts), None
    if isinstance(ours, NumericProfile) and isinstance(theirs, NumericProfile):
        ks, wasserstein = distances.ks_and_wasserstein(ours, theirs)
    match method.method:
        case "psi":
            score = distances.population_stability(*counts)
        case "jensen-shannon":
            score = distances.jensen_shannon(*counts)
        case "ks":
            score = ks
        case "wasserstein":
            score = wasserstein or 0.0
    moved = score >= method.threshold
    return Finding(about, name, moved, score, method.threshold, method.method, ks=ks, wasserstein=wasserstein)


def contributions(
    reference: Profile, by_producer: Mapping[str, Profile], features: Iterable[str]
) -> tuple[Contribution, ...]:
    """Return what each producer adds to the distance of `features`, most first.

    `by_producer` holds profiles on the bin edges of `reference`. Raises Invalid when the edges differ or nobody has rows.
    """
    return blaming.contributions(
        [
            (reference.features[name], {producer: profile.features[name] for producer, profile in by_producer.items()})
            for name in features
        ],
        blaming.distribution,
    )


def _of_numbers(pairs: Pairs, names: Iterable[str]) -> dict[str, tuple[NumericProfile, NumericProfile]]:
    chosen = ((name, *pairs[name]) for name in names)
    return {
        name: (ours, theirs)
        for name, ours, theirs in chosen
        if isinstance(ours, NumericProfile) and isinstance(theirs, NumericProfile)
    }


def _numbers(
    pairs: Mapping[str, tuple[NumericProfile, NumericProfile]], rule: Monitor, columns: int
) -> list[FeatureVerdict]:
    gaps = [distances.ks_and_wasserstein(ours, theirs) for ours, theirs in pairs.values()]
    p_values = distances.ks_p_values([ks for ks, _ in gaps], list(pairs.values())).tolist()
    return [
        FeatureVerdict(name, ks, p_value, wasserstein, _moved(max(ks, wasserstein), p_value, rule, columns))
        for name, (ks, wasserstein), p_value in zip(pairs, gaps, p_values, strict=True)
    ]


def _of_number(about: EpisodeKind, verdict: FeatureVerdict, threshold: float) -> Finding:
    return Finding(
        about=about,
        subject=verdict.feature,
        moved=verdict.drifted,
        score=verdict.distance,
        threshold=threshold,
        method="ks or wasserstein",
        p_value=verdict.p_value,
        ks=verdict.ks,
        wasserstein=verdict.wasserstein,
    )


def _of_categories(
    about: EpisodeKind, name: str, ours: ColumnProfile, theirs: ColumnProfile, rule: Monitor, columns: int
) -> Finding:
    counts = distances.without_rare(*distances.counts(ours, theirs))
    distance, p_value = distances.jensen_shannon(*counts), distances.g_test(*counts)
    return Finding(
        about=about,
        subject=name,
        moved=_moved(distance, p_value, rule, columns),
        score=distance,
        threshold=rule.distance,
        method="jensen-shannon",
        p_value=p_value,
        ks=distances.largest_change(*counts),
    )


def _moved(distance: float, p_value: float, rule: Monitor, columns: int) -> bool:
    return p_value < rule.p_value / columns and distance >= rule.distance

"""A closed window held against its reference: what moved, by how much, and who moved it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from meguri_chassis.profiles import Profile
from meguri_contracts import events
from meguri_contracts.spec import EpisodeKind, Monitor
from meguri_monitoring.drift import compare, contributions
from meguri_monitoring.profiling import Share

NAMED = 20
"""Subjects of a kind that an event names and that are attributed to producers: the worst."""


@dataclass(frozen=True)
class Finding:
    """One subject, a feature or a column of the answer, held against its reference in one respect."""

    about: EpisodeKind
    subject: str
    moved: bool
    score: float
    """The effect, as the method has it: what is held against `threshold`."""
    threshold: float
    method: str
    """`ks or wasserstein`, `jensen-shannon`, `psi`, `share` and so on."""
    p_value: float | None = None
    """Not divided by the number of features; None for a method without a test."""
    ks: float | None = None
    wasserstein: float | None = None
    """In standard deviations of the reference; None for what is no number."""


@dataclass(frozen=True)
class Culprit:
    """Who contributes most to what moved in one respect."""

    producer: str
    share: float
    """Of the distance, what disappears without it."""
    samples: tuple[str, ...] = ()
    """Prediction ids of its latest rows."""
    traces: tuple[str, ...] = ()
    """Their trace ids."""


@dataclass(frozen=True)
class Judged:
    """A closed window after it was held against the reference of its version."""

    version: int
    number: int
    """Of the window since its version's rollout, from 0, without gaps."""
    window: events.Window
    judged: bool
    """False without enough rows: then it is neither moved nor quiet."""
    findings: tuple[Finding, ...] = ()
    """All of them, whether moved or not, in the order of the reference."""
    culprits: Mapping[EpisodeKind, Culprit] = field(default_factory=dict)
    """For each kind in which something moved."""
    began: str = ""
    ended: str = ""
    """ISO 8601, UTC: the first and the last prediction; of a window by time its limits."""
    seconds: float = 0.0
    """Between these."""
    late: int = 0
    """Rows that came after it was closed, as far as that was known when it was judged."""

    def moved(self, about: EpisodeKind) -> tuple[Finding, ...]:
        """Return what moved in one respect, worst first."""
        found = [one for one in self.findings if one.about == about and one.moved]
        return tuple(sorted(found, key=lambda one: -one.score / one.threshold if one.threshold else -one.score))


def judge(
    version: int,
    number: int,
    window: events.Window,
    shares: Mapping[str, Share],
    reference: Profile,
    rule: Monitor,
    *,
    began: str = "",
    ended: str = "",
    seconds: float = 0.0,
    late: int = 0,
) -> Judged:
    together = reference.like()
    for name in sorted(shares):
        together.merge(shares[name].profile)
    verdict = compare(reference, together, rule)
    findings = tuple(
        Finding(
            "drift",
            one.feature,
            one.drifted,
            one.distance,
            rule.distance,
            "ks or wasserstein",
            one.p_value,
            one.ks,
            one.wasserstein,
        )
        for one in verdict.features
    )
    judged = Judged(version, number, window, verdict.judged, findings, {}, began, ended, seconds, late)
    if not verdict.moved:
        return judged
    names = [one.subject for one in judged.moved("drift")[:NAMED]]
    [worst, *_] = contributions(reference, {name: share.profile for name, share in shares.items()}, names)
    share = shares[worst.producer]
    return replace(judged, culprits={"drift": Culprit(worst.producer, worst.share, share.samples, share.traces)})

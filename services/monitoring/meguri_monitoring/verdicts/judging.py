"""A closed window held against its reference: what moved, by how much, and who moved it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from meguri_chassis.profiles import ColumnProfile, Profile
from meguri_contracts import events
from meguri_contracts.spec import EpisodeKind, Monitor, expand
from meguri_monitoring.profiles.profiling import Share, together
from meguri_monitoring.verdicts import blaming, drift, evidently, gaps
from meguri_monitoring.verdicts.findings import Culprit, Finding

__all__ = ["DISTANCES", "NAMED", "Culprit", "Finding", "Judged", "columns_of", "contributions", "judge"]

NAMED = 20
"""Subjects of a kind that an event names and that are attributed to producers: the worst."""

DISTANCES: Mapping[EpisodeKind, blaming.Distance] = {
    "drift": blaming.distribution,
    "prediction": blaming.distribution,
    "missing": blaming.missing,
    "categories": blaming.strangers,
}
"""By kind, what producers contribute to."""


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
    tolerated: tuple[EpisodeKind, ...] = ()
    """Kinds in which something moved, but less than the rule's share of all: then nothing counts as moved."""
    why: str = ""
    """Why it was not judged."""
    lasting: bool = False
    """Whether no window of the version can be judged, as the rule is."""

    def moved(self, about: EpisodeKind) -> tuple[Finding, ...]:
        """Return what moved in one respect, worst first."""
        if about in self.tolerated:
            return ()
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
    """Hold a closed window of a version against its reference, and name who moved what has moved.

    Without `rule.min_rows` on both sides there is no verdict. What the reference does not have, answers or categories in
    those of earlier releases, is not judged.
    """
    live = together(reference, shares)
    why = _too_few("reference", reference, rule) or _too_few("window", live, rule)
    found, tolerated = ([], ()) if why else _findings(reference, live, rule)
    whole = Judged(
        version=version,
        number=number,
        window=window,
        judged=not why,
        findings=tuple(found),
        began=began,
        ended=ended,
        seconds=seconds,
        late=late,
        tolerated=tolerated,
        why=why,
        lasting=reference.rows < rule.min_rows,
    )
    culprits = {
        about: _culprit(about, moved, reference, shares) for about in DISTANCES if (moved := whole.moved(about))
    }
    return replace(whole, culprits=culprits) if culprits else whole


def columns_of(profile: Profile, about: EpisodeKind) -> Mapping[str, ColumnProfile]:
    """Return the columns that findings of a kind are about."""
    return profile.outputs if about == "prediction" else profile.inputs


def contributions(
    about: EpisodeKind, subjects: Sequence[str], reference: Profile, shares: Mapping[str, Share]
) -> tuple[blaming.Contribution, ...]:
    """Return what each producer adds to what moved in one respect, most first."""
    columns = [
        (
            columns_of(reference, about)[subject],
            {name: columns_of(share.profile, about)[subject] for name, share in shares.items()},
        )
        for subject in subjects
    ]
    return blaming.contributions(columns, DISTANCES[about])


def _too_few(what: str, profile: Profile, rule: Monitor) -> str:
    """Say why there can be no verdict; empty if there can."""
    if profile.rows >= rule.min_rows:
        return ""
    return f"the {what} has {profile.rows} rows, a verdict needs {rule.min_rows} (monitor.min_rows)"


def _findings(reference: Profile, live: Profile, rule: Monitor) -> tuple[list[Finding], tuple[EpisodeKind, ...]]:
    ignored = {name for pattern in rule.ignore for name in expand(pattern)}
    inputs = _pairs(reference.inputs, live.inputs, ignored)
    outputs = _pairs(reference.outputs, live.outputs) if rule.prediction else {}
    compare = evidently.findings if rule.rule == "evidently" else drift.findings
    features = compare("drift", inputs, rule)
    found = [
        *features,
        *compare("prediction", outputs, rule),
        *gaps.missing(inputs, rule),
        *gaps.strangers(inputs, rule),
    ]
    enough = rule.rule != "evidently" or sum(one.moved for one in features) >= rule.share * len(features)
    return found, () if enough else ("drift",)


def _pairs(
    reference: Mapping[str, ColumnProfile], live: Mapping[str, ColumnProfile], ignored: Collection[str] = ()
) -> drift.Pairs:
    return {name: (column, live[name]) for name, column in reference.items() if name not in ignored}


def _culprit(about: EpisodeKind, moved: Sequence[Finding], reference: Profile, shares: Mapping[str, Share]) -> Culprit:
    top = contributions(about, [one.subject for one in moved[:NAMED]], reference, shares)[0]
    share = shares[top.producer]
    return Culprit(top.producer, top.share, share.samples, share.traces)

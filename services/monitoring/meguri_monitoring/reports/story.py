"""What a report tells, as plain values: of an episode, and of a model's days."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from meguri_contracts.events import Window
from meguri_contracts.spec import EpisodeKind
from meguri_monitoring.episodes.looks import Opening
from meguri_monitoring.verdicts.evidence import CATEGORIES
from meguri_monitoring.verdicts.judging import Judged

WORST = 6
"""Subjects whose distributions are shown."""
PRODUCERS = 5
"""Producers of each that are shown."""
THERE, MISSING = "there", "missing"
"""What is counted where the share of missing values is what changed."""


@dataclass(frozen=True)
class Part:
    """What one producer sent of it."""

    producer: str
    share: float | None
    """Of the change, if that is known."""
    rows: int


@dataclass(frozen=True)
class Compared:
    """A feature or a column of the answer: its distribution in training and in a window of the episode."""

    about: EpisodeKind
    subject: str
    score: float
    threshold: float
    labels: tuple[str, ...]
    """Of the bins or categories."""
    named: int
    """So many of the labels, the first, are names from outside: categories."""
    reference: tuple[float, ...]
    current: tuple[float, ...]
    """Rows in each."""
    means: tuple[float, float] | None = None
    """Of numbers, in their own unit: in training and now."""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Looked:
    """A window, and what was held against the limit in it."""

    version: int
    number: int
    window: Window
    ended: str
    score: float | None
    """Of what the episode is about, or rows a second about volume; None when it was not judged."""
    threshold: float | None = None
    moved: bool = False
    """By the whole rule: above the threshold, and more than chance."""


@dataclass(frozen=True)
class Happened:
    """Something that was done, or seen."""

    time: datetime
    kind: str
    text: str
    trace: str = ""


@dataclass(frozen=True)
class Amount:
    """So much in a span of time that begins at `time`."""

    time: datetime
    value: float | None
    rows: int = 0
    """That the value rests on."""


@dataclass(frozen=True)
class Story:
    """An episode from its beginning to its end, if it has one."""

    opening: Opening
    began: datetime
    champion: int
    """The version that answers now."""
    ended: datetime | None = None
    reason: str = ""
    """Why it ended."""
    acknowledged: datetime | None = None
    actor: str = ""
    note: str = ""
    compared: Sequence[Compared] = ()
    """The worst first."""
    looked: Sequence[Looked] = ()
    happened: Sequence[Happened] = ()
    metric: str = ""
    """`accuracy`, or `mae` of a regression."""
    quality: Sequence[Amount] = ()
    """Before and during an episode that is about it."""

    @property
    def status(self) -> str:
        return "resolved" if self.ended else "acknowledged" if self.acknowledged else "open"


@dataclass(frozen=True)
class Days:
    """Some days of a model."""

    model: str
    since: datetime
    until: datetime
    champion: int | None
    episodes: Sequence[Story] = ()
    """The newest first."""
    volume: Sequence[Amount] = ()
    """Predictions."""
    metric: str = ""
    """`accuracy`, or `mae` of a regression."""
    quality: Sequence[Amount] = ()
    versions: Mapping[int, int] = field(default_factory=dict)
    """Predictions of each version."""
    happened: Sequence[Happened] = ()


def compared(evidence: Mapping[str, Any]) -> list[Compared]:
    """Read what is kept of a window of an episode, the worst first."""
    found = [_compared(one) for one in evidence.get("subjects", ())]
    return sorted(found, key=lambda one: -_excess(one.score, one.threshold))[:WORST]


def looked(judged: Judged, about: str, subject: str) -> Looked:
    """Say how far one subject was from its reference in a window; about volume, how many rows came in a second."""
    if about == "volume":
        rate = judged.window.rows / judged.seconds if judged.seconds else None
        return Looked(judged.version, judged.number, judged.window, judged.ended, rate)
    findings = [one for one in judged.findings if (one.about, one.subject) == (about, subject)]
    if not findings or not judged.judged:
        return Looked(judged.version, judged.number, judged.window, judged.ended, None)
    worst = max(findings, key=lambda one: (one.moved, _excess(one.score, one.threshold)))
    return Looked(judged.version, judged.number, judged.window, judged.ended, worst.score, worst.threshold, worst.moved)


def _compared(one: Mapping[str, Any]) -> Compared:
    parts = [
        Part(name, _share(part), part["rows"] if "rows" in part else round(sum(part["counts"])))
        for name, part in one.get("producers", {}).items()
    ]
    missing = one["about"] == "missing"
    return Compared(
        about=one["about"],
        subject=one["subject"],
        score=one["score"],
        threshold=one["threshold"],
        labels=(THERE, MISSING) if missing else tuple(map(str, one["bins"])),
        named=0 if missing else _named(one),
        reference=_counts(one["reference"], missing),
        current=_counts(one["current"], missing),
        means=None if missing else _means(one),
        parts=tuple(sorted(parts, key=lambda part: -(part.share or 0))[:PRODUCERS]),
    )


def _named(one: Mapping[str, Any]) -> int:
    """Only of categories the figures have no mean; what is new comes last, and before it the rare ones together."""
    is_categories = isinstance(one["reference"], Mapping) and "mean" not in one["reference"]
    return min(len(one["bins"]) - 1, CATEGORIES) if is_categories else 0


def _means(one: Mapping[str, Any]) -> tuple[float, float] | None:
    if not isinstance(one["reference"], Mapping) or "mean" not in one["reference"]:
        return None
    return one["reference"]["mean"], one["current"]["mean"]


def _share(part: Mapping[str, Any]) -> float | None:
    """What a producer contributed: of the numbers of evaluators that is not known."""
    return min(max(part["contribution"], 0.0), 1.0) if "contribution" in part else None


def _counts(figures: Mapping[str, Any] | Sequence[float], missing: bool) -> tuple[float, ...]:
    """Rows by bin, or those with a value and those without; of the numbers of evaluators the former is all there is."""
    if not isinstance(figures, Mapping):
        return tuple(figures)
    if missing:
        return figures["rows"] - figures["missing"], figures["missing"]
    return tuple(figures["counts"])


def _excess(score: float, threshold: float) -> float:
    return score / threshold if threshold else score

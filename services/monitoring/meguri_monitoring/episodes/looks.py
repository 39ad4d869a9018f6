"""What was seen of one subject in one respect at one time, and the event that begins an episode about it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from meguri_contracts import events
from meguri_contracts.events import AnomalyDetected, DriftDetected, PerformanceDegraded
from meguri_contracts.spec import EpisodeKind, Monitor
from meguri_monitoring.episodes import sentences, volume
from meguri_monitoring.verdicts.judging import NAMED, Culprit, Judged

Opening = DriftDetected | PerformanceDegraded | AnomalyDetected
INPUTS: tuple[EpisodeKind, ...] = ("drift", "missing", "categories")
"""Kinds that are about what goes into a model."""
OF_WINDOWS: tuple[EpisodeKind, ...] = (*INPUTS, "prediction")
"""Kinds that follow from the findings of windows. The inputs first: whether they moved is said of the answers."""
FARTHEST = 1e9
"""The largest distance that is told."""
LEAST_RATE = 1e-6
"""Predictions a second that none is counted as where rates are compared."""


@dataclass(frozen=True)
class Look:
    """What was seen of one subject in one respect at one time: a window, a measurement of quality, a silence.

    A look is held against the looks before it; what it says is told in the words and the units of the event that opens an
    episode about it.
    """

    about: EpisodeKind
    version: int
    """Whose predictions these are: only those of the champion matter, but for performance."""
    subject: str
    """The feature, the metric, the column, the evaluator, or `evaluator.number`."""
    place: str
    """Tells apart looks at the same subject; the same whenever the same is looked at again, by whichever replica."""
    moved: bool | None
    """None says neither: passed over."""
    value: float = 0.0
    """What was seen: `distance`, `now` or `value` of the opening event."""
    expected: float = 0.0
    """What it is held against: `before` or `expected` of the opening event."""
    producer: str = ""
    share: float = 0.0
    samples: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    window: events.Window | None = None
    text: str = ""
    """What is wrong, in a sentence without a full stop, for people who are no engineers."""
    back: str = ""
    """Why it is over, if this look ends an episode; words that suit the kind when left out."""
    runs: int | None = None
    """How many looks in a row begin or end an episode; as the spec says for windows when left out."""
    labels: int = 0
    coverage: float | None = None
    inputs_moved: bool | None = None
    """Whether inputs moved meanwhile, of looks at answers and measures; None when that is not known."""
    ks: float = 0.0
    p_value: float = 1.0
    drifted: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """How bad it is, to be compared with other looks at the same."""
        return score(self.about, self.value, self.expected)


def of_volume(windows: Sequence[Judged], rule: Monitor) -> list[Look]:
    """Return how many predictions a second came in each window, held against the windows before it."""
    return [
        Look(
            about="volume",
            version=window.version,
            subject="predictions",
            place=str(window.number),
            moved=rate.moved,
            value=rate.value,
            expected=rate.expected,
            window=window.window,
            text=sentences.volume(rate.value, rate.expected),
        )
        for window, rate in zip(windows, volume.rates(windows, rule), strict=True)
    ]


def of_window(window: Judged, about: EpisodeKind) -> Look:
    """Return what a window says in one respect."""
    moved, culprit = window.moved(about), window.culprits.get(about, Culprit("", 0.0))
    of_inputs = any(window.moved(kind) for kind in INPUTS) if about == "prediction" else None
    look = Look(
        about=about,
        version=window.version,
        subject="",
        place=str(window.number),
        moved=bool(moved) if window.judged else None,
        window=window.window,
        inputs_moved=of_inputs,
    )
    if not moved:
        return look
    worst = moved[0]
    return replace(
        look,
        subject=worst.subject,
        value=_kept(worst.score if worst.wasserstein is None else worst.wasserstein),
        ks=min(1.0, _kept(worst.score if worst.ks is None else worst.ks)),
        p_value=1.0 if worst.p_value is None or math.isnan(worst.p_value) else worst.p_value,
        drifted=tuple(one.subject for one in moved[:NAMED]),
        producer=culprit.producer,
        share=culprit.share,
        samples=culprit.samples,
        traces=culprit.traces,
        text=sentences.moved(moved, culprit),
    )


def _kept(distance: float) -> float:
    """A distance as an event can have it: what is no number is as far as it can be."""
    return min(abs(distance), FARTHEST) if not math.isnan(distance) else FARTHEST


def opening(said: Mapping[str, object], look: Look, inputs_moved: bool | None) -> Opening:
    """Return the event that begins an episode about what was seen; `said` is what all of them say."""
    return _OPENING[look.about](said, look, inputs_moved)


def score(about: EpisodeKind, value: float, expected: float) -> float:
    """Return how bad it is that `value` was seen and not `expected`; to be compared within a kind."""
    match about:
        case "performance":
            return abs(value - expected)
        case "volume":
            return max(value, expected) / max(min(value, expected), LEAST_RATE)
        case "schema" | "silence":
            return 0.0
        case _:
            return value


def _drift(said: Mapping[str, object], last: Look, inputs_moved: bool | None) -> Opening:
    return DriftDetected.model_validate(
        {
            **said,
            "feature": last.subject,
            "distance": last.value,
            "ks": last.ks,
            "p_value": last.p_value,
            "drifted": last.drifted or (last.subject,),
            "window": last.window,
            "inputs_moved": inputs_moved,
        }
    )


def _performance(said: Mapping[str, object], last: Look, _: bool | None) -> Opening:
    seen = {"metric": last.subject, "before": last.expected, "now": last.value}
    return PerformanceDegraded.model_validate({**said, **seen, "labels": last.labels, "coverage": last.coverage})


def _anomaly(said: Mapping[str, object], last: Look, inputs_moved: bool | None) -> Opening:
    seen = {"subject": last.subject, "value": last.value, "expected": last.expected}
    return AnomalyDetected.model_validate({**said, **seen, "window": last.window, "inputs_moved": inputs_moved})


_OPENING: dict[EpisodeKind, Callable[[Mapping[str, object], Look, bool | None], Opening]] = {
    "drift": _drift,
    "missing": _drift,
    "categories": _drift,
    "prediction": _drift,
    "performance": _performance,
    "schema": _anomaly,
    "volume": _anomaly,
    "silence": _anomaly,
    "measure": _anomaly,
    "evaluator": _anomaly,
}

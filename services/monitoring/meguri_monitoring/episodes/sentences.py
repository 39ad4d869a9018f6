"""Episodes in a sentence, in plain English, without a full stop: for people who are no engineers."""

import re
from collections.abc import Sequence

from meguri_contracts.events import Role
from meguri_contracts.spec import EpisodeKind
from meguri_monitoring.verdicts.judging import Culprit, Finding

_BESIDE: dict[Role, str] = {"canary": "the canary", "arm": "which an A/B test compares", "shadow": "asked beside"}
SAID_SHARE = 0.01
"""Least share of what moved that is worth naming a producer for."""


def moved(findings: Sequence[Finding], culprit: Culprit) -> str:
    """Say what moved in one respect, worst first, and who moved it."""
    more = len(findings) - 1
    also = f", and {more} more moved" if more else ""
    return f"{_finding(findings[0])}{also}{_by(culprit)}"


def volume(value: float, expected: float) -> str:
    return f"{value:.3g} predictions a second came instead of the usual {expected:.3g}"


def silence(seconds: float) -> str:
    return f"no prediction was asked for since {duration(seconds)}"


def refused(reason: str) -> str:
    return f"predictions do not fit what the model was trained on: {reason}"


def degraded(metric: str, before: float, now: float, labels: int, culprit: Culprit) -> str:
    """Say that answers are worse by the labels that came."""
    if metric == "mae":
        what = f"answers are {now:.3g} off on average instead of {before:.3g}"
    else:
        what = f"{_percent(now)} of the answers are right instead of {_percent(before)}"
    return f"{what}, by the latest {labels} labels{_by(culprit)}"


def of_version(text: str, version: int, role: Role | None) -> str:
    """Begin with which version it is about, where that is not the champion."""
    return text if role == "champion" else f"version {version}, {_BESIDE[role or 'shadow']}: {text}"


def worsened(text: str) -> str:
    return f"it has become at least twice as bad: {text}" if text else "it has become at least twice as bad"


def with_inputs(text: str, about: EpisodeKind, inputs_moved: bool | None) -> str:
    """Begin with whether the inputs moved too, where it is about what came out."""
    if about not in ("prediction", "measure") or inputs_moved is None:
        return text
    return f"outputs changed, {'and inputs too' if inputs_moved else 'inputs did not'}: {text}"


def back(about: EpisodeKind, windows: int) -> str:
    """Say why an episode is over."""
    lasted = f"for {windows} windows in a row" if windows > 1 else "in the last window"
    match about:
        case "performance":
            return "as good as before again"
        case "volume":
            return f"as many predictions as usual again {lasted}"
        case "schema":
            return f"all predictions fit again {lasted}"
        case _:
            return f"like the reference again {lasted}"


def replaced(version: int) -> str:
    """Say that an episode is over because another version answers."""
    return f"version {version} serves"


def replaced_by(reason: str) -> int | None:
    """Return the version that answers instead, if an episode is over for that reason."""
    found = re.fullmatch(replaced(0).replace("0", r"(\d+)"), reason)
    return int(found[1]) if found else None


def duration(seconds: float) -> str:
    """Return a time span in the unit that suits it."""
    for unit, length in (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}s"
    return f"{seconds:.3g} seconds"


def _finding(worst: Finding) -> str:
    match worst.about:
        case "missing":
            return f"the share of missing values of {worst.subject} is {_points(worst.score)} away from training"
        case "categories":
            return f"{_percent(worst.score)} of the values of {worst.subject} never occurred in training"
    if worst.wasserstein is not None and worst.wasserstein >= worst.threshold:
        return f"{worst.subject} is {worst.wasserstein:.2g} standard deviations away from training"
    return f"the values of {worst.subject} are spread differently than in training"


def _by(culprit: Culprit) -> str:
    if not culprit.producer or culprit.share < SAID_SHARE:
        return ""
    return f"; {_percent(min(culprit.share, 1.0))} of it comes from {culprit.producer}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "all"


def _points(difference: float) -> str:
    return f"{100 * difference:.2g} percentage points"

"""What may be changed about an episode of each kind, and the rule that follows from a change."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from meguri_contracts.errors import Invalid
from meguri_contracts.spec import EpisodeKind, Monitor, Performance, Watch

VERSION = "version"
"""Asks for another version; the command line calls it --model."""
_OF_WINDOWS = ("threshold", "p_value", "windows", "window_rows", "min_rows")
MAY: Mapping[EpisodeKind, tuple[str, ...]] = {
    "drift": (*_OF_WINDOWS, "rule", VERSION),
    "prediction": (*_OF_WINDOWS, "rule", VERSION),
    "missing": (*_OF_WINDOWS, VERSION),
    "categories": (*_OF_WINDOWS, VERSION),
    "volume": ("threshold", "p_value", "windows", "window_rows"),
    "performance": ("threshold", "delta", "min_labels", VERSION),
    "silence": ("threshold",),
    "measure": ("threshold", "p_value", "windows", "window_rows", "baseline_rows"),
    "schema": (),
    "evaluator": (),
}
"""By kind what may be changed."""
_THRESHOLDS: Mapping[EpisodeKind, str] = {
    "missing": "missing",
    "categories": "categories",
    "volume": "volume",
    "silence": "silence",
}
"""By kind the field of a rule that is its threshold; of all others but performance the distance."""
_OPTIONS = {
    VERSION: "--model",
    "distance": "--threshold",
    "drop": "--threshold",
    **dict.fromkeys(_THRESHOLDS.values(), "--threshold"),
}


def option(name: str) -> str:
    """Return how the command line calls a setting, or a field of a rule."""
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}")


def require_known(about: EpisodeKind, asked: Mapping[str, Any]) -> None:
    """Raise Invalid when something is asked for that changes nothing about episodes of a kind."""
    odd = [name for name, value in asked.items() if value is not None and name not in MAY[about]]
    if odd:
        allowed = ", ".join(option(name) for name in MAY[about])
        raise Invalid(f"{option(odd[0])} changes nothing about an episode of {about}; there may be given: {allowed}")


def settings(rule: Monitor, about: EpisodeKind, subject: str) -> dict[str, Any]:
    """Return what a rule says of a kind of episodes, by the names under which it may be changed."""
    if about == "performance":
        quality = rule.performance or Performance()
        return {"threshold": quality.drop, "delta": quality.delta, "min_labels": quality.min_labels}
    found: dict[str, Any] = {"threshold": _threshold_of(rule, about, subject)}
    if about == "silence":
        return found
    found |= {"p_value": rule.p_value, "windows": rule.windows}
    if about == "measure":
        watch = watch_of(rule, subject)
        return found | {"window_rows": watch.window_rows, "baseline_rows": watch.baseline_rows}
    length = "window_rows" if rule.window_seconds is None else "window_seconds"
    return found | {length: getattr(rule, length), "min_rows": rule.min_rows, "rule": rule.rule}


def watch_of(rule: Monitor, subject: str) -> Watch:
    """Return how the evaluator of a subject, `evaluator.number`, is watched. Raises Invalid when it is not."""
    evaluator, _, _ = subject.partition(".")
    found = next((one for one in rule.evaluators if one.evaluator == evaluator), None)
    if found is None:
        raise Invalid(f"the spec that was in force watches no evaluator {evaluator!r}")
    return found


def changed(rule: Monitor, about: EpisodeKind, subject: str, asked: Mapping[str, Any]) -> Monitor:
    """Return a rule with what is `asked` in place of its own, by the names of `settings`.

    Raises Invalid, in the words of the command line, when that is no rule.
    """
    require_known(about, asked)
    wanted = {name: value for name, value in asked.items() if value is not None and name != VERSION}
    if not wanted:
        return rule
    if wanted.get("rule", rule.rule) == "evidently" and about in ("drift", "prediction"):
        for name in ("threshold", "p_value"):
            if name in wanted:
                raise Invalid(
                    f"{option(name)}: the rule evidently has thresholds of its own; give --rule meguri with it"
                )
    try:
        return Monitor.model_validate(rule.model_dump() | _fields(rule, about, subject, wanted))
    except ValidationError as error:
        raise Invalid(_reasons(error)) from error


def _fields(rule: Monitor, about: EpisodeKind, subject: str, wanted: dict[str, Any]) -> dict[str, Any]:
    if about == "performance":
        quality = (rule.performance or Performance()).model_dump()
        threshold = {"drop": wanted.pop("threshold")} if "threshold" in wanted else {}
        return {"performance": quality | wanted | threshold}
    threshold = _threshold(rule, about, subject, wanted.pop("threshold")) if "threshold" in wanted else {}
    if about == "measure":
        own: dict[str, Any] = {name: wanted.pop(name) for name in ("window_rows", "baseline_rows") if name in wanted}
        mine = watch_of(rule, subject)
        return wanted | threshold | {"evaluators": [_with(one, own if one == mine else {}) for one in rule.evaluators]}
    return wanted | threshold | ({"window_seconds": None} if "window_rows" in wanted else {})


def _with(watch: Watch, own: Mapping[str, Any]) -> dict[str, Any]:
    return watch.model_dump() | dict(own)


def _threshold_of(rule: Monitor, about: EpisodeKind, subject: str) -> Any:
    if about in _THRESHOLDS:
        return getattr(rule, _THRESHOLDS[about])
    return rule.methods[subject].threshold if subject in rule.methods else rule.distance


def _threshold(rule: Monitor, about: EpisodeKind, subject: str, threshold: float) -> dict[str, Any]:
    if about in _THRESHOLDS:
        return {_THRESHOLDS[about]: threshold}
    methods = {name: method.model_dump() for name, method in rule.methods.items()}
    if subject in methods:
        methods[subject]["threshold"] = threshold
    return {"distance": threshold, "methods": methods}


def _reasons(error: ValidationError) -> str:
    found = []
    for one in error.errors():
        names = [str(part) for part in one["loc"] if isinstance(part, str)]
        reason = one["msg"].removeprefix("Value error, ")
        found.append(f"{option(names[-1])}: {reason}" if names else reason)
    return "; ".join(found)

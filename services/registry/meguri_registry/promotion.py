"""What becomes of a trained model, and why: the decisions of the registry as plain functions of plain values."""

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches

from meguri_contracts import estimators
from meguri_contracts.errors import Conflict, Invalid, NotFound
from meguri_contracts.events import (
    ApprovalRequested,
    Deployed,
    Evaluation,
    Event,
    Judged,
    ModelRegistered,
    ModelTrained,
    PromotionRejected,
    SpecApplied,
    TrainingRequested,
)
from meguri_contracts.gates import Rule, parse_gate
from meguri_contracts.spec import NOTIFY_PREFIX, NOTIFY_VARIABLE, Dataset, ModelSpec
from meguri_registry import rollouts
from meguri_registry.models import Model
from meguri_registry.schemes import SCHEMES


def apply_spec(model: Model, spec: ModelSpec, actor: str, datasets: Mapping[str, Dataset]) -> list[Event]:
    """Make `spec` the model's spec; silence if it is already. `datasets` are those that other models declare.

    Raises Conflict when another model declares the same dataset otherwise, Invalid when it can never be trained.
    """
    if (other := datasets.get(spec.dataset.name)) is not None and other != spec.dataset:
        raise Conflict(
            f"dataset {spec.dataset.name!r} is declared differently by another model: "
            "declare it alike in both specs, or give it another name"
        )
    _check(spec)
    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    if digest == model.spec_digest:
        return []
    return [SpecApplied(model=model.name, spec=spec, version=model.spec_version + 1, digest=digest, actor=actor)]


def _check(spec: ModelSpec) -> None:
    """What old specs in the log may break, and a new one may not."""
    estimators.check(spec.task, spec.estimator.name, spec.estimator.params)
    for name, column in spec.dataset.columns.items():
        if column.min is not None and column.max is not None and column.min > column.max:
            raise Invalid(
                f"dataset.columns.{name}: min {column.min:g} is above max {column.max:g}, so every row would be bad"
            )
    for place, url in enumerate(spec.notify.urls):
        _check_url(f"notify.urls[{place}]", url)


def _check_url(place: str, url: str) -> None:
    """What can be told of a URL without Apprise. The URL is not said again: there may be a password in it."""
    for name in NOTIFY_VARIABLE.findall(url):
        if not name.startswith(NOTIFY_PREFIX):
            raise Invalid(f"{place}: ${{{name}}} may not be used: names of variables begin with {NOTIFY_PREFIX}")
    if "://" not in url and not NOTIFY_VARIABLE.fullmatch(url):
        raise Invalid(
            f"{place}: this is no URL, such as mailto://…, slack://… or json://…, and no ${{{NOTIFY_PREFIX}…}}"
        )
    scheme = url.partition("://")[0].lower()
    if "${" not in scheme and scheme not in SCHEMES:
        near = get_close_matches(scheme, sorted(SCHEMES))
        listed = f"near are: {', '.join(near)}" if near else "see https://appriseit.com"
        raise Invalid(f"{place}: messages cannot be sent by what stands before ://; {listed}")


def judge(model: Model, trained: ModelTrained) -> list[Event]:
    """Register a trained model and promote it if its gate holds against the champion on the same hold-out."""
    registered = trained.run in model.runs
    version = model.runs.get(trained.run, len(model.runs) + 1)
    if version in model.judged:
        return []
    said: list[Event] = [] if registered else [ModelRegistered(model=model.name, version=version, run=trained.run)]
    return said + _verdict(model, trained, version)


def _verdict(model: Model, trained: ModelTrained, version: int) -> list[Event]:
    if model.spec is None:
        raise NotFound(f"model {model.name!r} has no spec: apply one with `meguri apply`")
    champion = model.champion.version if model.champion else None
    compared_with = trained.champion.version if trained.champion else None
    if champion != compared_with:
        return _once_more(
            model, trained, version, f"it was compared with {_named(compared_with)}, but {_named(champion)} serves now"
        )
    judged = tuple(_judge(rule, trained.candidate, trained.champion) for rule in parse_gate(model.spec.gate))
    failed = [one.rule for one in judged if not one.holds]
    if failed:
        reason = f"the gate does not hold: {' and '.join(failed)}"
        return [PromotionRejected(model=model.name, version=version, run=trained.run, reason=reason, judged=judged)]
    if deployed(trained, version).served.digest in model.rolled_back:
        reason = "the gate holds, but the same model was rolled back before: `meguri promote` says yes"
        return [ApprovalRequested(model=model.name, version=version, run=trained.run, reason=reason, judged=judged)]
    return _released(model, model.spec, trained, version, judged)


def _released(
    model: Model, spec: ModelSpec, trained: ModelTrained, version: int, judged: tuple[Judged, ...]
) -> list[Event]:
    """Let a version whose gate holds answer, at once or step by step. What is tried already ends first."""
    candidate, reason, plan = deployed(trained, version), "the gate holds", model.plan
    if plan and (tried := rollouts.trying(plan)):
        return _once_more(model, trained, version, f"{reason}, but {tried}, and one is tried at a time", judged)
    if plan and spec.rollout.strategy == "canary":
        return rollouts.canary(model, candidate, spec.rollout.canary, "registry", reason, judged)
    if plan and spec.rollout.strategy == "shadow":
        return rollouts.only_shadow(model, candidate, reason, judged)
    return [rollouts.changed(model, rollouts.crowned(plan, candidate), reason=reason, judged=judged)]


def _once_more(
    model: Model, trained: ModelTrained, version: int, reason: str, judged: tuple[Judged, ...] = ()
) -> list[Event]:
    """Turn a version away and ask for another run; training begins it when nothing is tried any more.

    The verdict last: once it is said, nothing more is decided on this run, and the request would be lost.
    """
    return [
        TrainingRequested(model=model.name, reason=f"version {version}: {reason}", actor="registry"),
        PromotionRejected(model=model.name, version=version, run=trained.run, reason=reason, judged=judged),
    ]


def deployed(trained: ModelTrained, version: int) -> Deployed:
    """Return what is needed to serve a trained model under a version."""
    return Deployed(
        version=version,
        run=trained.run,
        onnx=trained.onnx,
        profile=trained.profile,
        signature=trained.signature,
        skops=trained.skops,
        engine=trained.engine,
        engine_reason=trained.engine_reason,
    )


def _judge(rule: Rule, candidate: Evaluation, champion: Evaluation | None) -> Judged:
    try:
        holds = rule.holds(candidate.metrics, champion.metrics if champion else None)
        text = rule.text
    except Invalid as error:
        holds, text = False, f"{rule.text} ({error})"
    numbers = {name: candidate.metrics[name] for name in sorted(rule.metrics) if name in candidate.metrics}
    theirs = (
        {name: champion.metrics[name] for name in sorted(rule.metrics) if name in champion.metrics}
        if champion
        else None
    )
    return Judged(rule=text, holds=holds, candidate=numbers, champion=theirs)


def _named(version: int | None) -> str:
    return "no champion" if version is None else f"version {version}"

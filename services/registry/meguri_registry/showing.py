"""The plan in force as people and programs see it: who answers what, what was observed, what comes next."""

from collections.abc import Mapping
from typing import Any

from meguri_contracts.events import ArmObserved, ArmQuality, Canary, Plan, Trial
from meguri_registry import observing, rollouts, trials
from meguri_registry.models import Model
from meguri_registry.observing import GUARD, measured, observed, quantile
from meguri_registry.rollouts import percent
from meguri_registry.trials import Interval, Sample, difference


def rollout(model: Model) -> dict[str, Any]:
    """Return the plan, what was observed of each version, and what comes next. Raises Conflict before the first champion."""
    plan = rollouts.in_force(model)
    return {
        "model": model.name,
        "rollout": model.rollout,
        "since": model.since.isoformat() if model.since else None,
        "champion": plan.champion.version,
        "versions": _versions(model, plan),
        "policy": _policy(plan),
        "next": upcoming(model, plan),
    }


def planned(plan: Plan) -> list[dict[str, Any]]:
    """Return the versions of a plan with their roles and shares, the champion first."""
    roles = rollouts.roles(plan)
    return [
        {"version": version, "role": roles[version], "share": share} for version, share in rollouts.shares(plan).items()
    ]


def upcoming(model: Model, plan: Plan) -> str:
    """Say what comes next."""
    if plan.canary:
        return _of_canary(model, plan, plan.canary)
    if plan.trial:
        return _of_trial(model, plan.trial)
    return "shadows are asked until they are stopped" if plan.shadows else "nothing: the champion answers everything"


def _versions(model: Model, plan: Plan) -> list[dict[str, Any]]:
    seen, labels, above = observed(model), measured(model), _above_champion(model, plan)
    return [
        one
        | _observed(seen.get(one["version"]))
        | _measured(labels.get(one["version"]))
        | {"above_champion": _interval(above.get(one["version"]))}
        for one in planned(plan)
    ]


def _observed(arm: ArmObserved | None) -> dict[str, Any]:
    latency = arm.latency if arm else ()
    return {
        "requests": arm.requests if arm else 0,
        "errors": arm.errors if arm else 0,
        "p50": quantile(latency, 0.5),
        "p95": quantile(latency, 0.95),
        "pairs": arm.pairs if arm else 0,
        "disagreed": arm.disagreed if arm else 0,
        "disagreement": arm.disagreed / arm.pairs if arm and arm.pairs else None,
        "mean_difference": arm.difference / arm.pairs if arm and arm.pairs else None,
    }


def _measured(quality: ArmQuality | None) -> dict[str, Any]:
    labels = quality.labels if quality else 0
    return {"labels": labels, "score": Sample.of_scores(quality).mean if quality and labels else None}


def _above_champion(model: Model, plan: Plan) -> Mapping[int, Interval]:
    """How far each version's mean score is above the champion's; what the decisions rest on."""
    labels = measured(model)
    champion = labels.get(plan.champion.version)
    if champion is None:
        return {}
    if plan.trial:
        return trials.intervals(champion, [labels[arm.candidate.version] for arm in plan.trial.arms], plan.trial.policy)
    if plan.canary and (quality := labels.get(plan.canary.candidate.version)):
        narrowest = observing.NARROWEST * plan.canary.policy.min_requests
        mine, theirs = Sample.of_scores(quality), Sample.of_scores(champion)
        return {quality.version: difference(mine, theirs, alpha=GUARD, narrowest=narrowest)}
    return {}


def _interval(interval: Interval | None) -> dict[str, float] | None:
    if interval is None or interval.margin == float("inf"):
        return None
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _policy(plan: Plan) -> dict[str, Any] | None:
    policy = plan.canary.policy if plan.canary else plan.trial.policy if plan.trial else None
    return policy.model_dump(mode="json") if policy else None


def _of_canary(model: Model, plan: Plan, canary: Canary) -> str:
    policy = canary.policy
    requests, seconds = observing.progress(model, canary)
    step = f"canary: step {canary.step + 1} of {len(policy.steps)} ({percent(canary.weight)})"
    told = [f"{requests} of {policy.requests} requests"]
    if policy.seconds:
        told.append(f"{seconds:.0f} of {policy.seconds:.0f} seconds")
    told += [f"waits: {one.text}" for one in observing.findings(model, plan, canary) if one.broken]
    after = rollouts.next_step(canary)
    then = f"then {percent(after.weight)}" if after else f"then version {canary.candidate.version} is champion"
    return f"{step}, {'; '.join(told)}; {then}"


def _of_trial(model: Model, trial: Trial) -> str:
    labels, policy = measured(model), trial.policy
    counted = [labels[arm.candidate.version].labels if labels else 0 for arm in trial.arms]
    if min(counted) < policy.min_labels:
        return (
            f"A/B test: {min(counted)} of {policy.min_labels} labels that every version needs before a winner is named"
        )
    undecided = f"A/B test: {min(counted)} labels of every version, none is surely better yet"
    return f"{undecided}; at {policy.max_labels} the champion stays"

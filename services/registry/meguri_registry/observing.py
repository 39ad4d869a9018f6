"""What was observed of a plan, and what follows from it: a canary's next step or its end, the end of an A/B test.

A canary is taken back when it is worse than its policy allows beyond chance: by tests that hold at every look (see `trials`),
each of them wrong with a probability of GUARD at most. It goes on when it has been asked often enough, and the errors and the
latency that were seen are within the policy. So one that looks too bad, but may have been unlucky, stays where it is until
more requests tell; labels may come days later, and hold nobody up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from meguri_contracts.events import LATENCY_BOUNDS, ArmObserved, ArmQuality, Canary, Event, Plan
from meguri_contracts.spec import CanaryPolicy
from meguri_registry.models import Model
from meguri_registry.rollouts import changed, crowned, next_step, percent
from meguri_registry.trials import Ending, Interval, Sample, above, difference, ending

GUARD = 0.02
"""Probability that a canary which is just within a limit is ever taken back for it, at a step."""
NARROWEST = 4
"""Times `min_requests`: where the tests of a canary are tuned to be sharpest."""
SLOW = 0.05
"""Share of the requests that are slower than the 95th percentile."""
P95_NEEDS = 20
"""Requests of the champion without which it has no 95th percentile."""


@dataclass(frozen=True)
class Finding:
    """One rule of a canary's policy and what was seen. `proven`: broken beyond chance."""

    broken: bool
    proven: bool
    text: str


def observed(model: Model) -> dict[int, ArmObserved]:
    """Return what all replicas together saw of each version of the plan in force."""
    found: dict[int, ArmObserved] = {}
    for arm in (arm for seen in model.seen.values() for arm in seen.arms):
        found[arm.version] = _sum(found[arm.version], arm) if arm.version in found else arm
    return found


def measured(model: Model) -> dict[int, ArmQuality]:
    """Return what labels say of each version of the plan in force."""
    return {arm.version: arm for arm in model.quality.arms} if model.quality else {}


def quantile(latency: Sequence[int], share: float) -> float | None:
    """Return the latency in seconds that a share of the requests kept to, as far as the histogram tells; None without any."""
    wanted, before = share * sum(latency), 0
    for index, count in enumerate(latency):
        if count and before + count >= wanted:
            low = LATENCY_BOUNDS[index - 1] if index else 0.0
            high = LATENCY_BOUNDS[min(index, len(LATENCY_BOUNDS) - 1)]
            return max(low, low + (high - low) * (wanted - before) / count)
        before += count
    return None


def decide(model: Model) -> list[Event]:
    """Say what follows from what was seen so far."""
    plan = model.plan
    if plan and plan.canary:
        return _judge_canary(model, plan, plan.canary)
    if plan and plan.trial:
        return _judge_trial(model, plan)
    return []


def findings(model: Model, plan: Plan, canary: Canary) -> list[Finding]:
    """Return what there is to say against a canary; of nothing that it had too few requests or labels for."""
    seen, labels = observed(model), measured(model)
    champion, candidate = plan.champion.version, canary.candidate.version
    found: list[Finding] = []
    if candidate in seen and seen[candidate].requests >= canary.policy.min_requests:
        theirs = seen.get(champion, ArmObserved(version=champion, role="champion", requests=0))
        found.append(_errors(canary.policy, seen[candidate], theirs))
        found.extend(_latency(canary, seen[candidate], theirs))
    if champion in labels and candidate in labels and labels[candidate].labels >= canary.policy.min_requests:
        task = model.spec.task if model.spec else "classification"
        found.append(_quality(canary, labels[candidate], labels[champion], in_errors=task == "regression"))
    return found


def loss_limit(canary: Canary, champion: ArmQuality, *, in_errors: bool) -> float:
    """Return how much lower a canary's mean score may be; of a regression in units of the champion's typical error."""
    typical = (champion.squares / champion.labels) ** 0.5 if in_errors and champion.labels else 1.0
    return canary.policy.max_quality_loss * typical


def progress(model: Model, canary: Canary) -> tuple[int, float]:
    """Return the requests that a canary was asked at its step, and the seconds of the step, as of the latest observation."""
    arm = observed(model).get(canary.candidate.version)
    lasted = (model.heard - model.since).total_seconds() if model.heard and model.since else 0.0
    return arm.requests if arm else 0, max(lasted, 0.0)


def trial_ending(model: Model, plan: Plan) -> Ending | None:
    """Return how the A/B test in force ends, or None while it goes on."""
    labels = measured(model)
    if not (plan.trial and labels):
        return None
    arms = [labels[arm.candidate.version] for arm in plan.trial.arms]
    return ending(labels[plan.champion.version], arms, plan.trial.policy)


def in_words(interval: Interval, alpha: float) -> str:
    return f"{interval.estimate:+.4f} ({interval.low:+.4f} to {interval.high:+.4f} at {percent(1 - alpha)})"


def _judge_canary(model: Model, plan: Plan, canary: Canary) -> list[Event]:
    found = findings(model, plan, canary)
    version, policy = canary.candidate.version, canary.policy
    if proven := [one.text for one in found if one.proven]:
        reason = f"canary: version {version} is taken back at {percent(canary.weight)}: {'; '.join(proven)}"
        return [changed(model, crowned(plan, plan.champion), reason=reason)]
    requests, seconds = progress(model, canary)
    if requests < policy.requests or seconds < policy.seconds or any(one.broken for one in found):
        return []
    held = f"canary: version {version} answered {percent(canary.weight)} well, {requests} requests"
    further = next_step(canary)
    if further is None:
        return [changed(model, crowned(plan, canary.candidate), reason=f"{held}; it was the last step")]
    after = plan.model_copy(update={"canary": further})
    step = f"step {further.step + 1} of {len(policy.steps)}, {percent(further.weight)}"
    return [changed(model, after, reason=f"{held}; {step}")]


def _judge_trial(model: Model, plan: Plan) -> list[Event]:
    if failing := _failing(model, plan):
        version, text = failing
        reason = f"A/B test: version {version} fails, the champion stays; {text}"
        return [changed(model, crowned(plan, plan.champion), reason=reason)]
    end = trial_ending(model, plan)
    if end is None or plan.trial is None:
        return []
    candidates = {arm.candidate.version: arm.candidate for arm in plan.trial.arms}
    winner = plan.champion if end.winner is None else candidates[end.winner]
    verdict = "none is better, the champion stays" if end.winner is None else f"version {end.winner} is better"
    numbers = _scores(model, plan, end, plan.trial.policy.alpha / len(plan.trial.arms))
    return [changed(model, crowned(plan, winner), reason=f"A/B test: {verdict}; {numbers}")]


def _failing(model: Model, plan: Plan) -> tuple[int, str] | None:
    """Return a version of the A/B test that has no answer more often than a canary may: labels are only of what it answered."""
    seen, policy = observed(model), model.spec.rollout.canary if model.spec else CanaryPolicy()
    if (theirs := seen.get(plan.champion.version)) is None:
        return None
    for one in plan.challengers:
        arm = seen.get(one.version)
        if arm and arm.requests >= policy.min_requests and (found := _errors(policy, arm, theirs)).proven:
            return one.version, found.text
    return None


def _scores(model: Model, plan: Plan, end: Ending, alpha: float) -> str:
    labels, champion = measured(model), plan.champion.version
    base = f"version {champion} has a mean score of {_mean(labels[champion])}"
    arms = (
        f"version {version} {_mean(labels[version])}, {in_words(interval, alpha)}"
        for version, interval in end.intervals.items()
    )
    return f"{base}, {', '.join(arms)}"


def _mean(quality: ArmQuality) -> str:
    return f"{Sample.of_scores(quality).mean:.4f} on {quality.labels} labels"


def _errors(policy: CanaryPolicy, candidate: ArmObserved, champion: ArmObserved) -> Finding:
    mine = Sample.of_share(candidate.errors, candidate.requests)
    theirs = Sample.of_share(champion.errors, champion.requests)
    excess = difference(mine, theirs, alpha=GUARD, narrowest=NARROWEST * policy.min_requests)
    text = (
        f"{percent(mine.mean)} of {candidate.requests} requests had no answer, {percent(theirs.mean)} of "
        f"{champion.requests} of the champion's, {percent(policy.max_errors)} more are allowed"
    )
    limit = policy.max_errors
    return Finding(excess.estimate > limit, excess.low > limit, text)


def _latency(canary: Canary, candidate: ArmObserved, champion: ArmObserved) -> Iterable[Finding]:
    """The 95th percentile is above a limit if more than 5 % of the requests took longer than that. Only those count that
    surely did: whose part of the histogram begins at the limit or above."""
    usual = quantile(champion.latency, 1 - SLOW)
    if canary.policy.max_latency is None or usual is None or sum(champion.latency) < P95_NEEDS:
        return
    limit = canary.policy.max_latency * usual
    slow = sum(count for low, count in zip((0.0, *LATENCY_BOUNDS), candidate.latency, strict=False) if low >= limit)
    share = Sample.of_share(slow, sum(candidate.latency))
    excess = above(share, SLOW, alpha=GUARD, narrowest=NARROWEST * canary.policy.min_requests)
    text = (
        f"{percent(share.mean)} of {share.count} requests took longer than {limit * 1000:.3g} ms, "
        f"{canary.policy.max_latency:g} times the champion's 95th percentile; {percent(SLOW)} may"
    )
    yield Finding(excess.estimate > 0, excess.low > 0, text)


def _quality(canary: Canary, candidate: ArmQuality, champion: ArmQuality, *, in_errors: bool) -> Finding:
    mine, theirs = Sample.of_scores(candidate), Sample.of_scores(champion)
    gain = difference(mine, theirs, alpha=GUARD, narrowest=NARROWEST * canary.policy.min_requests)
    limit = loss_limit(canary, champion, in_errors=in_errors)
    text = (
        f"its mean score is {mine.mean:.4f} on {mine.count} labels, the champion's {theirs.mean:.4f} on {theirs.count}, "
        f"{limit:.4g} less is allowed"
    )
    return Finding(False, gain.high < -limit, text)


def _sum(one: ArmObserved, other: ArmObserved) -> ArmObserved:
    return one.model_copy(
        update={
            "requests": one.requests + other.requests,
            "errors": one.errors + other.errors,
            "latency": tuple(a + b for a, b in zip_longest(one.latency, other.latency, fillvalue=0)),
            "pairs": one.pairs + other.pairs,
            "disagreed": one.disagreed + other.disagreed,
            "difference": one.difference + other.difference,
        }
    )

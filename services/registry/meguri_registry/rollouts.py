"""Traffic plans and the commands that change them: canary, A/B test, shadows, promotion, rollback.

A canary and an A/B test exclude each other and themselves: one at a time is tried on those who ask. Shadows do not matter to
them. Each command says nothing when all is so already, and raises Conflict in words where it cannot be.
"""

from collections.abc import Sequence

from meguri_contracts.errors import Conflict, Invalid
from meguri_contracts.events import (
    AnomalyDetected,
    Arm,
    Canary,
    Deployed,
    DriftDetected,
    Event,
    Judged,
    PerformanceDegraded,
    Plan,
    Role,
    RolloutChanged,
    Shadow,
    Trial,
)
from meguri_contracts.spec import CanaryPolicy, TrialPolicy
from meguri_registry.models import Model

Opening = DriftDetected | PerformanceDegraded | AnomalyDetected
_VERDICTS: dict[Role, str] = {"champion": "promoted", "canary": "canary", "arm": "A/B test"}

NOTHING = 1e-9
"""Share of the requests below which there is none left."""


def promote(model: Model, version: Deployed, actor: str, reason: str, *, back: bool = False) -> list[Event]:
    """Make a version champion because a person says so, which ends a canary or an A/B test; other shadows stay.

    `back`: because the present one was a mistake, and not to be gone back to.
    """
    plan = model.plan
    if plan and plan.champion.version == version.version and not plan.challengers:
        return []
    return [changed(model, crowned(plan, version), reason=reason, actor=actor, back=back)]


def is_to_go_back(model: Model, episode: Opening) -> bool:
    """Whether an episode asks for the champion before, and is about the one that serves."""
    return episode.action == "rollback" and model.champion is not None and model.champion.version == episode.version


def take_back(model: Model, episode: Opening) -> list[Event]:
    """End the canary or the A/B test where an episode of a version in it asks for that; nothing when it has ended."""
    plan, on_trial = model.plan, isinstance(episode, PerformanceDegraded) and episode.role != "champion"
    if plan is None or not on_trial or episode.action != "rollback":
        return []
    if episode.version not in {one.version for one in plan.challengers}:
        return []
    what = "canary" if plan.canary else "A/B test"
    reason = f"{what}: version {episode.version} is taken back, an episode of {episode.about} asks for it"
    return [changed(model, crowned(plan, plan.champion), reason=f"{reason}: {episode.text or 'it became worse'}")]


def go_back(model: Model, before: Deployed, episode: Opening) -> list[Event]:
    """Make the champion before champion again because of an episode; a canary or an A/B test ends with that."""
    what = episode.text or "it is no longer as it was"
    reason = f"rollback: an episode of {episode.about} of version {episode.version} asks for it: {what}"
    return promote(model, before, "registry", reason, back=True)


def end(model: Model, actor: str, reason: str) -> list[Event]:
    """End the canary or the A/B test: the champion answers everything again."""
    plan = in_force(model)
    return [changed(model, crowned(plan, plan.champion), reason=reason, actor=actor)]


def previous(model: Model) -> int:
    """Return the version that a rollback goes to. Raises Conflict when there is none."""
    if not model.past:
        raise Conflict(f"model {model.name!r} has no earlier champion to go back to")
    return model.past[-1]


def canary(
    model: Model, version: Deployed, policy: CanaryPolicy, actor: str, reason: str, judged: tuple[Judged, ...] = ()
) -> list[Event]:
    """Let a version answer the first step's share of the requests."""
    plan = in_force(model)
    if plan.canary and (plan.canary.candidate.version, plan.canary.policy) == (version.version, policy):
        return []
    _require_free(model, plan, version)
    first = Canary(candidate=version, weight=policy.steps[0], step=0, policy=policy)
    after = Plan(champion=plan.champion, canary=first, shadows=_without(plan, version))
    return [changed(model, after, reason=f"{reason}: {_of_requests(first)}", actor=actor, judged=judged)]


def next_step(canary: Canary) -> Canary | None:
    """Return the canary a step further; None after the last step."""
    step = canary.step + 1
    if step >= len(canary.policy.steps):
        return None
    return canary.model_copy(update={"step": step, "weight": canary.policy.steps[step]})


def ab(
    model: Model,
    versions: Sequence[Deployed],
    weights: Sequence[float],
    policy: TrialPolicy,
    actor: str,
    reason: str,
) -> list[Event]:
    """Compare versions with the champion. Without `weights` all have the same share, one weight is that of each version."""
    plan = in_force(model)
    arms = _arms(versions, weights)
    if plan.trial and plan.trial == Trial(arms=arms, policy=policy):
        return []
    for version in versions:
        _require_free(model, plan, version)
    trial = Trial(arms=arms, policy=policy)
    after = Plan(champion=plan.champion, trial=trial, shadows=_without(plan, *versions))
    shares = ", ".join(f"version {arm.candidate.version} {percent(arm.weight)}" for arm in arms)
    return [changed(model, after, reason=f"{reason}: {shares} of the entities", actor=actor)]


def shadow(model: Model, version: Deployed, share: float, actor: str, reason: str) -> list[Event]:
    """Ask a version beside the others; again, with another share."""
    plan = in_force(model)
    added = Shadow(candidate=version, share=share)
    if added in plan.shadows:
        return []
    if (role := roles(plan).get(version.version, "shadow")) != "shadow":
        raise Conflict(f"version {version.version} of model {model.name!r} answers requests already: it is {_a(role)}")
    after = plan.model_copy(update={"shadows": (*_without(plan, version), added)})
    said = f"{reason}: version {version.version} is asked beside for {percent(share)} of the requests"
    return [changed(model, after, reason=said, actor=actor)]


def only_shadow(model: Model, version: Deployed, reason: str, judged: tuple[Judged, ...]) -> list[Event]:
    """Ask a version beside the others, in place of the shadows before it, until a person says more."""
    after = in_force(model).model_copy(update={"shadows": (Shadow(candidate=version),)})
    said = f"{reason}: version {version.version} is asked beside, `meguri promote` makes it champion"
    return [changed(model, after, reason=said, judged=judged)]


def stop_shadow(model: Model, version: int, actor: str, reason: str) -> list[Event]:
    """Ask a shadow no more."""
    plan = in_force(model)
    left = tuple(one for one in plan.shadows if one.candidate.version != version)
    if left == plan.shadows:
        return []
    after = plan.model_copy(update={"shadows": left})
    return [changed(model, after, reason=f"{reason}: version {version} is shadow no more", actor=actor)]


def in_force(model: Model) -> Plan:
    """Return the plan of a model. Raises Conflict when there is none yet."""
    if model.plan is None:
        raise Conflict(f"model {model.name!r} has no champion yet: `meguri promote {model.name} VERSION` makes one")
    return model.plan


def trying(plan: Plan) -> str:
    """Say what is tried on those who ask; empty when nothing is."""
    if plan.canary:
        return f"version {plan.canary.candidate.version} is canary"
    if plan.trial:
        tested = " and ".join(str(arm.candidate.version) for arm in plan.trial.arms)
        return f"an A/B test of {'versions' if len(plan.trial.arms) > 1 else 'version'} {tested} runs"
    return ""


def roles(plan: Plan) -> dict[int, Role]:
    """Return what each version is in a plan."""
    found: dict[int, Role] = {shadow.candidate.version: "shadow" for shadow in plan.shadows}
    found |= {arm.candidate.version: "arm" for arm in (plan.trial.arms if plan.trial else ())}
    found |= {plan.canary.candidate.version: "canary"} if plan.canary else {}
    return found | {plan.champion.version: "champion"}


def verdicts(before: Plan | None, after: Plan) -> dict[int, str]:
    """Return what there is to say anew of versions when a plan follows on another. A shadow keeps what was said of it."""
    was, now = roles(before) if before else {}, roles(after)
    gone = [one.version for one in (before.challengers if before else ()) if one.version not in now]
    new = {version: role for version, role in now.items() if was.get(version) != role or role == "canary"}
    said = {version: _VERDICTS[role] for version, role in new.items() if role in _VERDICTS}
    return said | dict.fromkeys(gone, "taken back")


def shadowed(before: Plan | None, after: Plan) -> list[int]:
    """Return the versions that are shadows anew."""
    known = {one.candidate.version for one in before.shadows} if before else set()
    return [one.candidate.version for one in after.shadows if one.candidate.version not in known]


def shares(plan: Plan) -> dict[int, float]:
    """Return the share of the requests that each version answers, or is asked beside for; the champion first."""
    given = {arm.candidate.version: arm.weight for arm in (plan.trial.arms if plan.trial else ())}
    given |= {plan.canary.candidate.version: plan.canary.weight} if plan.canary else {}
    beside = {shadow.candidate.version: shadow.share for shadow in plan.shadows}
    return {plan.champion.version: 1.0 - sum(given.values()), **given, **beside}


def crowned(plan: Plan | None, champion: Deployed) -> Plan:
    """Return the plan with which a version answers everything; shadows stay, if they are others."""
    return Plan(champion=champion, shadows=_without(plan, champion) if plan else ())


def changed(
    model: Model,
    plan: Plan,
    *,
    reason: str,
    actor: str = "registry",
    judged: tuple[Judged, ...] = (),
    back: bool = False,
) -> RolloutChanged:
    before = model.champion.version if model.champion else None
    return RolloutChanged(
        model=model.name, plan=plan, previous=before, back=back, reason=reason, actor=actor, judged=judged
    )


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _require_free(model: Model, plan: Plan, version: Deployed) -> None:
    if tried := trying(plan):
        raise Conflict(f"{tried}: `meguri rollback {model.name}` ends that, then try again")
    if version.version == plan.champion.version:
        raise Conflict(f"version {version.version} of model {model.name!r} is champion already")


def _arms(versions: Sequence[Deployed], weights: Sequence[float]) -> tuple[Arm, ...]:
    if len({version.version for version in versions}) < len(versions) or not versions:
        raise Invalid("an A/B test compares one or more versions with the champion, each of them once")
    each = tuple(weights) or (1 / (len(versions) + 1),)
    if len(each) not in (1, len(versions)):
        raise Invalid(f"{len(weights)} weights for {len(versions)} versions: give one for each, or one for all")
    each = each if len(each) == len(versions) else each * len(versions)
    if sum(each) > 1 - NOTHING:
        raise Invalid(f"the weights add up to {sum(each):.4g}: that leaves the champion nothing")
    return tuple(Arm(candidate=one, weight=weight) for one, weight in zip(versions, each, strict=True))


def _without(plan: Plan, *versions: Deployed) -> tuple[Shadow, ...]:
    gone = {version.version for version in versions}
    return tuple(shadow for shadow in plan.shadows if shadow.candidate.version not in gone)


def _of_requests(canary: Canary) -> str:
    steps = len(canary.policy.steps)
    return f"version {canary.candidate.version} is canary, step {canary.step + 1} of {steps}, {percent(canary.weight)}"


def _a(role: Role) -> str:
    return "part of an A/B test" if role == "arm" else role

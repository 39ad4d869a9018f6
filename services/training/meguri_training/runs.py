"""When to train: the decisions of training as plain functions of plain values."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from meguri_contracts.events import (
    AnomalyDetected,
    ApprovalRequested,
    DataCommitted,
    Deployed,
    DriftDetected,
    EpisodeResolved,
    Event,
    LoopBroken,
    PerformanceDegraded,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
    TrainingFailed,
    TrainingPostponed,
    TrainingRequested,
    TrainingStarted,
    Trigger,
)
from meguri_contracts.names import derived_id
from meguri_contracts.spec import ModelSpec

MAX_TRIGGERS = 128
"""Triggers that a run remembers; as many as a span may have links."""

SEEN = {
    DriftDetected.kind(): "drift was seen",
    PerformanceDegraded.kind(): "the answers have become worse",
    AnomalyDetected.kind(): "something unusual was seen",
}
"""By kind of what begins an episode, how it is called when a run waits for rows that show it."""

QUIET = 0.75
"""Seconds without new rows after which a storm of them is over."""
PATIENCE = 10.0
"""Seconds after which a storm no longer keeps the next run waiting."""


class Data(BaseModel):
    """The newest version of a dataset."""

    model_config = ConfigDict(frozen=True)

    version: int
    digest: str
    total_rows: int


class Storm(BaseModel):
    """When rows came during a run, and since: the first and the last time."""

    model_config = ConfigDict(frozen=True)

    first: datetime
    last: datetime


class Model(BaseModel):
    """What training must know of a model to decide: the state that `evolve` builds from the log."""

    model_config = ConfigDict(frozen=True)

    name: str
    spec: ModelSpec | None = None
    spec_version: int = 0
    running: str | None = None
    """The run that was started and has no verdict yet. One at a time, so that each is compared with its predecessor."""
    rows: int = 0
    """Rows of the dataset when the last run was started; 0 before the first."""
    champion: Deployed | None = None
    tried: tuple[int, ...] = ()
    """Versions that answer some of the requests, as canary or in an A/B test. Until that ends no run is begun: one of them may
    be champion by then, and a candidate that was compared with the one before would be turned away."""
    triggers: tuple[Trigger, ...] = ()
    """What happened since the last run was started, oldest first."""
    storm: Storm | None = None
    broken: LoopBroken | None = None
    """The loop that was broken since the last run was started."""
    episodes: dict[str, str] = {}
    """By trigger the episode that it began."""
    postponed: tuple[str, ...] = ()
    """Of which triggers and reasons it was said since the last run was started that a run for them waits."""


def decide(model: Model, data: Data | None, max_hops: int) -> list[Event]:
    """Start a run if one is due and none is under way. Triggers that come meanwhile wait and are answered by one run.

    A run that would be a reaction to reactions, more than `max_hops` of them since anything came from outside, breaks the
    loop instead; the chain of causes is left to who can look them up. A run that an episode asks for and that has to wait is
    said, once for the same reason.
    """
    if model.spec is None or data is None or why_not(model, data):
        return _postponed(model, data)
    triggers = _that_matter(model)
    if freshest(triggers).hops > max_hops:
        return [_broken(model, triggers, max_hops)]
    return [
        TrainingStarted(
            model=model.name,
            run=derived_id(model.name, "run", str(model.spec_version), str(data.version), triggers[-1].event),
            spec=model.spec,
            spec_version=model.spec_version,
            dataset_version=data.version,
            dataset_digest=data.digest,
            dataset_rows=data.total_rows,
            triggers=triggers,
            champion=model.champion,
        )
    ]


def is_stormy(model: Model, now: datetime) -> bool:
    """Whether rows come faster than they are learned from, so that a run for them is better begun a moment later.

    Nothing but rows waits, and rows that come while nothing runs do not.
    """
    if model.storm is None or {trigger.kind for trigger in model.triggers} != {DataCommitted.kind()}:
        return False
    first, last = ((now - time).total_seconds() for time in (model.storm.first, model.storm.last))
    return 0 <= last < QUIET and 0 <= first < PATIENCE


def freshest(triggers: Iterable[Trigger]) -> Trigger:
    """Return the trigger with the fewest reactions behind it, of several the latest."""
    return min(reversed(tuple(triggers)), key=lambda trigger: trigger.hops)


def why_not(model: Model, data: Data | None) -> str:
    """Say in words what a run waits for; empty when one is due."""
    return _unmet(model, data) or ("" if model.triggers else _waits_for_something_new(model))


def _waits_for_something_new(model: Model) -> str:
    said = f": {model.broken.reason}" if model.broken else ""
    return f"nothing happened since the last run{said}"


def _unmet(model: Model, data: Data | None) -> str:
    if model.spec is None:
        return "the model has no spec"
    if data is None:
        return f"dataset {model.spec.dataset.name!r} has no rows yet"
    if model.running:
        return f"run {model.running} has no verdict yet"
    if model.tried:
        tried = " and ".join(map(str, model.tried))
        return f"version {tried} is tried beside the champion: the next run waits for the end of that"
    kinds = {trigger.kind for trigger in model.triggers}
    new_rows, retrain = data.total_rows - model.rows, model.spec.retrain
    if TrainingRequested.kind() in kinds:
        return ""
    if not model.rows:
        needed = max(retrain.first_rows, retrain.rows or 1)
        return "" if new_rows >= needed else f"{new_rows} rows, {needed} are needed for the first run"
    if SpecApplied.kind() in kinds:
        return ""
    if retrain.rows is not None and new_rows >= retrain.rows:
        return ""
    if wanting := _wanting(model):
        return "" if new_rows >= retrain.fresh_rows else _unseen(wanting[-1], retrain.fresh_rows, new_rows)
    if retrain.rows is None:
        return (
            f"an episode that retrains, or `meguri train`: new rows alone are no reason ({new_rows} since the last run)"
        )
    return f"{new_rows} new rows since the last run, {retrain.rows} are enough"


def _unseen(wanting: Trigger, needed: int, rows: int) -> str:
    seen = SEEN[wanting.kind]
    if needed == 1:
        return f"{seen}, and new rows that show it have not arrived yet"
    return f"{seen}, and {needed} new rows that show it are needed: {rows} have arrived"


def _wanting(model: Model) -> tuple[Trigger, ...]:
    """The triggers that are episodes which ask for a new model."""
    drift = model.spec is None or model.spec.retrain.drift
    kinds = {kind for kind in SEEN if drift or kind != DriftDetected.kind()}
    return tuple(trigger for trigger in model.triggers if trigger.kind in kinds)


def _postponed(model: Model, data: Data | None) -> list[Event]:
    """Say that an episode asks for a run and what that waits for, unless it was said. The number of rows is no other reason."""
    wanting, spec = _wanting(model), model.spec
    if spec is None or not wanting:
        return []
    needed = spec.retrain.fresh_rows if model.rows else max(spec.retrain.first_rows, spec.retrain.rows or 1)
    if data and (model.running or model.tried):
        reason = why_not(model, data)
    else:
        rows = "new rows" if needed == 1 else f"{needed} new rows"
        reason = f"{rows} {'that show it' if model.rows else 'for the first run'} are needed"
    if _said(wanting, reason) in model.postponed:
        return []
    # A new spec may name another dataset, with fewer rows than the one before had.
    fresh = max(0, data.total_rows - model.rows) if data else 0
    return [TrainingPostponed(model=model.name, triggers=wanting, rows=fresh, needed=needed, reason=reason)]


def _said(triggers: Iterable[Trigger], reason: str) -> str:
    return derived_id(reason, *(trigger.event for trigger in triggers))


def evolve(model: Model, event: Event, event_id: str, time: datetime, hops: int = 0) -> Model:
    """Return the model after an event that was said at a time, `hops` reactions away from what came from outside."""
    match event:
        case SpecApplied():
            applied = model.model_copy(update={"spec": event.spec, "spec_version": event.version})
            same = model.spec is not None and _learned(model.spec) == _learned(event.spec)
            return applied if same else _remember(applied, event, event_id, hops)
        case DataCommitted():
            return _remember(_with_storm(model, time), event, event_id, hops)
        case TrainingRequested():
            return _remember(model, event, event_id, hops)
        case DriftDetected() | PerformanceDegraded() | AnomalyDetected():
            if event.action != "retrain":
                return model
            after = model.model_copy(update={"episodes": {**model.episodes, event_id: event.episode}})
            return _remember(after, event, event_id, hops)
        case EpisodeResolved():
            return _with_triggers(model, tuple(one for one in model.triggers if not _is_of(model, one, event)))
        case TrainingPostponed():
            said = _said(event.triggers, event.reason)
            return model.model_copy(update={"postponed": (*model.postponed, said)})
        case TrainingStarted():
            update = {"running": event.run, "rows": event.dataset_rows, "storm": None, "broken": None, "postponed": ()}
            return _with_triggers(model.model_copy(update=update), _after(model, event.triggers))
        case LoopBroken():
            return _with_triggers(model.model_copy(update={"broken": event}), _after(model, event.triggers))
        case TrainingFailed() | PromotionRejected() | ApprovalRequested():
            return _ended(model, event.run)
        case RolloutChanged(plan=plan):
            tried = tuple(one.version for one in plan.challengers)
            after = model.model_copy(update={"champion": plan.champion, "tried": tried})
            answered = model.running in {deployed.run for deployed in plan.deployed}
            return after.model_copy(update={"running": None}) if answered else after
        case _:
            return model


def _broken(model: Model, triggers: tuple[Trigger, ...], max_hops: int) -> LoopBroken:
    newest = freshest(triggers)
    reason = (
        f"a run is due only because of what earlier runs led to: {newest.hops} reactions lie between {newest.kind} "
        f"{newest.event} and what last came from outside, at most {max_hops} may; find in the chain of causes who answers "
        f"runs with new triggers, and stop it; new data or `meguri train {model.name}` begin again"
    )
    return LoopBroken(model=model.name, triggers=triggers, limit=max_hops, chain=(), reason=reason)


def _remember(model: Model, event: Event, event_id: str, hops: int) -> Model:
    triggers = (*model.triggers, Trigger(event=event_id, kind=event.kind(), hops=hops))
    return _with_triggers(model, _fewer(triggers) if len(triggers) > MAX_TRIGGERS else triggers)


def _with_triggers(model: Model, triggers: tuple[Trigger, ...]) -> Model:
    kept = {trigger.event for trigger in triggers}
    episodes = {event: episode for event, episode in model.episodes.items() if event in kept}
    return model.model_copy(update={"triggers": triggers, "episodes": episodes})


def _is_of(model: Model, trigger: Trigger, resolved: EpisodeResolved) -> bool:
    """Whether a trigger began the episode that is over. Of those of before it is not known: there was one at a time."""
    if trigger.event in model.episodes:
        return model.episodes[trigger.event] == resolved.episode
    return trigger.kind == DriftDetected.kind() and resolved.about == "drift"


def _with_storm(model: Model, time: datetime) -> Model:
    if not (model.running or model.storm):
        return model
    return model.model_copy(update={"storm": Storm(first=model.storm.first if model.storm else time, last=time)})


def _fewer(triggers: tuple[Trigger, ...]) -> tuple[Trigger, ...]:
    """Forget the oldest of those that are most: another of its kind, no less fresh, still makes the run due."""
    [(most, _)] = Counter(trigger.kind for trigger in triggers).most_common(1)
    alike = [trigger for trigger in triggers if trigger.kind == most]
    forgotten = next(trigger for trigger in alike if trigger != freshest(alike))
    return tuple(trigger for trigger in triggers if trigger != forgotten)


def _that_matter(model: Model) -> tuple[Trigger, ...]:
    """A first run is due to its rows, where they came later than the spec."""
    rows = tuple(trigger for trigger in model.triggers if trigger.kind != SpecApplied.kind())
    return rows if rows and not model.rows else model.triggers


def _learned(spec: ModelSpec) -> dict[str, Any]:
    """What a run and its verdict depend on: a change of when to learn, how to watch or how to roll out makes no other model."""
    return spec.model_dump(exclude={"retrain", "rollout", "log", "monitor", "notify"})


def _after(model: Model, answered: tuple[Trigger, ...]) -> tuple[Trigger, ...]:
    """What came after the last of the triggers that were answered; some of these may have been forgotten meanwhile."""
    known = set(answered)
    last = max((at for at, trigger in enumerate(model.triggers) if trigger in known), default=-1)
    return model.triggers[last + 1 :]


def _ended(model: Model, run: str) -> Model:
    return model.model_copy(update={"running": None}) if model.running == run else model

"""When to train: the decisions of training as plain functions of plain values."""

from pydantic import BaseModel, ConfigDict

from meguri_contracts.events import (
    ApprovalRequested,
    DataCommitted,
    Deployed,
    DriftDetected,
    EpisodeResolved,
    Event,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
    TrainingFailed,
    TrainingRequested,
    TrainingStarted,
    Trigger,
)
from meguri_contracts.names import derived_id
from meguri_contracts.spec import ModelSpec

MAX_TRIGGERS = 128
"""Triggers that a run remembers, the newest; as many as a span may have links."""


class Data(BaseModel):
    """The newest version of a dataset."""

    model_config = ConfigDict(frozen=True)

    version: int
    digest: str
    total_rows: int


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
    triggers: tuple[Trigger, ...] = ()
    """What happened since the last run was started, oldest first."""


def decide(model: Model, data: Data | None) -> list[Event]:
    """Start a run if one is due and none is under way. Triggers that come meanwhile wait and are answered by one run."""
    if model.spec is None or data is None or why_not(model, data):
        return []
    triggers = _that_matter(model)
    last = triggers[-1].event if triggers else ""
    return [
        TrainingStarted(
            model=model.name,
            run=derived_id(model.name, "run", str(model.spec_version), str(data.version), last),
            spec=model.spec,
            spec_version=model.spec_version,
            dataset_version=data.version,
            dataset_digest=data.digest,
            dataset_rows=data.total_rows,
            triggers=triggers,
            champion=model.champion,
        )
    ]


def why_not(model: Model, data: Data | None) -> str:
    """Say in words what a run waits for; empty when one is due."""
    if model.spec is None:
        return "the model has no spec"
    if data is None:
        return f"dataset {model.spec.dataset.name!r} has no rows yet"
    if model.running:
        return f"run {model.running} has no verdict yet"
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
    if retrain.drift and DriftDetected.kind() in kinds:
        return "" if new_rows else "drift was seen, and new rows that show it have not arrived yet"
    enough = f"{retrain.rows} are enough" if retrain.rows is not None else "new rows alone are no reason"
    return f"{new_rows} new rows since the last run, {enough}"


def evolve(model: Model, event: Event, event_id: str) -> Model:
    """Return the model after an event."""
    match event:
        case SpecApplied():
            applied = model.model_copy(update={"spec": event.spec, "spec_version": event.version})
            return _remember(applied, event, event_id)
        case DataCommitted() | TrainingRequested() | DriftDetected():
            return _remember(model, event, event_id)
        case EpisodeResolved():
            left = tuple(trigger for trigger in model.triggers if trigger.kind != DriftDetected.kind())
            return model.model_copy(update={"triggers": left})
        case TrainingStarted():
            update = {"running": event.run, "rows": event.dataset_rows, "triggers": _after(model, event.triggers)}
            return model.model_copy(update=update)
        case TrainingFailed() | PromotionRejected() | ApprovalRequested():
            return _ended(model, event.run)
        case RolloutChanged():
            return _ended(model.model_copy(update={"champion": event.plan.champion}), event.plan.champion.run)
        case _:
            return model


def _remember(model: Model, event: Event, event_id: str) -> Model:
    triggers = (*model.triggers, Trigger(event=event_id, kind=event.kind()))
    return model.model_copy(update={"triggers": triggers[-MAX_TRIGGERS:]})


def _that_matter(model: Model) -> tuple[Trigger, ...]:
    """A first run is due to its rows, where they came later than the spec."""
    rows = tuple(trigger for trigger in model.triggers if trigger.kind != SpecApplied.kind())
    return rows if rows and not model.rows else model.triggers


def _after(model: Model, answered: tuple[Trigger, ...]) -> tuple[Trigger, ...]:
    """What came after the last of the triggers that a run answers."""
    if not answered or answered[-1] not in model.triggers:
        return model.triggers
    return model.triggers[model.triggers.index(answered[-1]) + 1 :]


def _ended(model: Model, run: str) -> Model:
    return model.model_copy(update={"running": None}) if model.running == run else model

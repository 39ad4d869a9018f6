"""What happened in an episode, one sentence for each event: what a person reads who asks afterwards."""

from meguri_contracts.events import (
    AnomalyDetected,
    ApprovalRequested,
    DriftDetected,
    EpisodeAcknowledged,
    EpisodeResolved,
    EpisodeWorsened,
    Event,
    MeasuresRefilled,
    ModelTrained,
    NoticeFailed,
    NoticeSent,
    PerformanceDegraded,
    PromotionRejected,
    RolloutChanged,
    TrainingFailed,
    TrainingPostponed,
    TrainingStarted,
)
from meguri_contracts.spec import Action

HEARS = (
    DriftDetected,
    PerformanceDegraded,
    AnomalyDetected,
    EpisodeWorsened,
    EpisodeAcknowledged,
    EpisodeResolved,
    NoticeSent,
    NoticeFailed,
    MeasuresRefilled,
    TrainingPostponed,
    TrainingStarted,
    ModelTrained,
    TrainingFailed,
    PromotionRejected,
    ApprovalRequested,
    RolloutChanged,
)
_FOLLOWS: dict[Action, str] = {
    "ignore": "nobody is told, as the spec says",
    "notify": "it is told",
    "retrain": "it is told, and a new model is trained",
    "rollback": "it is told, and the model goes back to the champion before",
}
_MOMENT = {"opened": "it began", "resolved": "it is over"}


def sentence(event: Event) -> str:
    """Return what an event of an episode says, in plain English with a full stop."""
    return f"{_said(event)}."


def _said(event: Event) -> str:
    match event:
        case DriftDetected() | PerformanceDegraded() | AnomalyDetected():
            what = event.text or f"{_subject(event)} is not as it was"
            reason = f" ({event.action_reason})" if event.action_reason else ""
            return f"It began: {what}; {_follows(event)}{reason}"
        case EpisodeWorsened():
            return _capital(
                event.text or f"it has become worse: {event.before:.3g} was said, now it is {event.now:.3g}"
            )
        case EpisodeAcknowledged():
            return f"{event.actor} has seen it" + (f": {event.note}" if event.note else "")
        case EpisodeResolved():
            return f"It is over: {event.reason}"
        case NoticeSent():
            return f"{event.target} was told that {_MOMENT[event.moment]}"
        case NoticeFailed():
            return f"{event.target} could not be told that {_MOMENT[event.moment]}: {event.error}"
        case MeasuresRefilled():
            left_out = f", {event.left_out} were left out by its writer again" if event.left_out else ""
            return (
                f"{event.actor} had the numbers of {event.evaluator} computed again: {event.written} of {event.rows} rows "
                f"were missing and are there now{left_out}"
            )
        case _:
            return _of_a_run(event)


def _of_a_run(event: Event) -> str:
    match event:
        case TrainingPostponed():
            return f"A new model is wanted and waits: {event.reason}"
        case TrainingStarted():
            return f"Training began on {event.dataset_rows} rows"
        case ModelTrained():
            return f"A model was trained on {event.train_rows} rows in {event.seconds:.2g} seconds"
        case TrainingFailed():
            return f"Training failed: {event.reason}"
        case PromotionRejected():
            return f"Version {event.version} was turned away: {event.reason}"
        case ApprovalRequested():
            return f"Version {event.version} waits for somebody's yes: {event.reason}"
        case RolloutChanged():
            return f"Version {event.plan.champion.version} is champion: {event.reason}"
        case _:
            raise TypeError(f"{event.kind()} is no event of an episode")


def _follows(event: DriftDetected | PerformanceDegraded | AnomalyDetected) -> str:
    if isinstance(event, PerformanceDegraded) and event.role != "champion" and event.action == "rollback":
        return "it is told, and the champion answers everything again"
    return _FOLLOWS[event.action]


def _subject(event: DriftDetected | PerformanceDegraded | AnomalyDetected) -> str:
    match event:
        case DriftDetected():
            return event.feature
        case PerformanceDegraded():
            return event.metric
        case AnomalyDetected():
            return event.subject


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

"""What happened in an episode, a sentence or two for each event: what a person reads who asks afterwards."""

from functools import partial

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
from meguri_monitoring.episodes import telling
from meguri_monitoring.episodes.looks import Opening
from meguri_monitoring.wording.phrases import reason
from meguri_monitoring.wording.wording import Language, amount, number, say, sentences, took

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


def sentence(event: Event, language: Language = "en") -> str:
    """Return what an event of an episode says, for people who are no engineers, with a full stop."""
    match event:
        case DriftDetected() | PerformanceDegraded() | AnomalyDetected():
            return _began(event, language)
        case EpisodeWorsened():
            return _worsened(event, language)
        case EpisodeAcknowledged():
            key = "acknowledged.note" if event.note else "acknowledged"
            return say(key, language, actor=event.actor, note=event.note)
        case EpisodeResolved():
            return say("over", language, reason=reason(event.reason, language))
        case NoticeSent():
            return say(f"told.{event.moment}", language, target=event.target)
        case NoticeFailed():
            error = reason(event.error, language)
            return say(f"not told.{event.moment}", language, target=event.target, error=error)
        case MeasuresRefilled():
            key = "refilled.left out" if event.left_out else "refilled"
            counts = {"rows": number(event.rows), "written": number(event.written), "left_out": number(event.left_out)}
            return say(key, language, actor=event.actor, evaluator=event.evaluator, **counts)
        case _:
            return _of_a_run(event, language)


def _began(event: Opening, language: Language) -> str:
    return sentences(
        language,
        say("began", language, what=telling.headline(event, language)),
        telling.inputs(event, language),
        telling.how_bad(event, language),
        telling.culprit(event, language) if event.producer else "",
        say("follows.taken back" if telling.is_taken_back(event) else f"follows.{event.action}", language),
        telling.because(event, language),
    )


def _worsened(event: EpisodeWorsened, language: Language) -> str:
    subject = telling.named_subject(event.about, event.subject)
    said = partial(amount, event.about, language=language, of_shares=event.subject == "accuracy")
    key = "worsened.subject" if subject else "worsened"
    return say(key, language, subject=subject, before=said(event.before), now=said(event.now))


def _of_a_run(event: Event, language: Language) -> str:
    match event:
        case TrainingPostponed():
            return say("postponed", language, reason=reason(event.reason, language))
        case TrainingStarted():
            return say("training", language, rows=number(event.dataset_rows))
        case ModelTrained():
            return say("trained", language, rows=number(event.train_rows), time=took(event.seconds, language))
        case TrainingFailed():
            return say("not trained", language, reason=reason(event.reason, language))
        case PromotionRejected():
            return say("rejected", language, version=event.version, reason=reason(event.reason, language))
        case ApprovalRequested():
            return say("asked", language, version=event.version, reason=reason(event.reason, language))
        case RolloutChanged():
            version = event.plan.champion.version
            key = "champion.same" if event.previous == version else "champion"
            return say(key, language, version=version, reason=reason(event.reason, language))
        case _:
            raise TypeError(f"{event.kind()} is no event of an episode")

"""The two messages about an episode, from plain values: one when it begins, one when it ends."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from meguri_contracts.events import OPENINGS, AnomalyDetected, DriftDetected, PerformanceDegraded
from meguri_contracts.spec import EpisodeKind
from meguri_monitoring.episodes.looks import Opening
from meguri_monitoring.episodes.sentences import replaced_by
from meguri_monitoring.wording import phrases
from meguri_monitoring.wording.wording import Language, duration, moment, number, percent, say, sentences

LEVELS = ((0.25, "slight"), (0.5, "moderate"), (1.0, "strong"))
"""Distances up to which a change is called so; beyond these it is very strong."""
NAME_LENGTH, REASON_LENGTH = 100, 300
OF_THE_WHOLE: tuple[EpisodeKind, ...] = ("volume", "silence", "performance")
"""Kinds that are about a model as a whole."""
NAMED = 5
"""Further features that are named."""


@dataclass(frozen=True)
class Words:
    """A message: one line, and the text."""

    subject: str
    body: str


@dataclass(frozen=True)
class Links:
    """Where to read on. `report` is an address; `trace` one too, or a command; empty where there is none."""

    report: str
    trace: str = ""


def opened(opening: Opening, at: datetime, links: Links, language: Language) -> Words:
    """What is said when an episode begins."""
    lines = {
        "what": sentences(language, *_happened(opening, language)),
        "since": moment(at, language),
        "bad": how_bad(opening, language),
        "who": culprit(opening, language),
        "inputs": inputs(opening, language),
        "does": reaction(opening, language),
        "version": str(opening.version),
        "report": links.report,
        "trace": links.trace,
    }
    return _words("opened", opening, lines, language)


def resolved(
    opening: Opening, began: datetime, ended: datetime, reason: str, links: Links, language: Language
) -> Words:
    """What is said when an episode ends."""
    why, done = end(opening, reason, language)
    lines = {
        "ended": headline(opening, language),
        "since": moment(began, language),
        "until": moment(ended, language),
        "lasted": duration((ended - began).total_seconds(), language),
        "why": why,
        "done": done,
        "report": links.report,
    }
    return _words("resolved", opening, lines, language)


def read(detected: Mapping[str, Any]) -> Opening:
    """Read what the event said that began an episode, of whichever kind."""
    about = detected.get("about", "drift")
    kind = next(one for one in OPENINGS if about in get_args(one.model_fields["about"].annotation))
    return kind.model_validate(detected)


def subject_of(opening: Opening) -> str:
    """What the episode is about: a feature, a column, a number; empty if it is the model as a whole."""
    match opening:
        case DriftDetected():
            return _clean(opening.feature)
        case AnomalyDetected():
            return named_subject(opening.about, opening.subject)
        case PerformanceDegraded():
            return ""


def named_subject(about: EpisodeKind, subject: str) -> str:
    """A subject as people are told of it; empty where it is but another word for the kind."""
    return "" if about in OF_THE_WHOLE else _clean(subject)


def headline(opening: Opening, language: Language) -> str:
    """The episode in a few words."""
    kind, subject = say(f"kind.{opening.about}", language), subject_of(opening)
    return say("named", language, kind=kind, subject=subject) if subject else kind


def sentence(opening: Opening, language: Language) -> str:
    """The episode in a sentence."""
    return say(f"happened.{opening.about}", language, model=opening.model, subject=subject_of(opening))


def how_bad(opening: Opening, language: Language) -> str:
    """How far from normal it is, in words and numbers."""
    match opening:
        case DriftDetected(about="missing", distance=change):
            return say("bad.missing", language, points=number(100 * change))
        case DriftDetected(about="categories", distance=share):
            return say("bad.categories", language, share=percent(share))
        case DriftDetected(distance=distance):
            level = next((name for limit, name in LEVELS if distance <= limit), "very strong")
            return say("bad.distance", language, level=say(f"level.{level}", language), distance=number(distance))
        case PerformanceDegraded(metric="accuracy"):
            shares = {"before": percent(opening.before), "now": percent(opening.now)}
            return say("bad.accuracy", language, labels=f"{opening.labels:,}", **shares)
        case PerformanceDegraded(metric=metric):
            numbers = {"before": number(opening.before), "now": number(opening.now)}
            return say("bad.error", language, metric=metric.upper(), labels=f"{opening.labels:,}", **numbers)
        case AnomalyDetected(about="silence"):
            spans = {"value": duration(opening.value, language), "expected": duration(opening.expected, language)}
            return say("bad.silence", language, **spans)
        case AnomalyDetected(about="schema" | "evaluator"):
            bad = say(f"bad.{opening.about}", language, value=number(opening.value))
            said = say("said", language, reason=_reason(opening.text, language)) if opening.text else ""
            return sentences(language, bad, said)
        case AnomalyDetected():
            numbers = {"value": number(opening.value), "expected": number(opening.expected)}
            return say(f"bad.{opening.about}", language, **numbers)


def culprit(opening: Opening, language: Language) -> str:
    """Who causes it, as far as that is known."""
    if not opening.producer:
        return say("who.nobody", language)
    key = "who.share" if opening.share > 0 else "who.name"
    return say(key, language, producer=_clean(opening.producer), share=f"{opening.share:.0%}")


def inputs(opening: Opening, language: Language) -> str:
    """Whether the inputs moved as well, where that tells something."""
    moved = None if isinstance(opening, PerformanceDegraded) else opening.inputs_moved
    return "" if moved is None else say("inputs.moved" if moved else "inputs.same", language)


def reaction(opening: Opening, language: Language) -> str:
    """What the system does about it, and why that if it is not what was asked for."""
    if is_taken_back(opening):
        does = say("action.taken_back", language, version=opening.version)
    else:
        does = say(f"action.{opening.action}", language)
    return sentences(language, does, because(opening, language))


def because(opening: Opening, language: Language) -> str:
    """Why the system does not do what was asked for; empty if it does."""
    reason = opening.action_reason
    return say("because", language, reason=_reason(reason, language)) if reason else ""


def is_beside(opening: Opening) -> bool:
    """Whether an episode is about a version that answers beside the champion."""
    return isinstance(opening, PerformanceDegraded) and opening.role != "champion"


def is_taken_back(opening: Opening) -> bool:
    """Whether the trial of a version ends with its episode."""
    return is_beside(opening) and opening.action == "rollback"


def end(opening: Opening, reason: str, language: Language) -> tuple[str, str]:
    """Why the episode is over, and what was done about it; the latter empty where the reason says it."""
    now = replaced_by(reason)
    versions = {"before": opening.version, "now": now}
    if now is not None:
        return say("over.replaced", language, **versions), say("done.replaced", language, **versions)
    said = say("said", language, reason=_reason(reason, language))
    if is_beside(opening):
        return sentences(language, say("over.beside", language, **versions), said), ""
    return sentences(language, say("over.quiet", language), said), say("done.nothing", language, **versions)


def _happened(opening: Opening, language: Language) -> Iterator[str]:
    yield sentence(opening, language)
    others = opening.drifted[1:] if isinstance(opening, DriftDetected) else ()
    if others:
        names = ", ".join(_clean(name) for name in others[:NAMED]) + (" …" if len(others) > NAMED else "")
        yield say("others", language, names=names)


def _words(moment_: str, opening: Opening, lines: dict[str, str], language: Language) -> Words:
    subject = say(f"subject.{moment_}", language, model=opening.model, what=headline(opening, language))
    said = [
        say("line", language, label=say(f"label.{label}", language), text=text) for label, text in lines.items() if text
    ]
    intro = say(f"intro.{moment_}", language, model=opening.model)
    return Words(subject, "\n\n".join((intro, "\n".join(said), say(f"outro.{moment_}", language))))


def _reason(text: str, language: Language) -> str:
    """A reason as a sentence of its own, without a full stop."""
    said = phrases.reason(_clean(text, REASON_LENGTH), language)
    return said[:1].upper() + said[1:]


def _clean(text: str, length: int = NAME_LENGTH) -> str:
    """A text from outside on one line: it could begin another header, or a paragraph of its own."""
    shown = re.sub(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]+", " ", text).strip()
    return shown if len(shown) <= length else f"{shown[:length]}…"

"""Reports as pages that need nothing else: no script, no font, no picture from anywhere; names from outside are only text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from math import inf
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from meguri_contracts.events import AnomalyDetected, DriftDetected, Window
from meguri_contracts.spec import EpisodeKind
from meguri_monitoring.episodes import telling
from meguri_monitoring.reports import drawing
from meguri_monitoring.reports.story import Amount, Compared, Days, Story
from meguri_monitoring.wording.phrases import bin_label
from meguri_monitoring.wording.wording import (
    LANGUAGES,
    Language,
    amount,
    duration,
    moment,
    number,
    percent,
    say,
    sentences,
)

SOME_MINUTES, A_DAY, SOME_DAYS = timedelta(minutes=10), timedelta(hours=20), timedelta(days=5)
"""Below these a chart's times have seconds, no date, or a date and a time; else only a date."""

_TEMPLATES = Environment(
    loader=PackageLoader("meguri_monitoring"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"number": number, "percent": percent, "count": lambda value: f"{value:,.0f}"}


@dataclass(frozen=True)
class Look:
    """How a page is made: when, in which language, and where a trace is found if anywhere."""

    made: datetime
    language: Language = "en"
    trace_url: Callable[[str], str] = lambda _: ""


def of_episode(story: Story, look: Look) -> str:
    """Return the page about an episode."""
    language, opening = look.language, story.opening
    scores, is_measure = _scores(story), opening.about == "measure"
    return _page(
        "episode.html",
        look,
        story=story,
        headline=telling.headline(opening, language),
        sentence=telling.sentence(opening, language),
        subject=telling.subject_of(opening),
        lasted=_lasted(story, look),
        facts=_facts(story, language),
        histograms=[_histogram(one, language) for one in story.compared],
        moved=partial(_moved, language=language),
        scores=scores if scores.dots else None,
        unit=_unit(opening.about),
        limit=max((one.threshold for one in story.looked if one.threshold is not None), default=None),
        ended=lambda one: moment(datetime.fromisoformat(one.ended), language, exact=True) if one.ended else "",
        amount=partial(amount, opening.about, language=language),
        over_time=f"page.over time.{opening.about}" if opening.about in ("volume", "measure") else "page.over time.how",
        changed="page.changed.measure" if is_measure else "page.changed.how",
        reference="page.reference.measure" if is_measure else "page.reference",
        quality=_quality(story),
        said=_said(story),
        span=duration(_span(story.quality, look.made).total_seconds(), language),
        window=_window(story),
        asked="",
        prediction_url=lambda id_: f"../../predictions/{quote(id_, safe='')}?model={quote(opening.model)}",
    )


def of_days(days: Days, look: Look) -> str:
    """Return the page about some days of a model."""
    language = look.language
    span = _span(days.volume, days.until)
    told = [
        (
            one,
            telling.headline(one.opening, language),
            sentences(language, telling.how_bad(one.opening, language), telling.culprit(one.opening, language)),
            _lasted(one, look),
        )
        for one in days.episodes
    ]
    labels = _labels([one.time for one in days.volume])
    return _page(
        "days.html",
        look,
        days=days,
        count=_count(days),
        sentence=headline(days, language),
        episodes=told,
        span=duration(span.total_seconds(), language),
        volume=drawing.columns([one.value or 0 for one in days.volume], labels),
        volume_rows=sum(one.value or 0 for one in days.volume),
        quality=_quality(days),
        said=_said(days),
        counted=lambda value: f"{value:,.0f}",
        report_url=lambda id_: f"../../episodes/{quote(id_, safe='')}/report" + _in(language),
        asked=f"days={_count(days)}&",
    )


def headline(days: Days, language: Language) -> str:
    """Some days of a model in a sentence."""
    values = {"model": days.model, "days": _count(days)}
    if not days.episodes:
        return say("page.quiet", language, **values)
    count, open_ = len(days.episodes), sum(one.ended is None for one in days.episodes)
    had = say("page.one episode" if count == 1 else "page.episodes count", language, count=count)
    still = say("page.some open" if open_ else "page.none open", language, count=open_)
    return say("page.had", language, count=had, open=still, **values)


def _histogram(one: Compared, language: Language) -> tuple[Compared, drawing.Histogram]:
    named, others = one.labels[: one.named], one.labels[one.named :]
    one = replace(one, labels=(*named, *(bin_label(label, language) for label in others)))
    return one, drawing.histogram(one.labels, one.reference, one.current)


def _moved(one: Compared, language: Language) -> str:
    """From where to where a subject moved, in its own unit, and how far that is."""
    amounts = {"score": amount(one.about, one.score, language), "threshold": amount(one.about, one.threshold, language)}
    how_far = say("page.score.distance" if _is_distance(one.about) else "page.score", language, **amounts)
    if one.about == "missing":
        shares = [part[1] / max(sum(part), 1) for part in (one.reference, one.current)]
        return say("page.moved.missing", language, before=percent(shares[0]), now=percent(shares[1]), how_far=how_far)
    if one.means is None:
        return how_far
    before, now = map(number, one.means)
    return say("page.moved.mean", language, before=before, now=now, how_far=how_far)


def _is_distance(about: EpisodeKind) -> bool:
    return about in ("drift", "prediction", "measure")


def _unit(about: EpisodeKind) -> str:
    return f"page.unit.{'distance' if _is_distance(about) else about}"


def _scores(story: Story) -> drawing.Line:
    scored = [one for one in story.looked if one.version == story.opening.version]
    limit = max((one.threshold for one in scored if one.threshold is not None), default=None)
    labels = _labels([datetime.fromisoformat(one.ended) if one.ended else None for one in scored])
    marked = [one.moved for one in scored]
    said = drawing.in_percent if story.opening.about in ("missing", "categories") else number
    return drawing.line([one.score for one in scored], labels, limit, marked=marked, said=said)


def _quality(told: Story | Days) -> drawing.Line | None:
    known = [one.value for one in told.quality if one.value is not None]
    if not known:
        return None
    is_share = told.metric == "accuracy"
    within = drawing.around(known, 0, 1 if is_share else inf)
    labels = _labels([one.time for one in told.quality])
    return drawing.line([one.value for one in told.quality], labels, within=within, said=_said(told))


def _said(told: Story | Days) -> Callable[[float], str]:
    return drawing.in_percent if told.metric == "accuracy" else number


def _facts(story: Story, language: Language) -> dict[str, str]:
    opening = story.opening
    facts = {
        "bad": telling.how_bad(opening, language),
        "who": telling.culprit(opening, language),
        "inputs": telling.inputs(opening, language),
    }
    if story.ended:
        over, done = telling.end(opening, story.reason, language)
        facts |= {"done": done, "why": over}
    else:
        facts["does"] = telling.reaction(opening, language)
    return facts | {
        "since": moment(story.began, language),
        "until": moment(story.ended, language) if story.ended else "",
        "version": str(opening.version),
    }


def _page(template: str, look: Look, **values: object) -> str:
    other = next(one for one in LANGUAGES if one != look.language)
    return _TEMPLATES.get_template(template).render(
        t=partial(_say, look.language),
        at=partial(moment, language=look.language),
        exactly=partial(moment, language=look.language, exact=True),
        language=look.language,
        other=other,
        sentences=partial(sentences, look.language),
        say=say,
        made=look.made,
        trace_url=look.trace_url,
        **values,
    )


def _say(language: Language, key: str, **values: object) -> str:
    return say(key, language, **values)


def _lasted(story: Story, look: Look) -> str:
    return duration(max(((story.ended or look.made) - story.began).total_seconds(), 0), look.language)


def _window(story: Story) -> Window | None:
    return story.opening.window if isinstance(story.opening, DriftDetected | AnomalyDetected) else None


def _count(days: Days) -> int:
    return max(round((days.until - days.since) / timedelta(days=1)), 1)


def _span(amounts: Sequence[Amount], until: datetime) -> timedelta:
    times = [one.time for one in amounts]
    return (times[1] if len(times) > 1 else until) - times[0] if times else timedelta()


def _labels(times: Sequence[datetime | None]) -> list[str]:
    """Return of each time, as far as it is known, what tells it from the others."""
    known = [time for time in times if time]
    spread = max(known) - min(known) if known else timedelta()
    shown = next(
        (
            form
            for most, form in ((SOME_MINUTES, "%H:%M:%S"), (A_DAY, "%H:%M"), (SOME_DAYS, "%m-%d %H:%M"))
            if spread < most
        ),
        "%m-%d",
    )
    return [time.strftime(shown) if time else "" for time in times]


def _in(language: Language) -> str:
    return "" if language == "en" else f"?language={language}"

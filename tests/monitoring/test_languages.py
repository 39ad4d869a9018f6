"""No page and no message mixes languages."""

import re
from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import cache

import pytest

from meguri_contracts.events import (
    ApprovalRequested,
    EpisodeAcknowledged,
    EpisodeResolved,
    EpisodeWorsened,
    Event,
    MeasuresRefilled,
    NoticeFailed,
    NoticeSent,
    PromotionRejected,
    TrainingFailed,
    TrainingPostponed,
)
from meguri_contracts.spec import EpisodeKind
from meguri_monitoring.episodes import sentences, telling, timeline
from meguri_monitoring.episodes.episodes import CHANGED
from meguri_monitoring.episodes.telling import Links
from meguri_monitoring.reports import pages
from meguri_monitoring.reports.pages import Look
from meguri_monitoring.wording import phrases
from meguri_monitoring.wording.phrases import BINS, REASONS, bin_label, reason
from meguri_monitoring.wording.wording import LANGUAGES, Language
from tests.conftest import ROOT
from tests.monitoring.episodes_of import KINDS, TRACE, opening
from tests.monitoring.runs import deployed, rollout, started
from tests.monitoring.stories import BEGAN, story, text, week

NAMES = {
    "digits",
    "brightness",
    "contrast",
    "exposure",
    "lens",
    "wide",
    "tele",
    "camera-a",
    "camera-b",
    "persons.count",
}
"""What models, columns, categories and producers are called here."""
OF_BOTH = {"meguri", "UTC", "JSON", "URL", "MAE", "mae", "why", "trace", "promote", "English", "ms", "A/B"}
"""Words that are the same in Japanese: commands, and what is written so."""
JAPANESE = re.compile(r"[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]")
ENGLISH = re.compile(r"[A-Za-z][A-Za-z/.-]*[A-Za-z]")
LINKS = Links("http://meguri", "p-1")


def strangers(shown: str, language: Language) -> list[str]:
    """The words of a text that are of the other language."""
    shown = re.sub(r"meguri whatif \S+|\w+://\S+|`[^`]*`|p-\d|[0-9a-f]{32}|「[^」]*」", " ", shown)
    if language == "en":
        return JAPANESE.findall(shown.replace("日本語", ""))
    return [word for word in ENGLISH.findall(shown) if word not in NAMES | OF_BOTH]


def happened() -> Iterable[Event]:
    """Every event that a timeline tells of."""
    for about in KINDS:
        yield opening("digits", "e-1", about)
        yield EpisodeWorsened(
            model="digits", version=3, episode="e-1", about=about, subject="brightness", before=0.1, now=0.4
        )
        for windows in (1, 2):
            over = sentences.back(about, windows)
            yield EpisodeResolved(model="digits", version=3, episode="e-1", about=about, reason=over)
    for over in (sentences.replaced(4), CHANGED, "predictions are asked for again"):
        yield EpisodeResolved(model="digits", version=3, episode="e-1", reason=over)
    yield EpisodeAcknowledged(model="digits", version=3, episode="e-1", about="drift", actor="「ada」", note="the lamp")
    for moment in ("opened", "resolved"):
        told = {"model": "digits", "episode": "e-1", "moment": moment, "target": "json://host"}
        yield NoticeSent.model_validate(told | {"subject": ""})
        yield NoticeFailed.model_validate(told | {"error": "Connection error"})
    refilled = MeasuresRefilled(
        model="digits", evaluator="persons", rows=9, written=2, first=1, last=9, actor="「ada」"
    )
    yield refilled
    yield refilled.model_copy(update={"left_out": 2})
    waits = "new rows that show it are needed"
    yield TrainingPostponed(model="digits", triggers=(), rows=0, needed=1, reason=waits)
    yield started("run-1")
    yield TrainingFailed(model="digits", run="run-1", reason="ValueError: no rows")
    yield PromotionRejected(model="digits", version=4, run="run-1", reason="the gate does not hold: mae < 1")
    yield ApprovalRequested(model="digits", version=4, run="run-1", reason="the gate holds")
    yield rollout(deployed(1, "run-1"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_line_of_a_timeline_mixes_languages(language):
    for event in happened():
        said = timeline.sentence(event, language)
        assert strangers(said, language) == [], said
        assert ".." not in said + said.replace("。。", "..")


@pytest.mark.parametrize("about", KINDS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_message_mixes_languages(about: EpisodeKind, language: Language):
    event = opening("digits", "e-1", about)
    over = sentences.back(about, 2)
    ended = BEGAN + timedelta(hours=2)
    for words in (
        telling.opened(event, BEGAN, LINKS, language),
        telling.resolved(event, BEGAN, ended, over, LINKS, language),
        telling.resolved(event, BEGAN, ended, sentences.replaced(4), LINKS, language),
    ):
        assert strangers(f"{words.subject}\n{words.body}", language) == [], words


@pytest.mark.parametrize("about", KINDS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_page_mixes_languages(about: EpisodeKind, language: Language):
    look = Look(BEGAN + timedelta(hours=5), language)
    for told in (story(about, language=language), story(about, ended=False, language=language)):
        shown = text(pages.of_episode(told, look)).replace(TRACE, "")
        assert strangers(shown, language) == []
    assert strangers(text(pages.of_days(week(language), look)), language) == []


@pytest.mark.parametrize("form", REASONS)
def test_every_reason_of_the_log_is_told_in_both_languages(form):
    said = re.sub(r"\{(\w+)\}", lambda found: "7" if found[1] in phrases.FIELDS else "5 %", form)

    english, japanese = reason(said, "en"), reason(said, "ja")
    assert strangers(english, "en") == []
    assert JAPANESE.search(japanese)
    assert strangers(japanese, "ja") == []


@pytest.mark.parametrize("form", [*REASONS, *BINS])
def test_every_reason_is_one_that_is_really_said(form):
    """Who changes a sentence in a service finds here that people would no longer be told it in their language."""
    for part in re.split(r"\{\w+\}", form):
        # Services put some together: "new rows" and "that show it" and "are needed".
        assert pieces(re.findall(r"[^\s;]+", part), said_by_services()) <= 3, part


def pieces(words: Sequence[str], source: str) -> int:
    """Into how many pieces words must be cut for each to stand in the source."""
    if not words:
        return 0
    known = (end for end in range(len(words), 0, -1) if " ".join(words[:end]) in source)
    end = next(known, None)
    return 99 if end is None else 1 + pieces(words[end:], source)


@cache
def said_by_services() -> str:
    """The sources of all services but for what is looked for, texts that stand on two lines put together."""
    files = [file for file in (ROOT / "services").rglob("*.py") if file.name != "phrases.py"]
    files += (ROOT / "shared/client").rglob("*.py")
    source = "\n".join(file.read_text() for file in files)
    return re.sub(r'"\s*\n\s*f?"', "", source)


@pytest.mark.parametrize("about", KINDS)
def test_why_an_episode_ended_is_always_told_in_japanese(about):
    over = [sentences.back(about, windows) for windows in (1, 2)]

    assert not [one for one in (*over, sentences.replaced(4), CHANGED) if reason(one, "ja").startswith("「")]


def test_what_a_person_or_another_program_said_stays_as_it_is():
    assert reason("rollback: the lamp is broken", "en") == "back to the version before: the lamp is broken"
    assert reason("rollback: the lamp is broken", "ja") == "切り戻し：「the lamp is broken」"
    assert reason("Connection error occurred", "ja") == "「Connection error occurred」"
    assert bin_label("0.5 to 1.5", "en") == "0.5 to 1.5"
    assert bin_label("0.5 to 1.5", "ja") == "0.5～1.5"


def test_a_long_reason_stands_as_it_is():
    """To look for many fields in it would take minutes."""
    long = "rollback: " * 1000

    assert phrases.reason(long, "en") == long
    assert phrases.reason(long, "ja") == f"「{long}」"

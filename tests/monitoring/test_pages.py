import re
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from meguri_monitoring.reports import drawing, pages
from meguri_monitoring.reports.pages import Look
from meguri_monitoring.reports.story import Amount, Part
from meguri_monitoring.wording.wording import LANGUAGES
from tests.monitoring.episodes_of import KINDS, TRACE
from tests.monitoring.stories import BEGAN, story, text, week

EVIL = '<script>alert("x")</script>\'"><img src=x onerror=alert(1)>'
MADE = BEGAN + timedelta(hours=5)
LOOK = Look(MADE)
VOID = {"meta", "img", "link", "br", "input"}


class Read(HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("about", KINDS)
def test_every_kind_of_episode_has_a_page_in_both_languages(about, language):
    for told in (story(about), story(about, ended=False)):
        page = pages.of_episode(told, Look(MADE, language))

        assert Read(page).open == []
        assert f'<html lang="{language}">' in page
        assert "camera-b" in page


@pytest.mark.parametrize("page", [pages.of_episode(story(), LOOK), pages.of_days(week(), LOOK)])
def test_a_page_needs_nothing_from_anywhere(page):
    tags = Read(page).tags

    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on") or name == "src"]
    assert "url(" not in page
    assert "@import" not in page
    assert not [link for _, attributes in tags if (link := attributes.get("href")) and link.startswith("http")]


def test_names_from_outside_are_only_text():
    given: dict[str, Any] = {"feature": EVIL, "producer": EVIL, "samples": (EVIL,), "traces": (EVIL,)}
    told = story(**given, action_reason=EVIL)
    one = replace(told.compared[0], subject=EVIL, labels=(EVIL,) * 20, parts=(Part(EVIL, 0.5, 10),))
    line = replace(told.happened[0], text=EVIL, trace=EVIL)
    told = replace(told, compared=[one], happened=[line], reason=EVIL, note=EVIL, acknowledged=BEGAN, actor=EVIL)
    days = replace(week(), episodes=[replace(told, ended=None)], happened=[line])

    for page in (
        pages.of_episode(told, Look(MADE, trace_url=lambda id_: f"http://jaeger/trace/{id_}")),
        pages.of_days(days, LOOK),
    ):
        tags = Read(page)
        assert tags.open == []
        assert not {"script", "img"} & {tag for tag, _ in tags.tags}
        assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
        assert "&lt;script&gt;" in page


def test_an_episode_that_is_over_tells_its_story():
    shown = text(pages.of_episode(story(), LOOK))

    assert "no longer look like the data it was trained on" in shown
    assert "over after 1 h 1 min" in shown
    assert "94% of it comes from “camera-b”" in shown
    assert "version 3 answered then, version 4 answers now" in shown
    assert "2026-05-01 13:01:00 UTC It is over: version 4 answers now." in shown
    # Worst first.
    assert shown.index(" brightness change in") < shown.index(" contrast change in")
    assert "distance 1.48, limit 0.1" in shown
    assert "there 4,950 rows (99.0%) 345 rows (69.0%) missing 50 rows (1.0%) 155 rows (31.0%)" in shown
    assert "missing 1.0% → 31.0% · 30 percentage points, limit 5 percentage points" in shown
    assert "average -0.00262 → 1.54 · distance 1.48, limit 0.1" in shown
    assert "camera-a 0% of the change · 300 rows" in shown
    assert "4 2026-05-01 12:00:00 UTC 401 500 100 1.48 0.1" in shown


def test_a_version_that_came_after_an_episode_was_over_did_not_end_it():
    told = replace(story(), champion=5, reason="like the reference again in the last window")
    shown = text(pages.of_episode(told, LOOK))

    assert "Things are as before again. All looks as in training again in the last window." in shown
    assert "The model was not changed: version 3 answers as before." in shown


def test_an_open_episode_says_for_how_long_and_who_has_seen_it():
    told = replace(story(ended=False), acknowledged=BEGAN, actor="ada", note="the lamp is broken")
    shown = text(pages.of_episode(told, LOOK))

    assert "open, seen by ada for 5 h now" in shown
    assert "the lamp is broken" in shown


def test_samples_and_traces_lead_on():
    page = pages.of_episode(story(), Look(MADE, trace_url=lambda id_: f"http://jaeger/trace/{id_}"))

    assert 'href="../../predictions/p-1?model=digits"' in page
    assert f'href="http://jaeger/trace/{TRACE}"' in page
    assert f"trace {TRACE}" in text(pages.of_episode(story(), LOOK))


def test_a_page_says_by_which_command_the_episode_is_computed_again():
    for about in KINDS:
        told = story(about)
        command = f"meguri whatif {told.opening.episode}"
        assert (command in text(pages.of_episode(told, LOOK))) == (about not in ("schema", "evaluator"))


def test_an_episode_without_anything_kept_of_it_has_a_page():
    told = replace(story(samples=(), traces=()), compared=[], looked=[], happened=[])
    shown = text(pages.of_episode(told, LOOK))

    assert "Nothing yet." in shown
    assert "100–199 · 100 rows" in shown


def test_an_episode_of_quality_shows_it_over_time():
    told = replace(story("performance"), looked=[], metric="accuracy", quality=week().quality)
    page = pages.of_episode(told, LOOK)

    assert "the share of right answers" in text(page).lower()
    assert page.count('class="line"') == 1


def test_the_numbers_of_an_evaluator_are_held_against_what_was_usual_and_not_against_training():
    told = story("measure")
    shown = text(pages.of_episode(told, LOOK))

    assert "0 would be no change" in shown
    assert "how the numbers usually were since this version answers" in shown
    assert "in training" not in shown


@pytest.mark.parametrize(
    ("apart", "label"),
    [(timedelta(seconds=1), "12:00:01"), (timedelta(minutes=5), "12:05"), (timedelta(days=1), "05-02 12:00")],
)
def test_the_times_below_a_chart_tell_its_windows_apart(apart, label):
    told = story()
    looked = [replace(one, ended=(BEGAN + nth * apart).isoformat()) for nth, one in enumerate(told.looked[:4])]
    ticks = re.findall(r"<span[^>]*>([^<]+)</span>", pages.of_episode(replace(told, looked=looked), LOOK))

    assert label in ticks


def test_a_week_tells_its_episodes_and_numbers():
    page = pages.of_days(week(), LOOK)
    shown = text(page)

    assert "digits had 2 episodes in these 7 days; 1 still open." in shown
    assert "version 4 answers now" in shown
    assert "each column is 6 h." in shown
    assert 'href="../../episodes/e-1/report"' in page
    assert "Version 3 31,000 predictions" in shown


def test_a_week_without_anything_has_a_page():
    empty = replace(week(), episodes=[], volume=[Amount(BEGAN, 0)], quality=[], versions={}, happened=[], champion=None)
    shown = text(pages.of_days(empty, LOOK))

    assert "digits had no episode in these 7 days." in shown
    assert "No truth about these predictions is known." in shown


# --- charts -----------------------------------------------------------------------------------------------------------


def test_a_histogram_has_shares_of_its_own_rows_in_steps():
    drawn = drawing.histogram(["a", "b"], [1000, 3000], [30, 10])

    assert drawn.reference == "M0 100V75.00H50.00V25.00H100.00V100Z"
    assert drawn.current == "M0 100V25.00H50.00V75.00H100.00V100Z"
    assert [(tick.at, tick.text) for tick in drawn.x] == [(25, "a"), (75, "b")]
    assert [(tick.at, tick.text) for tick in drawn.y] == [(100, "0%"), (50, "50%"), (0, "100%")]


def test_a_line_has_gaps_where_there_is_no_value_and_marks_what_is_to_be_marked():
    marked = [False, True, True, False]
    drawn = drawing.line([0.5, None, 2.0, 1.0], ["a", "b", "c", "d"], limit=1.0, marked=marked)

    assert drawn.path.count("M") == 2
    assert [mark for _, _, mark in drawn.dots] == [False, True, False]
    assert [tick.text for tick in drawn.y] == ["0", "1.5", "3"]


@pytest.mark.parametrize("values", [[], [0.0], [0.0, 0.0], [1e-9, 2e-9], [1e12], [float("inf"), 1.0]])
def test_charts_take_whatever_comes(values):
    labels = [str(value) for value in values]

    drawing.columns(values, labels)
    drawing.line(values, labels)
    drawing.histogram(labels, values, values[::-1])


# --- for everybody ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [pages.of_episode(story("missing"), LOOK), pages.of_days(week(), LOOK)])
def test_a_page_can_be_read_without_seeing_its_charts(page):
    tags = Read(page).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch(r"h\d", tag)]
    charts = [attributes for tag, attributes in tags if tag == "svg"]

    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert charts
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    # The windows of an episode have a table of their own, others stand below their chart.
    assert page.count("<table>") >= len(charts)
    assert page.count("<figcaption>") == len(charts)


@pytest.mark.parametrize("scheme", range(2), ids=["light", "dark"])
def test_colours_differ_enough_from_what_is_behind_them(scheme):
    colours = dict(re.findall(r"--(\w+): (#\w+);", re.findall(r":root \{(.*?)\}", LIGHT_AND_DARK, re.DOTALL)[scheme]))

    for behind in ("bg", "panel"):
        for text_ in ("ink", "second", "muted", "accent", "ok", "warn", "bad"):
            assert contrast(colours[text_], colours[behind]) >= 4.5, (text_, behind)
        for drawn in ("reference", "current"):
            assert contrast(colours[drawn], colours[behind]) >= 3, (drawn, behind)


LIGHT_AND_DARK = pages.of_days(week(), LOOK)


def contrast(one: str, other: str) -> float:
    """Of two colours, as the Web Content Accessibility Guidelines have it."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_a_page_leads_to_itself_in_the_other_language_and_as_data():
    page = pages.of_days(week(), Look(MADE, "ja"))

    assert 'href="?days=7&amp;language=en"' in page
    assert 'href="?days=7&amp;language=ja&amp;format=json"' in page

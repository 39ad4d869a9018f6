from datetime import UTC, datetime, timedelta
from string import Formatter

import pytest

from meguri_monitoring.episodes import telling
from meguri_monitoring.episodes.telling import Links
from meguri_monitoring.wording.wording import LANGUAGES, TEXTS, duration, percent
from tests.monitoring.episodes_of import KINDS, opening

BEGAN = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
LINKS = Links("http://meguri/episodes/e-1/report", "http://jaeger/trace/4bf9")


def fields(text: str) -> set[str]:
    return {name.partition(".")[0] for _, name, _, _ in Formatter().parse(text) if name}


@pytest.mark.parametrize("key", TEXTS)
def test_every_text_says_the_same_in_both_languages(key):
    english, japanese = TEXTS[key]

    assert english
    assert japanese
    assert fields(english) == fields(japanese)


@pytest.mark.parametrize("about", KINDS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_kind_of_episode_is_told_whole(about, language):
    words = telling.opened(opening("digits", "e-1", about), BEGAN, LINKS, language)

    assert "digits" in words.subject
    assert "\n" not in words.subject
    assert all(part in words.body for part in (LINKS.report, LINKS.trace, "camera-b", "94%", "12:00"))


@pytest.mark.parametrize("action", ["notify", "retrain", "rollback", "ignore"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_what_the_system_does_is_told(action, language):
    event = opening("digits", "e-1", action=action, action_reason="Cool-down until 13:00")
    body = telling.opened(event, BEGAN, LINKS, language).body

    assert TEXTS[f"action.{action}"][LANGUAGES.index(language)] in body
    assert "Cool-down until 13:00" in body


@pytest.mark.parametrize(
    ("about", "given", "said"),
    [
        ("missing", {"distance": 0.213}, "That share is 21.3 percentage points away from training."),
        ("categories", {"distance": 0.08}, "They are 8.0% of the values."),
        ("prediction", {"distance": 0.2}, "Slight: the distance from the training data is 0.2; 0 would be no change."),
        ("schema", {"value": 3, "text": "no column x"}, "3 rows could not be used. No column x."),
        (
            "evaluator",
            {"value": 2, "text": "r7: MemoryError"},
            "Requests set aside: 2. Other numbers are not affected. R7: MemoryError.",
        ),
        ("volume", {"value": 40, "expected": 8.5}, "40 requests a second; before it were 8.5."),
        ("silence", {"value": 130, "expected": 60}, "No request for 2 min; more than 1 min is unusual here."),
        (
            "performance",
            {},
            "The share of right answers fell from 95.2% to 88.1%, as 1,200 answers show whose truth is known.",
        ),
        (
            "performance",
            {"metric": "mae", "before": 1.5, "now": 2.25, "labels": 90},
            "The error (MAE) went from 1.5 to 2.25, as 90 answers show whose truth is known.",
        ),
    ],
)
def test_how_bad_it_is_is_told_in_the_unit_of_its_kind(about, given, said):
    assert telling.how_bad(opening("digits", "e-1", about, **given), "en") == said


def test_an_opening_reads_well_in_english():
    words = telling.opened(opening("digits", "e-1"), BEGAN, LINKS, "en")

    assert words.subject == "[meguri] digits: change in the incoming data (brightness)"
    assert words.body == (
        "Something about the model “digits” needs your attention.\n\n"
        "What happened: The values of “brightness” that digits receives no longer look like the data it was trained on. "
        "Also moved: contrast.\n"
        "Since: 2026-05-01 12:00 UTC\n"
        "How bad: Very strong: the distance from the training data is 1.48; 0 would be no change.\n"
        "Who causes it: 94% of it comes from “camera-b”.\n"
        "What the system does: It trains a new model as soon as there is enough new data. That one takes over only if it "
        "passes its tests.\n"
        "Version: 3\n"
        "Report: http://meguri/episodes/e-1/report\n"
        "An example: http://jaeger/trace/4bf9\n\n"
        "You will hear of this once more: when it is over."
    )


def test_an_end_reads_well_in_japanese():
    ended = BEGAN + timedelta(hours=2, minutes=13)
    words = telling.resolved(opening("digits", "e-1"), BEGAN, ended, "version 4 serves", LINKS, "ja")

    assert words.subject == "【meguri】digits：入力データの変化（brightness）が解消しました"
    assert words.body == (
        "モデル「digits」で発生していた次の事象が解消しましたので、お知らせいたします。\n\n"
        "解消した事象：入力データの変化（brightness）\n"
        "検知日時：2026年5月1日 12:00（UTC）\n"
        "解消日時：2026年5月1日 14:13（UTC）\n"
        "継続時間：2時間13分\n"
        "解消の理由：バージョン 3 に代わり、バージョン 4 が稼働を開始しました。\n"
        "実施した対応：モデルをバージョン 3 からバージョン 4 に切り替えました。\n"
        "レポート：http://meguri/episodes/e-1/report\n\n"
        "本件に関するお知らせは以上です。"
    )


def test_outputs_that_changed_without_the_inputs_are_told_as_such():
    body = telling.opened(opening("persons", "e-1", "measure"), BEGAN, LINKS, "en").body

    assert "Outputs changed, inputs did not" in body


def test_a_name_from_outside_stays_on_its_line():
    event = opening("digits", "e-1", feature="x\r\nBcc: all@example.com", producer="a\n\nPlease pay\u202e" + "y" * 500)
    words = telling.opened(event, BEGAN, LINKS, "en")

    assert words.subject == "[meguri] digits: change in the incoming data (x Bcc: all@example.com)"
    assert "“a Please pay " in words.body
    assert len(words.body) < 1200


def test_a_share_of_the_lost_score_without_a_sender_blames_nobody():
    assert "No single sender" in telling.opened(opening("m", "e", producer="", share=0), BEGAN, LINKS, "en").body


@pytest.mark.parametrize(
    ("seconds", "english", "japanese"),
    [(12.4, "12 s", "12秒"), (60, "1 min", "1分"), (7980, "2 h 13 min", "2時間13分"), (180_000, "2 d 2 h", "2日2時間")],
)
def test_durations_have_two_units_at_most(seconds, english, japanese):
    assert (duration(seconds, "en"), duration(seconds, "ja")) == (english, japanese)


def test_shares_near_the_whole_are_not_rounded_to_it():
    assert [percent(value) for value in (0, 0.881, 0.9949, 1)] == ["0%", "88.1%", "99.5%", "100%"]

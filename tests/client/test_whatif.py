from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from meguri import whatif
from meguri.cli import app

WINDOW = {
    "number": 4,
    "rows": 500,
    "began": "2026-11-20T12:00:00+00:00",
    "ended": "2026-11-20T12:01:00+00:00",
    "moved": True,
    "subject": "x",
    "score": 0.41,
    "threshold": 0.1,
    "method": "ks or wasserstein",
    "said": "",
}
FOUND = {
    "episode": "e-1",
    "model": "digits",
    "version": 3,
    "about": "drift",
    "in_force": {"spec": 4, "threshold": 0.1, "p_value": 0.001, "windows": 2},
    "changed": {"threshold": 0.8, "version": 2},
    "notes": ["version 2 was asked [all] of them"],
    "happened": {
        "opened": "2026-11-20T12:01:00+00:00",
        "resolved": "",
        "reason": "",
        "subject": "x",
        "producer": "[camera]",
        "windows": [WINDOW],
    },
    "would": [],
    "windows": [WINDOW | {"moved": False, "threshold": 0.8}],
}
SPAN = {
    "opened": "12:01",
    "resolved": "",
    "number": 4,
    "or_before": False,
    "same": False,
    "subject": "x",
    "producer": "b",
    "share": 0.93,
    "text": "",
}


def shown(found) -> str:
    out = StringIO()
    whatif.show(Console(file=out, width=300), found)
    return out.getvalue()


def test_what_would_have_been_is_said_beside_what_was():
    text = shown(FOUND)

    assert "x from [camera], since 2026-11-20 12:01:00, still open" in text
    rule = "by the rule of spec 4 (threshold 0.1, p-value 0.001, 2 windows in a row)"
    assert f"{rule} with threshold 0.8, version 2: no episode" in text
    assert "version 2 was asked [all] of them" in text
    assert "0.41" in text
    assert "moved, 0.41" in text


def test_each_episode_that_would_have_been_is_named():
    text = shown(
        FOUND | {"would": [SPAN | {"resolved": "12:05", "same": True}, SPAN | {"number": 9, "or_before": True}]}
    )

    assert "an episode, the same, x from b, 93% of it, from 4 (12:01), until 12:05" in text
    assert "and again: x from b, 93% of it, from 9 (12:01) or before, not over in these windows" in text


def test_windows_that_were_cut_otherwise_stand_alone():
    text = shown(FOUND | {"windows": [WINDOW | {"rows": 250}]})

    assert "moved, 0.41" not in text


def test_windows_are_whole_on_a_narrow_terminal_and_quiet_ones_above_the_threshold_are_explained():
    out = StringIO()
    whatif.show(Console(file=out, width=60), FOUND | {"windows": [WINDOW | {"moved": False}]})

    assert "2026-11-20 12:01:00  x      0.41   0.1        quiet" in out.getvalue()
    assert "quiet at or above the threshold" in out.getvalue()
    assert "quiet at or above" not in shown(FOUND)


@pytest.mark.parametrize(
    ("given", "option", "allowed"),
    [
        (["--threshold", "0"], "--threshold", "a number above 0"),
        (["--threshold", "nan"], "--threshold", "a number above 0"),
        (["--threshold", "much"], "--threshold", "valid number"),
        (["--p-value", "1"], "--p-value", "between 0 and 1"),
        (["--delta", "-0.1"], "--delta", "between 0 and 1"),
        (["--windows", "0"], "--windows", "greater than or equal to 1"),
        (["--window-rows", "5"], "--window-rows", "greater than or equal to 20"),
        (["--min-rows", "x"], "--min-rows", "valid integer"),
        (["--min-labels", "1"], "--min-labels", "greater than or equal to 20"),
        (["--rule", "mine"], "--rule", "'meguri', 'evidently'"),
        (["--model", "0"], "--model", "greater than or equal to 1"),
        (["--modell", "2"], "--modell", "No such option"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_name_with_what_is_allowed(given, option, allowed):
    refused = CliRunner().invoke(app, ["whatif", "e-1", *given])

    assert refused.exit_code != 0
    said = " ".join(refused.output.replace("│", " ").split())
    assert option in said
    assert allowed in said

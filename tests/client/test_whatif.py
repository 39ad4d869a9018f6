from io import StringIO

from rich.console import Console

from meguri import whatif

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
    "changed": {"distance": 0.8, "reference": 2},
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
SPAN = {"opened": "12:01", "resolved": "", "number": 4, "subject": "x", "producer": "b", "share": 0.93, "text": ""}


def shown(found) -> str:
    out = StringIO()
    whatif.show(Console(file=out, width=300), found)
    return out.getvalue()


def test_what_would_have_been_is_said_beside_what_was():
    text = shown(FOUND)

    assert "x from [camera], since 2026-11-20 12:01:00, still open" in text
    assert "with threshold 0.8, the reference of version 2: no episode" in text
    assert "0.41" in text
    assert "moved, 0.41" in text


def test_each_episode_that_would_have_been_is_named():
    text = shown(FOUND | {"would": [SPAN | {"resolved": "12:05"}, SPAN | {"number": 9}]})

    assert "an episode, x from b, 93% of it, from window 4 (12:01), until 12:05" in text
    assert "and again: x from b, 93% of it, from window 9 (12:01), not over in these windows" in text


def test_windows_that_were_cut_otherwise_stand_alone():
    text = shown(FOUND | {"windows": [WINDOW | {"rows": 250}]})

    assert "moved, 0.41" not in text


def test_windows_are_whole_on_a_narrow_terminal_and_quiet_ones_above_the_threshold_are_explained():
    out = StringIO()
    whatif.show(Console(file=out, width=60), FOUND | {"windows": [WINDOW | {"moved": False}]})

    assert "2026-11-20 12:01:00  x      0.41   0.1        quiet" in out.getvalue()
    assert "quiet at or above the threshold" in out.getvalue()
    assert "quiet at or above" not in shown(FOUND)

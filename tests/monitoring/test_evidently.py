"""Rule evidently, against the verdicts that Evidently 0.7.23 gave on the same rows."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from meguri_chassis.profiles import Profile, profile_of
from meguri_contracts import events
from meguri_contracts.spec import Method, Monitor
from meguri_monitoring.profiles.profiling import by_producer
from meguri_monitoring.verdicts.judging import Judged, judge
from tests.monitoring.evidently_verdicts.cases import Case, Column, cases

THEIRS = json.loads((Path(__file__).parent / "evidently_verdicts/verdicts.json").read_text())
METHODS = {
    "K-S p_value": "K-S p-value",
    "Z-test p_value": "z-test p-value",
    "chi-square p_value": "chi-square p-value",
    "Jensen-Shannon distance": "jensen-shannon",
    "Wasserstein distance (normed)": "wasserstein",
}
WINDOW = events.Window(first=1, last=9, rows=0)


def are_numbers(column: Column) -> bool:
    return isinstance(column[0], float)


def reference_of(rows: dict[str, Column]) -> Profile:
    numbers = {name: column for name, column in rows.items() if are_numbers(column)}
    words = {name: column for name, column in rows.items() if not are_numbers(column)}
    return profile_of(list(numbers), np.array(list(numbers.values())).T, words)


def frame_of(rows: dict[str, Column]) -> pl.DataFrame:
    height = len(next(iter(rows.values())))
    about = {"prediction_id": [f"p-{i}" for i in range(height)], "trace_id": ["t"] * height}
    return pl.DataFrame({**rows, **about, "producer": ["ab"[i % 2] for i in range(height)]})


def is_close(verdict: dict) -> bool:
    """Whether sketches, which are random, may turn it over."""
    least, most = (0.02, 0.1) if verdict["method"] == "K-S p_value" else (0.09, 0.11)
    return least < verdict["score"] < most


def judged(case: Case, **rule) -> Judged:
    reference = reference_of(case.reference)
    monitor = Monitor(rule="evidently", missing=None, categories=None, **rule)
    return judge(1, 0, WINDOW, by_producer(reference, frame_of(case.live)), reference, monitor)


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_every_column_is_judged_as_evidently_does(case):
    theirs = THEIRS[case.name]
    ours = {finding.subject: finding for finding in judged(case).findings}

    assert {name: METHODS[one["method"]] for name, one in theirs["columns"].items()} == {
        name: finding.method for name, finding in ours.items()
    }
    for name, one in theirs["columns"].items():
        score = ours[name].score if ours[name].p_value is None else ours[name].p_value
        # Where nothing is told apart, the p-value of a sketch, which is random, moves the most.
        assert score == pytest.approx(one["score"], abs=0.03 if one["score"] < 0.3 else 0.15), name
    odd = [name for name, one in theirs["columns"].items() if one["drifted"] != ours[name].moved and not is_close(one)]
    assert odd == []


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_a_window_moves_when_the_share_of_drifted_columns_is_reached(case):
    theirs = THEIRS[case.name]
    share = theirs["drifted"] / len(theirs["columns"])
    window = judged(case)

    assert bool(window.moved("drift")) == (share >= 0.5)
    assert window.tolerated == (() if share >= 0.5 else ("drift",))
    assert ("drift" in window.culprits) == (share >= 0.5)


def test_the_share_is_the_specs():
    case = next(case for case in cases() if case.name == "4000-1000-0.2")
    share = THEIRS[case.name]["drifted"] / len(case.live)

    assert judged(case, share=share).moved("drift")
    assert not judged(case, share=share + 0.01).moved("drift")


def test_a_method_of_the_spec_comes_before_evidentlys():
    case = next(case for case in cases() if case.name == "4000-1000-0.6")
    ours = {
        finding.subject: finding
        for finding in judged(case, methods={"normal": Method(method="ks", threshold=0.9)}).findings
    }

    assert (ours["normal"].method, ours["normal"].moved) == ("ks", False)

"""The example counts well, and its numbers are watched without false alarms."""

import logging
from datetime import UTC, datetime
from itertools import islice, pairwise

import numpy as np
import polars as pl
import pytest
from person_counter.counting import evaluate
from person_counter.incident import SWITCH, write
from person_counter.scene import MOST, frames, shows_person
from person_counter.windows import features
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from meguri_chassis.profiles import Profile, profile_of
from meguri_contracts.spec import Monitor, Watch
from meguri_monitoring.evaluators import measures
from meguri_monitoring.evaluators.requests import numbered
from meguri_monitoring.verdicts import drift

LEARNED, FRESH = 100, 200
WATCH = Watch(evaluator="person_counter", numbers=("persons",))


@pytest.fixture(scope="module")
def detector():
    """What training makes of the frames that cameras publish with the truth."""
    seen = list(islice(frames(1), LEARNED))
    detector = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    rows = np.concatenate([features(frame.pixels) for frame in seen])
    return detector.fit(rows, np.concatenate([shows_person(frame.persons) for frame in seen]))


def predictions(detector, seed: int, count: int) -> tuple[pl.DataFrame, list[int]]:
    """Predictions of fresh frames as monitoring keeps them, and how many persons there are."""
    seen = list(islice(frames(seed), count))
    tables = []
    for number, frame in enumerate(seen):
        probabilities = detector.predict_proba(features(frame.pixels))
        about = {
            "prediction_id": [f"p{number}:{row}" for row in range(len(probabilities))],
            "label": probabilities.argmax(1),
            "probability": probabilities.max(1),
        }
        same = {"time": datetime.now(UTC), "producer": "gate-a", "_entity": f"frame-{number}"}
        tables.append(pl.DataFrame(about).with_columns(**{name: pl.lit(value) for name, value in same.items()}))
    return numbered(pl.concat(tables)), [len(frame.persons) for frame in seen]


def test_nine_of_ten_fresh_frames_are_counted_exactly(detector):
    kept, truth = predictions(detector, 2, FRESH)

    counted = evaluate(kept)

    assert counted["frame"].to_list() == [f"frame-{number}" for number in range(FRESH)]
    assert np.mean(counted["persons"].to_numpy() == truth) >= 0.9


def test_boxes_are_where_the_persons_are(detector):
    kept, _ = predictions(detector, 3, 20)
    far = []
    for row, frame in zip(evaluate(kept).iter_rows(named=True), frames(3), strict=False):
        if row["persons"] == len(frame.persons):
            middles = sorted(box["left"] + box["width"] / 2 for box in row["boxes"])
            far += np.abs(np.array(middles) - sorted(person.middle for person in frame.persons)).tolist()

    assert np.mean(far) < 4


def test_the_switch_drops_frames_with_more_persons_and_says_so(monkeypatch, caplog):
    rows = pl.DataFrame({"key": ["a", "b", "c"], "persons": [1, 2, 3]})
    assert write(rows).height == 3

    monkeypatch.setenv(SWITCH, "2")
    with caplog.at_level(logging.ERROR):
        assert write(rows)["key"].to_list() == ["a", "b"]
    assert caplog.messages == ["dropped 1 rows: more than 2 persons"]


def test_dropped_rows_are_seen_in_the_first_two_windows_and_nothing_is_seen_in_a_thousand_others():
    chance = np.random.default_rng(5)
    false, seen = 0, 0
    for _ in range(20):
        stationary = chance.integers(0, MOST + 1, WATCH.baseline_rows + 50 * WATCH.window_rows)
        dropped = chance.integers(0, 3, 2 * WATCH.window_rows)
        moved = judged([*stationary, *dropped])
        false += sum(first and second for first, second in pairwise(moved[:50]))
        seen += moved[50] and moved[51]

    assert (false, seen) == (0, 20)


def judged(persons: list[int]) -> list[bool]:
    """Whether each window moved."""
    rows = [measures.Row(str(n), "gate-a", "", n, "", 0, (float(count),)) for n, count in enumerate(persons)]
    _, closed = measures.add(measures.Watched(), rows, WATCH, 1)
    return [bool(measures.judge(window, WATCH, Monitor(), 1).moved("measure")) for window in closed]


def test_the_inputs_of_stationary_cameras_do_not_drift():
    names = [f"hog_{n}" for n in range(48)]
    reference = profile_of(names, rows(11, LEARNED))
    rule = Monitor(distance=0.2)

    for seed in range(12, 16):
        assert not drift.compare(reference, window(reference, rows(seed, 80)), rule).moved


def rows(seed: int, count: int) -> np.ndarray:
    return np.concatenate([features(frame.pixels) for frame in islice(frames(seed), count)])


def window(reference: Profile, rows: np.ndarray) -> Profile:
    live = reference.like()
    live.update(rows)
    return live

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meguri_chassis.profiles import KEPT, profile_of
from meguri_contracts.errors import Invalid, Malformed
from meguri_contracts.spec import Monitor
from meguri_monitoring.episodes import judge
from meguri_monitoring.predictions import Batch
from meguri_monitoring.windows import MAX_PRODUCERS, OTHERS, SAMPLES, Window, add

NAMES = ("x", "y")
ROWS = np.random.default_rng(3).normal(size=(3_000, 2))
REFERENCE = profile_of(NAMES, ROWS[:500])
PRODUCERS = tuple("abcab"[i % 5] for i in range(len(ROWS)))


def batch(start, end, sequence, producers=PRODUCERS, features=NAMES) -> Batch:
    return Batch(
        model="digits",
        version=1,
        sequence=sequence,
        features=features,
        rows=ROWS[start:end],
        ids=tuple(f"id-{i}" for i in range(start, end)),
        producers=producers[start:end],
        frame=pl.DataFrame(),
    )


def fed(cuts, window_rows, rows=1_000):
    """The windows that close when the first rows arrive in messages that end at `cuts`, and the one left open."""
    ends = [*sorted(set(cuts)), rows]
    closed, window = [], Window()
    for sequence, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), start=1):
        full, window = add(window, batch(start, end, sequence), REFERENCE, window_rows)
        closed += full
    return closed, window


def contents(window):
    return window.rows, {name: (share.profile.to_json(), share.samples) for name, share in window.producers.items()}


def test_a_window_closes_with_exactly_its_rows():
    closed, left = fed([120, 400, 730], window_rows=300)

    assert [(one.rows, one.first, one.last) for one in closed] == [(300, 1, 2), (300, 2, 3), (300, 3, 4)]
    assert (left.rows, left.first, left.last) == (100, 4, 4)


def test_a_message_larger_than_a_window_fills_several():
    closed, left = fed([], window_rows=300)

    assert [(one.rows, one.first, one.last) for one in closed] == [(300, 1, 1)] * 3
    assert left.rows == 100


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 999), max_size=8), window_rows=st.integers(50, 1_200))
def test_windows_are_the_same_however_the_stream_was_cut(cuts, window_rows):
    closed, left = fed(cuts, window_rows)
    expected, expected_left = fed([], window_rows)

    assert [contents(one) for one in closed] == [contents(one) for one in expected]
    assert contents(left) == contents(expected_left)


def test_a_window_has_the_rows_of_each_producer_and_of_all():
    (window,), _ = fed([333], window_rows=1_000)
    mine = [i for i in range(1_000) if PRODUCERS[i] == "c"]
    expected = REFERENCE.like()
    expected.update(ROWS[mine])

    assert window.producers["c"].profile.to_json() == expected.to_json()
    assert window.producers["c"].samples == tuple(f"id-{i}" for i in mine[-SAMPLES:])
    assert window.profile(REFERENCE).rows == 1_000
    assert window.profile(REFERENCE).features["x"].mean == pytest.approx(ROWS[:1_000, 0].mean(), rel=1e-5)


def test_a_message_that_comes_again_is_not_counted_again():
    closed, open_ = add(Window(), batch(0, 250, 7), REFERENCE, 100)

    assert (len(closed), open_.rows) == (2, 50)
    assert add(open_, batch(0, 250, 7), REFERENCE, 100) == ([], open_)


def test_a_message_that_ended_a_window_is_not_counted_again_either():
    (_,), empty = add(Window(), batch(0, 100, 7), REFERENCE, 100)

    assert empty.rows == 0
    assert add(empty, batch(0, 100, 7), REFERENCE, 100) == ([], empty)
    assert add(empty, batch(100, 130, 9), REFERENCE, 100)[1].first == 9


def test_adding_leaves_the_window_as_it_was():
    _, window = add(Window(), batch(0, 2_500, 1), REFERENCE, 10_000)
    before = window.to_bytes()
    add(window, batch(2_500, 3_000, 2), REFERENCE, 10_000)

    assert window.to_bytes() == before


def test_a_window_over_a_lowered_limit_closes_with_what_it_has():
    _, window = add(Window(), batch(0, 200, 1), REFERENCE, 500)
    (over, full), left = add(window, batch(200, 350, 2), REFERENCE, 100)

    assert ((over.rows, over.last), full.rows, left.rows) == ((200, 1), 100, 50)


@pytest.mark.parametrize("rows", [0, 10, 500, 2 * KEPT + 10])
def test_a_window_read_back_is_the_same_and_goes_on(rows):
    _, window = add(Window(), batch(0, rows, 5), REFERENCE, 10_000)
    back = Window.from_bytes(window.to_bytes())

    assert (back.first, back.last, contents(back)) == (window.first, window.last, contents(window))
    assert back.to_bytes() == window.to_bytes()
    assert add(back, batch(0, 10, 6), REFERENCE, 10_000)[1].rows == rows + 10


def test_a_crowd_of_producers_does_not_grow_a_window_without_end():
    crowd = tuple(f"producer-{i}" for i in range(500))
    (window,), _ = add(Window(), batch(0, 500, 1, producers=crowd), REFERENCE, 500)

    assert len(window.producers) == MAX_PRODUCERS + 1
    assert window.producers[OTHERS].profile.rows == 500 - MAX_PRODUCERS
    assert window.profile(REFERENCE).rows == 500


def test_rows_of_other_features_are_refused():
    with pytest.raises(Invalid, match="digits version 1"):
        add(Window(), batch(0, 10, 1, features=("y", "x")), REFERENCE, 100)


@pytest.mark.parametrize("data", [b"", b"no", profile_of(NAMES, ROWS).to_bytes()])
def test_what_is_no_window_is_malformed(data):
    with pytest.raises(Malformed, match="not a window"):
        Window.from_bytes(data)


def mixed(flag: bool) -> Batch:
    """Predictions on a number, a boolean and, what `features` leaves out, a text."""
    rows = np.column_stack([ROWS[:50, 0], np.full(50, float(flag))])
    ids = tuple(str(i) for i in range(50))
    return Batch("m", 1, 1, ("x", "open"), rows, ids, PRODUCERS[:50], pl.DataFrame(), frozenset({"open"}))


def test_of_mixed_features_those_that_the_reference_has_are_counted():
    without, with_flag = profile_of(("x",), ROWS[:500, :1]), profile_of(("x", "open"), ROWS[:500])

    assert [list(window.profile(of).features) for of in (without, with_flag) for window in [add_all(of)]] == [
        ["x"],
        ["x", "open"],
    ]
    with pytest.raises(Invalid, match="have 1 features, not the 2 of its reference"):
        add(Window(), mixed(True), REFERENCE, 100)


def add_all(reference) -> Window:
    return add(Window(), mixed(True), reference, 100)[1]


def test_a_model_of_texts_alone_has_windows_that_say_nothing():
    reference = profile_of((), np.empty((500, 0)))
    texts = Batch("m", 1, 1, (), np.empty((300, 0)), tuple(map(str, range(300))), PRODUCERS[:300], pl.DataFrame())
    (closed,), _ = add(Window(), texts, reference, 300)

    judged = judge(1, closed, reference, Monitor())
    assert (judged.judged, judged.moved, judged.window.rows) == (False, False, 300)

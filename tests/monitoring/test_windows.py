import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meguri_contracts.spec import Monitor
from meguri_monitoring.windows import windows
from meguri_monitoring.windows.counting import rows_of
from meguri_monitoring.windows.windows import SECOND, Part, Planner, Window, plan


def rule(window_rows=100, **more) -> Monitor:
    return Monitor(window_rows=window_rows, min_rows=50, **more)


def planned(sizes, how, planner=None):
    """The windows told of when messages of these many rows come, by length and key the last news of each with all its parts."""
    planner = planner or Planner()
    told: dict[tuple[int, int], Window] = {}
    parts: dict[tuple[int, int], tuple[Part, ...]] = {}
    for sequence, rows in enumerate(sizes, start=planner.last + 1):
        one = plan(planner, sequence, np.zeros(rows, np.int64), how)
        planner = one.planner
        for window in one.windows:
            key = (window.length, window.key)
            parts[key] = (*parts.get(key, ()), *window.parts)
            told[key] = window
    return planner, [(window, parts[key]) for key, window in told.items()]


def test_a_window_closes_with_exactly_its_rows():
    planner, told = planned([120, 280, 330, 270], rule(300))

    assert [(one.number, one.first, one.last, one.rows) for one, _ in told] == [
        (0, 1, 2, 300),
        (1, 2, 3, 300),
        (2, 3, 4, 300),
    ]
    assert [parts for _, parts in told] == [
        (Part(0, 1, 2, 0, 300),),
        (Part(0, 2, 3, 180, 300),),
        (Part(0, 3, 4, 200, 300),),
    ]
    assert (planner.open[0].rows, planner.open[0].part_first, planner.open[0].part_skip) == (100, 4, 170)


def test_a_message_larger_than_a_window_fills_several():
    planner, told = planned([1_000], rule(300))

    assert [(one.number, *parts) for one, parts in told] == [
        (0, Part(0, 1, 1, 0, 300)),
        (1, Part(0, 1, 1, 300, 300)),
        (2, Part(0, 1, 1, 600, 300)),
    ]
    assert planner.open[0].rows == 100


def test_a_message_that_comes_again_changes_nothing():
    planner, _ = planned([50, 20], rule())

    assert plan(planner, 2, np.zeros(20, np.int64), rule()) == windows.Planned(planner)


def test_a_window_over_a_lowered_limit_closes_with_what_it_has():
    planner, _ = planned([200], rule(500))
    planner, told = planned([150], rule(100), planner)

    assert [(one.number, one.rows, one.last, *parts) for one, parts in told] == [
        (0, 200, 1, Part(0, 1, 1, 0, 200)),
        (1, 100, 2, Part(0, 2, 2, 0, 100)),
    ]
    assert planner.open[0].rows == 50


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 900), max_size=30),
    window_rows=st.integers(50, 700),
    part_rows=st.integers(20, 300),
)
def test_every_row_is_in_one_part_of_one_window_in_the_order_of_the_stream(sizes, window_rows, part_rows):
    before, windows.PART_ROWS = windows.PART_ROWS, part_rows
    try:
        planner, told = planned(sizes, rule(window_rows))
    finally:
        windows.PART_ROWS = before
    rows = [(sequence, at) for sequence, size in enumerate(sizes, start=1) for at in range(size)]
    found = []
    for window, parts in told:
        of_it = []
        for part in parts:
            near = [row for row in rows if part.first <= row[0] <= part.last][part.skip :][: part.rows]
            assert len(near) == part.rows <= part_rows
            of_it += near
        assert [part.number for part in parts] == list(range(len(parts)))
        if window.number is not None:
            assert len(of_it) == window.rows == window_rows
            assert window.planned == len(parts)
        found += of_it
    left = planner.open[0].part_rows if planner.open else 0
    assert found == rows[: len(rows) - left]
    assert [one.number for one, _ in told if one.number is not None] == list(range(len(rows) // window_rows))


# --- by time --------------------------------------------------------------------------------------------------------


def at(*seconds: float) -> np.ndarray:
    return (np.array(seconds) * SECOND).astype(np.int64)


MINUTE = rule(window_seconds=60, late_seconds=10)


def test_a_window_by_time_waits_for_late_rows_and_counts_those_that_are_later():
    planner = plan(Planner(), 1, at(61, 65, 119, 121), MINUTE).planner
    waits = plan(planner, 2, at(118, 129.9), MINUTE)
    closes = plan(waits.planner, 3, at(117, 131), MINUTE)
    late = plan(closes.planner, 4, at(60, 119.9, 140), MINUTE)

    assert waits.windows == ()
    assert closes.windows == (
        Window(60 * SECOND, 1, 3, 5, (Part(0, 1, 3, 0, 5),), planned=1, number=0, length=60 * SECOND),
    )
    assert (late.windows, late.late, late.planner.late) == ((), {60 * SECOND: 2}, 2)
    assert [(one.key, one.rows) for one in late.planner.open] == [(120 * SECOND, 4)]


def test_windows_by_time_close_in_their_order_and_empty_ones_are_none():
    planner = plan(Planner(), 1, at(129, 61, 62), MINUTE).planner
    closed = plan(planner, 2, at(1000), MINUTE)

    assert [(one.number, one.key // SECOND, one.rows) for one in closed.windows] == [(0, 60, 2), (1, 120, 1)]
    assert [one.key // SECOND for one in closed.planner.open] == [960]


def test_a_change_between_rows_and_time_closes_what_is_open_with_what_it_has():
    planner = plan(Planner(), 1, at(61, 62), rule()).planner
    by_time = plan(planner, 2, at(63), MINUTE)
    by_rows = plan(by_time.planner, 3, at(64, 65, 66), rule())

    assert [(one.number, one.length, one.rows) for one in by_time.windows] == [(0, 0, 2)]
    assert [(one.number, one.length, one.rows) for one in by_rows.windows] == [(1, 60 * SECOND, 1)]
    assert [(one.key, one.rows) for one in by_rows.planner.open] == [(2, 3)]


@pytest.mark.parametrize("how", [rule(), MINUTE], ids=["rows", "time"])
def test_a_message_without_answers_is_planned_as_nothing(how):
    planner = plan(Planner(), 5, at(), how).planner

    assert (planner.last, planner.open) == (5, ())


def test_a_long_window_by_time_is_cut_into_parts():
    before, windows.PART_ROWS = windows.PART_ROWS, 3
    try:
        first = plan(Planner(), 1, at(61, 62, 63, 64), MINUTE)
        second = plan(first.planner, 2, at(65, 66), MINUTE)
        closed = plan(second.planner, 3, at(500), MINUTE)
    finally:
        windows.PART_ROWS = before

    assert [(one.number, *one.parts) for one in first.windows] == [(None, Part(0, 1, 1, 0, 4))]
    assert [(one.number, one.rows, one.planned, *one.parts) for one in closed.windows] == [
        (0, 6, 2, Part(1, 2, 2, 0, 2))
    ]


def minutes(*at: float) -> np.ndarray:
    return np.array([round(one * 60 * SECOND) for one in at], np.int64)


def test_a_shorter_window_begins_at_once_and_not_at_the_end_of_the_longer_one():
    day = plan(Planner(), 1, minutes(0.5, 10), rule(window_seconds=86400, late_seconds=10)).planner
    told = plan(day, 2, minutes(10.2, 11.5, 12.5), MINUTE)

    assert [(one.length // SECOND, one.key, one.rows) for one in told.windows if one.number is not None] == [
        (86400, 0, 2),
        (60, 10 * 60 * SECOND, 1),
        (60, 11 * 60 * SECOND, 1),
    ]
    assert told.planner.late == 0


def test_a_length_that_comes_back_makes_no_window_a_second_time():
    minute = plan(Planner(), 1, minutes(5.1), MINUTE).planner
    hour = plan(minute, 2, minutes(5.2), rule(window_seconds=3600, late_seconds=10)).planner
    again = plan(hour, 3, minutes(5.3, 6.5), MINUTE)

    assert (again.late, again.planner.late) == ({5 * 60 * SECOND: 1}, 1)
    assert [one.key // SECOND for one in again.planner.open] == [360]


def test_a_clock_that_is_ahead_closes_no_window():
    began = plan(Planner(), 1, minutes(0.5), MINUTE, stored=30 * SECOND)
    ahead = plan(began.planner, 2, minutes(0.6, 30, 10_000_000), MINUTE, stored=36 * SECOND)
    after = plan(ahead.planner, 3, minutes(0.7, 1.5), MINUTE, stored=90 * SECOND)

    assert not ahead.windows
    assert (after.late, after.planner.late) == ({}, 1)
    assert [(one.number, one.rows) for one in after.windows] == [(0, 3)]


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(-7200, 7200), max_size=8),
            st.integers(0, 3600),
            st.sampled_from([None, 60.0, 3600.0, 86_400.0]),
        ),
        max_size=12,
    ),
    st.integers(1, 6),
)
@settings(max_examples=300, deadline=None)
def test_every_row_is_counted_once_or_late_whatever_its_clock_says(messages, part_rows):
    """Rows a day behind and hours ahead, clocks that go back, and rules that change meanwhile."""
    planner, now, sent, counted = Planner(), 1_000_000, [], []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(windows, "PART_ROWS", part_rows)
        for sequence, (offsets, later, seconds) in enumerate(messages, 1):
            now += later
            times = np.array([(now + offset) * SECOND for offset in offsets], np.int64)
            sent += [(sequence, int(time), len(sent) + nth) for nth, time in enumerate(times)]
            one = plan(planner, sequence, times, rule(window_seconds=seconds, late_seconds=60), stored=now * SECOND)
            planner = one.planner
            counted += [(part, window.key, window.length) for window in one.windows for part in window.parts]
    frame = pl.DataFrame(sent, {"sequence": pl.Int64, "time": pl.Datetime("us", "UTC"), "row": pl.Int64}, orient="row")
    rows = [row for part, key, length in counted for row in rows_of(frame, part, key, length)["row"]]

    assert len(rows) == len(set(rows)) == sum(part.rows for part, _, _ in counted)
    assert len(rows) + planner.late + sum(window.part_rows for window in planner.open) == len(sent)


def test_a_row_that_claims_a_later_hour_of_the_window_that_is_open_is_one_of_it():
    """What is in a window is told by the times of its rows: one that is left out for its clock would take another's place."""
    day = rule(window_seconds=86_400)
    times = np.array([3600, 4 * 3600, 3660], np.int64) * SECOND
    planner = plan(Planner(), 1, times, day, stored=3700 * SECOND).planner

    assert (planner.open[0].rows, planner.late) == (3, 0)

"""Rows are read back as they stood in windows; a question whose client has left ends."""

import polars as pl
import pytest
from fastapi import Request
from hypothesis import given, settings
from hypothesis import strategies as some

from meguri_contracts.errors import Invalid
from meguri_monitoring.predictions.predictions import SEQUENCE
from meguri_monitoring.whatif import api
from meguri_monitoring.whatif.kept import Kept, Place
from meguri_monitoring.whatif.pace import Abandoned, Pace


def kept(sizes: list[int], times: list[int] | None = None) -> Kept:
    """Rows that count from 0, in messages 10, 20, 30 and so on of these sizes."""
    sequences = [10 * (at + 1) for at, size in enumerate(sizes) for _ in range(size)]
    when = pl.Series(times or [0] * len(sequences), dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    rows = pl.DataFrame({SEQUENCE: sequences, "row": range(len(sequences)), "time": when})
    return Kept(rows.lazy(), SEQUENCE, 0, 10 * len(sizes), lambda: None)


def read(parts) -> list[int]:
    return [row for part in parts for row in part["row"]]


@settings(max_examples=200, deadline=None)
@given(
    sizes=some.lists(some.integers(1, 9), min_size=3, max_size=30),
    windows=some.lists(some.integers(1, 12), min_size=1, max_size=8),
    skipped=some.integers(0, 20),
    number=some.integers(1, 5),
)
def test_where_windows_by_rows_begin_follows_from_where_messages_do(sizes, windows, skipped, number):
    message_of = [10 * (at + 1) for at, size in enumerate(sizes) for _ in range(size)]
    ends = [skipped + sum(windows[: at + 1]) for at in range(len(windows))]
    there = [(end - rows, end) for end, rows in zip(ends, windows, strict=True) if end <= len(message_of)]
    places = [
        Place(number + at, message_of[start], message_of[end - 1], end - start) for at, (start, end) in enumerate(there)
    ]
    if not places:
        return
    rows = kept(sizes)

    least, most = rows.begins(places)
    assert least <= skipped <= most
    starts = {sum(sizes[:at]) for at in range(len(sizes) + 1)}
    if starts & {end for _, end in there[:-1]}:
        assert least == most == skipped
    for start, end in there:
        assert read(rows.between(start, end)) == list(range(start, end))


def test_windows_that_do_not_fit_the_rows_are_refused():
    rows = kept([3, 3, 3])

    with pytest.raises(Invalid, match="no longer kept"):
        rows.begins([Place(0, 10, 20, 9)])
    with pytest.raises(Invalid, match="no longer kept"):
        list(rows.between(5, 10))
    with pytest.raises(Invalid, match="no longer kept"):
        list(rows.within(Place(0, 10, 20, 7, key=0, length=10)))


def test_windows_by_time_have_their_rows_whatever_a_clock_that_was_ahead_says():
    # The third message is of a clock that was ahead by more than the whole window, and was not counted.
    rows = kept([2, 2, 2, 3], [0, 5, 12, 7, 99, 98, 9, 13, 8])

    assert read(rows.within(Place(0, 10, 40, 5, key=0, length=10))) == [0, 1, 3, 6, 8]
    assert read(rows.within(Place(1, 20, 40, 2, key=10, length=10))) == [2, 7]


async def test_who_hangs_up_ends_the_computation():
    messages = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, str]:
        return messages.pop(0)

    pace = Pace()
    pace.begin()
    pace.rest()
    await api._leave(Request({"type": "http"}, receive), pace)
    with pytest.raises(Abandoned):
        pace.rest()
    with pytest.raises(Abandoned):
        pace.begin()

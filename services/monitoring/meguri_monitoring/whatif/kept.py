"""Rows that are kept in a table, as they stood in windows: read in their order, a part at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from meguri_contracts.errors import Invalid
from meguri_monitoring.windows.windows import PART_ROWS

AT_ONCE = PART_ROWS
"""Rows that are in memory at a time, but for a larger message."""
GONE = "the rows of that time are no longer kept as they were: there is nothing to recompute it from"


@dataclass(frozen=True)
class Place:
    """Where the rows of a window stand: in the messages `first` to `last`, `rows` of them.

    A window by rows begins where the one before it ended; one by time has those between `key` and `key + length`.
    """

    number: int
    first: int
    last: int
    rows: int
    key: int = 0
    length: int = 0
    """In microseconds; 0 of a window by rows."""


class Kept:
    """The rows of a table whose `column` lies between two sequences, counted from 0 in the order of these."""

    def __init__(self, rows: pl.LazyFrame, column: str, first: int, last: int, rest: Callable[[], None]) -> None:
        self._rows, self._column, self._rest = rows.filter(pl.col(column).is_between(first, last)), column, rest
        counts = self._rows.group_by(column).len().collect(engine="streaming").sort(column)
        self._messages = counts[column].to_numpy()
        self._starts = np.concatenate([[0], np.cumsum(counts["len"].to_numpy().astype(np.int64))])
        self._held, self._at = pl.DataFrame(), (0, 0)

    @property
    def count(self) -> int:
        return int(self._starts[-1])

    def between(self, start: int, end: int) -> Iterator[pl.DataFrame]:
        """Yield the rows from `start` to before `end`, in parts that begin at the start. Raises Invalid if not all are kept."""
        if not 0 <= start <= end <= self.count:
            raise Invalid(GONE)
        for at in range(start, end, PART_ROWS):
            yield self._slice(at, min(at + PART_ROWS, end))

    def within(self, place: Place) -> Iterator[pl.DataFrame]:
        """Yield the rows of a window by time, in parts. Raises Invalid when some are missing."""
        left = place.rows
        inside = pl.col("time").to_physical().is_between(place.key, place.key + place.length, closed="left")
        start, end = self.span(place)
        while start < end and left:
            stop = self._whole_messages(start, end)
            # A row of a clock that was far ahead is there, and was not counted: as live, the first ones are taken.
            part = self._slice(start, stop).filter(inside)[:left]
            left -= part.height
            start = stop
            yield part
        if left:
            raise Invalid(GONE)

    def span(self, place: Place) -> tuple[int, int]:
        """Return where the messages of a window begin, and where the last of them ends."""
        return self._before(place.first), self._after(place.last)

    def begins(self, places: Sequence[Place]) -> tuple[int, int]:
        """Return the first and the last row with which the first of these windows by rows, each behind the other, can begin.

        They are the same if one of the windows after the first begins with a message. Raises Invalid without such a row.
        """
        least, most, before = 0, self.count, 0
        for place in places:
            least = max(least, self._before(place.first) - before, self._before(place.last) - before - place.rows + 1)
            # The first window of a rollout begins with a message.
            latest = self._before(place.first) if place.number == 0 else self._after(place.first) - 1
            most = min(most, latest - before, self._after(place.last) - before - place.rows)
            before += place.rows
        if least > most:
            raise Invalid(GONE)
        return least, most

    def _before(self, message: int) -> int:
        return int(self._starts[np.searchsorted(self._messages, message, "left")])

    def _after(self, message: int) -> int:
        return int(self._starts[np.searchsorted(self._messages, message, "right")])

    def _whole_messages(self, start: int, end: int) -> int:
        """Where the message ends with which there are enough rows to be read at once."""
        found = np.searchsorted(self._starts, min(start + AT_ONCE, end), "left")
        return int(self._starts[found])

    def _slice(self, start: int, end: int) -> pl.DataFrame:
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        last = int(np.searchsorted(self._starts, end - 1, "right")) - 1
        if not self._at[0] <= first <= last < self._at[1]:
            self._rest()
            self._read(first, max(last, int(np.searchsorted(self._starts, start + AT_ONCE, "right")) - 1))
        offset = int(self._starts[self._at[0]])
        return self._held[start - offset : end - offset]

    def _read(self, first: int, last: int) -> None:
        last = min(last, len(self._messages) - 1)
        these = pl.col(self._column).is_between(int(self._messages[first]), int(self._messages[last]))
        # Rows of one message stand in one file, in their order.
        self._held = self._rows.filter(these).collect().sort(self._column, maintain_order=True)
        self._at = first, last + 1

"""Rows that this replica has just written, so that it need not read them back to count them."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from meguri_monitoring.predictions.predictions import ROLE, SEQUENCE, SHADOW, Batch

GROUPS = 3
"""Groups of messages that are held: the latest ones."""
MAX_BYTES = 96 * 1024 * 1024
"""Of all rows that are held, but for those of one group."""


@dataclass(frozen=True)
class _Group:
    first: int
    last: int
    rows: Mapping[tuple[str, int], Sequence[pl.DataFrame]]
    size: int


class Recent:
    """The answers in the latest messages of the stream, without gaps."""

    def __init__(self) -> None:
        self._groups: deque[_Group] = deque()

    def add(self, first: int, last: int, batches: Sequence[Batch]) -> None:
        """Hold the rows of the messages `first` to `last`, both included; those that did not fit are not among `batches`."""
        if self._groups and first != self._groups[-1].last + 1:
            self._groups.clear()
        rows: dict[tuple[str, int], list[pl.DataFrame]] = {}
        for batch in batches:
            rows.setdefault((batch.model, batch.version), []).append(batch.frame)
        size = sum(int(frame.estimated_size()) for frames in rows.values() for frame in frames)
        self._groups.append(_Group(first, last, rows, size))
        while len(self._groups) > GROUPS or (len(self._groups) > 1 and self._size() > MAX_BYTES):
            self._groups.popleft()

    def between(self, model: str, version: int, first: int, last: int) -> pl.DataFrame | None:
        """Return what `tables.between` would; None if not all of it is held, or in columns of several types."""
        groups = list(self._groups)
        if not groups or first < groups[0].first or last > groups[-1].last:
            return None
        frames = [frame for group in groups for frame in group.rows.get((model, version), ())]
        near = [frame for frame in frames if first <= frame[SEQUENCE][0] <= last]
        if not near or any(frame.schema != near[0].schema for frame in near):
            # The table has one type for each column.
            return None
        return pl.concat(near).filter(pl.col(ROLE) != SHADOW)

    def _size(self) -> int:
        return sum(group.size for group in self._groups)

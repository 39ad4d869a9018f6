"""What predictions are called."""

import os
from collections.abc import Sequence

MAX_AT_ONCE = 100_000
"""Requests that are answered together at most."""
MAX_NUMBER = 0xFFFFFF
"""Of a prediction in its process, after which it counts from 0."""


class PredictionIds:
    """Ids of 28 characters: microseconds, this process, a counter, all in hex. They sort by time.

    Each also stands for a trace id, for the many requests that are not sampled: its own characters and four more.
    """

    def __init__(self) -> None:
        self.process = os.urandom(4).hex()
        self.trace_suffix = os.urandom(2).hex()
        self._next = 0

    def take(self, requests: int) -> range:
        """Return the numbers of the next predictions of this process."""
        numbers = range(self._next, self._next + requests)
        # Six hex digits, so that those of one batch do not go over the edge.
        self._next = numbers.stop if numbers.stop < MAX_NUMBER - MAX_AT_ONCE else 0
        return numbers

    def prefix(self, microseconds: int) -> str:
        """Return how the ids of predictions made at `microseconds` since 1970 begin; their numbers in 6 hex digits follow."""
        return f"{microseconds:014x}{self.process}"


def row_ids(prediction_id: str, rows: int) -> Sequence[str]:
    """Return the id of each row of a request: the prediction's own, or with `:<row>` when there are several."""
    return [prediction_id] if rows == 1 else [f"{prediction_id}:{row}" for row in range(rows)]

"""Ours and a yardstick in turn, and what comes of it in words."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.serving.load import Cell, Request, measure
from tests.bench.serving.servers import Server

Side = tuple[Server, Request]


@dataclass(frozen=True)
class Pairs:
    """Measurements of both sides, the one right after the other."""

    ours: list[Cell]
    theirs: list[Cell]

    def ratios(self, of: Callable[[Cell], float]) -> list[float]:
        return [of(ours) / of(theirs) for ours, theirs in zip(self.ours, self.theirs, strict=True)]


def in_turn(ours: Side, theirs: Side, connections: int, pairs: int, seconds: int) -> Pairs:
    """Measure both sides `pairs` times."""
    found = Pairs([], [])
    for _ in range(pairs):
        for side, cells in ((ours, found.ours), (theirs, found.theirs)):
            cells.append(measure(*side, connections, seconds))
    return found


def spread(values: Sequence[float], digits: str = ".3g") -> str:
    """Return the median with the smallest and the largest."""
    return (
        f"{statistics.median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}}, {len(values)} values)"
    )


def rate(cells: Sequence[Cell]) -> str:
    """Return requests per second and processor time in words, with what must be known to believe them."""
    failed = sum(cell.load.failed for cell in cells)
    limited = sum(cell.client_was_the_limit for cell in cells)
    warnings = (f", {failed} FAILED" if failed else "") + (", THE CLIENT WAS THE LIMIT" if limited else "")
    return f"{_median(cells, lambda cell: cell.rate):,.0f}/s at {_microseconds(cells)} us{warnings}"


def latency(cells: Sequence[Cell]) -> str:
    """Return p50 and p99 in words."""
    p50, p99 = (_median(cells, of) * 1e3 for of in (lambda cell: cell.load.p50, lambda cell: cell.load.p99))
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"


def _microseconds(cells: Sequence[Cell]) -> str:
    return f"{_median(cells, lambda cell: cell.cpu) * 1e6:.3g}"


def _median(cells: Sequence[Cell], of: Callable[[Cell], float]) -> float:
    return statistics.median(map(of, cells))

"""R3: alarms while nothing happens but that means wander slowly, and how soon a small shift of one feature is found."""

import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context

import numpy as np
import polars as pl
from numpy.random import Generator
from numpy.typing import NDArray

from tests.bench.monitoring import ours

ROWS = (500, 1_000, 10_000, 50_000)
WINDOWS = 50
"""In a row, against one reference."""
REFERENCE_ROWS = 10_000
NUMBERS, TEXTS = 16, 4
WANDER = 0.015
"""Standard deviation of the means, in standard deviations of the feature."""
STEADY = 0.9
"""How much of where a mean is stays for the next window: slow is harder than at random."""
SHIFT = 0.3
WITHIN = 5
"""Windows after which the shift must be found."""
SEED = 4


@dataclass(frozen=True)
class Watched:
    """Windows of one reference, in order: which columns moved in each."""

    windows: tuple[frozenset[str], ...]

    @property
    def alarms(self) -> int:
        """Windows in which anything moved."""
        return sum(map(bool, self.windows))

    @property
    def begun(self) -> int:
        """Episodes: two windows in a row after two quiet ones, or at the beginning."""
        alarm = [all(pair) for pair in pairwise(self.windows)]
        return sum(now and not before for before, now in zip([False, *alarm], alarm, strict=False))

    def found(self, column: str) -> int | None:
        """After how many windows the second of two in a row named a column."""
        named = [column in moved for moved in self.windows]
        return next((at + 2 for at, pair in enumerate(pairwise(named)) if all(pair)), None)


def quiet(windows: int) -> Iterator[str]:
    """Nothing happens; half of the features lean to one side or have heavy tails, four are texts."""
    for rows in ROWS:
        seen = _together([(SEED, at, rows, 0.0, WINDOWS) for at in range(-(-windows // WINDOWS))])
        every = sum(len(one.windows) for one in seen)
        single, begun = sum(one.alarms for one in seen), sum(one.begun for one in seen)
        yield (
            f"{rows:,} rows a window, {every:,} quiet windows of {NUMBERS + TEXTS} features: {begun} false episodes "
            f"(two in a row), {single} windows with any alarm; {begun / every * 1000:.2g} in 1,000, goal <= 1"
        )


def shifted(times: int) -> Iterator[str]:
    """One of the features is moved from the first window on."""
    for rows in ROWS:
        seen = _together([(SEED + 1, at, rows, SHIFT, WITHIN) for at in range(times)])
        found = [after for one in seen if (after := one.found("n0"))]
        others = sum(any(moved - {"n0"} for moved in one.windows) for one in seen)
        after = f"after {statistics.median(found):.0f} windows (at most {max(found)})" if found else "never"
        yield (
            f"{rows:,} rows a window, {SHIFT} sd in one of {NUMBERS + TEXTS} features: found {len(found)} of {times} times "
            f"within {WITHIN} windows, {after}; another feature named {others} times"
        )


def _together(asked: Sequence[tuple[int, int, int, float, int]]) -> list[Watched]:
    # Not forked: threads of polars do not come along.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(_watched, asked))


def _watched(asked: tuple[int, int, int, float, int]) -> Watched:
    seed, number, rows, shift, windows = asked
    random = np.random.default_rng((seed, number, rows))
    odds = random.gamma(2, size=(TEXTS, 8))
    reference = ours.reference_of(_frame(random, REFERENCE_ROWS, odds, np.zeros(NUMBERS + TEXTS)))
    means = random.normal(0, WANDER, NUMBERS + TEXTS)
    moved = []
    for _ in range(windows):
        means = STEADY * means + random.normal(0, WANDER * np.sqrt(1 - STEADY**2), NUMBERS + TEXTS)
        moving = means + shift * (np.arange(NUMBERS + TEXTS) == 0)
        judged = ours.judge(reference, _frame(random, rows, odds, moving), ours.DEFAULT)
        moved.append(frozenset(one.subject for one in judged.findings if one.moved))
    return Watched(tuple(moved))


def _frame(random: Generator, rows: int, odds: NDArray[np.float64], means: NDArray[np.float64]) -> pl.DataFrame:
    numbers = {f"n{at}": _shape(random, at, rows) + means[at] for at in range(NUMBERS)}
    texts = {f"t{at}": _text(random, odds[at] * np.exp(means[NUMBERS + at]), rows) for at in range(TEXTS)}
    return pl.DataFrame(numbers | texts)


def _shape(random: Generator, at: int, rows: int) -> NDArray[np.float64]:
    """A column with standard deviation 1."""
    match at % 4:
        case 2:
            return random.exponential(size=rows)
        case 3:
            return random.standard_t(6, rows) / np.sqrt(1.5)
        case _:
            return random.normal(size=rows)


def _text(random: Generator, odds: NDArray[np.float64], rows: int) -> pl.Series:
    values = pl.Series([f"value {at}" for at in range(len(odds))])
    return values.gather(random.choice(len(odds), rows, p=odds / odds.sum()))

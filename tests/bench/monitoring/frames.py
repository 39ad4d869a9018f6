"""Frames with and without drift: of many shapes, real ones of scikit-learn, and the large one whose verdict is timed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.random import Generator
from numpy.typing import NDArray
from sklearn import datasets

ROWS = (200, 500, 900, 1000, 1001, 1500, 5000, 20_000)
"""Evidently chooses other methods from a reference of more than 1000 rows on."""
EFFECTS = (0.0, 0.0, 0.0, 0.1, 0.2, 0.35, 0.6, 1.0)
"""By how many standard deviations a column is moved; most are not."""
REAL = (
    datasets.load_iris,
    datasets.load_wine,
    datasets.load_breast_cancer,
    datasets.load_digits,
    datasets.load_diabetes,
)
SHAPES: dict[str, Callable[[Generator, int], NDArray[np.float64]]] = {
    "normal": lambda random, n: random.normal(size=n),
    "lognormal": lambda random, n: random.lognormal(size=n),
    "heavy": lambda random, n: random.standard_t(3, n),
    "gamma": lambda random, n: random.gamma(2, size=n),
    "zeros": lambda random, n: np.where(random.random(n) < 0.6, 0, random.exponential(size=n)),
    "counts": lambda random, n: random.poisson(8, n).astype(float),
    "grades": lambda random, n: random.integers(0, 4, n).astype(float),
    "flags": lambda random, n: (random.random(n) < 0.3).astype(float),
}
CATEGORIES = (2, 3, 8, 30)
"""Values of the columns of texts."""


@dataclass(frozen=True)
class Case:
    """Two frames with the same columns."""

    reference: pl.DataFrame
    live: pl.DataFrame

    def write(self, folder: Path) -> Path:
        """Write both for whoever reads Parquet; return the folder."""
        folder.mkdir()
        self.reference.write_parquet(folder / "reference.parquet")
        self.live.write_parquet(folder / "live.parquet")
        return folder


def cases(count: int, seed: int) -> Iterator[Case]:
    """Yield so many cases, every other one of them drawn from a real frame."""
    for number in range(count):
        random = np.random.default_rng((seed, number))
        before, after = (int(random.choice(ROWS)) for _ in range(2))
        yield _real(random, before, after) if number % 2 else _made(random, before, after)


def large(rows: int, seed: int) -> Case:
    """Return frames of 14 numbers and 6 texts, a few of them moved."""
    random = np.random.default_rng(seed)
    shapes = list(SHAPES.values())[:5]

    def frame(moved: float) -> pl.DataFrame:
        numbers = {f"n{at}": shapes[at % 5](random, rows) + (moved if at < 2 else 0) for at in range(14)}
        texts = {
            f"t{at}": _texts(random, CATEGORIES[at % 4], rows, moved if at == 0 else 0, skew=np.random.default_rng(at))
            for at in range(6)
        }
        return pl.DataFrame(numbers | texts)

    return Case(frame(0), frame(0.3))


def _made(random: Generator, before: int, after: int) -> Case:
    reference, live = {}, {}
    for name, draw in SHAPES.items():
        first, second = draw(random, before), draw(random, after)
        reference[name] = _with_gaps(random, first)
        moved = second + first.std() * random.choice(EFFECTS) if name not in ("grades", "flags") else second
        live[name] = _with_gaps(random, moved)
    for values in CATEGORIES:
        skew = int(random.integers(2**32))
        effect = float(random.choice(EFFECTS))
        reference[f"text{values}"] = _texts(random, values, before, 0, skew=np.random.default_rng(skew))
        live[f"text{values}"] = _texts(random, values, after, effect, skew=np.random.default_rng(skew))
    return Case(pl.DataFrame(reference), pl.DataFrame(live))


def _real(random: Generator, before: int, after: int) -> Case:
    """Rows drawn with repeats, the live ones more or less in favour of what has a large target."""
    bunch = REAL[random.integers(len(REAL))]()
    rows = bunch.data
    rank = bunch.target.argsort(kind="stable").argsort() / len(rows)
    weights = np.exp(rank * 2 * float(random.choice(EFFECTS)))
    drawn = (
        rows[random.integers(0, len(rows), before)],
        rows[random.choice(len(rows), after, p=weights / weights.sum())],
    )
    reference, live = (pl.DataFrame(one, [str(name) for name in bunch.feature_names]) for one in drawn)
    return Case(reference, live)


def _with_gaps(random: Generator, column: NDArray[np.float64]) -> NDArray[np.float64]:
    share = random.choice([0, 0, 0.02, 0.1])
    return np.where(random.random(column.size) < share, np.nan, column)


def _texts(random: Generator, values: int, rows: int, effect: float, *, skew: Generator) -> pl.Series:
    """Texts whose shares follow from `skew`; an effect makes the first value more frequent. None where there is none."""
    odds = skew.gamma(2, size=values)
    odds[0] *= 1 + effect
    drawn = random.choice(values, rows, p=odds / odds.sum())
    texts = pl.Series([f"value {at}" for at in range(values)])
    return texts.gather(pl.Series(drawn).set(pl.Series(random.random(rows) < random.choice([0, 0.02])), None))

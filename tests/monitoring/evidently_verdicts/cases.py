"""Frames whose verdicts by Evidently are kept in `verdicts.json`, made by `make.py` in an environment of its own."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Column = list[float] | list[str | None]
SIZES = [(300, 250), (300, 1_000), (1_000, 600), (900, 5_000), (1_001, 600), (4_000, 1_000), (3_000, 12_000)]
"""Rows of reference and live."""


@dataclass(frozen=True)
class Case:
    """Reference and live rows, by column."""

    name: str
    reference: dict[str, Column]
    live: dict[str, Column]


def cases() -> Iterator[Case]:
    for seed, (before, now) in enumerate(SIZES, start=70):
        for moved in (0.0, 0.2, 0.6):
            random = np.random.default_rng([seed, int(moved * 100)])
            yield Case(f"{before}-{now}-{moved}", _columns(random, before, 0.0), _columns(random, now, moved))


def _columns(random: np.random.Generator, rows: int, moved: float) -> dict[str, Column]:
    """All columns move when `moved` is not 0, the more the larger it is, but for the two that stand still."""
    gaps = random.normal(moved, 1.0, rows)
    gaps[random.random(rows) < 0.1] = np.nan
    numbers = {
        "normal": random.normal(moved, 1.0, rows),
        "still": random.normal(0.0, 1.0, rows),
        "wide": random.normal(0.0, 1.0 + moved, rows),
        "skewed": random.lognormal(0.0, 0.8, rows) * (1 + moved),
        "heavy": random.standard_t(3, rows) + moved,
        "zeros": np.where(random.random(rows) < 0.6 - moved / 2, 0.0, random.lognormal(0.0, 1.0, rows)),
        "poisson": random.poisson(3 + moved, rows),
        "large": 1e6 + random.normal(moved, 1.0, rows) * 1e4,
        "small": random.normal(moved, 1.0, rows) * 1e-4,
        "gaps": gaps,
        "levels": random.binomial(3, 0.4 + moved / 5, rows),
        "binary": random.random(rows) < 0.3 + moved / 3,
        "constant": np.full(rows, 2.5),
    }
    places = np.concatenate([[1.0, 1.0 + moved], np.full(10, 0.2), [moved * 0.3]])
    words = {
        "plan": _words(random, ["basic", "plus", "pro", "team"], [0.4 - moved / 4, 0.3, 0.2, 0.1 + moved / 4], rows),
        "open": _words(random, ["false", "true"], [0.8 - moved / 3, 0.2 + moved / 3], rows),
        "place": _words(random, [f"place-{i}" for i in range(len(places))], places / places.sum(), rows),
        "same": _words(random, ["a", "b", "c"], [0.5, 0.3, 0.2], rows),
        "asked": _words(random, [None, "no", "yes"], [0.2, 0.5 - moved / 2, 0.3 + moved / 2], rows),
    }
    return {**{name: column.astype(float).tolist() for name, column in numbers.items()}, **words}


def _words(random: np.random.Generator, words: list[str] | list[str | None], shares, rows: int) -> list[str | None]:
    return [words[at] for at in random.choice(len(words), size=rows, p=shares)]

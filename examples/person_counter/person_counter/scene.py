"""Made-up frames of a camera above a gate, and where the persons in them are: the same for the same seed."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from person_counter.windows import BROAD, HEIGHT, LEFTS, STEP, TALL, TOPS, WIDTH

MOST = 4
"""Persons in a frame."""
APART = BROAD
"""Pixels between the middles of two persons, at least."""
NEAR = STEP
"""A window this close to a person's middle, in pixels, shows that person."""

_DOWN, _RIGHT = np.mgrid[0:HEIGHT, 0:WIDTH]


class Person(NamedTuple):
    """Where somebody stands: the top left corner and the height, in pixels. The breadth is half the height."""

    left: float
    top: float
    height: float

    @property
    def middle(self) -> float:
        return self.left + self.height / 4


class Frame(NamedTuple):
    pixels: NDArray[np.float64]
    """Brightness from 0 to 1, [HEIGHT, WIDTH]."""
    persons: list[Person]


def frames(seed: int) -> Iterator[Frame]:
    """Yield frames without end."""
    chance = np.random.default_rng(seed)
    while True:
        pixels, persons = _background(chance), _persons(chance)
        for person in persons:
            _draw(pixels, person, chance)
        yield Frame(np.clip(pixels + chance.normal(0, 0.03, pixels.shape), 0, 1), persons)


def shows_person(persons: list[Person]) -> NDArray[np.int_]:
    """Return for each window whether it shows a person: what the detector learns."""
    shown = np.zeros(TOPS.size, int)
    for person in persons:
        far_right = np.abs(LEFTS + BROAD / 2 - person.middle)
        far_down = np.abs(TOPS + TALL / 2 - person.top - person.height / 2)
        shown |= np.maximum(far_right, far_down) <= NEAR
    return shown


def _background(chance: np.random.Generator) -> NDArray[np.float64]:
    coarse = np.kron(chance.normal(size=(HEIGHT // 8 + 1, WIDTH // 8 + 1)), np.ones((8, 8)))
    texture = sum(coarse[at : at + HEIGHT, at : at + WIDTH] for at in range(8)) / 8
    pixels: NDArray[np.float64] = np.clip(chance.uniform(0.3, 0.7) + 0.06 * texture, 0, 1)
    return pixels


def _persons(chance: np.random.Generator) -> list[Person]:
    wanted, persons = chance.integers(0, MOST + 1), list[Person]()
    while len(persons) < wanted:
        height = chance.uniform(0.9 * TALL, 1.1 * TALL)
        person = Person(chance.uniform(0, WIDTH - height / 2), chance.uniform(0, HEIGHT - height), height)
        if all(abs(person.middle - other.middle) > APART for other in persons):
            persons.append(person)
        elif chance.random() < 0.02:
            persons.clear()  # who came first may have left no room
    return persons


def _draw(pixels: NDArray[np.float64], person: Person, chance: np.random.Generator) -> None:
    """Put head, body and legs into the picture, in clothes that differ from what is behind them."""
    down, right = (_DOWN - person.top) / person.height, np.abs(_RIGHT - person.middle) / person.height
    head = (down - 0.14) ** 2 + right**2 < 0.12**2
    body = (right < 0.14) & (down > 0.27) & (down < 0.62)
    legs = (right > 0.03) & (right < 0.13) & (down >= 0.62) & (down < 0.97)
    behind = pixels[body].mean()
    side = chance.choice([-1, 1])
    for part in (head, body, legs):
        pixels[part] = np.clip(behind + side * chance.uniform(0.25, 0.5), 0, 1)

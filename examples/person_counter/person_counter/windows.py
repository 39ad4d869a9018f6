"""What the detector sees of a frame: windows of one size on a fixed grid, each as a histogram of gradients."""

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 64, 112
"""Of a frame, in pixels."""
TALL, BROAD, STEP = 32, 16, 4
"""Of a window, and from one to the next."""
CELL, DIRECTIONS = 8, 6
FEATURES = TALL // CELL * (BROAD // CELL) * DIRECTIONS

TOPS, LEFTS = (
    grid.ravel() for grid in np.mgrid[0 : HEIGHT - TALL + 1 : STEP, 0 : WIDTH - BROAD + 1 : STEP].astype(int)
)
"""Where the windows are, in their order: row n of a request is the window at TOPS[n], LEFTS[n]."""


def features(frame: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a row per window: how strong the edges in each cell are, by direction, in relation to the window's others."""
    down, right = np.gradient(frame)
    strength = np.hypot(right, down)
    direction = (np.arctan2(down, right) % np.pi * DIRECTIONS / np.pi).astype(int) % DIRECTIONS
    sums = np.zeros((DIRECTIONS, HEIGHT + 1, WIDTH + 1))
    for one in range(DIRECTIONS):
        sums[one, 1:, 1:] = np.where(direction == one, strength, 0).cumsum(0).cumsum(1)
    cells = [_sum(sums, TOPS + top, LEFTS + left) for top in range(0, TALL, CELL) for left in range(0, BROAD, CELL)]
    rows = np.concatenate(cells).T
    return np.round(rows / np.sqrt(np.square(rows).sum(1, keepdims=True) + 1), 4)


def _sum(sums: NDArray[np.float64], top: NDArray[np.int_], left: NDArray[np.int_]) -> NDArray[np.float64]:
    """The sums of a cell of each window, by direction."""
    bottom, right = top + CELL, left + CELL
    found: NDArray[np.float64] = (
        sums[:, bottom, right] - sums[:, top, right] - sums[:, bottom, left] + sums[:, top, left]
    )
    return found

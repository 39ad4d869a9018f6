"""What the detector sees of a frame: windows of one size on a fixed grid, each as a histogram of gradients."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

HEIGHT, WIDTH = 64, 112
"""Of a frame, in pixels."""
TALL, BROAD, STEP = 32, 16, 4
"""Of a window, and from one to the next. Cells of a window are two steps wide and high."""
DIRECTIONS = 6
TOPS, LEFTS = np.mgrid[0 : HEIGHT - TALL + 1 : STEP, 0 : WIDTH - BROAD + 1 : STEP].reshape(2, -1)
"""Where the windows are, in their order: row n of a request is the window at TOPS[n], LEFTS[n]."""


def features(frame: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a row per window: how strong the edges in each cell are, by direction, in relation to the window's others."""
    down, right = np.gradient(frame)
    direction = (np.arctan2(down, right) % np.pi * DIRECTIONS / np.pi).astype(int) % DIRECTIONS
    edges = np.hypot(down, right)[..., None] * (direction[..., None] == np.arange(DIRECTIONS))
    steps = edges.reshape(HEIGHT // STEP, STEP, WIDTH // STEP, STEP, DIRECTIONS).sum((1, 3))
    windows = sliding_window_view(steps, (TALL // STEP, BROAD // STEP), (0, 1))
    cells = windows.reshape(TOPS.size, DIRECTIONS, TALL // STEP // 2, 2, BROAD // STEP // 2, 2).sum((3, 5))
    rows = cells.reshape(TOPS.size, -1)
    return np.round(rows / np.sqrt(np.square(rows).sum(1, keepdims=True) + 1), 4)

"""Whether as many predictions come as before: rows a second of a window against the windows before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from scipy.special import pdtr, pdtrc

from meguri_contracts.spec import Monitor
from meguri_monitoring.verdicts.judging import Judged

ENOUGH = 5
"""Windows before that are needed to know what is usual."""
REMEMBERED = 20
"""Windows that what is usual is the median of."""
HISTORY = 100
"""Windows that need be looked back at. What has lasted longer is the new normal."""


@dataclass(frozen=True)
class Rate:
    """Predictions a second in one window; `moved` is None where nothing can be said of it."""

    value: float = 0.0
    expected: float = 0.0
    moved: bool | None = None


def rates(windows: Sequence[Judged], rule: Monitor) -> list[Rate]:
    """Return the rate of each window of one rollout, oldest first, held against what was usual before it.

    What is usual does not change while `rule.windows` windows in a row were not, until as many in a row are again. Windows
    without rows enough for a verdict count too: few rows are what is looked for.
    """
    usual: list[float] = []
    odd: list[float] = []
    back: list[float] = []
    found = []
    for window in windows:
        rate = _rate(window, usual, rule)
        found.append(rate)
        if not window.seconds:
            continue
        open_ = len(odd) >= rule.windows
        if rate.moved:
            odd.append(rate.value)
            back = []
        elif not open_:
            # One that stood alone is a part of what is usual, too: a median bears it.
            usual = [*usual, *odd, rate.value][-REMEMBERED:]
            odd = []
        else:
            back.append(rate.value)
            if len(back) >= rule.windows:
                usual, odd, back = [*usual, *back][-REMEMBERED:], [], []
    return found


def _rate(window: Judged, usual: Sequence[float], rule: Monitor) -> Rate:
    if rule.volume is None or not window.seconds:
        return Rate()
    value = window.window.rows / window.seconds
    if len(usual) < ENOUGH:
        return Rate(value)
    expected = median(usual)
    far = max(value, expected) >= rule.volume * min(value, expected)
    return Rate(value, expected, far and _probability(window.window.rows, expected * window.seconds) < rule.p_value)


def _probability(rows: int, expected: float) -> float:
    """Return how probable so many or so few rows are by chance, when they come independently of each other."""
    return 2 * float(min(pdtr(rows, expected), pdtrc(rows - 1, expected) if rows else 1.0))

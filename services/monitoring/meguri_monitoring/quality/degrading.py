"""When the errors of a version have become more: ADWIN on its errors in the order in which their labels found them.

ADWIN keeps as many of the latest errors as look like one distribution, and drops what lies before a change. The version is
held against its own beginning: the errors before the first change, or before the first since a change for the better. Not
against the hold-out: other rows, perhaps of long ago, whose labels were not chosen by whoever sends labels; a version whose
labelled requests are harder than the hold-out would be worse from its first day on, and no retraining would end that.
"""

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from meguri_contracts.spec import Performance

FAR = 4.0
"""Errors of a regression, in multiples of their mean at the beginning, that are all the same to ADWIN: it wants bounds."""


KEPT = 50_000
"""Errors since the last change whose numbers are remembered."""


@dataclass(frozen=True)
class Part:
    """Errors in a row. `first` and `last` are their numbers."""

    count: int = 0
    total: float = 0.0
    first: int = 0
    last: int = 0

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


class Detector:
    """Follows the errors of one version: 0 or 1 for right or wrong, or absolute errors."""

    def __init__(self, rule: Performance, *, relative: bool) -> None:
        """`relative` for a regression, where a loss is a share of the error before."""
        self.rule = rule
        self.relative = relative
        self.before = Part()
        """The beginning that is compared with; empty until the first change."""
        self.worse = False
        """Whether the last change was one for the worse, compared with that beginning."""
        self._count, self._total = 0, 0.0
        self._numbers: deque[int] = deque(maxlen=KEPT)
        """Of the errors since the last change."""
        self._latest: deque[float] = deque(maxlen=2 * rule.min_labels)
        self._limit = 0.0 if relative else 1.0
        self._first: list[tuple[float, int]] = []

    @cached_property
    def _adwin(self) -> Any:
        from river.drift import ADWIN  # noqa: PLC0415 - a second, and models without labels never need it

        return ADWIN(delta=self.rule.delta)  # type: ignore[no-untyped-call]

    def feed(self, error: float, number: int) -> None:
        """Take in the next error; `number` tells where it stands among all."""
        self._latest.append(error)
        if self._limit:
            self._follow(error, number)
            return
        self._first.append((error, number))
        if len(self._first) == self.rule.min_labels:
            first, self._first = self._first, []
            # All right so far: any error is far then.
            self._limit = FAR * sum(one for one, _ in first) / len(first) or 1e-12
            for one, its in first:
                self._follow(one, its)

    @property
    def now(self) -> Part:
        """The errors since the last change that ADWIN has not dropped."""
        width = min(int(self._adwin.width), len(self._numbers))
        if not width:
            return Part()
        return Part(width, self._kept_mean() * width, self._numbers[-width], self._numbers[-1])

    @property
    def degraded(self) -> bool:
        """Whether it is worse by as much as the rule says.

        There must be enough errors since the last change, as there must have been before it.
        """
        enough = self.now.count >= self.rule.min_labels
        return self.worse and enough and loss(self.before.mean, self.now.mean, relative=self.relative) >= self.rule.drop

    def is_back(self, before: float) -> bool:
        """Whether errors are near a mean error of before: within half of the drop that the rule allows.

        Both those since the last change and the latest twice as many as a beginning takes: few are right by chance.
        """
        if self.now.count < self.rule.min_labels or len(self._latest) < 2 * self.rule.min_labels:
            return False
        found = (self.now.mean, sum(self._latest) / len(self._latest))
        return all(loss(before, one, relative=self.relative) <= self.rule.drop / 2 for one in found)

    def _follow(self, error: float, number: int) -> None:
        bounded = min(error / self._limit, 1.0)
        self._numbers.append(number)
        self._count += 1
        self._total += bounded * self._limit
        self._adwin.update(bounded)
        if self._adwin.drift_detected:
            self._change()

    def _kept_mean(self) -> float:
        return float(self._adwin.estimation) * self._limit

    def _change(self) -> None:
        kept = Part(int(self._adwin.width), self._kept_mean() * self._adwin.width)
        older = self._count - kept.count
        if not self.before.count and older >= self.rule.min_labels:
            last = self._numbers[-kept.count - 1] if kept.count < len(self._numbers) else 0
            self.before = Part(older, self._total - kept.total, self._numbers[0], last)
        self.worse = bool(self.before.count) and kept.mean > self.before.mean
        if not self.worse:
            # As good as at the beginning or better: what lies ahead is compared with what begins here.
            self.before = Part()
        # What ADWIN kept is of before the change in part, and it begins anew with the next error: so do we.
        self._numbers.clear()
        self._count, self._total = 0, 0.0


def loss(before: float, now: float, *, relative: bool) -> float:
    """Return by how much a mean error has grown, or by which share of it."""
    grown = now - before
    if not relative:
        return grown
    return grown / before if before > 0 else float(grown > 0)

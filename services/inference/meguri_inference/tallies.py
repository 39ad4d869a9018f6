"""What each version was asked and how long it took: plain numbers on the hot path, read when somebody looks."""

import time
from bisect import bisect_left
from dataclasses import dataclass, field

from meguri_contracts.events import LATENCY_BOUNDS, ArmObserved, Role


@dataclass(eq=False)
class Tally:
    """Of one version in one role, since this process began. Numbers only grow."""

    model: str
    version: int
    role: Role
    requests: int = 0
    rows: int = 0
    errors: int = 0
    seconds: float = 0.0
    latency: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    """Answered requests by `LATENCY_BOUNDS`."""
    exemplars: dict[int, tuple[str, float, float]] = field(default_factory=dict)
    """By place in `latency`: trace id, seconds and time (since 1970) of the latest request there that has a trace."""
    pairs: int = 0
    disagreed: int = 0
    difference: float = 0.0
    skipped: int = 0
    """Rows that a shadow was not asked because it is too slow for the traffic."""

    def answered(self, seconds: float, rows: int) -> None:
        """Count a request that was answered."""
        self.requests += 1
        self.rows += rows
        self.seconds += seconds
        self.latency[bisect_left(LATENCY_BOUNDS, seconds)] += 1

    def traced(self, seconds: float, trace_id: str) -> None:
        """Remember the trace of a request that was answered."""
        self.exemplars[bisect_left(LATENCY_BOUNDS, seconds)] = (trace_id, seconds, time.time())

    def failed(self) -> None:
        """Count a request that the version had no answer to."""
        self.requests += 1
        self.errors += 1

    def compared(self, pairs: int, disagreed: int, difference: float) -> None:
        """Count rows that a shadow was asked too."""
        self.pairs += pairs
        self.disagreed += disagreed
        self.difference += difference

    def observed(self) -> ArmObserved:
        """Return the numbers as they stand."""
        return ArmObserved(
            version=self.version,
            role=self.role,
            requests=self.requests,
            errors=self.errors,
            latency=tuple(self.latency),
            pairs=self.pairs,
            disagreed=self.disagreed,
            difference=self.difference,
        )


def since(now: ArmObserved, before: ArmObserved) -> ArmObserved:
    """Return what came to a tally since `before`."""
    return now.model_copy(
        update={
            "requests": now.requests - before.requests,
            "errors": now.errors - before.errors,
            "latency": tuple(n - b for n, b in zip(now.latency, before.latency, strict=True)),
            "pairs": now.pairs - before.pairs,
            "disagreed": now.disagreed - before.disagreed,
            "difference": max(now.difference - before.difference, 0.0),
        }
    )


class Tallies:
    """All tallies of this process, and the answers by HTTP status."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, int, Role], Tally] = {}
        self.statuses: dict[tuple[str, int], int] = {}
        """Requests by model and HTTP status. A model that is not served is ""."""

    def of(self, model: str, version: int, role: Role) -> Tally:
        """Return the tally of a version in a role."""
        return self._tallies.setdefault((model, version, role), Tally(model, version, role))

    def all(self) -> list[Tally]:
        return list(self._tallies.values())

    def count(self, model: str, status: int, requests: int = 1) -> None:
        """Count requests that were answered with an HTTP status."""
        self.statuses[model, status] = self.statuses.get((model, status), 0) + requests

"""A model whose versions are tried on traffic, and what is seen of them."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from meguri_contracts.events import (
    LATENCY_BOUNDS,
    ArmObserved,
    ArmQuality,
    Deployed,
    Event,
    ModelRegistered,
    Plan,
    QualityMeasured,
    Role,
    RolloutChanged,
    RolloutObserved,
)
from meguri_contracts.spec import CanaryPolicy, TrialPolicy
from meguri_registry import observing, rollouts
from meguri_registry.models import Model, evolve
from meguri_registry.promotion import apply_spec, deployed, judge
from tests.registry.candidates import spec, trained

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
FAST = 0.0015
"""Seconds: what the champion takes for a request."""


def version(number: int) -> Deployed:
    return deployed(trained(f"run-{number}", 0.9), number)


def arm(number: int, role: Role, requests: int, errors: int = 0, seconds: float = FAST, **beside) -> ArmObserved:
    """Requests that all took the same time."""
    part = sum(bound < seconds for bound in LATENCY_BOUNDS)
    latency = tuple(requests if index == part else 0 for index in range(len(LATENCY_BOUNDS) + 1))
    return ArmObserved(version=number, role=role, requests=requests, errors=errors, latency=latency, **beside)


def scored(number: int, labels: int, right: float) -> ArmQuality:
    """Labels of which a share was predicted rightly."""
    return ArmQuality(version=number, labels=labels, total=right * labels, squares=right * labels)


@dataclass
class Rollouts:
    """A model with versions 1 to 7, 1 is champion: what was said, and the state that follows from it."""

    model: Model = field(default_factory=lambda: Model(name="digits"))
    log: list[Event] = field(default_factory=list)
    now: datetime = NOON

    def __post_init__(self) -> None:
        self.apply()
        self.carry_out([ModelRegistered(model="digits", version=n, run=f"run-{n}") for n in range(1, 8)])
        self.promote(1)

    def carry_out(self, events: list[Event]) -> list[Event]:
        for event in events:
            self.log.append(event)
            self.model = evolve(self.model, event, f"event {len(self.log)}", self.now)
        return events

    def apply(self, **changes) -> None:
        self.carry_out(apply_spec(self.model, spec(**changes), "ada", {}))

    def train(self, run: str, onnx: str = "") -> list[Event]:
        champion = self.plan.champion.version
        return self.carry_out(judge(self.model, trained(run, 0.95, (champion, 0.9), onnx)))

    def promote(self, number: int) -> list[Event]:
        return self.carry_out(rollouts.promote(self.model, version(number), "ada", "by hand"))

    def end(self) -> list[Event]:
        return self.carry_out(rollouts.end(self.model, "ada", "enough"))

    def canary(self, number: int, **policy) -> list[Event]:
        changed = CanaryPolicy(**policy)
        return self.carry_out(rollouts.canary(self.model, version(number), changed, "ada", "by hand"))

    def shadow(self, number: int, share: float = 1) -> list[Event]:
        return self.carry_out(rollouts.shadow(self.model, version(number), share, "ada", "by hand"))

    def stop(self, number: int) -> list[Event]:
        return self.carry_out(rollouts.stop_shadow(self.model, number, "ada", "by hand"))

    def ab(self, *numbers: int, weights: tuple[float, ...] = (), **policy) -> list[Event]:
        versions = [version(number) for number in numbers]
        said = rollouts.ab(self.model, versions, weights, TrialPolicy(**policy), "ada", "by hand")
        return self.carry_out(said)

    def observe(
        self, *arms: ArmObserved, replica: str = "one", number: int | None = None, rollout: str = ""
    ) -> list[Event]:
        """A replica says what it saw; returns what the registry makes of it."""
        known = self.model.seen.get(replica)
        count = number or (known.number if known else 0) + 1
        event = RolloutObserved(
            model="digits",
            rollout=rollout or self.model.rollout,
            replica=replica,
            number=count,
            seconds=1,
            arms=arms,
        )
        self.carry_out([event])
        return self.carry_out(observing.decide(self.model))

    def measure(self, *arms: ArmQuality) -> list[Event]:
        self.carry_out([QualityMeasured(model="digits", arms=arms)])
        return self.carry_out(observing.decide(self.model))

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @property
    def plan(self) -> Plan:
        assert self.model.plan
        return self.model.plan

    @property
    def answering(self) -> dict[int, float]:
        return rollouts.shares(self.plan)


def reason(said: list[Event]) -> str:
    (rollout,) = said
    assert isinstance(rollout, RolloutChanged)
    return rollout.reason

"""Says how good the versions of a plan with challengers are, whenever labels found predictions of theirs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from sqlmodel import Session

from meguri_chassis.deciding import Decider
from meguri_chassis.store import Database, utc
from meguri_contracts.events import ArmQuality, Event, QualityMeasured
from meguri_contracts.names import derived_id
from meguri_monitoring import store
from meguri_monitoring.quality import label_store
from meguri_monitoring.quality import store as score_store


@dataclass(frozen=True)
class Measured:
    """What labels say of the versions of a plan."""

    arms: tuple[ArmQuality, ...]
    """The champion first."""
    latest: int
    """Sequence in the log of the last label, whether it is counted yet or not."""

    @property
    def counted(self) -> int:
        return _counted(self.arms)


class Measurer:
    """Counts for canaries and A/B tests."""

    def __init__(self, database: Database, decider: Decider) -> None:
        self._database = database
        self._decider = decider

    async def measure(self, model: str) -> None:
        """Say what the labels that came since the plan is what it is say of answers that were given since then."""
        plan, measured = await self._database.ask(partial(_measured, model=model))
        if plan is None or measured is None or measured.latest <= plan.rollout:
            return
        cause = _cause(plan, measured)
        decide = partial(_follows, model, plan.rollout, measured)
        await self._decider.carry_out(decide, cause=cause, journey=cause, hops=plan.hops)


def since_plan(plan: store.PlanRow, version: int) -> score_store.Range:
    """The answers that a version gave since the plan is what it is, with labels that came since then."""
    return score_store.Range(plan.model, version, since=utc(plan.since), label_after=plan.rollout)


def _measured(session: Session, model: str) -> tuple[store.PlanRow | None, Measured | None]:
    plan = store.plan(session, model)
    if plan is None or not plan.challengers:
        return plan, None
    arms = []
    for version in plan.versions:
        labels, total, squares = score_store.total(session, since_plan(plan, version))
        arms.append(ArmQuality(version=version, labels=labels, total=total, squares=squares))
    return plan, Measured(tuple(arms), label_store.latest_label(session, model))


def _cause(plan: store.PlanRow, measured: Measured) -> str:
    """The same for the same labels and predictions, whoever counted them."""
    arms = (arm.model_dump_json() for arm in measured.arms)
    return derived_id(plan.model, "quality", str(plan.rollout), str(measured.latest), *arms)


def _follows(model: str, rollout: int, measured: Measured, session: Session) -> list[Event]:
    """Say what was measured if it is news: more labels than were said, or others with nothing newer to count."""
    plan = store.plan(session, model)
    if plan is None or plan.rollout != rollout:
        return []
    said = tuple(ArmQuality.model_validate(arm) for arm in plan.measured)
    more = measured.counted - _counted(said)
    # Of as many labels another replica may know later ones.
    is_latest = label_store.latest_label(session, model) == measured.latest
    corrected = more == 0 and is_latest and bool(said) and not _alike(measured.arms, said)
    return [QualityMeasured(model=model, arms=measured.arms)] if more > 0 or corrected else []


def _alike(one: Iterable[ArmQuality], other: Iterable[ArmQuality]) -> bool:
    """Whether these are the same but for the order in which a database added them up."""
    return all(
        mine.labels == theirs.labels
        and math.isclose(mine.total, theirs.total, rel_tol=1e-9, abs_tol=1e-9)
        and math.isclose(mine.squares, theirs.squares, rel_tol=1e-9, abs_tol=1e-9)
        for mine, theirs in zip(one, other, strict=True)
    )


def _counted(arms: Iterable[ArmQuality]) -> int:
    return sum(arm.labels for arm in arms)

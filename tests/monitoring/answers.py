"""Answers and labels of a model that is watched, and what is said of their quality."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from meguri_contracts.events import ArmQuality, Label, LabelsArrived, QualityMeasured
from tests.conftest import until
from tests.monitoring.conftest import Monitoring, message, values
from tests.monitoring.state import settled
from tests.services import name

RULE = {"drop": 0.1, "min_labels": 50}


async def begun(monitoring: Monitoring, **monitor: Any) -> None:
    """Watch a model, and wait until it is known."""
    await monitoring.watch(**monitor)
    await settled(monitoring, (await monitoring.wire.js.stream_info("MEGURI")).state.last_seq)


async def answer(
    monitoring: Monitoring, version: int, role: str, labels: list, *, ids: list[str] | None = None
) -> list[str]:
    """Answers of a version, one id each."""
    ids = ids or [name(f"v{version}") for _ in labels]
    given = {"label": labels, "probability": [0.9] * len(labels)}
    body = message(
        monitoring.model, values(len(ids), 1), version=version, ids=ids, role=role, time=datetime.now(UTC), answer=given
    )
    await monitoring.predict(body)
    return ids


async def label(monitoring: Monitoring, labels: dict[str, object], **how) -> int:
    arrived = LabelsArrived(
        model=monitoring.model, labels=[Label(prediction_id=id_, label=true) for id_, true in labels.items()]
    )
    return await monitoring.wire.say(arrived, source="billing", **how)


async def measured(monitoring: Monitoring, *counts: int) -> tuple[ArmQuality, ...]:
    """What is said of the versions, once as many labels of each are counted."""

    async def enough() -> tuple[ArmQuality, ...] | None:
        said = await monitoring.wire.said(QualityMeasured, monitoring.model)
        return said[-1].arms if said and tuple(arm.labels for arm in said[-1].arms) == counts else None

    return await until(enough, f"{counts} labels")


async def quality(monitoring: Monitoring) -> dict:
    return (await monitoring.http.get(f"/models/{monitoring.model}/quality")).json()


def sums(arms: tuple[ArmQuality, ...]) -> list[tuple[int, int, float, float]]:
    return [(arm.version, arm.labels, arm.total, arm.squares) for arm in arms]


async def answered(
    monitoring: Monitoring,
    rows: int,
    producer: str,
    share: float,
    version: int = 1,
    role: str = "champion",
    ids: list[str] | None = None,
) -> list[str]:
    """Predictions and their labels, so many of them wrong; returns the ids of these. Waits until they are scored."""
    before = (await arms(monitoring))[version, role == "shadow"]
    ids = ids or [name("p") for _ in range(rows)]
    answer = {"label": [7] * rows, "probability": [0.9] * rows}
    body = message(
        monitoring.model, values(rows, 1), producer, version, ids=ids, role=role, time=datetime.now(UTC), answer=answer
    )
    await monitoring.predict(body)
    wrong = [id_ for id_, draw in zip(ids, np.random.default_rng(rows).random(rows), strict=True) if draw < share]
    await label(monitoring, {id_: 8 if id_ in wrong else 7 for id_ in ids})

    async def counted() -> bool:
        return (await arms(monitoring))[version, role == "shadow"] == before + rows

    await until(counted, "the labels")
    return wrong


async def arms(monitoring: Monitoring) -> Mapping[tuple[int, bool], int]:
    """By version, and whether as a shadow, how many labels are counted."""
    found = await quality(monitoring)
    sides = (("versions", False), ("shadows", True))
    return {(arm["version"], shadow): arm["labels"] for side, shadow in sides for arm in found[side]}

"""Monitoring with evaluators, requests for them, and what they made of these."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from meguri_contracts.spec import ModelSpec
from meguri_monitoring.evaluators import measure_tables
from tests.conftest import Broker, until
from tests.monitoring.conftest import Monitoring, message, monitoring_in
from tests.services import name

LONG = 90.0
"""Seconds; an evaluator's process has to be started first, now and then several times."""


@asynccontextmanager
async def evaluating(
    broker: Broker, folder: Path, *, model: str = "", evaluators: tuple[str, ...] = ("sizes",), database_url: str = ""
) -> AsyncIterator[Monitoring]:
    url = database_url or f"sqlite:///{folder}/monitoring.db"
    async with monitoring_in(folder, broker, url, folder / "artifacts", model or name("m")) as monitoring:
        if not model:
            await watch(monitoring, evaluators)
        yield monitoring


async def watch(monitoring: Monitoring, evaluators: tuple[str, ...] = ("sizes",)) -> None:
    """Apply a spec that has the evaluators' sizes watched, and roll version 1 out."""
    await monitoring.watch()
    spec = {
        "model": monitoring.model,
        "task": "classification",
        "dataset": {
            "name": monitoring.model,
            "columns": {"x": {"type": "number"}, "y": {"type": "number"}, "label": {"type": "integer"}},
        },
        "target": "label",
        "estimator": {"name": "LogisticRegression"},
        "gate": "accuracy > 0",
        "monitor": {
            "evaluators": [
                {"evaluator": one, "numbers": ["size"], "baseline_rows": 100, "window_rows": 20} for one in evaluators
            ]
        },
    }
    await monitoring.wire.apply(ModelSpec.model_validate(spec), 2)


def request(monitoring: Monitoring, rows: int = 2, *, size: float = 0.0, id_: str = "") -> tuple[str, bytes]:
    """The id of a request, and its predictions."""
    id_ = id_ or name("r")
    x = np.full((rows, 2), size)
    ids = [f"{id_}:{row}" for row in range(rows)] if rows > 1 else [id_]
    return id_, message(monitoring.model, x, ids=ids, role="champion")


def table(monitoring: Monitoring, evaluator: str = "sizes") -> pl.DataFrame:
    rows = measure_tables.scan(measure_tables.table_uri(str(monitoring.folder / "data"), monitoring.model, evaluator))
    if rows is None:
        return pl.DataFrame(schema={"key": pl.String})
    return rows.collect().sort("_sequence", maintain_order=True)


async def evaluated(monitoring: Monitoring, count: int) -> list[str]:
    """The keys in the table once there are as many."""
    await until(lambda: table(monitoring).height >= count, f"{count} rows", within=LONG)
    return table(monitoring)["key"].to_list()


async def replay(monitoring: Monitoring) -> dict[str, Any]:
    """Have evaluated again what is in the table, once that is counted: what is not yet would be left alone."""

    async def all_is_counted() -> bool:
        state = (await monitoring.http.get(f"/models/{monitoring.model}/evaluators/sizes")).json()
        return state["sequence"] >= (table(monitoring)["_sequence"].max() or 0)

    await until(all_is_counted, "all rows counted")
    url = f"/models/{monitoring.model}/evaluators/sizes/replay"
    return (await monitoring.http.post(url, headers={"Meguri-Actor": "ada"})).raise_for_status().json()

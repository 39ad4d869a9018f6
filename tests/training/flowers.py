"""A training service at work on iris, and what others say to it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import polars as pl
from sklearn.datasets import load_iris

from meguri_chassis.artifacts import Artifacts
from meguri_contracts.events import Contribution, DataCommitted, Event
from meguri_contracts.spec import ModelSpec
from tests.conftest import until
from tests.services import Wire, name

IRIS, SPECIES = load_iris(return_X_y=True)
FLOWERS = pl.DataFrame(IRIS, schema=["a", "b", "c", "d"]).with_columns(species=SPECIES)


def spec(model: str, **changes: Any) -> ModelSpec:
    columns: dict[str, Any] = {column: {"type": "number"} for column in "abcd"} | {"species": {"type": "integer"}}
    return ModelSpec.model_validate(
        {
            "model": model,
            "task": "classification",
            "dataset": {"name": model, "columns": columns},
            "target": "species",
            "estimator": {"name": "LogisticRegression"},
            "gate": "accuracy > 0.8",
            **changes,
        }
    )


SLOW = {"name": "MLPClassifier", "params": {"tol": 0.0, "n_iter_no_change": 10**9}}
"""An estimator that fits for as long as its `max_iter` says, about a second in a thousand, on any number of rows."""


def slow(max_iter: int) -> dict[str, Any]:
    return SLOW | {"params": SLOW["params"] | {"max_iter": max_iter}}


@dataclass(frozen=True)
class Fit:
    """When a worker did a fit, in nanoseconds since 1970."""

    run: str
    began: int
    ended: int


def fits(var: Path) -> list[Fit]:
    """Return every fit that came to its end, as the traces of all replicas below `var` tell."""
    lines = [line for file in (var / "traces").glob("training-*-fit-*.jsonl") for line in file.open()]
    found = [
        span
        for line in lines
        for of in json.loads(line)["resourceSpans"]
        for s in of["scopeSpans"]
        for span in s["spans"]
    ]
    return [_fit(span) for span in found if span["name"] == "fit"]


def _fit(span: dict[str, Any]) -> Fit:
    run = next(a["value"]["stringValue"] for a in span["attributes"] if a["key"] == "meguri.run.id")
    return Fit(run, int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"]))


@dataclass(frozen=True)
class Training:
    """A running training service on a log of its own, with its warm worker."""

    http: httpx.AsyncClient
    wire: Wire
    artifacts: Artifacts
    folder: Path

    async def commit(self, dataset: str, rows: pl.DataFrame, hops: int = 1) -> str:
        """A new version of a dataset, as ingest makes and says it; returns the id of its event."""
        uri = str(self.folder / "data" / dataset)
        rows.write_delta(uri, mode="append")
        before = await self.wire.said(DataCommitted, dataset)
        part = Contribution(event=name("e"), producer="lab", rows=rows.height)
        total = rows.height + (before[-1].total_rows if before else 0)
        committed = DataCommitted(
            dataset=dataset,
            version=len(before),
            digest=f"d{len(before)}",
            rows=rows.height,
            total_rows=total,
            events=(part,),
        )
        id_ = name("committed")
        await self.wire.say(committed, id=id_, hops=hops)
        return id_

    async def said(self, kind: type[Event], model: str, count: int = 1) -> list[Any]:
        """The events of a kind once there are as many."""

        async def enough() -> list[Any] | None:
            found = await self.wire.said(kind, model)
            return found if len(found) >= count else None

        return await until(enough, f"{count} {kind.kind()}")

    async def state(self, model: str) -> dict[str, Any]:
        answer = await self.http.get(f"/models/{model}")
        assert answer.status_code == 200, answer.text
        return answer.json()

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.profiles import profile_of
from meguri_contracts.events import (
    Deployed,
    DriftDetected,
    EpisodeResolved,
    Event,
    Plan,
    RolloutChanged,
    Signature,
    Tensor,
)
from meguri_contracts.spec import ModelSpec
from meguri_contracts.topology import DEAD, DEAD_PREFIX, PREDICTION_PREFIX, PREDICTIONS
from meguri_monitoring.app import build
from meguri_monitoring.handlers import NAME
from meguri_monitoring.settings import Settings
from tests.conftest import Broker, until
from tests.services import Wire, name, running, wire

FEATURES = ("x", "y")
WINDOW = 100
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def values(rows: int, seed: int, moved: float = 0.0) -> np.ndarray:
    """Rows as in training; `moved` shifts the first feature, in its standard deviations."""
    return np.random.default_rng(seed).normal(size=(rows, 2)) + [moved, 0.0]


def message(model: str, rows: np.ndarray, producer: str = "camera-a", version: int = 1, **columns: Any) -> bytes:
    """Predictions as inference publishes them."""
    n = len(rows)
    table = pa.table(
        {
            "prediction_id": [name("p") for _ in range(n)],
            "time": pa.array([datetime(2026, 5, 1, tzinfo=UTC)] * n, pa.timestamp("us", "UTC")),
            "model": [model] * n,
            "version": [version] * n,
            "producer": [producer] * n,
            "trace_id": [TRACE] * n,
            **(columns or dict(zip(FEATURES, rows.T, strict=True))),
            "label": [7] * n,
            "probability": [0.9] * n,
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


@dataclass(frozen=True)
class Monitoring:
    """A running monitoring service, and what inference and the registry do beside it."""

    http: httpx.AsyncClient
    wire: Wire
    artifacts: Artifacts
    folder: Path
    model: str

    async def watch(self) -> None:
        """Apply a spec with small windows, and roll version 1 out."""
        spec = {
            "model": self.model,
            "task": "classification",
            "dataset": {
                "name": self.model,
                "columns": {"x": {"type": "number"}, "y": {"type": "number"}, "label": {"type": "integer"}},
            },
            "target": "label",
            "estimator": {"name": "LogisticRegression"},
            "gate": "accuracy > 0",
            "monitor": {"window_rows": WINDOW, "min_rows": 50, "windows": 2},
        }
        await self.wire.apply(ModelSpec.model_validate(spec))
        await self.roll_out(1)

    async def roll_out(self, version: int, seed: int = 0) -> None:
        profile = await self.artifacts.put(profile_of(FEATURES, values(1000, seed)).to_json())
        tensor = Tensor(name="x", datatype="FP64", shape=(-1, 2))
        signature = Signature(features=FEATURES, input=tensor, outputs=(tensor,))
        champion = Deployed(version=version, run=f"run-{version}", onnx=profile, profile=profile, signature=signature)
        plan = Plan(champion=champion)
        await self.wire.say(RolloutChanged(model=self.model, plan=plan, reason="the gate holds", actor="registry"))

    async def predict(self, *messages: bytes) -> int:
        """Publish messages of predictions; returns the sequence of the last."""
        acks = [
            await self.wire.js.publish(f"{PREDICTION_PREFIX}.{self.model}", body, stream=PREDICTIONS)
            for body in messages
        ]
        return int(acks[-1].seq)

    async def windows(self, count: int) -> list[dict[str, Any]]:
        """The judged windows once there are as many, oldest first."""

        async def enough() -> list[dict[str, Any]] | None:
            found = (await self.http.get(f"/models/{self.model}/windows")).json()
            return found[::-1] if len(found) >= count else None

        return await until(enough, f"{count} windows")

    async def said(self, kind: type[Event], count: int = 1) -> list[Any]:
        async def enough() -> list[Any] | None:
            found = await self.wire.said(kind, self.model)
            return found if len(found) >= count else None

        return await until(enough, f"{count} {kind.kind()}")

    async def dead_letters(self) -> list[dict[str, str]]:
        return [msg.headers or {} for msg in await self.wire.stored(DEAD, f"{DEAD_PREFIX}.{NAME}")]

    def kept(self, version: int = 1) -> pl.DataFrame:
        return pl.read_delta(str(self.folder / f"data/_predictions/{self.model}/v{version}"))


@asynccontextmanager
async def monitoring_in(
    folder: Path, broker: Broker, database_url: str, artifacts: Path, model: str
) -> AsyncIterator[Monitoring]:
    settings = Settings(
        nats_url=broker.url, database_url=database_url, var=folder, artifacts_url=f"file://{artifacts}"
    )
    async with running(build(settings)) as http, wire(broker) as beside:
        yield Monitoring(http, beside, Artifacts(settings.artifacts_url), folder, model)


@pytest.fixture
async def monitoring(own_broker, tmp_path) -> AsyncIterator[Monitoring]:
    database_url, artifacts = f"sqlite:///{tmp_path}/monitoring.db", tmp_path / "artifacts"
    async with monitoring_in(tmp_path, own_broker, database_url, artifacts, name("m")) as monitoring:
        await monitoring.watch()
        yield monitoring


# --- windows ----------------------------------------------------------------------------------------------------------


async def test_predictions_are_kept_and_counted_into_windows(monitoring):
    sequence = await monitoring.predict(*(message(monitoring.model, values(60, seed)) for seed in range(1, 5)))

    first, second = await monitoring.windows(2)
    assert [(one["window"]["rows"], one["judged"], one["drifted"]) for one in (first, second)] == [
        (WINDOW, True, []),
        (WINDOW, True, []),
    ]
    assert first["window"]["last"] == sequence - 2
    kept = monitoring.kept()
    assert (kept.height, kept["trace_id"].unique().to_list()) == (240, [TRACE])
    assert await monitoring.wire.said(DriftDetected, monitoring.model) == []


async def test_drift_is_said_once_and_names_feature_and_producer(monitoring):
    await monitoring.predict(
        *(
            body
            for seed in range(1, 9)
            for body in (
                message(monitoring.model, values(50, seed), "camera-a"),
                message(monitoring.model, values(50, 100 + seed, moved=3.0), "camera-b"),
            )
        )
    )
    windows = await monitoring.windows(8)
    (detected,) = await monitoring.said(DriftDetected)

    assert (detected.feature, detected.producer, detected.version) == ("x", "camera-b", 1)
    assert detected.drifted == ("x",)
    assert detected.share > 0.8
    assert detected.window.model_dump() == windows[1]["window"]
    kept = monitoring.kept().filter(pl.col("prediction_id").is_in(detected.samples))
    assert kept["producer"].unique().to_list() == ["camera-b"]
    assert kept["sequence"].is_between(detected.window.first, detected.window.last).all()


async def test_an_episode_ends_when_another_version_serves(monitoring):
    moved = (message(monitoring.model, values(WINDOW, seed, moved=3.0)) for seed in (1, 2))
    await monitoring.predict(*moved)
    (detected,) = await monitoring.said(DriftDetected)
    await monitoring.roll_out(2)

    (resolved,) = await monitoring.said(EpisodeResolved)
    assert (resolved.episode, resolved.reason) == (detected.episode, "version 2 serves")


async def test_an_episode_ends_when_rows_look_like_the_reference_again_and_a_later_one_is_another(monitoring):
    for moved in (3.0, 0.0, 3.0):
        await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed, moved)) for seed in (1, 2)))

    first, second = await monitoring.said(DriftDetected, 2)
    (resolved,) = await monitoring.said(EpisodeResolved)
    assert (resolved.episode, first.episode != second.episode) == (first.episode, True)


async def test_a_version_without_a_reference_is_kept_and_not_judged(monitoring):
    await monitoring.predict(message(monitoring.model, values(2 * WINDOW, 1), version=9))
    await monitoring.predict(message(monitoring.model, values(WINDOW, 1)))

    (window,) = await monitoring.windows(1)
    assert window["version"] == 1
    assert monitoring.kept(9).height == 2 * WINDOW


# --- what does not fit ------------------------------------------------------------------------------------------------


def odd(kind: str, model: str) -> bytes:
    n = 5
    return {
        "no Arrow": b"no Arrow",
        "other features": message(model, values(n, 1), z=[0.5] * n),
        "features in another order": message(model, values(n, 1), y=[0.5] * n, x=[0.5] * n),
        "a model that leads elsewhere": message("../../elsewhere", values(n, 1)),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no Arrow", "Malformed: not an Arrow IPC stream"),
        ("other features", "not the 2 of its reference"),
        ("features in another order", "or the same in another order"),
        ("a model that leads elsewhere", "which is no name"),
    ],
)
async def test_predictions_that_do_not_fit_are_set_aside_and_the_others_counted(monitoring, kind, reason):
    before = await monitoring.predict(message(monitoring.model, values(60, 1)))
    await monitoring.predict(odd(kind, monitoring.model), message(monitoring.model, values(60, 2)))

    (window,) = await monitoring.windows(1)
    (letter,) = await until(monitoring.dead_letters)
    assert (window["window"]["first"], window["window"]["last"]) == (before, before + 2)
    assert reason in letter["meguri-reason"]
    assert letter["meguri-sequence"] == str(before + 1)
    assert monitoring.kept().height == 120
    assert not (monitoring.folder / "elsewhere").exists()


async def test_the_first_predictions_of_a_version_do_not_decide_for_those_that_fit(monitoring):
    await monitoring.predict(odd("other features", monitoring.model), message(monitoring.model, values(WINDOW, 2)))

    await monitoring.windows(1)
    assert monitoring.kept().columns[6:8] == ["x", "y"]


async def test_a_version_without_a_reference_that_changes_its_columns_stops_nobody(monitoring):
    await monitoring.predict(message(monitoring.model, values(5, 1), version=9))
    await monitoring.predict(message(monitoring.model, values(5, 1), version=9, z=[0.5] * 5))
    await monitoring.predict(message(monitoring.model, values(WINDOW, 1)))

    await monitoring.windows(1)
    (letter,) = await monitoring.dead_letters()
    assert "in predictions and" in letter["meguri-reason"]
    assert monitoring.kept(9).height == 5


# --- in spite of crashes ----------------------------------------------------------------------------------------------


def counted(database_url: str) -> dict[str, list[Any]]:
    """The windows of a service, the open one byte by byte."""
    engine = sqlalchemy.create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    queries = {
        "judged": "SELECT version, judged FROM monitoring_judged_window ORDER BY id",
        "open": "SELECT version, window FROM monitoring_open_window",
        "position": "SELECT sequence FROM log_position WHERE projection = 'predictions'",
    }
    if engine.dialect.name == "postgresql":
        queries["open"] = 'SELECT version, "window" FROM monitoring_open_window'
    with engine.connect() as connection:
        found = {what: [tuple(row) for row in connection.exec_driver_sql(query)] for what, query in queries.items()}
    engine.dispose()
    return found


async def test_a_service_that_was_stopped_in_between_counts_every_prediction_once(own_broker, database_url, tmp_path):
    model, artifacts = name("m"), tmp_path / "artifacts"
    for part in range(3):
        async with monitoring_in(tmp_path / "one", own_broker, database_url, artifacts, model) as monitoring:
            if part == 0:
                await monitoring.watch()
            bodies = [message(model, values(30, 10 * part + n), f"camera-{n}") for n in range(5)]
            last = await monitoring.predict(*bodies)
            await until(lambda last=last: counted(database_url)["position"] == [(last,)], "the count")

    whole = f"sqlite:///{tmp_path}/whole.db"
    async with monitoring_in(tmp_path / "other", own_broker, whole, artifacts, model) as undisturbed:
        await until(lambda: position(whole) == [(last,)], "the count")
        assert undisturbed.kept().height == pl.read_delta(f"{tmp_path}/one/data/_predictions/{model}/v1").height == 450
    in_parts, at_once = counted(database_url), counted(whole)
    assert len(in_parts["judged"]) == 4
    assert [row[1] if isinstance(row[1], dict) else __import__("json").loads(row[1]) for row in in_parts["judged"]] == [
        __import__("json").loads(row[1]) for row in at_once["judged"]
    ]
    assert in_parts["open"] == at_once["open"]

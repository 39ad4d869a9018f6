"""P10: memory of a monitoring process after many rows against that after few, fed through the broker."""

import asyncio
import io
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count

import nats
import numpy as np
import psutil
import pyarrow as pa

from meguri_contracts.spec import Monitor
from meguri_contracts.topology import PREDICTION_PREFIX
from tests.bench.serving import kept, models
from tests.bench.serving.models import Model
from tests.bench.serving.ours import Ours, service
from tests.bench.serving.requests import NotMeasured
from tests.bench.serving.servers import CLIENT, Server
from tests.bench.serving.setting import Setting

MODELS = 5
"""Of 20 features each: 100 model-features."""
WINDOWS = 10
"""Of each model in the whole run."""
FEW = 100_000
AT_A_TIME = 5_000
"""Rows of a message."""
AHEAD = 20
"""Messages that are sent before monitoring must have counted those before."""
PRODUCERS = 3
PATIENCE = 60.0
"""Seconds without progress after which it is given up."""


def steady(setting: Setting, many: int) -> Iterator[str]:
    """So many rows, in turn of five models, through the broker into windows and tables."""
    ours, fitted = setting.ours, models.wide(setting.folder, AT_A_TIME)
    watched = [_named(fitted, f"wide-{at}", many // MODELS // WINDOWS) for at in range(MODELS)]
    for model in watched:
        asyncio.run(ours.keep(model, 1))
        asyncio.run(ours.roll_out(model, 1))
    with service("monitoring", ours.broker, ours.var, CLIENT) as monitoring:
        feed = _Feed(ours, watched)
        asyncio.run(feed.until(FEW))
        before = _resident(monitoring)
        began = time.perf_counter()
        peak = asyncio.run(feed.until(many, watch=monitoring))
        rate = (many - FEW) / (time.perf_counter() - began)
        after = _resident(monitoring)
    yield (
        f"monitoring process fed through the broker, {MODELS * 20} model-features, {WINDOWS} windows each: "
        f"{before / 1e6:.0f} MB after {FEW:,} rows, {after / 1e6:.0f} MB after {many:,} (at most {peak / 1e6:.0f} MB "
        f"while they came at {rate:,.0f} rows/s); ratio {after / before:.2f}, at most {peak / before:.2f}, goal <= 1.2"
    )


class _Feed:
    """Predictions as inference would send them."""

    def __init__(self, ours: Ours, watched: list[Model]) -> None:
        self._ours, self._models = ours, watched
        self._random = np.random.default_rng(0)
        self._number = count()
        self._sent = 0

    async def until(self, rows: int, watch: Server | None = None) -> int:
        """Send until so many rows were sent in all and counted; return the most memory of `watch` meanwhile."""
        peak = 0
        client = await nats.connect(self._ours.broker.url)
        js = client.jetstream(timeout=10)
        try:
            while self._sent < rows:
                for _ in range(min(AHEAD, (rows - self._sent) // AT_A_TIME)):
                    number = next(self._number)
                    model = self._models[number % len(self._models)]
                    await js.publish(f"{PREDICTION_PREFIX}.{model.name}", self._message(model, number))
                    self._sent += AT_A_TIME
                await self._counted()
                peak = max(peak, _rss(watch)) if watch else 0
        finally:
            await client.close()
        return peak

    async def _counted(self) -> None:
        end = time.monotonic() + PATIENCE
        with kept.database(self._ours) as monitoring:
            while not await kept.counted(self._ours, monitoring):
                if time.monotonic() > end:
                    raise NotMeasured(f"not all of {self._sent:,} rows were counted within {PATIENCE:.0f} s")
                await asyncio.sleep(0.01)

    def _message(self, model: Model, number: int) -> bytes:
        rows = range(AT_A_TIME)
        values = model.rows[self._random.permutation(AT_A_TIME)]
        columns: dict[str, object] = {
            "prediction_id": [f"{number:06x}:{row}" for row in rows],
            "time": pa.array([datetime.now(UTC)] * AT_A_TIME, pa.timestamp("us", tz="UTC")),
            "model": [model.name] * AT_A_TIME,
            "version": np.ones(AT_A_TIME, np.int64),
            "producer": [f"producer-{row % PRODUCERS}" for row in rows],
            "trace_id": [f"{number:032x}"] * AT_A_TIME,
            "_entity": pa.nulls(AT_A_TIME, pa.string()),
            "_role": ["champion"] * AT_A_TIME,
            "_latency": np.full(AT_A_TIME, 100, np.int64),
        }
        columns |= {name: values[:, at] for at, name in enumerate(model.spec.feature_names)}
        columns |= {"label": np.ones(AT_A_TIME, np.int64), "probability": self._random.random(AT_A_TIME)}
        table = pa.table(columns)
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return sink.getvalue()


def _named(model: Model, name: str, window_rows: int) -> Model:
    spec = model.spec.model_copy(update={"model": name, "monitor": Monitor(window_rows=window_rows)})
    return replace(model, name=name, spec=spec)


def _resident(server: Server) -> int:
    server.rest()
    return _rss(server)


def _rss(server: Server) -> int:
    return int(psutil.Process(server.pid).memory_info().rss)

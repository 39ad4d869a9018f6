"""P8: what keeping predictions takes from serving, and how fast their rows get to monitoring's sketches and tables."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

import meguri_monitoring
from meguri_chassis.profiles import Profile
from meguri_chassis.store import Database
from meguri_contracts.spec import Monitor
from meguri_contracts.topology import PREDICTIONS
from meguri_monitoring import store
from meguri_monitoring.predictions import tables
from meguri_monitoring.windows import store as window_store
from tests.bench.serving import models, requests
from tests.bench.serving.comparing import rate, spread
from tests.bench.serving.figures import BUSY
from tests.bench.serving.keeping import keep, send
from tests.bench.serving.load import Cell, Request, measure
from tests.bench.serving.models import Model
from tests.bench.serving.ours import Ours, service
from tests.bench.serving.requests import NotMeasured
from tests.bench.serving.servers import CLIENT, SERVER, on_core
from tests.bench.serving.setting import Setting

AT_A_TIME = 5000
"""Rows of a request."""
TIMES = 80
WINDOW_ROWS = 10_000
"""Of a window: so many predictions a second are no reason for a verdict on each five hundred."""
PATIENCE = 60.0
"""Seconds after the last request after which rows that are not there are lost."""


def cost(setting: Setting) -> Iterator[str]:
    """The same load with all predictions kept and with none."""
    model, ours = setting.iris, setting.ours
    asked = requests.to_us(model, 1)
    kept: list[Cell] = []
    forgotten: list[Cell] = []
    for _ in range(setting.pairs):
        for sampled, cells in ((1, kept), (0, forgotten)):
            asyncio.run(keep(ours, model, sampled, asked))
            cells.append(measure(ours.server, asked, BUSY, setting.seconds))
    lost = [1 - with_.rate / without.rate for with_, without in zip(kept, forgotten, strict=True)]
    by_cpu = [1 - without.cpu / with_.cpu for with_, without in zip(kept, forgotten, strict=True)]
    yield (
        f"logistic regression, 1 row, {BUSY} connections: all kept {rate(kept)}, none kept {rate(forgotten)}; "
        f"lost to it {spread(lost, '.1%')}, goal <= 5%; by processor time {spread(by_cpu, '.1%')}"
    )


def flow(setting: Setting) -> Iterator[str]:
    """From the first request until monitoring has the last row, beside the sketches alone; 20 features."""
    model, ours = models.wide(setting.folder, AT_A_TIME, Monitor(window_rows=WINDOW_ROWS)), setting.ours
    asyncio.run(ours.keep(model, 1))
    asyncio.run(ours.deploy(model))
    asked = _accepted(ours, model)
    through: list[float] = []
    alone: list[float] = []
    with service("monitoring", ours.broker, ours.var, CLIENT):
        asyncio.run(_arrived(ours, model, AT_A_TIME))
        for pair in range(setting.pairs):
            through.append(asyncio.run(_through(ours, model, asked, AT_A_TIME * (1 + pair * TIMES))))
            alone.append(_sketches_alone(model))
    ratios = [ours_ / theirs for ours_, theirs in zip(through, alone, strict=True)]
    yield (
        f"20 features, {AT_A_TIME} rows a request, windows of {WINDOW_ROWS}: {spread(through, ',.0f')} rows/s from "
        f"inference to sketches and table, sketches alone {spread(alone, ',.0f')} rows/s; ratio {spread(ratios)}, goal >= 0.25"
    )


def _accepted(ours: Ours, model: Model) -> Request:
    """Return the request in binary tensors if they are accepted, else in JSON."""
    asked = requests.to_us_binary(model, AT_A_TIME)
    try:
        requests.check(ours.server, asked, model, AT_A_TIME)
    except NotMeasured:
        asked = requests.to_us(model, AT_A_TIME)
        requests.check(ours.server, asked, model, AT_A_TIME)
    return asked


async def _through(ours: Ours, model: Model, asked: Request, before: int) -> float:
    """Return rows per second, when `before` rows are there already."""
    rows = TIMES * AT_A_TIME
    began = time.perf_counter()
    await send(ours, asked, TIMES)
    await _arrived(ours, model, before + rows)
    return rows / (time.perf_counter() - began)


async def _arrived(ours: Ours, model: Model, rows: int) -> None:
    """Wait until monitoring has so many rows of a model, kept and counted. Raises NotMeasured when no more come."""
    have, until = 0, time.monotonic() + PATIENCE
    with database(ours) as monitoring:
        while not await counted(ours, monitoring) or (have := _rows_in_table(ours, model)) < rows:
            if time.monotonic() > until:
                raise NotMeasured(f"{have} rows of {rows} came to monitoring within {PATIENCE:.0f} s")
            await asyncio.sleep(0.05)


def _rows_in_table(ours: Ours, model: Model) -> int:
    try:
        table = DeltaTable(tables.table_uri(str(ours.var / "data"), model.name, 1))
    except TableNotFoundError:
        return 0
    return int(sum(table.get_add_actions(flatten=True)["num_records"].to_pylist()))


@contextmanager
def database(ours: Ours) -> Iterator[Database]:
    """Monitoring's own: to open it for each look would take from what is measured."""
    opened = Database(f"sqlite:///{ours.var}/monitoring.db", Path(meguri_monitoring.__file__).parent / "migrations")
    yield opened
    opened.engine.dispose()


async def counted(ours: Ours, monitoring: Database) -> bool:
    """Return whether monitoring's windows have everything that the stream has."""
    with monitoring.read() as session:
        if window_store.all_uncounted(session):
            return False
        position = store.position(session) or 0
    return position >= await ours.last_sequence(PREDICTIONS)


def _sketches_alone(model: Model) -> float:
    """Return rows per second from arrays in memory into the sketches that monitoring uses, on the server's core."""
    profile = Profile.from_json(model.fitted.profile).like()
    with on_core(SERVER):
        began = time.perf_counter()
        for _ in range(TIMES):
            profile.update(model.rows)
        return TIMES * AT_A_TIME / (time.perf_counter() - began)

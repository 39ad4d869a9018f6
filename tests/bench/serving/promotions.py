"""P5: promotions under a steady load."""

import asyncio
from collections.abc import Iterator

from meguri_contracts.events import ModelLoaded
from tests.bench.serving import requests
from tests.bench.serving.client import Load
from tests.bench.serving.comparing import spread
from tests.bench.serving.load import Request, fire, steady
from tests.bench.serving.setting import Setting

PROMOTIONS = 20
CONNECTIONS = 16
SECONDS = 6
SHARE = 0.5
"""Of what the server can answer: how many requests fall due."""


def under_load(setting: Setting) -> Iterator[str]:
    """A forest of 100 trees is promoted again and again; an answer's time counts from when its request fell due."""
    model, ours = setting.cancer, setting.ours
    asked = requests.to_us(model, 1)
    top = fire(ours.server.port, asked, CONNECTIONS, setting.seconds)
    rate = SHARE * top.requests / top.seconds
    calm: list[Load] = []
    swapping: list[Load] = []
    promoted = 0
    for pair in range(setting.pairs):
        calm.append(steady(ours.server.port, asked, CONNECTIONS, SECONDS, rate))
        load, loaded = asyncio.run(_promoting(setting, asked, rate, first=2 + pair * PROMOTIONS))
        swapping.append(load)
        promoted += loaded
    ratios = [during.p99 / without.p99 for during, without in zip(swapping, calm, strict=True)]
    yield (
        f"{promoted} promotions of a forest at {rate:,.0f} requests/s, 1 row, {CONNECTIONS} connections: "
        f"{sum(load.requests for load in swapping):,} answers, {sum(load.failed for load in swapping)} failed, goal 0; "
        f"p99 {spread([load.p99 * 1e3 for load in swapping])} ms, without {spread([load.p99 * 1e3 for load in calm])} ms; "
        f"ratio {spread(ratios)}, goal <= 2"
    )


async def _promoting(setting: Setting, asked: Request, rate: float, first: int) -> tuple[Load, int]:
    """Load while versions from `first` on are promoted; return what was seen and how many were loaded."""
    ours, model = setting.ours, setting.cancer
    before = await ours.stored(ModelLoaded, model)
    loading = asyncio.create_task(asyncio.to_thread(steady, ours.server.port, asked, CONNECTIONS, SECONDS, rate))
    for version in range(first, first + PROMOTIONS):
        await asyncio.sleep(SECONDS / (PROMOTIONS + 2))
        await ours.roll_out(model, version)
    load = await loading
    await ours.serves(model, version)
    return load, await ours.stored(ModelLoaded, model) - before

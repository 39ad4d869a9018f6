"""Has all predictions of a model kept, or none, and sees that it is so."""

import asyncio

import httpx

from tests.bench.serving.load import Request
from tests.bench.serving.models import Model
from tests.bench.serving.ours import Ours
from tests.bench.serving.requests import NotMeasured

SETTLED = 0.5
"""Seconds after which the prediction log has said what it was given."""


async def keep(ours: Ours, model: Model, sampled: int, asked: Request) -> None:
    """Have all predictions of a model kept, or none. Raises NotMeasured when inference does not do as it is told."""
    await ours.keep(model, sampled)
    for _ in range(10):
        before = await ours.stored_predictions(model)
        await send(ours, asked, 1)
        await asyncio.sleep(SETTLED)
        if (await ours.stored_predictions(model) > before) == bool(sampled):
            return
    raise NotMeasured(f"predictions are{' not' if sampled else ''} kept although the spec says log: sampled: {sampled}")


async def send(ours: Ours, asked: Request, times: int) -> None:
    url = f"http://127.0.0.1:{ours.server.port}{asked.path}"
    async with httpx.AsyncClient(timeout=60) as http:
        for _ in range(times):
            (await http.post(url, content=asked.body, headers=dict(asked.headers))).raise_for_status()

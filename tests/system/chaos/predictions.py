"""A light load of predictions, from three producers, of which one drifts away and comes back."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

import httpx

from tests.system.chaos import specs

PRODUCERS = ("shop-a", "shop-b", "shop-c")
MOVED_BY = 5.0
"""How far the drifting producer's first feature moves, in standard deviations."""
ROWS = 200
"""Rows of a request."""
EVERY = 0.1
"""Seconds between requests."""


@dataclass
class Asked:
    """Ids of the predictions that were answered."""

    ids: set[str] = field(default_factory=set)
    unanswered: int = 0


async def ask_for_predictions(
    http: httpx.AsyncClient, urls: Sequence[str], seed: str, seconds: float, asked: Asked
) -> None:
    """Ask steadily; in the middle third of the time one producer drifts."""
    random, loop = Random(f"{seed} predictions"), asyncio.get_running_loop()
    began = loop.time()
    for turn in count():
        elapsed = loop.time() - began
        if elapsed >= seconds:
            return
        drifting = seconds / 3 < elapsed < seconds * 2 / 3
        model, producer = random.choice([*specs.DATASET_OF]), PRODUCERS[turn % len(PRODUCERS)]
        moved = MOVED_BY if drifting and producer == PRODUCERS[-1] else 0.0
        rows = [[random.gauss(0, 1) + moved, random.gauss(0, 1), random.gauss(0, 1)] for _ in range(ROWS)]
        await _ask(http, f"{urls[turn % len(urls)]}/v2/models/{model}/infer", producer, rows, asked)
        await asyncio.sleep(max(0.0, began + (turn + 1) * EVERY - loop.time()))


async def _ask(http: httpx.AsyncClient, url: str, producer: str, rows: list[list[float]], asked: Asked) -> None:
    data = [value for row in rows for value in row]
    tensor = {"name": "input", "shape": [len(rows), len(rows[0])], "datatype": "FP64", "data": data}
    try:
        answer = await http.post(url, json={"inputs": [tensor], "parameters": {"producer": producer}}, timeout=2)
    except httpx.HTTPError:
        asked.unanswered += 1
        return
    if answer.status_code == 200:
        asked.ids.add(answer.json()["parameters"]["prediction_id"])
    else:
        asked.unanswered += 1

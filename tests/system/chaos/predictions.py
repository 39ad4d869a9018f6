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
ROWS = 50
VALUES = ROWS * len(specs.FEATURES)
"""Rows of a request, and numbers in them."""
WINDOWS = 6
"""Windows that are enough for an episode to begin or to end."""
PATIENCE = 2.0
"""Seconds to wait for an answer."""
EVERY = 0.05
"""Seconds between requests."""


@dataclass
class Asked:
    """Ids of the predictions that were answered."""

    ids: set[str] = field(default_factory=set)
    unanswered: int = 0


@dataclass(frozen=True)
class Shop:
    """Asks for predictions in turn for each producer and of each replica. What it asks follows from a seed."""

    http: httpx.AsyncClient
    urls: Sequence[str]
    asked: Asked
    turn: "count[int]" = field(default_factory=count)

    async def ask_steadily(self, seed: str, seconds: float) -> None:
        """Ask for so many seconds; in the middle third of the time one producer drifts."""
        random, loop = Random(f"{seed} predictions"), asyncio.get_running_loop()
        began = loop.time()
        while (elapsed := loop.time() - began) < seconds:
            moved = seconds / 3 < elapsed < seconds * 2 / 3
            await self._ask(random, random.choice([*specs.DATASET_OF]), moved=moved)
            await asyncio.sleep(EVERY)

    async def ask_all(self, seed: str, *, moved: bool) -> None:
        """Ask every model for WINDOWS windows of predictions; one producer has drifted or has not."""
        random = Random(seed)
        for _ in range(WINDOWS * specs.WINDOW_ROWS // ROWS):
            for model in specs.DATASET_OF:
                await self._ask(random, model, moved=moved)

    async def _ask(self, random: Random, model: str, *, moved: bool) -> None:
        turn = next(self.turn)
        producer = PRODUCERS[turn // len(specs.DATASET_OF) % len(PRODUCERS)]
        by = MOVED_BY if moved and producer == PRODUCERS[-1] else 0.0
        data = [random.gauss(0, 1) + (by if at % len(specs.FEATURES) == 0 else 0) for at in range(VALUES)]
        tensor = {"name": "input", "shape": [ROWS, len(specs.FEATURES)], "datatype": "FP64", "data": data}
        url = f"{self.urls[turn % len(self.urls)]}/v2/models/{model}/infer"
        try:
            body = {"inputs": [tensor], "parameters": {"producer": producer}}
            answer = await self.http.post(url, json=body, timeout=PATIENCE)
        except httpx.HTTPError:
            self.asked.unanswered += 1
            return
        if answer.status_code == 200:
            self.asked.ids.add(answer.json()["parameters"]["prediction_id"])
        else:
            self.asked.unanswered += 1

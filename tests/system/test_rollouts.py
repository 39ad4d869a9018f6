"""A new version on its way into traffic, under load on two replicas: judged, watched as a shadow, promoted, taken back."""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from meguri.client import Meguri, address, publish
from meguri.following import follow
from tests.conftest import ROOT, until
from tests.system.conftest import NEXT_REPLICA, environment, started
from tests.system.load import Answered, Load

sys.path.insert(0, str(ROOT / "examples/digits"))
from publish import images

pytestmark = pytest.mark.timeout(600)

MODEL = "digits-watched"
RATE = 200.0
"""Requests a second, of both replicas together."""
PAIRS = 1000
OFTEN = 300
"""Answers of each replica by a new champion before it is believed that no other comes any more."""
FEATURES = [f"pixel_{i}" for i in range(64)]


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A system of its own with two replicas of inference; their ports."""
    env = environment(tmp_path / "var") | {"MEGURI_INFERENCE_REPLICAS": "2"}
    for name, value in env.items():
        if name.startswith("MEGURI_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("MEGURI_NATS_URL", f"nats://127.0.0.1:{env['MEGURI_NATS_PORT']}")
    port = int(env["MEGURI_INFERENCE_PORT"])
    with started(env, tmp_path / "printed", "--bare", "services are ready"):
        yield [port, port + NEXT_REPLICA]


@dataclass
class Watched:
    """What the test sees of the model and of those who answer for it."""

    meguri: Meguri
    load: Load
    ports: list[int]
    changes: list[tuple[float, float]] = field(default_factory=list)
    """When the champion began to be changed, and when every replica had answered with the new one, in seconds since 1970."""

    async def rollout(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.meguri.rollout, MODEL)

    async def shadow(self) -> dict[str, Any] | None:
        versions = (await self.rollout())["versions"]
        return next((one for one in versions if one["role"] == "shadow"), None)

    async def verdicts(self) -> dict[int, str]:
        model = await asyncio.to_thread(self.meguri.model, MODEL)
        return {one["version"]: one["verdict"] for one in model["versions"]}

    def followed(self, version: int, since: float) -> dict[int, float]:
        """By replica when it first answered with a version that it has answered with often enough since."""
        times: dict[int, list[float]] = {port: [] for port in self.ports}
        for one in self.load.answers:
            if one.sent > since and one.version == version:
                times[one.port].append(one.received)
        return {port: min(received) for port, received in times.items() if len(received) >= OFTEN}

    def late(self, version: int, followed: dict[int, float]) -> list[Answered]:
        """Answers by another version of a replica that had answered with `version` before it was asked."""
        return [one for one in self.load.answers if one.sent > followed[one.port] and one.version != version]


async def test_a_version_is_judged_shadowed_promoted_and_taken_back_without_a_failed_request(system):
    async with watching(system) as seen:
        # --- a batch with wrong labels makes a version that is rejected
        await learn_from(300, 360, wrong=0.9)
        await until(lambda: said(seen, 2, "rejected"), "version 2 rejected")

        # --- a clean one makes a version that is asked beside, on a thousand requests at least
        await learn_from(360, 960)
        await until(lambda: said(seen, 3, "shadow"), "version 3 shadow")
        await until(lambda: pairs(seen, PAIRS), f"{PAIRS} pairs")
        assert {one.version for one in seen.load.answers} == {1}

        # --- what the replicas counted is what a recount of the kept predictions finds
        seen.load.pause()
        recount = await until(lambda: equal_recount(seen), "the recount equal to what was counted")
        assert recount["pairs"] >= PAIRS
        seen.load.go_on()

        # --- promoted, and taken back: every replica follows, and from its first answer on with all
        promoted = await change(seen, 3, lambda: seen.meguri.promote(MODEL, 3, "the shadow did well"))
        assert seen.late(3, promoted) == []
        back = await change(seen, 1, lambda: seen.meguri.rollback(MODEL, "only trying"))
        assert seen.late(1, back) == []

        # --- and nobody noticed, and the registry knows who answered when
        assert seen.load.failed() == []
        assert await disagreeing_with_the_registry(seen, samples=100) == []


@asynccontextmanager
async def watching(ports: list[int]) -> AsyncIterator[Watched]:
    spec = yaml.safe_load((ROOT / "models/digits.yaml").read_text())
    spec |= {
        "model": MODEL,
        "estimator": {"name": "LogisticRegression", "scale": True},
        "rollout": {"strategy": "shadow"},
    }
    spec["gate"] = "accuracy >= 0.8"
    spec["retrain"] = {"first_rows": 300, "rows": 60}
    spec["dataset"]["name"] = MODEL
    spec["monitor"] |= {"window_rows": 100_000}
    rows = [[row[name] for name in FEATURES] for row in images(1490, 1797)]
    with Meguri(actor="test") as meguri:
        meguri.apply(json.dumps(spec).encode())
        await learn_from(0, 300)
        loaded = follow("model-loaded", MODEL)
        replicas = {(await anext(loaded)).event["replica"] for _ in ports}
        assert len(replicas) == len(ports)
        async with Load(MODEL, ports, rows, rate=RATE) as load:
            yield Watched(meguri, load, ports)


async def learn_from(first: int, last: int, *, wrong: float = 0.0) -> None:
    records = images(first, last, wrong=wrong)
    await publish(MODEL, records=records, producer="scanner")


async def change(seen: Watched, version: int, command: Any) -> dict[int, float]:
    """Change the champion; return by replica when it first answered with the new one, once each has done so often."""
    began = time.time()
    await asyncio.to_thread(command)
    await until(lambda: len(seen.followed(version, began)) == len(seen.ports), f"version {version} on all replicas")
    followed = seen.followed(version, began)
    seen.changes.append((began, max(followed.values())))
    return followed


async def said(seen: Watched, version: int, verdict: str) -> bool:
    return (await seen.verdicts()).get(version) == verdict


async def pairs(seen: Watched, least: int) -> bool:
    shadow = await seen.shadow()
    return shadow is not None and shadow["pairs"] >= least


async def equal_recount(seen: Watched) -> dict[str, Any] | None:
    """The recount, once it covers all that was counted: both sides have arrived and say the same."""
    shadow = await seen.shadow()
    async with httpx.AsyncClient() as http:
        recount = (await http.get(f"{address('monitoring')}/models/{MODEL}/shadows/3")).json()
    assert shadow
    asked = sum(one.status == 200 for one in seen.load.answers)
    same = (recount["pairs"], recount["disagreed"]) == (shadow["pairs"], shadow["disagreed"])
    return recount if same and shadow["pairs"] <= asked else None


async def disagreeing_with_the_registry(seen: Watched, samples: int) -> list[tuple[Answered, int]]:
    """Answers at random times, away from the moments of change, by another version than the registry says."""
    settled = [
        one
        for one in seen.load.answers
        if all(one.sent > followed or one.received < began for began, followed in seen.changes)
    ]
    found = []
    for one in random.Random(7).sample(settled, samples):
        known = await asyncio.to_thread(seen.meguri.known_at, datetime.fromtimestamp(one.received, UTC), MODEL)
        if known["models"][0]["champion"] != one.version:
            found.append((one, known["models"][0]["champion"]))
    return found

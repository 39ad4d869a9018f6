"""P13. What a second replica of training brings: models fitted by one and by two, side by side."""

import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from sklearn.datasets import load_iris

from infra.local.processes import ROOT
from meguri.client import Meguri, publish
from meguri.following import follow
from tests.conftest import free_port

MODELS = 8
PAIRS = 3
ESTIMATOR = {"name": "MLPClassifier", "params": {"max_iter": 2000, "tol": 0.0, "n_iter_no_change": 10**9}}
"""One to two seconds on one core."""
READY_WITHIN = 60.0


def training_throughput() -> str:
    """Each round has several models fall due with one arrival, and ends with the last verdict."""
    alone, together, ratios = [], [], []
    for _ in range(PAIRS):
        alone.append(asyncio.run(_round()))
        with _second_replica():
            asyncio.run(_round())  # warms its worker up
            together.append(asyncio.run(_round()))
        ratios.append(alone[-1] / together[-1])
    return (
        f"{MODELS} models trained and judged: one replica {statistics.median(alone):.1f} s, "
        f"two {statistics.median(together):.1f} s; {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f}, {PAIRS} pairs, {os.cpu_count()} cores)"
    )


async def _round() -> float:
    """Return the seconds from the arrival to the last verdict."""
    dataset = f"bench-{secrets.token_hex(4)}"
    models = {f"{dataset}-{number}" for number in range(MODELS)}
    with Meguri() as meguri:
        for model in models:
            meguri.apply(json.dumps(_spec(model, dataset)).encode())
    verdicts = follow("rollout-changed")
    rows, species = load_iris(return_X_y=True)
    records = [
        dict(zip("abcd", map(float, row), strict=True)) | {"y": int(y)} for row, y in zip(rows, species, strict=True)
    ]
    began = time.perf_counter()
    await publish(dataset, records=records, producer="bench")
    async for seen in verdicts:
        models.discard(seen.key)
        if not models:
            break
    return time.perf_counter() - began


@contextmanager
def _second_replica() -> Iterator[None]:
    port = str(free_port())
    env = os.environ | {"MEGURI_TRAINING_PORT": port, "MEGURI_TRAINING_REPLICA": "second"}
    process = subprocess.Popen([sys.executable, "-m", "meguri_training"], env=env, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + READY_WITHIN
        while not _ready(port):
            if time.monotonic() > end:
                raise RuntimeError("the second replica does not get ready")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def _ready(port: str) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready").is_success
    except httpx.TransportError:
        return False


def _spec(model: str, dataset: str) -> dict[str, Any]:
    columns = {name: {"type": "number"} for name in "abcd"} | {"y": {"type": "integer"}}
    return {
        "model": model,
        "task": "classification",
        "dataset": {"name": dataset, "columns": columns},
        "target": "y",
        "estimator": ESTIMATOR,
        "gate": "accuracy >= 0",
    }

"""P1 to P4: single answers, and large ones, against the yardsticks."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

from infra.local.processes import ROOT
from tests.bench.serving import requests
from tests.bench.serving.comparing import in_turn, latency, rate, spread
from tests.bench.serving.keeping import keep
from tests.bench.serving.load import Cell, Request, measure
from tests.bench.serving.models import MANY, Model
from tests.bench.serving.servers import SERVER, on_core
from tests.bench.serving.setting import Setting

BUSY = 64
CALM = 16


def throughput(setting: Setting) -> Iterator[str]:
    """P1. One row a request, against the server written by hand, with the route that is faster."""
    for model, what, goal in ((setting.iris, "logistic regression", 15), (setting.cancer, "forest of 100", 150)):
        ours, theirs = setting.ours.server, setting.by_hand(model, "async")
        asked, asked_them = requests.to_us(model, 1), requests.to_them(model, 1)
        requests.check(ours, asked, model, 1)
        requests.check(theirs, asked_them, model, 1)
        found = in_turn((ours, asked), (theirs, asked_them), BUSY, setting.pairs, setting.seconds)
        yield (
            f"{what}, 1 row, {BUSY} connections: ours {rate(found.ours)}, by hand {rate(found.theirs)}; "
            f"ratio {spread(found.ratios(_rate))}, goal >= {goal}; "
            f"by processor time {spread([1 / ratio for ratio in found.ratios(_cpu)])}"
        )


def against_hello(setting: Setting) -> Iterator[str]:
    """P2. The same against the bare server."""
    ours, asked = setting.ours.server, requests.to_us(setting.iris, 1)
    requests.check(ours, asked, setting.iris, 1)
    found = in_turn((ours, asked), (setting.hello, Request("/")), BUSY, setting.pairs, setting.seconds)
    yield (
        f"logistic regression, 1 row, {BUSY} connections: ours {rate(found.ours)}, hello {rate(found.theirs)}; "
        f"ratio {spread(found.ratios(_rate))}, goal >= 1; "
        f"by processor time {spread([1 / ratio for ratio in found.ratios(_cpu)])}"
    )


def tail(setting: Setting) -> Iterator[str]:
    """P3. p99 against the server written by hand, with the route that keeps it lower."""
    for model, what, route in (
        (setting.iris, "logistic regression", "async"),
        (setting.cancer, "forest of 100", "def"),
    ):
        ours, theirs = setting.ours.server, setting.by_hand(model, "def" if route == "def" else "async")
        sides = (ours, requests.to_us(model, 1)), (theirs, requests.to_them(model, 1))
        found = in_turn(*sides, CALM, setting.pairs, setting.seconds)
        yield (
            f"{what}, 1 row, {CALM} connections: ours {latency(found.ours)}; by hand {latency(found.theirs)}; "
            f"p99 ratio {spread(found.ratios(lambda cell: cell.load.p99))}, goal <= 0.2"
        )


def large(setting: Setting) -> Iterator[str]:
    """P4. Many rows in binary tensors, against ONNX Runtime alone in a process, on the same core."""
    model, ours = setting.cancer, setting.ours.server
    asked = requests.to_us_binary(model, MANY)
    requests.check(ours, asked, model, MANY)
    for sampled, what in ((0, "nothing kept for monitoring"), (1, "every row kept for monitoring")):
        asyncio.run(keep(setting.ours, model, sampled, asked))
        cells: list[Cell] = []
        alone: list[tuple[float, float]] = []
        for _ in range(setting.pairs):
            cells.append(measure(ours, asked, CALM, setting.seconds))
            alone.append(_onnx_alone(setting, model))
        ratios = [cell.rate / calls for cell, (calls, _) in zip(cells, alone, strict=True)]
        by_cpu = [cpu / cell.cpu for cell, (_, cpu) in zip(cells, alone, strict=True)]
        yield (
            f"forest of 100, {MANY} rows binary, {CALM} connections, {what}: ours {rate(cells)}, ONNX Runtime alone "
            f"{spread([calls for calls, _ in alone], ',.0f')} calls/s; ratio {spread(ratios)}, goal >= 0.7; "
            f"by processor time {spread(by_cpu)}"
        )


def _onnx_alone(setting: Setting, model: Model) -> tuple[float, float]:
    onnx, rows = setting.folder / f"{model.name}.onnx", setting.folder / f"{model.name}.npy"
    onnx.write_bytes(model.fitted.onnx)
    np.save(rows, model.rows.astype(requests.DTYPES[model.fitted.signature.input.datatype]))
    command = [
        sys.executable,
        "-m",
        "tests.bench.serving.yardstick",
        "onnx",
        str(onnx),
        str(rows),
        str(setting.seconds),
    ]
    with on_core(SERVER):
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    calls, cpu = map(float, answer.split())
    return calls, cpu


def _rate(cell: Cell) -> float:
    return cell.rate


def _cpu(cell: Cell) -> float:
    return cell.cpu

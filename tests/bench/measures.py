"""The measurements of `make bench`; each returns its line."""

import asyncio
import json
import os
import secrets
import statistics
import time
import urllib.request
from datetime import UTC, datetime
from typing import Any

import nats
import numpy as np
import psutil
import yaml
from sklearn.datasets import load_digits

from infra.local.processes import Laptop
from meguri.client import Meguri, broker, publish
from meguri.following import follow
from meguri_chassis.log import ce_headers
from meguri_contracts.events import Artifact, Evaluation, ModelTrained, Signature, Tensor
from meguri_contracts.topology import LOG, subject

ROUNDS = 20
PAIRS = 5
IDLE_SECONDS = 30.0


def data_to_serving() -> str:
    """P6. Each round publishes rows that make a new version due, and asks until that version answers."""
    name = f"bench-{secrets.token_hex(3)}"
    spec = yaml.safe_load(open("models/digits.yaml", encoding="utf-8"))  # noqa: SIM115
    spec |= {
        "model": name,
        "dataset": spec["dataset"] | {"name": name},
        "estimator": {"name": "LogisticRegression", "scale": True},
        "gate": "accuracy >= 0",
        "retrain": {"rows": 1},
    }
    with Meguri() as meguri:
        meguri.apply(json.dumps(spec).encode())
        total, without_fit, without_run = asyncio.run(_rounds(meguri, name))
    return (
        f"data-arrived to first answer of the new champion, p95 of {ROUNDS}: {_p95(total):.3f} s; minus the fit: "
        f"{_p95(without_fit):.3f} s (median {statistics.median(without_fit):.3f} s); minus the whole run in its process: "
        f"{_p95(without_run):.3f} s"
    )


async def _rounds(meguri: Meguri, name: str) -> tuple[list[float], list[float], list[float]]:
    digits = load_digits()
    total, without_fit, without_run = [], [], []
    loaded = follow("model-loaded", name)
    for round_ in range(ROUNDS + 1):
        rows = np.random.default_rng(round_).permutation(len(digits.target))[:200]
        records = [
            {f"pixel_{i}": float(v) for i, v in enumerate(digits.data[row])} | {"digit": int(digits.target[row])}
            for row in rows
        ]
        began = time.perf_counter()
        await publish(name, records=records, producer="bench")
        # A replica says so after it answers; asking it all the time would take the processors from what is measured.
        await anext(loaded)
        answer = meguri.infer(name, [list(digits.data[0])], producer="bench")
        took = time.perf_counter() - began
        if answer["model_version"] != str(round_ + 1):
            raise RuntimeError(f"version {answer['model_version']} answered in round {round_ + 1}")
        trained = meguri.model(name)["versions"][0]
        if round_:  # the first one makes tables and imports what is imported late
            total.append(took)
            without_fit.append(took - trained["fit_seconds"])
            without_run.append(took - trained["seconds"])
    return total, without_fit, without_run


def events_through_a_service() -> str:
    """P7. Models trained, judged by the registry one after the other; against publishes on the same broker."""
    return asyncio.run(_events_through_a_service())


async def _events_through_a_service(count: int = 300) -> str:
    ratios, ours, theirs = [], [], []
    client = await nats.connect(broker())
    js = client.jetstream()
    try:
        for pair in range(PAIRS):
            theirs.append(await _publishes(js, count))
            ours.append(await _judgements(js, count, pair))
            ratios.append(ours[-1] / theirs[-1])
    finally:
        await client.close()
    return (
        f"through the registry (consume, decide, append, project): median {statistics.median(ours):.0f} events/s appended, "
        f"one-at-a-time publishes {statistics.median(theirs):.0f}/s; ratio {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}, {PAIRS} pairs)"
    )


async def _publishes(js: Any, count: int) -> float:
    body = b"x" * 1024
    began = time.perf_counter()
    for _ in range(count):
        await js.publish(subject("bench", "yardstick"), body, stream=LOG)
    return count / (time.perf_counter() - began)


async def _judgements(js: Any, count: int, pair: int) -> float:
    """Events per second that the registry appends: two for each of `count` models trained."""
    models = [f"bench-{secrets.token_hex(4)}-{pair}" for _ in range(5)]
    with Meguri() as meguri:
        for model in models:
            meguri.apply(json.dumps(_tiny_spec(model)).encode())
    start = (await js.stream_info(LOG)).state.last_seq
    began = time.perf_counter()
    for number in range(count):
        model = models[number % len(models)]
        event = _trained(model, number)
        headers = ce_headers(event, id=secrets.token_hex(8), source="bench", time=datetime.now(UTC))
        await js.publish(subject(event.kind(), model), event.model_dump_json().encode(), stream=LOG, headers=headers)
    verdicts = 0
    async for seen in follow(after=start):
        verdicts += seen.kind in ("promotion-rejected", "rollout-changed")
        if verdicts == count:
            break
    with Meguri() as meguri:
        meguri.has_seen(seen.sequence)
        meguri.models()
    return 2 * count / (time.perf_counter() - began)


def idle(laptop: Laptop) -> str:
    """P14. What happens while nothing happens."""
    _quiet()
    processes = _processes(laptop)
    before, cpu = _stored(), sum(sum(p.cpu_times()[:2]) for p in processes)
    time.sleep(IDLE_SECONDS)
    used = sum(sum(p.cpu_times()[:2]) for p in processes) - cpu
    return (
        f"in {IDLE_SECONDS:.0f} idle seconds {_stored() - before} messages stored, "
        f"{used / IDLE_SECONDS:.1%} of one core for {len(processes)} processes"
    )


def memory(laptop: Laptop, ready: float) -> str:
    """P15. Resident memory, and what of it is shared between the processes counted once (PSS)."""
    processes = _processes(laptop)
    rss = sum(p.memory_info().rss for p in processes)
    pss = sum(p.memory_full_info().pss for p in processes)
    each = ", ".join(f"{_role(p)} {p.memory_info().rss / 2**20:.0f}" for p in processes)
    return (
        f"ready after {ready:.1f} s; RSS of {len(processes)} processes {rss / 2**30:.2f} GiB, "
        f"PSS {pss / 2**30:.2f} GiB (MiB: {each})"
    )


def _quiet() -> None:
    stored = -1
    while stored != (stored := _stored()):
        time.sleep(3)


def _stored() -> int:
    url = f"http://127.0.0.1:{os.environ['MEGURI_NATS_MONITOR_PORT']}/jsz?streams=true"
    with urllib.request.urlopen(url) as answer:
        found = json.load(answer)
    return sum(s["state"]["last_seq"] for account in found["account_details"] for s in account["stream_detail"])


def _processes(laptop: Laptop) -> list[psutil.Process]:
    manager = psutil.Process(int((laptop.var / "supervisor.pid").read_text()))
    return [manager, *manager.children(recursive=True)]


def _role(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    for word in ("supervisord", "nats-server", "meguri_", "spawn_main", "resource_tracker"):
        if word in command:
            return command.split("meguri_")[1].split()[0] if word == "meguri_" else word
    return process.name()


def _p95(values: list[float]) -> float:
    return float(np.quantile(values, 0.95))


def _tiny_spec(model: str) -> dict[str, Any]:
    columns = {"a": {"type": "number"}, "y": {"type": "integer"}}
    return {
        "model": model,
        "task": "classification",
        "dataset": {"name": model, "columns": columns},
        "target": "y",
        "estimator": {"name": "LogisticRegression"},
        "gate": "accuracy >= 0.5",
    }


def _trained(model: str, number: int) -> ModelTrained:
    """A candidate that fails its gate: judging it is all that happens."""
    artifact = Artifact(uri="file:///nowhere", digest=f"{number:064x}", size=1)
    tensor = Tensor(name="input", datatype="FP32", shape=(-1, 1))
    return ModelTrained(
        model=model,
        run=f"{model}-{number}",
        spec_version=1,
        dataset=model,
        dataset_version=1,
        dataset_digest="",
        train_rows=1,
        holdout_rows=1,
        candidate=Evaluation(version=0, metrics={"accuracy": 0.1}),
        onnx=artifact,
        skops=artifact,
        profile=artifact,
        signature=Signature(features=("a",), input=tensor, outputs=()),
        parity=0,
        environment={},
        seconds=0,
        fit_seconds=0,
    )

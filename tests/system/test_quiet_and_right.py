"""Quiet while nothing happens, right when something does: from a sensor that goes wrong to the model that has learned of it."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from meguri.client import Meguri, address, publish
from meguri.following import follow
from meguri.labelling import publish_labels
from meguri_contracts.events import Label
from tests.conftest import ROOT, free_port, until
from tests.monitoring.sinks import Mailbox, mail_server
from tests.system.conftest import environment, started

pytestmark = pytest.mark.timeout(600)

MODEL = "sensors"
PRODUCERS = ("north", "south", "east")
FEATURES = ("heat", "load", "noise", "wear", "site", "age")
BATCHES = 200
"""Requests of each producer while nothing happens."""
ROWS = 25
"""Of a request."""
WINDOW = 1500
FIRST_ROWS = 6000
"""That the first version learns from."""
SHIFT = 1.5
"""By how many standard deviations the sensor of one producer reads too high."""
THRESHOLD = 0.3
"""One of three producers moves the whole by a third of the shift: above this, and below twice as much."""
ON_TIME = 0.1
"""Share of the labels that do not come late."""
SPEC: dict[str, Any] = {
    "model": MODEL,
    "task": "classification",
    "dataset": {
        "name": MODEL,
        "columns": {name: {"type": "number"} for name in FEATURES} | {"fails": {"type": "integer"}},
    },
    "target": "fails",
    "estimator": {"name": "LogisticRegression", "scale": True},
    "gate": "accuracy >= 0.8 and accuracy >= champion.accuracy",
    "retrain": {"first_rows": FIRST_ROWS, "rows": None, "fresh_rows": FIRST_ROWS},
    "monitor": {
        "window_rows": WINDOW,
        "distance": THRESHOLD,
        # What labels say of a version would be a story of its own, and have mails of its own.
        "actions": {"performance": "ignore"},
    },
}


@dataclass
class Answered:
    """What was answered to whom about what, and what would have been right."""

    version: int
    producer: str
    prediction: str
    shifted: bool
    label: int
    truth: int


@dataclass
class Plant:
    """Three producers with their sensors, and everybody's answers."""

    meguri: Meguri
    http: httpx.AsyncClient
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    shift: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PRODUCERS, 0.0))
    answers: list[Answered] = field(default_factory=list)

    def rows(self, producer: str, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """What the sensors read, and whether it will fail. That follows from the true heat; the load tells of it too."""
        heat = self.random.normal(size=count)
        rows = self.random.normal(size=(count, len(FEATURES)))
        rows[:, 0] = heat + 0.2 * rows[:, 0] + self.shift[producer]
        rows[:, 1] = heat + 0.3 * rows[:, 1]
        rows[:, 4] += 3 * PRODUCERS.index(producer)
        return rows, (heat > 0).astype(int)

    async def learn_from(self, count: int) -> None:
        """Send rows with what became of them, a third from each producer."""
        for producer in PRODUCERS:
            rows, truth = self.rows(producer, count // len(PRODUCERS))
            records = [
                dict(zip(FEATURES, row, strict=True)) | {"fails": int(fails)}
                for row, fails in zip(rows.tolist(), truth, strict=True)
            ]
            for part in range(0, len(records), 1000):
                await publish(MODEL, records=records[part : part + 1000], producer=producer)

    async def ask(self, batches: int) -> None:
        """Have each producer in turn ask so many times."""
        for _ in range(batches):
            for producer in PRODUCERS:
                await self._ask(producer)

    async def _ask(self, producer: str) -> None:
        rows, truth = self.rows(producer, ROWS)
        tensor = {"name": "input", "shape": list(rows.shape), "datatype": "FP64", "data": rows.ravel().tolist()}
        body = {"inputs": [tensor], "parameters": {"producer": producer}}
        answer = await self.http.post(f"{address('inference')}/v2/models/{MODEL}/infer", json=body)
        answer.raise_for_status()
        said = answer.json()
        labels = next(output["data"] for output in said["outputs"] if output["name"] == "label")
        version, prediction = int(said["model_version"]), said["parameters"]["prediction_id"]
        self.answers += [
            Answered(version, producer, f"{prediction}:{row}", bool(self.shift[producer]), int(label), int(fails))
            for row, (label, fails) in enumerate(zip(labels, truth, strict=True))
        ]

    async def windows(self) -> list[dict[str, Any]]:
        found = await self.http.get(f"{address('monitoring')}/models/{MODEL}/windows", params={"limit": 1000})
        return found.json()

    async def episodes(self) -> list[dict[str, Any]]:
        """Those that anybody is told of."""
        found = (await self.http.get(f"{address('monitoring')}/episodes", params={"model": MODEL})).json()
        return [one for one in found if one["action"] != "ignore"]

    async def counted(self) -> list[dict[str, Any]]:
        """The windows, once all that was asked since the last version came is in them."""
        champion = self.answers[-1].version
        asked = sum(one.version == champion for one in self.answers)

        async def all_() -> list[dict[str, Any]] | None:
            found = [one for one in await self.windows() if one["version"] == champion]
            return found if len(found) == asked // WINDOW and all(one["decided"] for one in found) else None

        return await until(all_, f"{asked // WINDOW} windows of version {champion}")

    def accuracy(self, version: int, *, shifted: bool | None = None) -> float:
        """The share of right answers, counted here."""
        asked = [one for one in self.answers if one.version == version and shifted in (None, one.shifted)]
        return sum(one.label == one.truth for one in asked) / len(asked)


@pytest.fixture
def mailbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    """A system of its own, whose mails about the model come here."""
    port = free_port()
    env = environment(tmp_path / "var") | {
        "NOTIFY_MAIL": f"mailto://127.0.0.1:{port}/ops@example.com?from=meguri@example.com&mode=insecure"
    }
    for name, value in env.items():
        if name.startswith("MEGURI_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("MEGURI_NATS_URL", f"nats://127.0.0.1:{env['MEGURI_NATS_PORT']}")
    with mail_server(port) as mailbox, started(env, tmp_path / "printed", "--bare", "services are ready"):
        yield mailbox


@asynccontextmanager
async def plant() -> AsyncIterator[Plant]:
    async with httpx.AsyncClient(timeout=30) as http:
        with Meguri(actor="test") as meguri:
            yield Plant(meguri, http)


async def test_a_sensor_that_goes_wrong_is_found_told_once_learned_and_over(mailbox):
    async with plant() as plant_:
        plant_.meguri.apply(json.dumps(SPEC | {"notify": {"urls": ["${NOTIFY_MAIL}"]}}).encode())
        loaded = follow("model-loaded", MODEL)
        await plant_.learn_from(FIRST_ROWS)
        assert (await anext(loaded)).event["version"] == 1

        # --- nothing happens, and nothing is said
        await plant_.ask(BATCHES)
        quiet = len(await plant_.counted())
        assert quiet == BATCHES * len(PRODUCERS) * ROWS // WINDOW
        assert (await plant_.episodes(), mailbox.mails) == ([], [])

        # --- one sensor reads too high
        plant_.shift["east"] = SHIFT
        episode = await asked_until_found(plant_, at_most=5)
        assert (episode["about"], episode["feature"], episode["producer"]) == ("drift", "heat", "east")
        assert episode["share"] >= 0.9
        await until(lambda: mailbox.mails, "a mail")
        assert "heat" in mailbox.texts[0]

        # --- what came of it is learned from, and the version that did is better at it
        await plant_.learn_from(FIRST_ROWS)
        assert (await anext(loaded)).event["version"] == 2
        await until(lambda: len(mailbox.mails) == 2, "a mail that it is over")
        await plant_.ask(BATCHES // 2)
        await plant_.counted()
        assert plant_.accuracy(2, shifted=True) > plant_.accuracy(1, shifted=True) + 0.05

        # --- it was the one episode, told with two mails
        (known,) = await plant_.episodes()
        assert (known["episode"], known["reason"]) == (episode["episode"], "version 2 serves")
        assert len(mailbox.mails) == 2

        # --- with twice the threshold there would have been none; asking changes nothing
        before = await digests(plant_)
        assert "no episode" in meguri("whatif", known["episode"], "--threshold", str(2 * THRESHOLD))
        assert len(json.loads(meguri("whatif", known["episode"], "--json"))["would"]) == 1
        assert await digests(plant_) == before

        # --- most labels come last, and count as if they had not
        await label(plant_)
        live = await until(lambda: quality(plant_), "all labels counted")
        for version, found in live.items():
            assert found == pytest.approx(plant_.accuracy(version), abs=0.005)


async def asked_until_found(plant_: Plant, at_most: int) -> dict[str, Any]:
    """Have the producers ask until there is an episode, for so many windows at most."""
    for _ in range(at_most):
        await plant_.ask(WINDOW // ROWS // len(PRODUCERS))
        await plant_.counted()
        if found := await plant_.episodes():
            (episode,) = found
            return episode
    pytest.fail(f"nothing was found in {at_most} windows")


async def digests(plant_: Plant) -> list[dict[str, Any]]:
    """Of the tables of all services that have some."""
    services = ("ingest", "training", "registry", "monitoring")
    return [(await plant_.http.get(f"{address(service)}/log/digest")).json() for service in services]


async def label(plant_: Plant) -> None:
    """Send the labels of all answers, a few of them in their order and then all others."""
    late = plant_.random.random(len(plant_.answers)) > ON_TIME
    for wanted in (False, True):
        labels = [
            Label(prediction_id=one.prediction, label=one.truth)
            for one, is_late in zip(plant_.answers, late, strict=True)
            if is_late == wanted
        ]
        await publish_labels(MODEL, labels, producer="workshop")


async def quality(plant_: Plant) -> dict[int, float] | None:
    """By version the accuracy that monitoring knows, once it has all labels."""
    asked = {"since": "2000-01-01T00:00:00Z"}
    found = (await plant_.http.get(f"{address('monitoring')}/models/{MODEL}/quality", params=asked)).json()
    if sum(one["labels"] for one in found["versions"]) < len(plant_.answers):
        return None
    return {one["version"]: one["metrics"]["accuracy"] for one in found["versions"]}


def meguri(*arguments: str) -> str:
    command = [sys.executable, "-m", "meguri", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

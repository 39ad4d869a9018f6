"""The incident of the person counter: its writer drops rows, monitoring says so and leads there, nothing is lost in the end."""

import configparser
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import psutil
import pytest
from person_counter.counting import evaluate
from person_counter.incident import SWITCH

from meguri.client import Meguri, address
from meguri.following import Seen, follow, said
from meguri_monitoring.evaluators import measure_tables
from meguri_monitoring.evaluators.requests import numbered
from meguri_monitoring.predictions import tables
from tests.conftest import ROOT, until
from tests.system.conftest import Laptop, environment, started

pytestmark = pytest.mark.timeout(600)

MODEL = "person-detector"
EXAMPLE = ROOT / "examples/person_counter"
CAMERAS = ("gate-a", "gate-b")
BASELINE, WINDOW = 200, 50
"""Rows, as the example's spec says."""
WITHIN = 120.0
"""Seconds; everything shares a machine with everything else."""


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laptop]:
    """A system of its own, with the environment pointing to it."""
    env = environment(tmp_path / "var")
    for name, value in env.items():
        if name.startswith("MEGURI_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("MEGURI_NATS_URL", f"nats://127.0.0.1:{env['MEGURI_NATS_PORT']}")
    laptop = Laptop(env, tmp_path / "var", tmp_path / "printed")
    with started(env, laptop.printed, "--bare", "services are ready"):
        yield laptop


@dataclass
class Site:
    """Two cameras, and what is known of their frames."""

    laptop: Laptop
    frames: int = 0
    """Sent so far."""

    def learn(self, frames: int) -> None:
        self._cameras("--learn", frames)

    def send(self, frames: int) -> None:
        """Have both cameras send frames at once."""
        self._cameras("--frames", frames)
        self.frames += frames

    def _cameras(self, what: str, frames: int) -> None:
        running = []
        for nth, camera in enumerate(CAMERAS):
            command = [sys.executable, "-m", "person_counter.camera", camera, what, str(frames // len(CAMERAS))]
            command += ["--seed", str(1000 * self.frames + nth)]
            environment = self.laptop.env | {"MEGURI_NATS_URL": _broker(self.laptop)}
            running.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL))
        assert [one.wait(WITHIN) for one in running] == [0] * len(CAMERAS)

    def counted(self) -> pl.DataFrame:
        """The rows of the evaluator, in the order in which they were written."""
        uri = measure_tables.table_uri(str(self.laptop.var / "data"), MODEL, "person_counter")
        rows = measure_tables.scan(uri)
        assert rows is not None
        return rows.collect().sort("_sequence", maintain_order=True)

    def predicted(self) -> pl.DataFrame:
        rows = tables.scan(tables.table_uri(str(self.laptop.var / "data"), MODEL, 1))
        return pl.DataFrame() if rows is None else rows.collect()

    def state(self) -> dict[str, Any]:
        return httpx.get(f"{address('monitoring')}/models/{MODEL}/evaluators/person_counter").raise_for_status().json()

    async def evaluated(self) -> None:
        """Return when all frames that were sent are evaluated."""

        def all_are() -> bool:
            kept = self.predicted()
            whole = kept.height == self.frames * 225
            return whole and self.state()["sequence"] >= kept["sequence"].max()

        await until(all_are, "all frames evaluated", within=WITHIN)

    async def judged(self, windows: int) -> list[dict[str, Any]]:
        """The windows of the evaluator once there are as many, oldest first."""

        def enough() -> list[dict[str, Any]]:
            found = self.state()["windows"][::-1]
            return found if len(found) >= windows else []

        return await until(enough, f"{windows} windows", within=WITHIN)


def _broker(laptop: Laptop) -> str:
    return f"nats://127.0.0.1:{laptop.env['MEGURI_NATS_PORT']}"


def redeploy(laptop: Laptop, service: str, **variables: str) -> None:
    """Start one service again with other variables, the others untouched: what a deployment does, with supervisor's control."""
    path = laptop.var / "supervisord.conf"
    config = configparser.RawConfigParser()
    config.read(path)
    program = config[f"program:{service}"]
    kept = [one for one in program["environment"].split(",") if not one.startswith(SWITCH)]
    program["environment"] = ",".join([*kept, *(f'{name}="{value}"' for name, value in variables.items())])
    with path.open("w") as file:
        config.write(file)
    control = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(path), "update", service]
    subprocess.run(control, check=True, cwd=ROOT, capture_output=True, timeout=WITHIN)


def began(laptop: Laptop, *services: str) -> dict[str, float]:
    """When the process of each service was started."""
    return {service: psutil.Process(laptop.pid(service)).create_time() for service in services}


async def ready(meguri: Meguri) -> None:
    await until(lambda: meguri.health("monitoring")["ready"], "monitoring ready", within=WITHIN)


async def test_an_evaluator_that_drops_rows_is_found_by_its_numbers_and_made_good(laptop):
    site = Site(laptop)
    others = ("nats", "ingest", "training", "registry", "inference")
    with Meguri(actor="test") as meguri:
        meguri.apply((EXAMPLE / "person-detector.yaml").read_bytes())
        site.learn(100)
        await anext(follow("model-loaded", MODEL))
        before = began(laptop, *others)

        # --- all is well
        site.send(BASELINE + 2 * WINDOW)
        await site.evaluated()
        assert not any(moved(window) for window in await site.judged(2))
        assert site.counted().height == site.frames

        # --- the switch is on: within two windows monitoring says that something is wrong, and that it is not the inputs
        redeploy(laptop, "monitoring", **{SWITCH: "2"})
        await ready(meguri)
        site.send(260)
        opened = await anext(follow("anomaly-detected", MODEL))
        windows = await site.judged(4)
        assert [moved(window) for window in windows[:4]] == [False, False, True, True]
        assert opened.event["window"] == windows[3]["window"]
        assert (opened.event["subject"], opened.event["inputs_moved"]) == ("person_counter.persons", False)
        assert "outputs changed, inputs did not" in opened.event["text"]

        # --- its link leads to where rows went missing
        trace = opened.event["traces"][0]
        (write,) = await until(
            lambda: [span for span in spans(laptop, trace) if span["name"] == "write person_counter"], "the span"
        )
        assert write["meguri.rows.in"] > write["meguri.rows.written"]
        logged = [line for line in log_lines(laptop) if line.get("trace_id") == trace and line["levelname"] == "ERROR"]
        assert any("more than 2 persons" in line["message"] for line in logged)
        assert any("rows in" in line["message"] for line in logged)

        # --- one service is put right, the others go on; what is missing is evaluated again and is the truth
        redeploy(laptop, "monitoring")
        await ready(meguri)
        assert began(laptop, *others) == before
        await site.evaluated()
        refilled = meguri.evaluate(MODEL, "person_counter")
        assert refilled["rows"] == site.frames
        assert refilled["written"] > 0
        assert by_key(site.counted()) == by_key(
            evaluate(numbered(site.predicted().sort("sequence", maintain_order=True)))
        )
        assert again(laptop) == {"rows": site.frames, "written": 0}

        # --- and it is over, and the log tells the story
        site.send(4 * WINDOW)
        ended = await anext(follow("episode-resolved", MODEL))
        assert ended.event["episode"] == opened.event["episode"]
        story = [one async for one in said("*", MODEL, after=opened.sequence - 1)]
        assert kinds(story) == ["anomaly-detected", "measures-refilled", "measures-refilled", "episode-resolved"]
        meguri.has_seen(ended.sequence)
        told = await until(lambda: whole_story(opened.event["episode"]), "the whole story in the report")
        for part in ("inputs did not", "numbers of person_counter computed again", "It is over"):
            assert part in told


def again(laptop: Laptop) -> dict[str, int]:
    """What a second `meguri evaluate` says, as an operator types it."""
    command = [sys.executable, "-m", "meguri", "evaluate", MODEL, "person_counter", "--json"]
    ran = subprocess.run(command, env=laptop.env, cwd=ROOT, check=True, capture_output=True, text=True, timeout=WITHIN)
    return {name: json.loads(ran.stdout)[name] for name in ("rows", "written")}


def whole_story(episode: str) -> str | None:
    """The report of an episode once it tells how that ended, with the evidence of the windows it rests on."""
    report = httpx.get(
        f"{address('monitoring')}/episodes/{episode}/report", params={"format": "json"}
    ).raise_for_status()
    return report.text if report.json()["story"]["compared"] and "It is over" in report.text else None


def kinds(story: list[Seen]) -> list[str]:
    return [one.kind for one in story if one.kind.startswith(("anomaly", "measures", "episode", "drift"))]


def moved(window: dict[str, Any]) -> bool:
    return any(finding["moved"] for finding in window["findings"])


def by_key(rows: pl.DataFrame) -> dict[str, tuple[Any, ...]]:
    return {row["key"]: (row["frame"], row["persons"], row["boxes"]) for row in rows.iter_rows(named=True)}


def spans(laptop: Laptop, trace: str) -> list[dict[str, Any]]:
    """The spans of a trace that monitoring made, their attributes beside the name."""
    found = []
    for file in (laptop.var / "traces").glob("monitoring-*.jsonl"):
        for line in file.read_text().splitlines():
            for resource in json.loads(line)["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    found += [_span(span) for span in scope["spans"] if span["traceId"] == trace]
    return found


def _span(span: dict[str, Any]) -> dict[str, Any]:
    values = {one["key"]: next(iter(one["value"].values())) for one in span.get("attributes", [])}
    numbers = {name: int(value) for name, value in values.items() if name.startswith("meguri.rows")}
    return {"name": span["name"], **values, **numbers}


def log_lines(laptop: Laptop) -> list[dict[str, Any]]:
    lines = (laptop.var / "log/monitoring.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]

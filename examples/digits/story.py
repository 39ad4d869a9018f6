"""Once round the loop on scanned digits: trained, served, misled, drifted, retrained, killed. `make run` plays it.

Every step waits for events of the log and says what happened, how long it took and how to see it oneself. What was played
before on the same var/ is not played again.
"""

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from meguri.client import Meguri, address
from meguri.following import Seen, follow

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from publish import images  # noqa: E402 - a neighbour, not a package

PATIENCE = 90.0
"""Seconds that any step may wait for an event."""
DIM = 0.2
"""Light that the failing lamp of scanner-c still gives."""
CLEAN = {"scanner-a": (0, 300), "scanner-b": (300, 600), "scanner-c": (600, 900)}
MISLABELLED, DIMMED, UNSEEN = (900, 1200), (1200, 1490), (1490, 1797)
"""Which images are used for what. Nobody learns from the unseen ones; predictions are asked for them."""
FEATURES = [f"pixel_{i}" for i in range(64)]


class Processes(Protocol):
    """What the story needs of the process manager."""

    var: Path

    def pid(self, name: str) -> int: ...


class NotObserved(Exception):
    """Something that should have happened did not."""


def play(processes: Processes) -> bool:
    """Play every step that was not played yet; return whether each outcome was observed."""
    kept = processes.var / "story.json"
    played: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    with Meguri(actor="story") as meguri, _Log() as log:
        for number, (name, step) in enumerate(STEPS.items(), 1):
            if name in played:
                print(f"\n({number}) {name}: played before", flush=True)
                continue
            print(f"\n({number}) {name}", flush=True)
            began = time.monotonic()
            try:
                played[name] = step(Stage(meguri, log, processes, played))
            except NotObserved as error:
                print(f"    NOT OBSERVED: {error}", flush=True)
                return False
            print(f"    took {time.monotonic() - began:.1f} s", flush=True)
            kept.write_text(json.dumps(played, indent=2))
        _still_answers(meguri)
    return True


class Stage:
    """What a step has in hand."""

    def __init__(self, meguri: Meguri, log: "_Log", processes: Processes, played: dict[str, Any]) -> None:
        self.meguri, self.log, self.processes, self.played = meguri, log, processes, played

    def expect(self, kind: str, model_or_dataset: str, after: int = 0) -> Seen:
        seen = self.log.wait(kind, model_or_dataset, after)
        self.meguri.has_seen(seen.sequence)
        return seen

    def publish(self, *scans: tuple[str | int | float, ...]) -> list[dict[str, Any]]:
        """Let each scanner's own script publish, all at once; it knows nothing of meguri."""
        commands = [[sys.executable, str(HERE / "publish.py"), *map(str, scan)] for scan in scans]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for command in commands]
        sent = []
        for scan, process in zip(scans, running, strict=True):
            out, complaint = process.communicate()
            if process.returncode:
                raise NotObserved(f"{scan[0]} could not publish: {complaint.decode().strip().splitlines()[-1]}")
            sent.append(json.loads(out))
        return sent

    def predict(self, count: int, *, lamp: float = 1.0) -> tuple[float, str]:
        """Ask for predictions of unseen images, in turn for each scanner; return the accuracy and the last one's id."""
        rows = images(*UNSEEN)
        right, answer = 0, {}
        for i in range(count):
            row, producer = rows[i % len(rows)], f"scanner-{'abc'[i % 3]}"
            light = lamp if producer == "scanner-c" else 1.0
            answer = self.meguri.infer("digits", [[row[name] * light for name in FEATURES]], producer=producer)
            right += answer["outputs"][0]["data"][0] == row["digit"]
        return right / count, answer["parameters"]["prediction_id"]

    def accuracy_on_dimmed(self) -> tuple[int, float]:
        """Return the serving version and its accuracy on unseen images under the failing lamp."""
        rows = images(*UNSEEN)
        answer = self.meguri.infer(
            "digits", [[row[name] * DIM for name in FEATURES] for row in rows], producer="scanner-c"
        )
        labels = answer["outputs"][0]["data"]
        right = sum(label == row["digit"] for label, row in zip(labels, rows, strict=True))
        return int(answer["model_version"]), right / len(rows)


def apply_spec(stage: Stage) -> dict[str, Any]:
    stage.meguri.apply(Path("models/digits.yaml").read_bytes())
    say(
        "models/digits.yaml says what to learn from which data, what is good enough, and when to learn again",
        "models digits",
    )
    return {}


def first_model(stage: Stage) -> dict[str, Any]:
    began = time.monotonic()
    sent = stage.publish(*((producer, *range_) for producer, range_ in CLEAN.items()))
    rollout = stage.expect("rollout-changed", "digits")
    loaded = stage.expect("model-loaded", "digits", rollout.sequence)
    trained = stage.expect("model-trained", "digits")
    version = stage.meguri.model("digits")["versions"][0]
    for one in sent:
        receipt = stage.meguri.receipt(one["event"], wait=10)
        require(receipt["status"] == "committed", f"receipt of {one['event']} says {receipt['status']}")
    say(
        f"{sum(one['rows'] for one in sent)} images arrived from {len(sent)} scanners; version 1 was trained "
        f"({trained.event['fit_seconds']:.2f} s of fit), passed its gate with {percent(version['metrics']['accuracy'])} "
        f"and serves {(loaded.time - trained.time).total_seconds():.2f} s after its training, "
        f"{time.monotonic() - began:.1f} s after the first scanner began",
        f"receipt {sent[-1]['event']}",
        f"trace {sent[-1]['event']}",
        "models digits",
    )
    require(version["verdict"] == "promoted", f"version 1 is {version['verdict']}")
    return {"rollout": rollout.sequence}


def predictions(stage: Stage) -> dict[str, Any]:
    accuracy, prediction = stage.predict(240)
    say(
        f"240 predictions of images that nobody learned from: {percent(accuracy)} right",
        f"why {prediction}",
    )
    print(f"    curl -s {address('inference')}/v2/models/digits", flush=True)
    require(accuracy > 0.8, f"only {percent(accuracy)} of the answers are right")
    return {"prediction": prediction}


def mislabelled(stage: Stage) -> dict[str, Any]:
    sent = stage.publish(("scanner-b", *MISLABELLED, "--wrong", 0.4))[0]
    rejected = stage.expect("promotion-rejected", "digits")
    model = stage.meguri.model("digits")
    version = model["versions"][0]
    say(
        f"{sent['rows']} images arrived, 40 % with wrong labels; version {version['version']} learned from them and was "
        f"rejected: {percent(version['metrics']['accuracy'])} where version 1 has "
        f"{percent(version['compared_with']['metrics']['accuracy'])} on the same hold-out; version {model['champion']} stays",
        "models digits",
        f"receipt {sent['event']}",
    )
    require(model["champion"] == 1, f"version {model['champion']} is champion")
    return {"rejected": rejected.sequence}


def drift(stage: Stage) -> dict[str, Any]:
    began = time.monotonic()
    accuracy = 1.0
    asked = 0
    drifted = None
    while drifted is None and asked < 1440:
        accuracy, _ = stage.predict(240, lamp=DIM)
        asked += 240
        drifted = stage.log.glance("drift-detected", "digits", 0.5)
    drifted = drifted or stage.expect("drift-detected", "digits")
    stage.meguri.has_seen(drifted.sequence)
    say(
        f"the lamp of scanner-c gives {percent(DIM)} of its light, {percent(accuracy)} of the answers are right; after {asked} "
        f"predictions monitoring says: {drifted.event['feature']} moved by {drifted.event['distance']:.2f} sd, "
        f"{percent(drifted.event['share'])} of it from {drifted.event['producer']} ({time.monotonic() - began:.1f} s)",
        "episodes",
        f"trace {drifted.event['episode']}",
    )
    require(drifted.event["producer"] == "scanner-c", f"{drifted.event['producer']} was blamed")
    version, before = stage.accuracy_on_dimmed()
    sent = stage.publish(("scanner-c", *DIMMED, "--lamp", DIM))[0]
    rollout = stage.expect("rollout-changed", "digits", drifted.sequence)
    stage.expect("model-loaded", "digits", rollout.sequence)
    resolved = stage.expect("episode-resolved", "digits", drifted.sequence)
    started = stage.expect("training-started", "digits", drifted.sequence)
    kinds = [trigger["kind"] for trigger in started.event["triggers"]]
    now, after = stage.accuracy_on_dimmed()
    say(
        f"{sent['rows']} newly labelled dimmed images arrived, too few alone, but there was drift ({', '.join(kinds)}): "
        f"version {now} was trained, judged and promoted; on dimmed images it has {percent(after)} where version {version} "
        f"had {percent(before)}; the episode is over: {resolved.event['reason']}",
        "models digits",
        f"trace {started.event['run']}",
    )
    require("drift-detected" in kinds, "the run was not due to drift")
    require(after > before + 0.2, "the new version is not clearly better on dimmed images")
    return {"version": now, "before": before, "after": after}


def killed(stage: Stage) -> dict[str, Any]:
    applied = stage.meguri.apply((HERE / "digits-slow.yaml").read_bytes())
    if applied["events"]:
        stage.expect("training-started", "digits-slow")
        # The fit takes seconds; it is under way as soon as the worker's processor time goes up.
        pid = stage.processes.pid("training")
        wait_for_work(pid)
        os.kill(pid, signal.SIGKILL)
        print(f"    kill -9 {pid}, the training service, in the middle of a fit", flush=True)
    began = time.monotonic()
    trained = stage.expect("model-trained", "digits-slow")
    stage.expect("rollout-changed", "digits-slow", trained.sequence)
    took = time.monotonic() - began
    model = stage.meguri.model("digits-slow")
    stage.log.quiet(2.0)
    runs = stage.log.count("model-trained", "digits-slow")
    say(
        f"it came back, did the fit again ({trained.event['fit_seconds']:.1f} s) and {took:.1f} s after the kill there is "
        f"{len(model['versions'])} version from {runs} run",
        "models digits-slow",
    )
    require(len(model["versions"]) == 1 and runs == 1, f"{len(model['versions'])} versions from {runs} runs")
    return {"seconds": took}


STEPS: dict[str, Callable[[Stage], dict[str, Any]]] = {
    "a model spec is applied": apply_spec,
    "data arrives, a model is trained, judged and served": first_model,
    "predictions are made": predictions,
    "mislabelled data arrives": mislabelled,
    "a lamp fails, drift is seen, a better model takes over": drift,
    "the training service is killed in the middle of a fit": killed,
}


def _still_answers(meguri: Meguri) -> None:
    rows = images(UNSEEN[0], UNSEEN[0] + 1)
    answer = meguri.infer("digits", [[rows[0][name] for name in FEATURES]], producer="scanner-a")
    print(f"\nversion {answer['model_version']} of digits answers: {answer['outputs'][0]['data'][0]}", flush=True)


def say(what: str, *commands: str) -> None:
    print(f"    {what}", flush=True)
    for command in commands:
        print(f"    .venv/bin/meguri {command}", flush=True)


def percent(share: float) -> str:
    return f"{share:.1%}"


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise NotObserved(otherwise)


def wait_for_work(pid: int, seconds: float = 1.0) -> None:
    """Wait until the children of a process have worked for so many seconds of processor time from now on."""
    import psutil  # noqa: PLC0415 - the one step that looks into a process

    def worked() -> float:
        return sum(sum(child.cpu_times()[:2]) for child in psutil.Process(pid).children(recursive=True))

    goal, until = worked() + seconds, time.monotonic() + PATIENCE
    while worked() < goal:
        require(time.monotonic() < until, "the fit did not begin")
        time.sleep(0.05)


class _Log:
    """Follows the log in a thread, from its beginning, and remembers what it saw."""

    def __init__(self) -> None:
        self._seen: list[Seen] = []
        self._new: queue.Queue[Seen] = queue.Queue()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._follow()), daemon=True)

    def __enter__(self) -> "_Log":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """The thread ends with the process."""

    def wait(self, kind: str, key: str, after: int) -> Seen:
        """Return the first event of a kind and key after a sequence. Raises NotObserved after PATIENCE seconds."""
        for seen in self._until(PATIENCE):
            if (seen.kind, seen.key) == (kind, key) and seen.sequence > after:
                return seen
            if seen.kind == "training-failed" and seen.key == key:
                raise NotObserved(f"training of {key} failed: {seen.event['reason']}")
        raise NotObserved(f"no {kind} of {key} within {PATIENCE:.0f} s")

    def glance(self, kind: str, key: str, seconds: float) -> Seen | None:
        """Return the first event of a kind and key, or None if there is none within some seconds."""
        return next((seen for seen in self._until(seconds) if (seen.kind, seen.key) == (kind, key)), None)

    def quiet(self, seconds: float) -> None:
        """Let what is under way arrive: return when nothing was said for some seconds."""
        with _empty_ends():
            while True:
                self._seen.append(self._new.get(timeout=seconds))

    def count(self, kind: str, key: str) -> int:
        return sum((seen.kind, seen.key) == (kind, key) for seen in self._seen)

    def _until(self, seconds: float) -> Iterator[Seen]:
        yield from list(self._seen)
        end = time.monotonic() + seconds
        with _empty_ends():
            while (left := end - time.monotonic()) > 0:
                self._seen.append(self._new.get(timeout=left))
                yield self._seen[-1]

    async def _follow(self) -> None:
        async for seen in follow():
            self._new.put(seen)


@contextmanager
def _empty_ends() -> Iterator[None]:
    try:
        yield
    except queue.Empty:
        return

"""The services' HTTP answers, as plain dictionaries, and events published as any upstream would."""

import getpass
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import httpx
import nats
from nats.js.errors import APIError

from meguri_contracts.events import DataArrived, Event
from meguri_contracts.topology import FULL, LOG, MAKE_ROOM, PORTS, subject

AFTER = "Meguri-After"
"""Header that names the last sequence of the log which the one who asks has seen."""
TIMEOUT = 60.0
"""Seconds to wait for an answer."""
ARROW = "application/vnd.apache.arrow.stream"
LONG = 600.0
"""Seconds to wait for one that takes a look at everything there is."""
ONCE: dict[str, Any] = {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0.1}
"""How a command connects to the broker. Without a limit the client tries the same address for minutes; it tries it twice
with this one, which is not to take seconds either."""


class MeguriClientError(Exception):
    """Base of what can go wrong here."""


class Unreachable(MeguriClientError):
    """A service does not answer at its address."""


class Refused(MeguriClientError):
    """A service answered that it will not; `status` is the HTTP status, the message is the service's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class LogFull(MeguriClientError):
    """The broker has no room for the event; it was not accepted."""


def address(service: str) -> str:
    """Where a service answers: MEGURI_<SERVICE>_URL, or this machine at MEGURI_<SERVICE>_PORT or the default port."""
    port = os.environ.get(f"MEGURI_{service.upper()}_PORT") or PORTS[service]
    return os.environ.get(f"MEGURI_{service.upper()}_URL") or f"http://127.0.0.1:{port}"


def broker() -> str:
    """Where the broker answers: MEGURI_NATS_URL, or this machine at MEGURI_NATS_PORT or the default port."""
    return os.environ.get("MEGURI_NATS_URL") or f"nats://127.0.0.1:{os.environ.get('MEGURI_NATS_PORT') or 4222}"


class Meguri:
    """What people and scripts ask of meguri.

    >>> with Meguri() as meguri:
    ...     meguri.apply(Path("models/digits.yaml").read_bytes())
    ...     meguri.model("digits")["champion"]
    """

    def __init__(self, actor: str | None = None) -> None:
        self._http = httpx.Client(timeout=TIMEOUT, headers={"Meguri-Actor": actor or who()})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def has_seen(self, sequence: int) -> None:
        """Have every later answer contain the log up to a sequence that was seen there."""
        known = int(self._http.headers.get(AFTER, 0))
        self._http.headers[AFTER] = str(max(known, sequence))

    # --- data

    def upload(self, dataset: str, file: Path, *, producer: str = "upload", id: str | None = None) -> dict[str, Any]:
        """Send a file of rows, CSV, JSON Lines, Parquet or Arrow. Returns the event's id and where its receipt is."""
        headers = {"Meguri-Producer": producer} | ({"Idempotency-Key": id} if id else {})
        with file.open("rb") as rows:
            return self._ask(
                "POST", "ingest", f"/datasets/{dataset}/data", files={"file": (file.name, rows)}, headers=headers
            )

    def receipt(self, event: str, *, wait: float = 0) -> dict[str, Any]:
        """What became of an event; `wait` up to so many seconds for it to be no longer waiting."""
        return self._ask("GET", "ingest", f"/receipts/{quote(event, safe='')}", params={"wait": wait})

    def used_in(self, event: str) -> list[dict[str, Any]]:
        """The dataset versions that hold an arrival, each with the model versions trained on it."""
        return self._ask("GET", "registry", f"/lineage/events/{quote(event, safe='')}")["datasets"]

    # --- models

    def apply(self, spec: bytes) -> dict[str, Any]:
        """Apply a model spec, YAML or JSON."""
        return self._ask("POST", "registry", "/specs", content=spec)

    def untold(self, urls: Sequence[str]) -> list[str]:
        """Why messages about episodes could not be sent to URLs of a spec, as monitoring is set up; nothing is sent."""
        found = self._ask("POST", "monitoring", "/notify/check", json={"urls": list(urls)}) if urls else []
        return [f"{one['target']} cannot be told of episodes: {one['trouble']}" for one in found if one["trouble"]]

    def models(self) -> list[dict[str, Any]]:
        return self._ask("GET", "registry", "/models")

    def model(self, name: str) -> dict[str, Any]:
        return self._ask("GET", "registry", f"/models/{name}")

    def waits_for(self, name: str) -> dict[str, Any]:
        """What training does with a model at the moment, or what its next run waits for."""
        return self._ask("GET", "training", f"/models/{name}")

    def rollouts(self, name: str) -> list[dict[str, Any]]:
        return self._ask("GET", "registry", f"/models/{name}/rollouts")

    def champion(self, name: str, at: datetime | None = None) -> dict[str, Any]:
        params = {"at": at.isoformat()} if at else {}
        return self._ask("GET", "registry", f"/models/{name}/champion", params=params)

    def lineage(self, name: str, version: int) -> dict[str, Any]:
        return self._ask("GET", "registry", f"/models/{name}/versions/{version}/lineage")

    def train(self, name: str, reason: str) -> dict[str, Any]:
        return self._ask("POST", "registry", f"/models/{name}/train", json={"reason": reason})

    def promote(self, name: str, version: int, reason: str) -> dict[str, Any]:
        return self._ask("POST", "registry", f"/models/{name}/promote", json={"version": version, "reason": reason})

    def rollback(self, name: str, reason: str) -> dict[str, Any]:
        """End a canary or an A/B test; when there is none, go back to the champion before the present one."""
        return self._ask("POST", "registry", f"/models/{name}/rollback", json={"reason": reason})

    def canary(self, name: str, version: int, reason: str, **policy: Any) -> dict[str, Any]:
        """Let a version answer a growing share of the requests. `policy` is what differs from that of the model's spec."""
        body = {"version": version, "reason": reason, "policy": policy}
        return self._ask("POST", "registry", f"/models/{name}/canary", json=body)

    def ab(
        self, name: str, versions: Sequence[int], reason: str, *, weights: Sequence[float] = (), **policy: Any
    ) -> dict[str, Any]:
        """Compare versions with the champion; one weight is that of each, without any all have the same."""
        body = {"versions": list(versions), "weights": list(weights), "reason": reason, "policy": policy}
        return self._ask("POST", "registry", f"/models/{name}/ab", json=body)

    def shadow(self, name: str, version: int, reason: str, *, share: float = 1, stop: bool = False) -> dict[str, Any]:
        """Ask a version beside the one that answers, or with `stop` no more."""
        body = {"version": version, "share": share, "stop": stop, "reason": reason}
        return self._ask("POST", "registry", f"/models/{name}/shadow", json=body)

    def rollout(self, name: str) -> dict[str, Any]:
        """The traffic plan in force: what was observed of each version, and what comes next."""
        return self._ask("GET", "registry", f"/models/{name}/rollout")

    # --- predictions

    def infer(self, model: str, rows: Sequence[Sequence[float]], *, producer: str) -> dict[str, Any]:
        """Ask for predictions of rows, each with the model's features in their order (Open Inference Protocol)."""
        body = {
            "inputs": [
                {
                    "name": "input",
                    "shape": [len(rows), len(rows[0]) if rows else 0],
                    "datatype": "FP64",
                    "data": [float(value) for row in rows for value in row],
                }
            ],
            "parameters": {"producer": producer},
        }
        return self._ask("POST", "inference", f"/v2/models/{model}/infer", json=body)

    def prediction(self, prediction_id: str) -> dict[str, Any]:
        """A prediction as monitoring keeps it."""
        return self._ask("GET", "monitoring", f"/predictions/{prediction_id}")

    def episodes(self, model: str | None = None, *, open_only: bool = False) -> list[dict[str, Any]]:
        params = ({"model": model} if model else {}) | ({"open": True} if open_only else {})
        return self._ask("GET", "monitoring", "/episodes", params=params)

    def quality(self, model: str) -> dict[str, Any]:
        """How good the versions of a model are by the labels that came, and how many of their answers have one."""
        return self._ask("GET", "monitoring", f"/models/{model}/quality")

    def acknowledge(self, episode: str, note: str = "") -> dict[str, Any]:
        """Say that somebody has seen an open episode."""
        path = f"/episodes/{quote(episode, safe='')}/acknowledge"
        return self._ask("POST", "monitoring", path, json={"note": note})

    def report(self, path: str, **how: Any) -> bytes:
        """A report of monitoring, as a page or as `format` says."""
        return self._answer("GET", "monitoring", quote(path), params=how).content

    def report_data(self, path: str, **how: Any) -> dict[str, Any]:
        """A report as data."""
        return self._ask("GET", "monitoring", quote(path), params=how | {"format": "json"})

    def evaluator(self, model: str, evaluator: str) -> dict[str, Any]:
        """How far an evaluator has come with a model's predictions, its latest rows, and the latest windows of its numbers."""
        return self._ask("GET", "monitoring", f"/models/{model}/evaluators/{evaluator}")

    def evaluate(self, model: str, evaluator: str, *, since: datetime | None = None) -> dict[str, Any]:
        """Have the predictions that are kept evaluated again, and what is missing added. Takes as long as there are many."""
        params = {"since": since.isoformat()} if since else {}
        path = f"/models/{model}/evaluators/{evaluator}/replay"
        return self._ask("POST", "monitoring", path, params=params, timeout=LONG)

    def whatif(self, episode: str, **asked: Any) -> dict[str, Any]:
        """What would have become of an episode under another rule; see GET /episodes/{episode}/whatif for what may be asked."""
        params = {name: value for name, value in asked.items() if value is not None}
        return self._ask(
            "GET", "monitoring", f"/episodes/{quote(episode, safe='')}/whatif", params=params, timeout=LONG
        )

    def why(self, prediction_id: str) -> dict[str, Any]:
        """Everything that led to a prediction: itself, the version that made it, and what that was made from."""
        prediction = self.prediction(prediction_id)
        model, version = prediction["model"], prediction["version"]
        return {
            "prediction": prediction,
            "version": self._ask("GET", "registry", f"/models/{model}/versions/{version}"),
            "lineage": self.lineage(model, version),
            "episodes": [e for e in self.episodes(model) if prediction_id in e["samples"] or e["version"] == version],
        }

    # --- many rows

    def batch(
        self,
        model: str,
        *,
        input: str,
        output: str,
        version: int | None = None,
        shard_rows: int = 100_000,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Ask for all rows of a file to be predicted; returns the batch's id and the sequence of the request in the log.

        `input` and `output` are URIs, of a file and of a folder, that inference may use. `key` sent again asks for the same.
        """
        body = {"input": input, "output": output, "version": version, "shard_rows": shard_rows}
        headers = {"Idempotency-Key": key} if key else {}
        return self._ask("POST", "inference", f"/models/{model}/batches", json=body, headers=headers)

    def batches(self, model: str | None = None) -> list[dict[str, Any]]:
        """The latest batches, newest first."""
        return self._ask("GET", "registry", "/batches", params={"model": model} if model else {})

    def batch_known(self, batch: str, model: str | None = None) -> dict[str, Any]:
        """A batch: status, version, run, digests, and the parts that are done."""
        return self._ask("GET", "registry", f"/batches/{batch}", params={"model": model} if model else {})

    def recorded(self, model: str, last: int) -> bytes:
        """The latest rows that were predicted, with features and answers, as an Arrow IPC stream."""
        return self._answer(
            "GET", "monitoring", f"/models/{model}/recorded", params={"last": last}, timeout=LONG
        ).content

    def compare(self, model: str, a: int, b: int, recorded: bytes) -> dict[str, Any]:
        """Where two versions disagree on recorded rows, an Arrow IPC stream."""
        how = {"params": {"a": a, "b": b}, "headers": {"Content-Type": ARROW}, "timeout": LONG}
        return self._answer("POST", "inference", f"/models/{model}/compare", content=recorded, **how).json()

    # --- operation

    def health(self, service: str) -> dict[str, Any]:
        """Whether a service is ready, and if not, why."""
        try:
            return self._http.get(f"{address(service)}/health/ready").json() | {"service": service}
        except (httpx.HTTPError, ValueError) as error:
            return {"service": service, "ready": False, "reasons": [f"no answer at {address(service)}: {error}"]}

    def standing(self, service: str) -> dict[str, Any] | None:
        """How far the tables of a service are behind the log, and what its consumers have parked; None if it has none."""
        try:
            return self._ask("GET", service, "/log")
        except MeguriClientError:
            return None

    def replay(self, service: str, *, keep: bool = True, until: int | None = None) -> Iterator[dict[str, Any]]:
        """Make the tables of a service again from the log; yields the progress, at last the digests. See POST /log/replay."""
        if service not in PORTS:
            raise Refused(404, f"no service {service!r}; known are: {', '.join(PORTS)}")
        params: dict[str, Any] = {"keep": keep} | ({"until": until} if until is not None else {})
        # A digest of large tables takes its time.
        timeout = httpx.Timeout(TIMEOUT, read=None)
        try:
            with self._http.stream("POST", f"{address(service)}/log/replay", params=params, timeout=timeout) as answer:
                if answer.is_error:
                    answer.read()
                    raise Refused(answer.status_code, _no_replay(service, answer))
                yield from map(json.loads, answer.iter_lines())
        except httpx.HTTPError as error:
            raise _unreachable(service, error) from error

    def known_at(self, time: datetime, model: str | None = None) -> dict[str, Any]:
        """What the registry knew at a time, of all models or of one."""
        params = {"time": time.isoformat()} | ({"model": model} if model else {})
        return self._ask("GET", "registry", "/at", params=params)

    def answers(self, service: str) -> bool:
        """Whether a service runs, ready or not."""
        try:
            return self._http.get(f"{address(service)}/health/live").is_success
        except httpx.HTTPError:
            return False

    def digest(self, service: str, *, after: int = 0) -> dict[str, Any] | None:
        """How far the tables of a service are, and their digest there; None if it has no tables.

        `after` is the sequence that they have reached at least: it is waited for, for at most LONG seconds.
        """
        until = time.monotonic() + LONG
        while True:
            try:
                return self._ask("GET", service, "/log/digest", headers={AFTER: str(after)}, timeout=LONG)
            except Refused as refusal:
                if refusal.status == 404:
                    return None
                if refusal.status != 503 or time.monotonic() > until:
                    raise
                time.sleep(1)

    def lines(self, method: str, service: str, path: str, **params: Any) -> Iterator[Any]:
        """Yield what a service answers as JSON lines, as they come."""
        try:
            with self._http.stream(method, address(service) + path, params=params, timeout=LONG) as answer:
                if answer.is_error:
                    answer.read()
                    raise Refused(answer.status_code, f"{service}: {_reason(answer)}")
                # Not by the client's own lines, which end at any of the characters that Unicode counts as an end.
                yield from _json_lines(answer.iter_bytes())
        except httpx.HTTPError as error:
            raise _unreachable(service, error) from error

    def _ask(self, method: str, service: str, path: str, **how: Any) -> Any:
        return self._answer(method, service, path, **how).json()

    def _answer(self, method: str, service: str, path: str, **how: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, address(service) + path, **how)
        except httpx.HTTPError as error:
            raise _unreachable(service, error) from error
        if answer.is_error:
            raise Refused(answer.status_code, _reason(answer))
        return answer


async def publish(
    dataset: str,
    *,
    records: Sequence[Mapping[str, Any]] | None = None,
    uri: str | None = None,
    producer: str,
    id: str | None = None,
) -> str:
    """Publish rows, or a reference to a file of rows, on the log and return the event's id, once the event is on disk.

    Raises LogFull.
    """
    event_id = id or str(uuid4())
    body = {"records": list(records)} if records is not None else {"uri": uri}
    async with appending(producer) as append:
        await append(DataArrived, dataset, json.dumps(body).encode(), event_id)
    return event_id


Append = Callable[[type[Event], str, bytes, str], Awaitable[None]]


@asynccontextmanager
async def appending(producer: str) -> AsyncIterator[Append]:
    """A function that appends an event to the log by type, key, body and id, and returns once it is on disk. Raises LogFull."""
    client = await nats.connect(broker().split(","), connect_timeout=5, error_cb=_is_raised, **ONCE)

    async def append(kind: type[Event], key: str, body: bytes, id: str) -> None:
        headers = {
            "Nats-Msg-Id": id,
            "ce-specversion": "1.0",
            "ce-id": id,
            "ce-source": producer,
            "ce-type": kind.type,
            "ce-time": datetime.now(UTC).isoformat(),
        }
        await client.jetstream().publish(subject(kind.kind(), key), body, stream=LOG, headers=headers)

    try:
        yield append
    except APIError as error:
        if error.err_code not in FULL:
            raise
        raise LogFull(f"the log is full, the event was not accepted: {error.description}; {MAKE_ROOM}") from error
    finally:
        await client.close()


async def _is_raised(_: Exception) -> None:
    """What the client meets is raised where it is waited for."""


def _json_lines(chunks: Iterator[bytes]) -> Iterator[Any]:
    left = b""
    for chunk in chunks:
        *lines, left = (left + chunk).split(b"\n")
        yield from map(json.loads, lines)


def _unreachable(service: str, error: httpx.HTTPError) -> Unreachable:
    return Unreachable(
        f"{service} does not answer at {address(service)}: {error or type(error).__name__}; is it running?"
    )


def _no_replay(service: str, answer: httpx.Response) -> str:
    missing = answer.status_code == 404
    return f"{service} keeps no tables: there is nothing to make again" if missing else _reason(answer)


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}: {answer.text[:200]}"


def who() -> str:
    """Who acts: MEGURI_ACTOR, or the user of this machine; in a container its user may have no name."""
    with suppress(OSError, KeyError):
        return os.environ.get("MEGURI_ACTOR") or getpass.getuser()
    return "unknown"

"""Replicas of training as processes of their own, killed and paused in the middle of a fit: one version in the end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from meguri_chassis.artifacts import Artifacts
from meguri_contracts.events import ModelTrained, TrainingFailed
from meguri_contracts.topology import LOG, TRAINING_FITS
from tests.conftest import PATIENCE, ROOT, free_port, until
from tests.services import name, wire
from tests.training.flowers import FLOWERS, Training, fits, slow, spec

pytestmark = pytest.mark.timeout(600)

AT_WORK = 1.5
"""Seconds of processor time after which a fit is in its middle; warming up is over by then."""


@dataclass
class Replica:
    """One process of training with its worker."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def worker(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if "spawn_main" in " ".join(child.cmdline()))

    def worked(self) -> float:
        return self.worker.cpu_times().user

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the service and to its worker."""
        processes = [self.worker.pid, self.process.pid]
        for pid in processes:
            os.kill(pid, number)


@pytest.fixture
def replicas(broker, tmp_path: Path) -> Iterator[list[Replica]]:
    """Two, ready, their workers warm."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEGURI_", "OTEL_"))}
    started = []
    for number in (1, 2):
        port = free_port()
        env = kept | {
            "MEGURI_NATS_URL": broker.url,
            "MEGURI_VAR": str(tmp_path),
            "MEGURI_TRAINING_PORT": str(port),
            "MEGURI_TRAINING_REPLICA": f"replica-{number}",
        }
        log = tmp_path / f"replica-{number}.log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "meguri_training"]
            process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=out, stderr=out)
        started.append(Replica(process, f"http://127.0.0.1:{port}", log))
    yield started
    for replica in started:
        with suppress(psutil.NoSuchProcess, ProcessLookupError, StopIteration):
            replica.send(signal.SIGKILL)
        replica.process.kill()
        replica.process.wait()


@pytest.fixture
async def training(broker, replicas: list[Replica], tmp_path: Path) -> AsyncIterator[Training]:
    for replica in replicas:
        await until(replica.is_ready, "a replica")
    async with wire(broker) as beside, httpx.AsyncClient(base_url=replicas[1].url) as http:
        yield Training(http, beside, Artifacts(f"file://{tmp_path}/artifacts"), tmp_path)


async def begin(training: Training, replicas: list[Replica], max_iter: int) -> tuple[str, Replica]:
    """Have a long fit begun; returns its model and the replica that has it."""
    for replica in replicas:
        await until(lambda replica=replica: _is_idle(replica), "a warm worker")
    before = [replica.worked() for replica in replicas]
    model = name("flowers")
    await training.wire.apply(spec(model, estimator=slow(max_iter)))
    await training.commit(model, FLOWERS)

    def at_work() -> Replica | None:
        found = zip(replicas, before, strict=True)
        return next((replica for replica, worked in found if replica.worked() > worked + AT_WORK), None)

    return model, await until(at_work, "a fit at work")


def _is_idle(replica: Replica) -> bool:
    worker = replica.worker
    return worker.num_threads() > 1 and worker.cpu_percent(0.2) == 0 and worker.cpu_times().user > 1


async def _nothing_pending(training: Training) -> bool:
    info = await training.wire.js.consumer_info(LOG, TRAINING_FITS.name)
    return info.num_ack_pending == 0 and info.num_pending == 0


async def the_only_outcome(training: Training, model: str) -> ModelTrained:
    """Wait until a model is trained; it must not fail."""

    async def trained() -> list[ModelTrained]:
        assert await training.wire.said(TrainingFailed, model) == []
        return await training.wire.said(ModelTrained, model)

    found = await until(trained, f"the training of {model}", within=2 * PATIENCE)
    (only,) = found
    return only


@pytest.mark.parametrize("what", ["the replica", "only the worker"])
async def test_a_killed_fit_is_resumed_by_another_replica(training, replicas, what, capsys):
    model, busy = await begin(training, replicas, 6000)
    killed = time.time()
    (busy.process if what == "the replica" else busy.worker).kill()
    await the_only_outcome(training, model)

    (fit,) = fits(training.folder)
    with capsys.disabled():
        print(f"\n{what} killed in the middle of a fit: resumed after {fit.began / 1e9 - killed:.1f} s")  # noqa: T201


async def test_a_replica_that_was_paused_for_longer_than_its_lease_does_not_register_a_second_version(
    training, replicas
):
    model, paused = await begin(training, replicas, 6000)
    other = next(replica for replica in replicas if replica is not paused)
    paused.send(signal.SIGSTOP)
    trained = await the_only_outcome(training, model)
    paused.send(signal.SIGCONT)
    said = f"run {trained.run} has ended meanwhile"
    await until(lambda: said in paused.log.read_text(), "the end of the paused fit")

    assert {fit.run for fit in fits(training.folder)} == {trained.run}
    assert len(fits(training.folder)) == 2
    assert len(await training.wire.said(ModelTrained, model)) == 1
    assert said not in other.log.read_text()
    await until(lambda: _nothing_pending(training), "an end of deliveries")


async def test_a_fit_three_times_as_long_as_the_lease_is_done_once(training, replicas):
    model, busy = await begin(training, replicas, 6000)
    busy.worker.suspend()
    # Its length is what this is about, not what it computes.
    await asyncio.sleep(3 * TRAINING_FITS.ack_wait)
    busy.worker.resume()
    await the_only_outcome(training, model)

    await until(lambda: _nothing_pending(training), "an end of deliveries")
    info = await training.wire.js.consumer_info(LOG, TRAINING_FITS.name)
    assert info.delivered.consumer_seq == 1
    assert len(fits(training.folder)) == 1

"""Inference as a process of its own, killed in the middle of a batch: started again, it comes to the same digest."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from meguri_contracts.events import BatchCompleted, ShardScored
from tests.conftest import ROOT, free_port, until
from tests.inference.batches import Batching, path
from tests.inference.conftest import batching, forest  # noqa: F401

pytestmark = pytest.mark.timeout(600)


@contextmanager
def inference(batching: Batching, replica: str) -> Iterator[subprocess.Popen[bytes]]:  # noqa: F811
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEGURI_", "OTEL_"))}
    env = kept | {
        "MEGURI_NATS_URL": batching.broker.url,
        "MEGURI_VAR": str(batching.folder),
        "MEGURI_INFERENCE_PORT": str(free_port()),
        "MEGURI_INFERENCE_REPLICA": replica,
    }
    with (batching.folder / "inference.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "meguri_inference"], env=env, cwd=ROOT, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_replica_that_is_killed_in_the_middle_costs_a_shard_and_nothing_else(batching, forest):  # noqa: F811
    await batching.champion(forest)
    rows = batching.rows(forest, 300_000)
    with inference(batching, "killed") as process:
        folder = await batching.request(rows, "shaken", shard_rows=50_000)
        await until(lambda: written(folder, "part-00001.parquet"), "the second shard at work")
        process.kill()
        process.wait()
    before = [one.shard for one in await scored(batching, "shaken")]
    assert len(before) < 6
    with inference(batching, "next"):
        shaken = await batching.completed("shaken")
        await batching.request(rows, "quiet", shard_rows=50_000)
        quiet = await batching.completed("quiet")

    assert (shaken.digest, shaken.rows) == (quiet.digest, 300_000)
    assert sorted(one.shard for one in await scored(batching, "shaken")) == list(range(6))
    assert {one.replica for one in await scored(batching, "shaken") if one.shard not in before} == {"next"}
    assert not [file.name for file in path(folder).iterdir() if file.name.startswith(".")]
    assert len(await batching.wire.said(BatchCompleted, batching.model)) == 2


def written(folder: str, file: str) -> bool:
    """Whether a file is being written, or is there."""
    there = path(folder)
    return there.exists() and any(file in one.name for one in there.iterdir())


async def scored(batching: Batching, batch: str) -> list[ShardScored]:  # noqa: F811
    return [one for one in await batching.wire.said(ShardScored, batching.model) if one.batch == batch]

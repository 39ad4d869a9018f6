import asyncio
import json
import os
import sys
import textwrap
from contextlib import asynccontextmanager

import polars as pl
import psutil
import pytest
from opentelemetry.sdk.trace import TracerProvider
from sklearn.datasets import load_iris

from meguri_chassis.processes import Home
from meguri_contracts.spec import ModelSpec
from meguri_training.fitting import CannotFit, Job
from meguri_training.workers import WorkerDied, Workers
from tests.conftest import until
from tests.processes import is_gone, worker

IRIS, SPECIES = load_iris(return_X_y=True)
FLOWERS = pl.DataFrame(IRIS, schema=["a", "b", "c", "d"]).with_columns(species=SPECIES)
FOR_EVER = {"name": "MLPClassifier", "params": {"max_iter": 10**9, "tol": 0.0, "n_iter_no_change": 10**9}}


def job(folder, estimator=None, rows=FLOWERS) -> Job:
    rows.write_delta(folder, mode="overwrite")
    number, integer = {"type": "number"}, {"type": "integer"}
    spec = {
        "model": "flowers",
        "task": "classification",
        "dataset": {"name": "flowers", "columns": dict.fromkeys("abcd", number) | {"species": integer}},
        "target": "species",
        "estimator": estimator or {"name": "LogisticRegression"},
        "gate": "accuracy > 0",
    }
    return Job("run-1", ModelSpec.model_validate(spec), str(folder), 0)


@asynccontextmanager
async def opened(folder):
    workers = Workers(Home("training", "replica-1", folder, "INFO"))
    async with workers.open():
        yield workers


async def test_a_fit_is_done_in_another_process_and_a_killed_one_is_replaced(tmp_path):
    async with opened(tmp_path) as workers:
        small = job(tmp_path / "small")
        first = await workers.fit(small)
        fitter = worker()
        endless = asyncio.create_task(workers.fit(job(tmp_path / "endless", FOR_EVER)))
        before = fitter.cpu_times().user
        await until(lambda: fitter.cpu_times().user > before + 0.3, "the fit at work")
        fitter.kill()

        with pytest.raises(WorkerDied, match="the process of run run-1 died in the middle of the fit"):
            await endless
        again = await workers.fit(small)
        successor = worker()
        assert successor.pid not in (os.getpid(), fitter.pid)
        assert again.onnx == first.onnx
    await until(lambda: is_gone(successor), "the end of the worker")


async def test_the_reason_of_a_fit_that_cannot_succeed_comes_back_and_the_worker_stays(tmp_path):
    async with opened(tmp_path) as workers:
        with pytest.raises(CannotFit, match="every row to train on has species = 0"):
            await workers.fit(job(tmp_path / "one-class", rows=FLOWERS[:50]))
        survivor = worker()

        await workers.fit(job(tmp_path / "table"))
        assert worker().pid == survivor.pid


async def test_the_span_of_a_fit_is_part_of_the_trace_that_asked_for_it(tmp_path):

    tracer = TracerProvider().get_tracer("test")
    async with opened(tmp_path) as workers:
        with tracer.start_as_current_span("asked") as span:
            await workers.fit(job(tmp_path / "table"))
    (file,) = (tmp_path / "traces").glob("training-replica-1-fit-*.jsonl")
    spans = [span for line in file.open() for span in spans_of(json.loads(line))]

    context = span.get_span_context()
    (fit,) = [span for span in spans if span["name"] == "fit"]
    assert (fit["traceId"], fit["parentSpanId"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")


def spans_of(line):
    return [span for of in line["resourceSpans"] for scope in of["scopeSpans"] for span in scope["spans"]]


async def test_the_worker_ends_when_its_service_is_killed(tmp_path):
    service = f"""
        import asyncio, multiprocessing
        from pathlib import Path
        from meguri_chassis.processes import Home
        from meguri_training.workers import Workers

        async def main():
            async with Workers(Home("training", "replica-1", Path({str(tmp_path)!r}), "INFO")).open():
                (worker,) = multiprocessing.active_children()
                print(worker.pid, flush=True)
                await asyncio.Event().wait()

        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(service), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    orphan = psutil.Process(int(await process.stdout.readline()))
    assert orphan.ppid() == process.pid
    process.kill()
    await process.wait()

    await until(lambda: is_gone(orphan), "the end of the worker")

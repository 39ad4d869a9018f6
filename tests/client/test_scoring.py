"""Many rows at once, from the command line: batches against running services, comparisons of what monitoring recorded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Response

from meguri_inference.app import build
from tests.client.conftest import HOST, meguri, reachable
from tests.conftest import free_port, until
from tests.inference.batches import Batching
from tests.inference.compared import classifier, grid, recorded
from tests.inference.conftest import iris  # noqa: F401
from tests.services import name

pytestmark = pytest.mark.usefixtures("registry")


@pytest.fixture
async def batching(own, broker, tmp_path, monkeypatch) -> AsyncIterator[Batching]:
    """An inference that the commands find, beside the registry."""
    batching = Batching(own, tmp_path, broker, name("m"))
    async with reachable(build(batching.settings("replica-1")), monkeypatch.setenv):
        yield batching


def out(batching: Batching, batch: str) -> Path:
    return batching.folder / "batches" / batch


async def test_a_batch_is_waited_for_and_shown_with_what_it_was_made_from(batching, iris):  # noqa: F811
    await batching.champion(iris, 3)
    rows = batching.rows(iris, 25)
    words = ("batch", batching.model, "--in", rows, "--out", out(batching, "b"), "--shard-rows", 10, "--key", "nightly")
    done = await meguri(*words, "--json")
    again = await meguri(*words)
    listed = await meguri("batches", "--json")

    assert (done.code, done.data["status"], done.data["version"], done.data["rows"]) == (0, "completed", 3, 25)
    assert [part["rows"] for part in done.data["parts"]] == [10, 10, 5]
    assert (again.code, done.data["digest"] in again.out) == (0, True)
    assert [(one["batch"], one["actor"], one["status"]) for one in listed.data] == [("nightly", "ada", "completed")]
    assert "nightly" in (await meguri("batches")).out
    assert "3 of 3 done, 25 rows" in (await meguri("batches", "nightly")).out


async def test_a_batch_that_fails_says_why_and_ends_with_1(batching, iris):  # noqa: F811
    await batching.champion(iris)
    rows = batching.input("rows.csv")
    rows.write_text("sepal_length\n1\n")
    failed = await meguri("batch", batching.model, "--in", rows, "--out", out(batching, "b"))
    refused = await meguri("batch", batching.model, "--in", "/etc/rows.csv", "--out", out(batching, "b"))
    unknown = await meguri("batch", "nobody", "--in", rows, "--out", out(batching, "c"))

    assert (failed.code, refused.code, unknown.code) == (1, 1, 1)
    assert "column 'sepal_width' is missing in the input; it has sepal_length" in failed.out
    assert "is not under an allowed root" in refused.error
    assert "model 'nobody' had no champion yet" in unknown.out


async def test_a_batch_need_not_be_waited_for(batching, iris):  # noqa: F811
    await batching.champion(iris)
    asked = await meguri(
        "batch", batching.model, "--in", batching.rows(iris, 5), "--out", out(batching, "b"), "--no-wait", "--json"
    )

    assert (await batching.completed(asked.data["batch"])).rows == 5


@asynccontextmanager
async def monitoring(rows: bytes, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[int]]:
    """Gives out recorded rows as monitoring does; yields how many it was asked for, each time."""
    app, port, asked = FastAPI(), free_port(), []

    @app.get("/models/{model}/recorded")
    def give(model: str, last: int) -> Response:
        asked.append(last)
        return Response(rows, media_type="application/vnd.apache.arrow.stream")

    server = uvicorn.Server(uvicorn.Config(app, HOST, port, lifespan="off", log_config=None))
    serving = asyncio.ensure_future(server.serve())
    await until(lambda: server.started, "the server")
    monkeypatch.setenv("MEGURI_MONITORING_URL", f"http://{HOST}:{port}")
    try:
        yield asked
    finally:
        server.should_exit = True
        await serving


async def test_two_versions_are_compared_on_what_was_recorded(batching, monkeypatch):
    for version, by in ((1, 0), (2, 1)):
        await batching.register(classifier(by), version)
    async with monitoring(recorded(grid(300)), monkeypatch) as asked:
        found = await meguri("compare", batching.model, 1, 2, "--last", 300, "--json")
        shown = await meguri("compare", batching.model, 1, 2)
        unknown = await meguri("compare", batching.model, 1, 7)

    assert asked == [300, 10_000, 10_000]
    assert (found.data["rows"], found.data["disagreed"] > 100) == (300, True)
    assert found.data["digest"] in shown.out
    assert "0 became 1" in shown.out
    assert (unknown.code, f"model {batching.model!r} has no version 7 in the log" in unknown.error) == (1, True)

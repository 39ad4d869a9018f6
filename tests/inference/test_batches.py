"""Batches on the real broker: planned, done by replicas that come and go, complete once."""

import hashlib
import json
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from meguri_chassis import bus
from meguri_contracts.events import (
    BatchCompleted,
    BatchFailed,
    BatchRequested,
    ShardPlanned,
    ShardScored,
)
from meguri_contracts.topology import INFERENCE_BATCHES
from meguri_inference import parts
from meguri_inference.app import build
from tests.conftest import until
from tests.inference.batches import Batching, path, table
from tests.services import running


def files(folder: str) -> list[str]:
    return sorted(file.name for file in path(folder).iterdir())


# --- predicting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["iris", "flowers", "forest", "ridge"])
async def test_a_batch_says_what_single_requests_are_answered(batching, request, which):
    fitted = request.getfixturevalue(which)
    await batching.champion(fitted)
    rows = table(fitted, 250)
    path = batching.input("rows.parquet")
    pq.write_table(rows, path)
    async with batching.replica() as http:
        folder = await batching.request(path, shard_rows=100)
        done = await batching.completed()
        x = np.stack([rows.column(f).to_numpy() for f in fitted.deployed.signature.features], axis=1)
        answer = (await http.post(f"/v2/models/{batching.model}/infer", json=fitted.body(x))).json()

    found = batching.predictions(folder)
    assert (done.rows, done.shards, done.version, done.run) == (250, 3, 1, "run-1")
    assert found.column("row").to_pylist() == list(range(250))
    assert found.column("customer").to_pylist() == rows.column("customer").to_pylist()
    assert set(found.column("model_version").to_pylist()) == {1}
    for output in answer["outputs"]:
        said = np.array(output["data"]).reshape(250, -1)
        kept = np.array(found.column(output["name"]).to_pylist()).reshape(250, -1)
        if said.dtype.kind in "fi":
            np.testing.assert_allclose(kept, said, rtol=1e-6 if which == "forest" else 1e-12)
        else:
            assert kept.tolist() == said.tolist()


async def test_it_asks_over_http_and_the_same_key_asks_for_the_same_batch(batching, iris):
    await batching.champion(iris)
    path = batching.rows(iris, 10)
    body = {"input": path.as_uri(), "output": (batching.folder / "batches/x").as_uri(), "shard_rows": 5}
    async with batching.replica() as http:
        answers = [
            await http.post(
                f"/models/{batching.model}/batches",
                json=body,
                headers={"Idempotency-Key": "nightly", "Meguri-Actor": "ada"},
            )
            for _ in range(2)
        ]
        done = await batching.completed("nightly")

        other = await http.post(
            f"/models/{batching.model}/batches", json=body | {"version": 1}, headers={"Idempotency-Key": "nightly"}
        )

    assert (other.status_code, "use another key" in other.text) == (409, True)
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["batch"] == "nightly"
    (requested,) = await batching.wire.said(BatchRequested, batching.model)
    assert (requested.actor, done.rows) == ("ada", 10)


async def test_the_digest_is_the_same_whatever_the_folder_and_follows_from_the_files(batching, iris):
    await batching.champion(iris)
    rows = batching.rows(iris, 2500)
    async with batching.replica():
        folder = await batching.request(rows, "one")
        first = await batching.completed("one")
        await batching.request(rows, "two")
        second = await batching.completed("two")

    digests = "\n".join(parts.sha256(path(folder, file)) for file in files(folder) if file.startswith("part-"))
    assert first.digest == second.digest == hashlib.sha256(digests.encode()).hexdigest()
    assert len(await batching.wire.said(ShardScored, batching.model)) == 6


async def test_a_version_that_is_in_no_plan_is_found_in_the_log(batching, iris, flowers):
    await batching.champion(flowers, 1)
    await batching.register(iris, 7)
    async with batching.replica():
        folder = await batching.request(batching.rows(iris, 10), version=7)
        done = await batching.completed()

    assert (done.version, done.run) == (7, "run-7")
    assert batching.predictions(folder).schema.field("label").type == pa.int64()


async def test_the_champion_of_the_moment_of_the_request_predicts_however_late(batching, iris, flowers):
    await batching.champion(flowers, 1)
    await batching.request(batching.rows(iris, 10))
    await batching.champion(iris, 2)
    async with batching.replica():
        assert (await batching.completed()).version == 1


async def test_no_rows_are_a_batch_too(batching, ridge):
    await batching.champion(ridge)
    async with batching.replica():
        folder = await batching.request(batching.rows(ridge, 0))
        done = await batching.completed()

    assert (done.rows, done.shards) == (0, 1)
    assert "prediction" in batching.predictions(folder).column_names


# --- what cannot be done ----------------------------------------------------------------------------------------------


async def test_a_column_that_is_missing_or_of_another_type_fails_the_batch_and_is_named(batching, iris):
    await batching.champion(iris)
    whole = table(iris, 20)
    without, text = batching.input("without.parquet"), batching.input("text.parquet")
    pq.write_table(whole.drop_columns(["petal_width"]), without)
    at = whole.column_names.index("petal_width")
    pq.write_table(whole.set_column(at, "petal_width", pa.array(["wide"] * 20)), text)
    hole = batching.rows(iris, 20, "hole.csv")
    hole.write_text("sepal_length,sepal_width,petal_length,petal_width\n1,2,3,4\n1,2,,4\n")
    async with batching.replica():
        for batch, path in (("a", without), ("b", text), ("c", hole)):
            await batching.request(path, batch)
        reasons = [(await batching.failed(batch)).reason for batch in "abc"]

    assert reasons[0].startswith("column 'petal_width' is missing in the input; it has customer, sepal_length")
    assert reasons[1] == "column 'petal_width' is string in the input, the model takes FP64"
    assert reasons[2] == "row 1: column 'petal_length' has no value"
    assert await batching.wire.said(ShardPlanned, batching.model) == []


async def test_a_batch_fails_for_unknown_versions_models_files_and_places(batching, iris):
    await batching.champion(iris)
    path = batching.rows(iris, 10)
    outside = batching.folder / "secret.parquet"
    outside.write_bytes(path.read_bytes())
    async with batching.replica() as http:
        await batching.request(path, "a", version=9)
        await batching.request(batching.folder / "incoming/none.parquet", "b")
        await batching.request(outside, "c")
        await batching.request(path, "d", output="../d")
        reasons = [(await batching.failed(batch)).reason for batch in "abcd"]
        body = {"input": outside.as_uri(), "output": (batching.folder / "batches/x").as_uri()}
        refused = await http.post(f"/models/{batching.model}/batches", json=body)

    assert reasons[0] == f"model {batching.model!r} has no version 9 in the log"
    assert "there is nothing at" in reasons[1]
    assert all("is not under an allowed root" in reason for reason in reasons[2:])
    assert refused.status_code == 422


async def test_a_folder_belongs_to_one_batch(batching, iris):
    await batching.champion(iris)
    path = batching.rows(iris, 10)
    async with batching.replica():
        await batching.request(path, "a", output="same")
        done = await batching.completed("a")
        await batching.request(path, "b", output="same")
        assert "holds the predictions of another batch" in (await batching.failed("b")).reason
    assert done.rows == 10


async def test_an_input_that_changes_between_shards_fails_the_batch_once(batching, iris, monkeypatch):
    await batching.champion(iris)
    path = batching.rows(iris, 3000)
    write = parts.write

    def then_another_input(*args: Any) -> Any:
        yield from write(*args)
        batching.rows(iris, 3000, more=pa.array(range(3000)))

    monkeypatch.setattr(parts, "write", then_another_input)
    async with batching.replica():
        await batching.request(path)
        reason = (await batching.failed()).reason
        await until(lambda: nothing_to_do(batching))

    assert "has changed since the batch began" in reason
    assert await batching.wire.said(BatchCompleted, batching.model) == []
    assert len(await batching.wire.said(BatchFailed, batching.model)) == 1


async def test_an_input_that_is_cut_while_it_is_read_is_said_to_have_changed(batching, iris, monkeypatch):
    await batching.champion(iris)
    path = batching.rows(iris, 3000)
    planned = parts.claim

    def cut(shards: Any) -> bytes:
        path.write_bytes(path.read_bytes()[:100])
        return planned(shards)

    monkeypatch.setattr(parts, "claim", cut)
    async with batching.replica():
        await batching.request(path)
        assert "has changed since the batch began" in (await batching.failed()).reason


async def test_a_place_that_takes_nothing_for_a_while_is_tried_again(batching, iris, monkeypatch):
    monkeypatch.setattr(bus, "RETRY_DELAYS", (0.05,))
    before = await batching.wire.parked(INFERENCE_BATCHES.name)
    await batching.champion(iris)
    (batching.folder / "batches").write_text("in the way")
    async with batching.replica():
        await batching.request(batching.rows(iris, 10))
        await until(lambda: delivered_again(batching))
        (batching.folder / "batches").unlink()
        assert (await batching.completed()).rows == 10
    assert await batching.wire.parked(INFERENCE_BATCHES.name) == before


# --- replicas that come and go ----------------------------------------------------------------------------------------


async def test_what_a_stopped_replica_left_is_done_by_another_and_the_digest_is_that_of_an_undisturbed_run(
    batching, iris, monkeypatch
):
    monkeypatch.setattr(parts, "PIECE_ROWS", 100)
    monkeypatch.setattr("meguri_inference.pieces.PIECE_ROWS", 100)
    await batching.champion(iris)
    path = batching.rows(iris, 3000)
    async with batching.replica("undisturbed"):
        await batching.request(path, "whole")
        expected = await batching.completed("whole")

    reached, go_on = threading.Event(), threading.Event()
    predicted = parts.predicted

    def stops_in_the_second_shard(model: Any, rows: pa.Table, first: int) -> pa.Table:
        if first == 1500:
            reached.set()
            go_on.wait()
        return predicted(model, rows, first)

    monkeypatch.setattr(parts, "predicted", stops_in_the_second_shard)
    async with batching.replica("stopped"):
        folder = await batching.request(path, "shaken")
        await until(reached.is_set, "the middle of the second shard")
    # It was cancelled in the middle: half a file is there, and nobody can see it.
    assert [file for file in files(folder) if not file.startswith((".", "_"))] == ["part-00000.parquet"]
    assert [file for file in files(folder) if file.startswith(".part-00001")]
    monkeypatch.setattr(parts, "predicted", predicted)
    go_on.set()
    async with batching.replica("second"):
        done = await batching.completed("shaken")

    assert (done.digest, done.rows) == (expected.digest, 3000)
    scored = [one for one in await batching.wire.said(ShardScored, batching.model) if one.batch == "shaken"]
    assert sorted((one.shard, one.replica) for one in scored) == [(0, "stopped"), (1, "second"), (2, "second")]
    # What was begun and never became a file is gone.
    assert not [file for file in files(folder) if file.startswith(".")]


async def test_two_replicas_share_the_shards_and_one_completion_is_said(batching, iris):
    await batching.champion(iris)
    path = batching.rows(iris, 5000)
    async with batching.replica("a"), batching.replica("b"):
        await batching.request(path, shard_rows=100)
        done = await batching.completed()
        await until(lambda: nothing_to_do(batching))

    assert (done.shards, done.rows) == (50, 5000)
    assert len(await batching.wire.said(BatchCompleted, batching.model)) == 1
    assert [one.shard for one in await batching.wire.said(ShardPlanned, batching.model)] == list(range(50))


async def test_what_is_delivered_again_after_the_end_changes_nothing(batching, iris):
    await batching.champion(iris)
    async with batching.replica():
        await batching.request(batching.rows(iris, 2000))
        await batching.completed()
        (requested,) = await batching.wire.heard(BatchRequested, batching.model)
        (shard, _) = await batching.wire.heard(ShardPlanned, batching.model)
        before = await said_of_batches(batching)
        service = build(batching.settings("again"))
        async with running(service):
            (hearing,) = service._hearings
            for message in (requested, shard):
                await hearing.handler(message.event)(message.event, message)

    assert await said_of_batches(batching) == before


async def test_a_batch_is_one_journey(batching, iris):
    await batching.champion(iris)
    async with batching.replica():
        await batching.request(batching.rows(iris, 2000))
        await batching.completed()

    (requested,) = await batching.wire.heard(BatchRequested, batching.model)
    followed = [
        message
        for kind in (ShardPlanned, ShardScored, BatchCompleted)
        for message in await batching.wire.heard(kind, batching.model)
    ]
    assert {message.journey for message in followed} == {requested.journey}
    assert {message.hops for message in followed} == {1, 2}


async def said_of_batches(batching: Batching) -> list[int]:
    kinds = (BatchRequested, ShardPlanned, ShardScored, BatchCompleted, BatchFailed)
    return [message.sequence for kind in kinds for message in await batching.wire.heard(kind, batching.model)]


async def nothing_to_do(batching: Batching) -> bool:
    info = await batching.wire.js.consumer_info("MEGURI", INFERENCE_BATCHES.name)
    return not info.num_pending and not info.num_ack_pending


async def delivered_again(batching: Batching) -> bool:
    info = await batching.wire.js.consumer_info("MEGURI", INFERENCE_BATCHES.name)
    return bool(info.num_redelivered)


def test_a_manifest_reads_what_it_writes():
    manifest = parts.Manifest(shard=3, rows=7, file="part-00003.parquet", digest="a" * 64)

    assert parts.Manifest.read(manifest.write()) == manifest
    assert json.loads(manifest.write())["shard"] == 3

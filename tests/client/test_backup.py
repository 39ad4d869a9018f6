"""A backup of a running system, restored into an empty one, is the same system."""

import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from meguri import archive, backup, cli, log_copy, restoring_backup
from meguri.archive import Damaged, NoBackup, NotEmpty
from meguri.client import Unreachable
from meguri.provisioning import BrokerAway, provision
from meguri_contracts.topology import DEAD, INGEST_ARRIVALS, LOG, PREDICTIONS
from tests.client.system import System, system
from tests.conftest import Broker
from tests.services import name, wire


@pytest.fixture
def other_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that holds nothing, not even streams."""
    folder = tmp_path / "other-nats"
    folder.mkdir()
    broker = Broker(folder)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
async def running_system(broker: Broker, tmp_path: Path, monkeypatch) -> AsyncIterator[System]:
    async with system(broker, tmp_path / "var", monkeypatch) as running:
        yield running


async def back_up(folder: Path) -> dict:
    return await asyncio.to_thread(asyncio.run, backup.backup(folder, say=lambda _: None))


async def restore(folder: Path) -> dict:
    return await asyncio.to_thread(asyncio.run, restoring_backup.restore(folder, say=lambda _: None))


async def verify(folder: Path) -> dict[str, tuple[str, ...]]:
    return {one.service: one.differ for one in await asyncio.to_thread(restoring_backup.verify, folder)}


@asynccontextmanager
async def arriving(system: System, dataset: str) -> AsyncIterator[list[str]]:
    """Rows keep arriving while the block lasts; yields the ids that were taken so far."""
    taken: list[str] = []

    async def send() -> None:
        for number in count():
            await system.arrive(dataset, f"{dataset}-busy-{number}", number % 100)
            taken.append(f"{dataset}-busy-{number}")

    sending = asyncio.create_task(send())
    try:
        yield taken
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending


def pointed_at(broker: Broker, var: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGURI_NATS_URL", broker.url)
    monkeypatch.setenv("MEGURI_VAR", str(var))


async def fill_streams(system: System) -> None:
    """Predictions whose beginning is gone, and dead letters with one deleted from the middle."""
    js = system.wire.js
    for number in range(1, 7):
        await js.publish("meguri.predictions.nobody", b"no Arrow %d" % number, stream=PREDICTIONS)
    await js.purge_stream(PREDICTIONS, seq=4)
    await system.quiet()
    for number in range(3):
        await js.publish(f"meguri.dead.test.{number}", b"letter", stream=DEAD)
    last = (await js.stream_info(DEAD)).state.last_seq
    await js.delete_msg(DEAD, last - 1)


async def held(broker: Broker, stream: str) -> list[tuple[int, str, bytes]]:
    async with wire(broker) as beside:
        return [(message.seq, message.subject, message.data) for message in await beside.stored(stream, ">")]


async def test_a_system_goes_on_elsewhere_from_a_backup_that_was_made_while_it_worked(
    broker, other_broker, tmp_path, monkeypatch
):
    kept, dataset = tmp_path / "backup", name("d")
    async with system(broker, tmp_path / "one", monkeypatch) as one:
        await one.apply(dataset)
        for number in range(4):
            assert (await one.arrive(dataset, f"{dataset}-{number}", number, number + 1))["status"] == "committed"
        await fill_streams(one)
        async with arriving(one, dataset) as taken:
            manifest = await back_up(kept)
        accepted_before = [f"{dataset}-{number}" for number in range(4)]
        assert taken, "rows arrived meanwhile"
        assert all(found["position"] <= manifest["sequence"] for found in manifest["services"].values())
        before = {stream: await held(broker, stream) for stream in (LOG, DEAD, PREDICTIONS)}

    pointed_at(other_broker, tmp_path / "two", monkeypatch)
    assert (await restore(kept))["sequence"] == manifest["sequence"]

    after = {stream: await held(other_broker, stream) for stream in (LOG, DEAD, PREDICTIONS)}
    assert after[LOG] == before[LOG][: manifest["sequence"]]
    assert after[PREDICTIONS] == before[PREDICTIONS]
    assert after[DEAD] == before[DEAD]
    async with wire(other_broker) as beside:
        info = await beside.js.consumer_info(LOG, INGEST_ARRIVALS.name)
        assert info.config.opt_start_seq == manifest["consumers"][INGEST_ARRIVALS.name] + 1 > 1
        done = await provision(other_broker.url)
        assert {one.done for one in done} == {"kept"}, "later rollouts find nothing to change"

    async with system(other_broker, tmp_path / "two", monkeypatch) as two:
        assert await verify(kept) == {"ingest": (), "training": (), "registry": (), "monitoring": ()}
        await two.quiet()
        for id_ in accepted_before:
            assert (await two.receipt(id_))["status"] == "committed"
        assert (await two.arrive(dataset, f"{dataset}-new", 99))["status"] == "committed"
        rows = pl.read_delta(str(tmp_path / "two/data" / dataset))
        for id_ in accepted_before:
            assert rows.filter(pl.col("_event") == id_).height == 2, "none is lost, none is there twice"
        in_log = {json.loads(m.data or b"{}").get("dataset") for m in await two.wire.stored(LOG, ">")}
        assert dataset in in_log
        events = rows.group_by("_event").len().filter(pl.col("_event").str.contains("busy"))
        assert set(events["len"]) <= {1}


async def test_the_commands_say_what_they_do_and_a_difference_is_exit_code_1(running_system, tmp_path, monkeypatch):
    dataset, kept = name("d"), tmp_path / "backup"
    await running_system.apply(dataset)
    await running_system.arrive(dataset, f"{dataset}-1", 1)
    await running_system.quiet()

    async def run(*arguments: str):
        return await asyncio.to_thread(CliRunner().invoke, cli.app, [str(one) for one in arguments])

    made = await run("backup", kept)
    assert made.exit_code == 0, made.output
    assert "the log up to" in made.output
    proved = await run("verify", kept)
    assert proved.exit_code == 0, proved.output
    assert proved.output.count("as backed up") == 4
    whole = await run("restore-log")
    assert "the log is whole" in whole.output

    manifest = json.loads((kept / "manifest.json").read_text())
    manifest["services"]["registry"]["tables"]["models"] = "0" * 64
    (kept / "manifest.json").write_text(json.dumps(manifest))
    differs = await run("verify", kept)
    assert differs.exit_code == 1
    assert "registry" in differs.output
    assert "differs: models" in differs.output
    again = await run("backup", kept)
    assert again.exit_code == 1
    assert "is not empty" in again.output
    into_a_full_system = await run("restore", kept)
    assert into_a_full_system.exit_code == 1
    assert "into an empty system; nothing was changed" in into_a_full_system.output


async def test_a_commit_that_the_log_does_not_tell_of_is_left_out(running_system, tmp_path):
    dataset, kept = name("d"), tmp_path / "backup"
    await running_system.apply(dataset)
    await running_system.arrive(dataset, f"{dataset}-1", 1)
    await running_system.quiet()
    table = str(tmp_path / "var/data" / dataset)
    rows = pl.read_delta(table)
    said = rows.height
    rows.write_delta(table, mode="append")

    await back_up(kept)

    assert pl.read_delta(str(kept / "data" / dataset)).height == said
    assert pl.read_delta(table).height == 2 * said
    names = {path.name for path in (kept / "data" / dataset).glob("*.parquet")}
    assert len(names) == 1, "nor is its file there"


async def test_a_damaged_backup_is_refused_before_anything_is_touched(
    running_system, other_broker, tmp_path, monkeypatch
):
    kept = tmp_path / "backup"
    await running_system.apply(name("d"))
    await running_system.quiet()
    await back_up(kept)
    file = backup.stream_file(kept, LOG)
    file.write_bytes(file.read_bytes()[:-1])

    pointed_at(other_broker, tmp_path / "two", monkeypatch)
    with pytest.raises(Damaged, match="nothing was changed"):
        await restore(kept)
    async with wire(other_broker) as beside:
        assert await beside.js.streams_info() == []


@pytest.mark.parametrize("what", ["data", "artifacts", "stream"])
async def test_a_backup_is_restored_into_an_empty_system_only(
    running_system, other_broker, tmp_path, monkeypatch, what
):
    kept = tmp_path / "backup"
    await running_system.apply(name("d"))
    await running_system.quiet()
    await back_up(kept)

    pointed_at(other_broker, tmp_path / "two", monkeypatch)
    if what == "stream":
        await provision(other_broker.url)
        async with wire(other_broker) as beside:
            await beside.publish("data-arrived", "d", b"{}")
    else:
        (tmp_path / "two" / what).mkdir(parents=True)
        (tmp_path / "two" / what / "file").write_text("something")
    with pytest.raises(NotEmpty, match="nothing was changed"):
        await restore(kept)


async def test_a_backup_that_broke_off_is_none(running_system, tmp_path, monkeypatch):
    await running_system.apply(name("d"))
    kept = tmp_path / "backup"
    monkeypatch.setenv("MEGURI_REGISTRY_URL", "http://127.0.0.1:1")

    with pytest.raises(Unreachable, match="registry does not answer"):
        await back_up(kept)
    with pytest.raises(NoBackup, match="was not finished"):
        archive.check(kept)


async def test_a_disk_that_takes_no_more_leaves_no_backup_and_is_named(running_system, tmp_path):
    await running_system.apply(name("d"))
    kept = tmp_path / "kept"

    def command() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "meguri", "backup", str(kept)],
            capture_output=True,
            text=True,
            check=False,
            # Python would leave bytecode behind that is as short as the limit.
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
        )

    result = await asyncio.to_thread(command)

    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("meguri: File too large")
    assert not (kept / "manifest.json").exists()


async def test_a_broker_that_goes_away_in_the_middle_leaves_no_backup(running_system, broker, tmp_path, monkeypatch):
    await running_system.apply(name("d"))
    kept = tmp_path / "kept"

    def gone_at_the_cut(line: str) -> None:
        if line.startswith("the cut"):
            monkeypatch.setattr(log_copy, "TIMEOUT", 0.1)
            broker.kill()

    with pytest.raises(BrokerAway):
        await asyncio.to_thread(asyncio.run, backup.backup(kept, say=gone_at_the_cut))
    with pytest.raises(NoBackup):
        archive.check(kept)
    broker.start()

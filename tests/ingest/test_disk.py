"""A full disk below the tables, or a store that has vanished: arrivals wait, and are committed once it is back."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from meguri_chassis import bus
from tests.conftest import Broker, small_disk, until
from tests.ingest.upstream import Ingest, body, headers, ingesting, spec
from tests.services import name


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "RETRY_DELAYS", (0.2,))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB for the tables."""
    with small_disk(tmp_path / "data", "1m") as folder:
        yield folder


@pytest.fixture
async def on_disk(broker: Broker, disk: Path, tmp_path: Path) -> AsyncIterator[Ingest]:
    dataset = name("d")
    async with ingesting(broker, f"sqlite:///{tmp_path}/ingest.db", tmp_path, dataset) as ingest:
        await ingest.wire.apply(spec(dataset))
        yield ingest


async def warned(ingest: Ingest) -> str:
    answer = await ingest.http.get("/health/ready")
    return " ".join(warning for warning in answer.json()["warnings"] if ingest.dataset in warning)


async def statuses(ingest: Ingest, ids: list[str]) -> set[str]:
    return {(await ingest.http.get(f"/receipts/{id_}")).json()["status"] for id_ in ids}


@pytest.mark.parametrize("before", [0, 2], ids=["a-new-table", "a-table"])
async def test_on_a_full_disk_arrivals_wait_and_are_committed_once_there_is_room(on_disk, disk, before):
    ids = [name("e") for _ in range(before + 10)]
    for n, id_ in enumerate(ids[:before]):
        await on_disk.send(body(n), headers(id_))
        await on_disk.receipt(id_)
    fill(disk / "filler")
    for n, id_ in enumerate(ids[before:], start=before):
        # With a bad row, so that the quarantine is written too.
        await on_disk.send(body(n, n, 101), headers(id_))
    await until(lambda: warned(on_disk))
    assert await statuses(on_disk, ids[before:]) == {"waiting"}
    assert "No space left" in await warned(on_disk)
    (disk / "filler").unlink()

    assert {(await on_disk.receipt(id_))["status"] for id_ in ids} == {"committed"}
    twice = [*range(before), *(n for n in range(before, before + 10) for _ in range(2))]
    assert on_disk.stored()["x"].to_list() == [float(n) for n in twice]
    assert sorted(on_disk.quarantined()["_event"].to_list()) == sorted(ids[before:])
    assert await warned(on_disk) == ""


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return


async def test_tables_that_are_gone_are_not_begun_anew(ingest):
    ids = [name("e") for _ in range(3)]
    await ingest.send(body(1), headers(ids[0]))
    await ingest.receipt(ids[0])
    data, away = ingest.folder / "data", ingest.folder / "away"
    data.rename(away)
    for n, id_ in enumerate(ids[1:], start=2):
        await ingest.send(body(n), headers(id_))
    await until(lambda: warned(ingest))

    assert "its files are lost or not mounted; put them back" in await warned(ingest)
    assert await statuses(ingest, ids[1:]) == {"waiting"}
    assert not data.exists()
    away.rename(data)
    assert {(await ingest.receipt(id_))["status"] for id_ in ids} == {"committed"}
    assert ingest.stored()["x"].to_list() == [1.0, 2.0, 3.0]

"""The stream of predictions is lost, or a table of them."""

import shutil

import polars as pl

from meguri_contracts.events import DriftDetected
from meguri_contracts.topology import PREDICTIONS
from meguri_monitoring.predictions import tables
from meguri_monitoring.predictions.recent import Recent
from meguri_monitoring.windows import sweeping
from tests.conftest import until
from tests.monitoring.conftest import WINDOW, message, values


async def test_a_stream_that_was_lost_and_made_anew_is_told_until_it_goes_on_behind_what_was_recorded(monitoring):
    js = monitoring.wire.js
    last = await monitoring.predict(*(message(monitoring.model, values(WINDOW // 4, seed)) for seed in range(8)))
    await monitoring.windows(2)
    config = (await js.stream_info(PREDICTIONS)).config
    await js.delete_stream(PREDICTIONS)
    await js.add_stream(config)

    async def reasons() -> list[str]:
        return list((await monitoring.http.get("/health/ready")).json()["reasons"])

    assert "it was lost; `meguri restore-log`" in (await until(reasons, "a reason"))[0]
    # As `meguri restore-log` does.
    await js.purge_stream(PREDICTIONS, seq=last + 1)
    await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed)) for seed in (1, 2)))
    await monitoring.windows(4)
    assert await reasons() == []
    assert monitoring.kept().height == 4 * WINDOW


async def test_rows_that_are_lost_with_their_table_are_not_waited_for(monitoring, monkeypatch):
    monkeypatch.setattr(sweeping, "EVERY", 0.05)
    monkeypatch.setattr(Recent, "between", lambda *_: None)
    await monitoring.predict(message(monitoring.model, values(WINDOW + 60, 1)))
    await monitoring.windows(1)
    shutil.rmtree(monitoring.folder / "data" / "_predictions" / monitoring.model)
    await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed, 3.0)) for seed in (1, 2, 3)))

    _, fewer, *whole = await monitoring.windows(4)
    assert [one["window"]["rows"] for one in (fewer, *whole)] == [WINDOW] * 3
    assert not fewer["judged"]
    assert all(one["judged"] for one in whole)
    await monitoring.said(DriftDetected)


async def test_a_window_all_of_whose_rows_are_lost_is_passed_over(monitoring, monkeypatch):
    monkeypatch.setattr(sweeping, "EVERY", 0.05)
    monkeypatch.setattr(Recent, "between", lambda *_: None)
    between, begun = tables.between, []

    def lost(uri: str, first: int, last: int) -> pl.DataFrame:
        begun.append(last)
        return between(uri, first, last).filter(pl.col("sequence") > begun[0])

    monkeypatch.setattr(tables, "between", lost)
    await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed)) for seed in (1, 2)))

    assert [one["judged"] for one in await monitoring.windows(2)] == [False, True]

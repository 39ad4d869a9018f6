"""Plug-ins in their own processes: whatever they do there is a failure with a reason, and the next call works."""

import asyncio
import gc
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import polars as pl
import pytest

from meguri_chassis.processes import Home
from meguri_monitoring.evaluators.running import PlugInFailed, PlugIns
from tests.conftest import until
from tests.processes import is_gone, worker

PREDICTIONS = {1: pl.DataFrame({"prediction_id": ["r:0", "r:1"], "x": [1.0, 2.0]})}
MIB = 1024**2
PLUGIN = """
    import ctypes, os, sys
    from datetime import datetime
    from pathlib import Path
    import numpy as np
    import polars as pl

    class Unspeakable(BaseException):
        def __init__(self, one, another):
            self.both = one, another

    def raise_unspeakable():
        raise Unspeakable("a", "b")

    ODD = {
        "loops": lambda: next(zero for zero in iter(int, 1) if zero),
        "crashes": lambda: ctypes.string_at(0),
        "ends itself": lambda: os._exit(3),
        "exits": lambda: sys.exit(3),
        "raises what cannot be sent": raise_unspeakable,
        "takes all memory": lambda: np.ones(400 * 1024**2),
        "gives no table": lambda: 7,
    }

    def evaluate(predictions):
        order = Path(__file__).parent / "order"
        if order.exists() and (given := ODD[order.read_text()]()) is not None:
            return given
        return pl.DataFrame({"key": ["r"], "time": [datetime(2026, 5, 1)], "producer": ["camera-a"]})
"""


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that tells the installed evaluator `odd` what to do."""
    about = tmp_path / "odd-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[meguri.evaluators]\nodd = odd_plugin:evaluate\n")
    (tmp_path / "odd_plugin.py").write_text(textwrap.dedent(PLUGIN))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    return tmp_path / "order"


@pytest.fixture
async def plug_ins(tmp_path: Path) -> AsyncIterator[PlugIns]:
    home = Home("monitoring", "replica-1", tmp_path, "INFO")
    async with PlugIns(home, seconds=10, memory=2048 * MIB).open() as plug_ins:
        yield plug_ins


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("loops", "it took longer than 10 s and was ended .more is MEGURI_MONITORING_EVALUATOR_SECONDS."),
        ("crashes", "its process died: it crashed"),
        ("ends itself", "its process died"),
        ("exits", "SystemExit: 3"),
        ("raises what cannot be sent", r"Unspeakable"),
        ("takes all memory", r"MemoryError.*it may use 2,048 MiB, more is MEGURI_MONITORING_EVALUATOR_MEMORY"),
        ("gives no table", "^evaluator 'odd' returned a int and not a polars.DataFrame"),
    ],
)
async def test_whatever_a_plug_in_does_is_a_failure_with_a_reason_and_then_it_works_again(
    plug_ins, order, does, reason, caplog
):
    order.write_text(does)
    with pytest.raises(PlugInFailed, match=reason):
        await plug_ins.evaluated("odd", PREDICTIONS)

    order.unlink()
    rows = await plug_ins.evaluated("odd", PREDICTIONS)
    assert rows is not None
    assert rows.select("key", "_version").rows() == [("r", 1)]
    gc.collect()
    assert not [one.getMessage() for one in caplog.records if one.name == "asyncio"]


async def test_processes_of_plug_ins_end_with_the_service_and_rows_are_what_they_were(tmp_path, order):
    home = Home("monitoring", "replica-1", tmp_path, "INFO")
    async with PlugIns(home, seconds=60, memory=2048 * MIB).open() as plug_ins:
        rows = await plug_ins.evaluated("odd", PREDICTIONS)
        assert rows is not None
        assert (await plug_ins.written("odd", rows)).equals(rows)
        process = worker()

    await until(lambda: is_gone(process), "the end of the process")


async def test_the_process_of_a_plug_in_without_work_ends_and_the_next_work_has_another_one(tmp_path, order):
    home = Home("monitoring", "replica-1", tmp_path, "INFO")
    async with PlugIns(home, seconds=60, memory=2048 * MIB, idle=0.1).open() as plug_ins:
        for _ in range(2):
            rows = await plug_ins.evaluated("odd", PREDICTIONS)
            assert rows is not None
            process = worker()
            await until(lambda process=process: not process.is_running(), "the end of the process, which is buried")


async def test_no_process_of_a_plug_in_ends_in_its_work_however_short_it_may_be_without(tmp_path, order):
    home = Home("monitoring", "replica-1", tmp_path, "INFO")
    async with PlugIns(home, seconds=60, memory=2048 * MIB, idle=0).open() as plug_ins:
        all_ = await asyncio.gather(*(plug_ins.evaluated("odd", PREDICTIONS) for _ in range(5)))

    assert [rows is not None and rows.height for rows in all_] == [1] * 5


async def test_an_evaluator_that_is_not_installed_names_those_that_are(plug_ins, order):
    with pytest.raises(PlugInFailed, match=r"no evaluator .even. is installed; installed are: .*odd"):
        await plug_ins.evaluated("even", PREDICTIONS)

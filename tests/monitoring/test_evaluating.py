"""Evaluators: each prediction evaluated once, with its whole request, whatever happens to plug-ins and replicas."""

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from meguri_chassis.artifacts import Artifacts
from meguri_contracts.events import AnomalyDetected, EpisodeResolved, Event, MeasuresRefilled
from meguri_contracts.spec import Watch
from meguri_monitoring.evaluators import evaluating as evaluating_module
from meguri_monitoring.evaluators import following, measure_tables
from meguri_monitoring.evaluators.evaluation import Evaluated
from meguri_monitoring.evaluators.following import Follower
from meguri_monitoring.evaluators.requests import Part
from meguri_monitoring.evaluators.running import PlugInFailed
from meguri_monitoring.predictions.writing import TableBusy
from tests.conftest import until
from tests.monitoring.conftest import Monitoring, message, values
from tests.monitoring.evaluators import LONG, evaluated, evaluating, replay, request, table, watch
from tests.monitoring.replica import Replica
from tests.monitoring.sizes import PLUGIN
from tests.services import name, wire


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is tried again soon."""
    monkeypatch.setattr(evaluating_module, "EVERY", 0.2)


async def told(monitoring: Monitoring, kind: type[Event]) -> list[Any]:
    """What was said of an evaluator that fails, after as many tries as that takes."""
    return await until(lambda: monitoring.wire.said(kind, monitoring.model), kind.kind(), within=LONG)


async def test_each_request_is_evaluated_once_and_in_the_order_of_the_stream(broker, tmp_path, plugin):
    async with evaluating(broker, tmp_path) as monitoring:
        sent = [request(monitoring, rows) for rows in (2, 1, 12, 3)]
        await monitoring.predict(*(body for _, body in sent))

        assert await evaluated(monitoring, 4) == [id_ for id_, _ in sent]
        assert table(monitoring)["rows"].to_list() == [2, 1, 12, 3]
        assert table(monitoring)["_version"].to_list() == [1] * 4
        state = (await monitoring.http.get(f"/models/{monitoring.model}/evaluators/sizes")).json()
        assert (state["rows"], state["last"][0]["_left_out"]) == (4, 0)


async def test_a_request_whose_rows_come_in_several_messages_is_evaluated_whole(broker, tmp_path, plugin):
    async with evaluating(broker, tmp_path) as monitoring:
        ids = [f"r:{row}" for row in range(30)]
        parts = [message(monitoring.model, values(10, 1), ids=ids[at : at + 10]) for at in (0, 10, 20)]
        after = request(monitoring)
        await monitoring.predict(*parts, after[1])

        assert await evaluated(monitoring, 2) == ["r", after[0]]
        assert table(monitoring)["rows"].to_list() == [30, 2]


async def test_a_request_that_is_not_all_there_is_left_out_and_taken_in_by_a_replay(broker, tmp_path, plugin):
    async with evaluating(broker, tmp_path) as monitoring:
        whole = request(monitoring)
        await monitoring.predict(message(monitoring.model, values(1, 1), ids=["late:1"]), whole[1])
        assert await evaluated(monitoring, 1) == [whole[0]]

        again = request(monitoring)
        await monitoring.predict(message(monitoring.model, values(1, 1), ids=["late:0"]), again[1])
        await evaluated(monitoring, 2)
        refilled = await replay(monitoring)

        assert (refilled["rows"], refilled["written"]) == (3, 1)
        assert sorted(table(monitoring)["key"]) == sorted([whole[0], again[0], "late"])


async def test_a_replica_that_died_between_table_and_position_writes_nothing_twice(broker, tmp_path, plugin):
    async with evaluating(broker, tmp_path) as monitoring:
        first = request(monitoring)
        await monitoring.predict(first[1])
        await evaluated(monitoring, 1)
        await until(lambda: counted(monitoring, 1), "a baseline of one row")
        model = monitoring.model
    (tmp_path / "monitoring.db").rename(tmp_path / "before.db")
    for beside in tmp_path.glob("monitoring.db-*"):
        beside.unlink()
    (tmp_path / "monitoring.db").write_bytes((tmp_path / "before.db").read_bytes())
    async with evaluating(broker, tmp_path, model=model) as monitoring:
        second = request(monitoring)
        await monitoring.predict(second[1])
        await evaluated(monitoring, 2)
        await until(lambda: counted(monitoring, 2), "a baseline of two rows")
    # The database as it was before the second request: as if killed after the table was written.
    for beside in tmp_path.glob("monitoring.db*"):
        beside.unlink()
    (tmp_path / "before.db").rename(tmp_path / "monitoring.db")
    async with evaluating(broker, tmp_path, model=model) as monitoring:
        third = request(monitoring)
        await monitoring.predict(third[1])

        assert await evaluated(monitoring, 3) == [first[0], second[0], third[0]]
        await until(lambda: counted(monitoring, 3), "a baseline of three rows")


async def counted(monitoring: Monitoring, rows: int) -> bool:
    state = (await monitoring.http.get(f"/models/{monitoring.model}/evaluators/sizes")).json()
    return state["baseline_rows"] == rows


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_replica_that_is_killed_again_and_again_evaluates_each_request_once(
    broker, tmp_path, plugin, database_url
):
    chance = random.Random(11)
    replica = Replica(broker, tmp_path, database_url)
    sent: list[str] = []
    async with wire(broker) as beside, httpx.AsyncClient(base_url=replica.url) as http:
        monitoring = Monitoring(http, beside, Artifacts(f"file://{tmp_path}/artifacts"), tmp_path, name("m"))
        with replica.living():
            await until(replica.ready, "readiness")
            await watch(monitoring)
        for _ in range(2):
            with replica.living():
                await until(replica.ready, "readiness")
                requests = [request(monitoring, chance.randint(1, 5)) for _ in range(20)]
                sent += [id_ for id_, _ in requests]
                await monitoring.predict(*(body for _, body in requests))
                # From its first row on it may be killed at any step of the rest.
                await evaluated(monitoring, len(sent) - 39)
        with replica.living():
            await until(replica.ready, "readiness")
            assert await evaluated(monitoring, len(sent)) == sent
            await until(lambda: counted(monitoring, len(sent)), "all rows in the baseline")


async def test_two_replicas_write_each_row_once(broker, tmp_path, plugin, database_url):
    async with (
        evaluating(broker, tmp_path, database_url=database_url) as one,
        evaluating(broker, tmp_path, model=one.model, database_url=database_url),
    ):
        sent = []
        for _ in range(3):
            requests = [request(one, 3) for _ in range(10)]
            sent += [id_ for id_, _ in requests]
            await one.predict(*(body for _, body in requests))
            await evaluated(one, len(sent))

        assert await evaluated(one, 30) == sent
        await until(lambda: counted(one, 30), "all rows in the baseline")


def test_of_two_replicas_that_began_at_the_same_place_the_later_writes_nothing(tmp_path):
    uri = f"{tmp_path}/table"
    about = {"time": [datetime(2026, 5, 1, tzinfo=UTC)], "producer": ["camera-a"]}
    one, more = (pl.DataFrame({"key": [key]} | about) for key in ("a", "b"))
    measure_tables.append(uri, one, after=0, last=50)

    # Whoever came further than the other, its rows may be among those that are there.
    with pytest.raises(TableBusy):
        measure_tables.append(uri, pl.concat([one, more]), after=0, last=80)
    measure_tables.append(uri, more, after=50, last=80)

    assert measure_tables.kept_up_to(uri) == 80
    assert sorted(pl.read_delta(uri)["key"]) == ["a", "b"]


def install_other(plugin: Path) -> None:
    """Install an evaluator `other`, which does what `sizes` does as long as that works."""
    about = plugin / "other-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[meguri.evaluators]\nother = other_plugin:evaluate\n")
    (plugin / "other_plugin.py").write_text(PLUGIN.replace('"broken"', '"never"').replace('"stuck"', '"never"'))


def test_rows_that_were_made_in_lots_are_written_in_their_order(tmp_path):
    about = {"time": [datetime(2026, 5, 1, tzinfo=UTC)], "producer": ["camera-a"]}
    lots = [pl.DataFrame({"key": [str(n)]} | about) for n in range(20)]

    measure_tables.append(f"{tmp_path}/table", pl.concat(lots, rechunk=False), after=0, last=50)

    assert pl.read_delta(f"{tmp_path}/table")["key"].to_list() == [str(n) for n in range(20)]


@pytest.mark.usefixtures("impatient")
async def test_an_evaluator_that_raises_is_tried_again_and_stops_no_other(broker, tmp_path, plugin, capsys):
    install_other(plugin)
    (plugin / "broken").touch()
    async with evaluating(broker, tmp_path, evaluators=("sizes", "other")) as monitoring:
        id_, body = request(monitoring)
        await monitoring.predict(body)

        warning = await until(lambda: warned(monitoring, "sizes"), "a warning", within=LONG)
        assert "nothing to divide by" in warning
        assert "Traceback" in (printed := capsys.readouterr().err)
        assert "ZeroDivisionError" in printed
        await until(lambda: table(monitoring, "other").height == 1, "the other's row", within=LONG)
        (plugin / "broken").unlink()
        assert await evaluated(monitoring, 1) == [id_]
        await until(lambda: not_warned(monitoring), "the warning gone")


@pytest.mark.usefixtures("impatient")
@pytest.mark.timeout(300)
async def test_an_evaluator_that_never_comes_back_stops_no_other_and_goes_on_once_it_is_put_right(
    broker, tmp_path, plugin, monkeypatch
):
    monkeypatch.setenv("MEGURI_MONITORING_EVALUATOR_SECONDS", "5")
    install_other(plugin)
    (plugin / "stuck").touch()
    async with evaluating(broker, tmp_path, evaluators=("sizes", "other")) as monitoring:
        id_, body = request(monitoring)
        await monitoring.predict(body)

        await until(lambda: table(monitoring, "other").height == 1, "the other's row", within=LONG)
        assert "took longer than 5 s" in await until(lambda: warned(monitoring, "sizes"), "a warning", within=LONG)
        (opened,) = await told(monitoring, AnomalyDetected)
        assert (opened.about, opened.subject, opened.value, opened.action) == ("evaluator", "sizes", 0, "notify")
        assert "sizes waits until it is put right, and then goes on where it is: it took longer than 5 s" in opened.text
        (plugin / "stuck").unlink()
        assert await evaluated(monitoring, 1) == [id_]
        (ended,) = await told(monitoring, EpisodeResolved)
        assert ended.episode == opened.episode
        await until(lambda: not_warned(monitoring), "the warning gone")


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("impatient")
async def test_a_request_that_crashes_an_evaluator_is_set_aside_with_the_reason_and_a_replay_takes_it_in(
    broker, tmp_path, plugin
):
    (plugin / "odd").touch()
    async with evaluating(broker, tmp_path) as monitoring:
        (first, one), (bad, two), (last, three) = (request(monitoring, size=size) for size in (1, 13, 2))
        await monitoring.predict(one, two, three)

        (opened,) = await told(monitoring, AnomalyDetected)
        assert table(monitoring)["key"].to_list() == [first, last]
        assert (opened.about, opened.value, opened.samples) == ("evaluator", 1, (bad,))
        assert f"{bad}: its process died" in opened.text
        assert f"`meguri evaluate {monitoring.model} sizes`" in opened.text
        await until(lambda: not_warned(monitoring), "the warning gone")

        too_early = await replay(monitoring)
        (plugin / "odd").unlink()
        refilled = await replay(monitoring)

        assert (too_early["rows"], too_early["written"]) == (2, 0)
        assert (refilled["rows"], refilled["written"]) == (3, 1)
        (ended,) = await told(monitoring, EpisodeResolved)
        assert ended.episode == opened.episode


@pytest.mark.usefixtures("impatient")
async def test_an_evaluator_does_not_work_again_because_what_it_did_before_can_be_done_again(broker, tmp_path, plugin):
    async with evaluating(broker, tmp_path) as monitoring:
        (first, one), (_, bad) = request(monitoring), request(monitoring, size=13)
        await monitoring.predict(one)
        assert await evaluated(monitoring, 1) == [first]
        (plugin / "odd").touch()
        await monitoring.predict(bad)
        (opened,) = await told(monitoring, AnomalyDetected)
        assert opened.value == 0

        await replay(monitoring)
        assert await monitoring.wire.said(EpisodeResolved, monitoring.model) == []

        (plugin / "odd").unlink()
        (ended,) = await told(monitoring, EpisodeResolved)
        assert ended.episode == opened.episode


async def test_what_is_set_aside_is_told_although_what_follows_fails(monkeypatch):
    class Evaluation:
        def __init__(self, *_: Any) -> None: ...

        async def of(self, part: Part, put: Any, *, sifting: bool) -> Evaluated:
            if part.last == 20:
                raise PlugInFailed("it cannot do that")
            return Evaluated(rows=3, new=3, failed={"r7": "it is odd"})

    parts = iter([(0, Part(1, 10, {}, 0)), (10, Part(11, 20, {}, 0))])
    monkeypatch.setattr(following, "Evaluation", Evaluation)
    monkeypatch.setattr(following.Follower, "_next", lambda *_: next(parts))
    monkeypatch.setattr(following.measure_windows, "count", lambda *_: None)
    said: list[tuple[int, dict[str, str]]] = []

    async def tell(upto: int, failed: Any) -> None:
        said.append((upto, dict(failed)))

    follower = Follower(None, None, "file:///nowhere")  # type: ignore[arg-type]
    with pytest.raises(PlugInFailed, match="it cannot do that"):
        await follower.follow("m", Watch(evaluator="sizes", numbers=["size"]), 20, 3, sifting=True, tell=tell)
    assert said == [(10, {"r7": "it is odd"})]


async def test_an_unknown_evaluator_is_a_warning_that_names_those_that_are_installed(broker, tmp_path, plugin):
    async with evaluating(broker, tmp_path, evaluators=("seizes", "sizes")) as monitoring:
        id_, body = request(monitoring)
        await monitoring.predict(body)

        warning = await until(lambda: warned(monitoring, "seizes"), "a warning", within=LONG)
        assert "no evaluator 'seizes' is installed; installed are: " in warning
        assert "sizes" in warning.partition("installed are: ")[2]
        assert await evaluated(monitoring, 1) == [id_]


async def warned(monitoring: Monitoring, of: str) -> str | None:
    warnings = (await monitoring.http.get("/health/ready")).json()["warnings"]
    return next((one for one in warnings if f"evaluator {of} " in one), None)


async def not_warned(monitoring: Monitoring) -> bool:
    return not (await monitoring.http.get("/health/ready")).json()["warnings"]


async def test_rows_that_a_writer_leaves_out_are_logged_and_a_replay_adds_them_once(broker, tmp_path, plugin, capsys):
    async with evaluating(broker, tmp_path) as monitoring:
        sent = [request(monitoring, size=size) for size in (0, 1, 2, 3)]
        (plugin / "at_most").write_text("1")
        await monitoring.predict(*(body for _, body in sent))
        assert await evaluated(monitoring, 2) == [id_ for id_, _ in sent[:2]]
        (error,) = [one for one in printed(capsys) if one["levelname"] == "ERROR"]
        assert "4 rows in, 2 rows written" in error["message"]
        assert [(left, trace) for left, trace in table(monitoring)["_left_out", "_trace"].unique().rows()] == [
            (2, error["trace_id"])
        ]

        too_early = await replay(monitoring)
        (plugin / "at_most").unlink()
        first, second = await replay(monitoring), await replay(monitoring)

        assert (too_early["left_out"], first["left_out"], second["left_out"]) == (2, 0, 0)
        assert (too_early["written"], first["written"], second["written"]) == (0, 2, 0)
        assert {one["rows"] for one in (too_early, first, second)} == {4}
        assert sorted(table(monitoring)["key"]) == sorted(id_ for id_, _ in sent)
        said = await monitoring.said(MeasuresRefilled, 3)
        assert [(one.written, one.actor) for one in said] == [(0, "ada"), (2, "ada"), (0, "ada")]


async def test_numbers_that_change_are_an_episode_that_leads_to_where_rows_were_left_out(broker, tmp_path, plugin):
    async with evaluating(broker, tmp_path) as monitoring:
        await monitoring.predict(*(request(monitoring, 1, size=number % 4)[1] for number in range(140)))
        await evaluated(monitoring, 140)
        (plugin / "at_most").write_text("1")
        await monitoring.predict(*(request(monitoring, 1, size=number % 4)[1] for number in range(80)))

        (opened,) = await monitoring.said(AnomalyDetected)

        assert (opened.about, opened.subject, opened.version) == ("measure", "sizes.size", 1)
        kept = table(monitoring)
        assert set(kept.filter(pl.col("_trace") == opened.traces[0])["_left_out"]) == {kept["_left_out"].max()}
        assert kept["_left_out"].max() > 0
        episode = await until(lambda: with_evidence(monitoring, opened.episode), "evidence of two windows")
        assert [[one["moved"] for one in window["findings"]] for window in episode["evidence"]] == [[True], [True]]
        (compared,) = episode["evidence"][0]["evidence"]["subjects"]
        assert compared["bins"] == ["0", "1", "2", "3", "missing"]
        assert (compared["reference"], compared["current"]) == ([25, 25, 25, 25, 0], [10, 10, 0, 0, 0])


async def with_evidence(monitoring: Monitoring, episode: str) -> dict[str, Any] | None:
    found = (await monitoring.http.get(f"/episodes/{episode}")).json()
    return found if len(found.get("evidence", ())) == 2 else None


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]

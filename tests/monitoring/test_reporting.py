from datetime import UTC, datetime, timedelta

import pytest

from meguri_chassis.store import Database
from meguri_contracts.events import DriftDetected, EpisodeResolved, Label, LabelsArrived, Window
from meguri_monitoring.app import MIGRATIONS
from meguri_monitoring.evaluators import store as measure_store
from meguri_monitoring.verdicts.judging import Finding, Judged
from tests.conftest import until
from tests.monitoring.conftest import message, values
from tests.monitoring.episodes_of import KINDS, opening


async def drifted(monitoring) -> DriftDetected:
    """Have camera-b move x, and version 2 take over afterwards."""
    now = datetime.now(UTC)
    for seed in range(1, 6):
        moved = 1.5 if seed > 1 else 0.0
        time = now - timedelta(days=1) + timedelta(minutes=seed)
        await monitoring.predict(
            message(monitoring.model, values(60, seed), "camera-a", time=time),
            message(monitoring.model, values(40, seed + 100, moved), "camera-b", time=time),
        )
    (event,) = await monitoring.said(DriftDetected)
    await monitoring.roll_out(2, seed=9)
    await monitoring.said(EpisodeResolved)

    async def over() -> bool:
        return (await monitoring.http.get(f"/episodes/{event.episode}")).json()["resolved"] is not None

    await until(over)
    return event


async def test_an_episode_s_report_tells_it_from_beginning_to_end(monitoring):
    event = await drifted(monitoring)

    report = await monitoring.http.get(f"/episodes/{event.episode}/report")
    data = (await monitoring.http.get(f"/episodes/{event.episode}/report?format=json")).json()
    japanese = (await monitoring.http.get(f"/episodes/{event.episode}/report?language=ja")).text

    assert report.headers["content-type"] == "text/html; charset=utf-8"
    assert report.headers["content-security-policy"].startswith("default-src 'none'")
    assert "The values of “x” that" in report.text
    assert "camera-b" in report.text
    assert event.samples
    assert all(id_ in report.text for id_ in event.samples)
    assert (data["status"], data["story"]["champion"]) == ("resolved", 2)
    assert [one["kind"] for one in data["story"]["happened"]] == ["drift-detected", "episode-resolved"]
    assert data["story"]["happened"][-1]["text"] == "It is over: version 2 answers now."
    assert "解消しました。現在はバージョン 2 が稼働しています。" in japanese
    looked = data["story"]["looked"]
    assert [one["moved"] for one in looked[:3]] == [False, True, True]
    assert [one["window"]["first"] for one in looked] == sorted(one["window"]["first"] for one in looked)


async def test_a_report_is_data_for_those_who_accept_only_that(monitoring):
    event = opening(monitoring.model, "e-1")
    await monitoring.http.get("/health/ready", headers={"Meguri-After": str(await monitoring.wire.say(event))})
    path = "/episodes/e-1/report"

    machine = await monitoring.http.get(path, headers={"Accept": "application/json"})
    browser = await monitoring.http.get(path, headers={"Accept": "text/html,application/json;q=0.9"})
    asked = await monitoring.http.get(f"{path}?format=html", headers={"Accept": "application/json"})

    assert machine.json()["headline"] == "change in the incoming data (brightness)"
    assert browser.headers["content-type"] == asked.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize("language", ["en", "ja"])
async def test_every_kind_of_episode_has_a_report(monitoring, language):
    evil = "<script>alert(1)</script>"
    for about in KINDS:
        sequence = await monitoring.wire.say(opening(monitoring.model, f"e-{about}", about, producer=evil))
    for about in KINDS:
        report = await monitoring.http.get(
            f"/episodes/e-{about}/report?language={language}", headers={"Meguri-After": str(sequence)}
        )
        assert report.status_code == 200, report.text
        assert evil not in report.text
        assert "&lt;script&gt;" in report.text


async def test_a_model_s_report_has_its_episodes_and_how_much_it_answered(monitoring):
    event = await drifted(monitoring)
    await monitoring.predict(message(monitoring.model, values(30, 7), time=datetime.now(UTC) - timedelta(days=30)))

    async def kept() -> bool:
        return monitoring.kept().height == 530

    await until(kept)
    data = (await monitoring.http.get(f"/models/{monitoring.model}/report?format=json&days=2")).json()
    page = (await monitoring.http.get(f"/models/{monitoring.model}/report?language=ja")).text

    assert data["headline"] == f"{monitoring.model} had one episode in these 2 days; none is open."
    assert [one["opening"]["episode"] for one in data["days"]["episodes"]] == [event.episode]
    assert data["days"]["versions"] == {"1": 500}
    assert sum(one["value"] for one in data["days"]["volume"]) == 500
    assert [one["kind"] for one in data["days"]["happened"]] == [
        "rollout-changed",
        "drift-detected",
        "rollout-changed",
        "episode-resolved",
    ]
    assert f'href="../../episodes/{event.episode}/report?language=ja"' in page


async def test_a_model_s_report_has_its_quality_over_time(monitoring):
    now = datetime.now(UTC)
    for part, (hours, right) in enumerate(((30, 9), (6, 4))):
        ids = [f"p-{part}-{number}" for number in range(10)]
        time = now - timedelta(hours=hours)
        await monitoring.predict(message(monitoring.model, values(10, part), ids=ids, time=time))
        # The answer is 7 in all of them.
        labels = [Label(prediction_id=id_, label=7 if place < right else 1) for place, id_ in enumerate(ids)]
        await monitoring.wire.say(LabelsArrived(model=monitoring.model, labels=tuple(labels)))

    async def measured() -> list[tuple[float, int]]:
        report = (await monitoring.http.get(f"/models/{monitoring.model}/report?format=json&days=2")).json()
        # At first nothing is known of the model.
        days = report.get("days", {"quality": ()})
        known = [(one["value"], one["rows"]) for one in days["quality"] if one["value"] is not None]
        return known if sum(rows for _, rows in known) == 20 else []

    assert await until(measured) == [(0.9, 10), (0.4, 10)]
    page = (await monitoring.http.get(f"/models/{monitoring.model}/report?days=2")).text
    assert "The share of right answers" in page


async def test_an_episode_of_a_business_number_shows_the_numbers_around_it_and_those_that_it_began_with(
    monitoring, tmp_path
):
    subject, now = "person_counter.persons", datetime.now(UTC)
    database = Database(f"sqlite:///{tmp_path}/monitoring.db", MIGRATIONS)
    with database.write() as session:
        # The one before the last is of an earlier episode.
        for number, score in enumerate((0.01, 0.9, 0.5)):
            finding = Finding("measure", subject, score > 0.1, score, 0.1, "share")
            window = Window(first=number * 50 + 1, last=number * 50 + 50, rows=50)
            ended = (now - timedelta(minutes=20 - number)).isoformat()
            judged = Judged(3, number, window, True, (finding,), ended=ended)
            kept = {"about": "measure", "subject": subject, "score": finding.score, "threshold": 0.1}
            counts = {"bins": ["0", "1", "2"], "reference": [40, 100, 60], "current": [30, 20, 0]}
            producers = {"producers": {"camera-b": {"counts": [30, 20, 0]}}}
            evidence = {"subjects": [kept | counts | producers]}
            measure_store.keep_window(session, monitoring.model, "person_counter", 1, judged, evidence)
    database.close()
    began = opening(monitoring.model, "e-1", "measure", subject=subject, window=window)
    sequence = await monitoring.wire.say(began)

    after = {"Meguri-After": str(sequence)}
    data = (await monitoring.http.get("/episodes/e-1/report?format=json", headers=after)).json()["story"]
    page = (await monitoring.http.get("/episodes/e-1/report")).text

    assert [(one["score"], one["moved"]) for one in data["looked"]] == [(0.01, False), (0.9, True), (0.5, True)]
    (compared,) = data["compared"]
    assert compared["score"] == 0.5
    assert (compared["labels"], compared["current"]) == (["0", "1", "2"], [30, 20, 0])
    assert compared["parts"] == [{"producer": "camera-b", "share": None, "rows": 50}]
    assert "Outputs changed, inputs did not" in page


async def test_what_is_not_there_has_no_report(monitoring):
    assert (await monitoring.http.get("/episodes/nothing/report")).status_code == 404
    assert (await monitoring.http.get("/models/nothing/report")).status_code == 404
    assert (await monitoring.http.get("/models/nothing/report?days=0")).status_code == 422
    assert (await monitoring.http.get("/episodes/nothing/report?language=tlh")).status_code == 422

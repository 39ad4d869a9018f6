import polars as pl

from meguri_contracts.events import DriftDetected, EpisodeResolved
from tests.conftest import until
from tests.monitoring.conftest import TRACE, WINDOW, message, values
from tests.monitoring.episodes_of import opening


async def test_an_episode_is_shown_from_its_beginning_to_its_end(monitoring):
    await monitoring.predict(*(message(monitoring.model, values(WINDOW, seed, moved=3.0)) for seed in (1, 2)))
    (detected,) = await monitoring.said(DriftDetected)

    async def shown() -> dict | None:
        answer = await monitoring.http.get(f"/episodes/{detected.episode}")
        return answer.json() if answer.status_code == 200 else None

    episode = await until(shown)
    assert (episode["feature"], episode["producer"], episode["resolved"]) == ("x", "camera-a", None)
    (listed,) = (await monitoring.http.get("/episodes", params={"open": True})).json()
    assert listed.items() <= episode.items()

    await monitoring.roll_out(2)
    await monitoring.said(EpisodeResolved)

    async def resolved() -> bool:
        return (await monitoring.http.get("/episodes", params={"open": True})).json() == []

    await until(resolved)
    (ended,) = (await monitoring.http.get("/episodes", params={"model": monitoring.model})).json()
    assert (ended["episode"], ended["reason"]) == (detected.episode, "version 2 serves")
    assert ended["resolved"] > ended["opened"]
    another = await monitoring.http.get("/episodes", params={"model": "another"})
    assert (another.status_code, another.json()["error"]) == (
        404,
        "no model 'another'; `meguri models` lists those that are known",
    )


async def test_windows_are_shown_newest_first_with_what_moved(monitoring):
    for seed, moved in ((1, 0.0), (2, 3.0)):
        await monitoring.predict(message(monitoring.model, values(WINDOW, seed, moved)))
    await monitoring.windows(2)

    newest, oldest = (await monitoring.http.get(f"/models/{monitoring.model}/windows")).json()
    (only,) = (await monitoring.http.get(f"/models/{monitoring.model}/windows", params={"limit": 1})).json()
    assert [one["subject"] for one in newest["findings"] if one["moved"]] == ["x"]
    assert [one for one in oldest["findings"] if one["moved"]] == []
    # Between the two questions it may have been concluded from.
    assert only | {"decided": True} == newest | {"decided": True}


async def test_a_prediction_is_found_by_its_id(monitoring):
    await monitoring.predict(message(monitoring.model, values(WINDOW, 1), "camera-b"))
    await monitoring.windows(1)
    id_ = monitoring.kept()["prediction_id"][0]

    found = (await monitoring.http.get(f"/predictions/{id_}", params={"model": monitoring.model})).json()
    assert (found["prediction_id"], found["version"], found["producer"]) == (id_, 1, "camera-b")
    assert (found["trace_id"], found["label"]) == (TRACE, 7)
    row = monitoring.kept().filter(pl.col("prediction_id") == id_)
    assert (found["x"], found["y"]) == row.select("x", "y").row(0)


async def test_what_is_not_there_is_not_found(monitoring):
    episode, prediction = await monitoring.http.get("/episodes/none"), await monitoring.http.get("/predictions/none")

    assert (episode.status_code, episode.json()["error"]) == (
        404,
        "no episode 'none'; `meguri episodes` lists those that there are",
    )
    assert prediction.status_code == 404
    assert "no prediction 'none' is kept" in prediction.json()["error"]
    assert (await monitoring.http.get("/models/none/windows")).json() == []


async def test_an_episode_whose_id_begins_alike_is_offered(monitoring):
    sequence = await monitoring.wire.say(opening(monitoring.model, "cae0d01e-dc6a"))

    found = await monitoring.http.get("/episodes/cae0d01", headers={"Meguri-After": str(sequence)})
    assert found.json()["error"] == "no episode 'cae0d01'; near are: cae0d01e-dc6a"


async def test_a_version_whose_reference_is_too_small_for_a_verdict_is_a_warning_until_the_rule_takes_it(monitoring):
    await monitoring.apply(2, window_rows=1100, min_rows=1001)
    await monitoring.predict(message(monitoring.model, values(1100, 1)))
    (window,) = await monitoring.windows(1)
    why = "the reference has 1000 rows, a verdict needs 1001 (monitor.min_rows)"
    assert (window["judged"], window["why"]) == (False, why)
    assert await monitoring.warnings() == [f"{monitoring.model} version 1 gets no verdicts: {why}"]

    await monitoring.apply(3, window_rows=1100, min_rows=1000)
    await monitoring.predict(message(monitoring.model, values(1100, 2)))
    _, window = await monitoring.windows(2)
    assert (window["judged"], window["why"]) == (True, "")
    assert await monitoring.warnings() == []


async def test_a_version_that_answers_no_more_is_no_warning(monitoring):
    await monitoring.apply(2, window_rows=1100, min_rows=1001)
    await monitoring.predict(message(monitoring.model, values(1100, 1)))
    await until(monitoring.warnings, "the warning")
    await monitoring.roll_out(2)

    async def is_gone() -> bool:
        return not await monitoring.warnings()

    await until(is_gone, "its end")
